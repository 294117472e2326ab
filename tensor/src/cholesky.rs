//! The factor that error feedback needs: the upper Cholesky factor of an inverse, without forming the inverse.
//!
//! Blocked by ourselves over this crate's products in f64, whose order of summation no number of threads changes.

use crate::product::product;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

/// A matrix that Cholesky's method could not factor.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("not positive definite: pivot {pivot:e} at column {column} of {size}")]
pub struct NotPositiveDefinite {
    /// The column at which the factorisation stopped.
    pub column: usize,
    /// What was left on the diagonal there: negative, zero or not finite.
    pub pivot: f64,
    /// Rows and columns of the matrix.
    pub size: usize,
}

/// Columns factored at once.
const BLOCK: usize = 96;

/// The upper triangular U with `h⁻¹ = Uᵀ U`, computed in f64; h is symmetric `[n, n]`, only its upper triangle is read.
///
/// Reversing rows and columns turns h into a matrix whose ordinary factor L, reversed back, is upper triangular:
/// `h = R Rᵀ`. R's inverse is U. One factorisation and one triangular inverse, two thirds of n³ in all, where
/// inverting h and factoring the inverse take twice as much.
///
/// # Errors
/// [`NotPositiveDefinite`] with the column where a pivot was not positive.
///
/// # Panics
/// If h is not square.
pub fn cholesky_of_inverse(h: Array2<f32>) -> Result<Array2<f32>, NotPositiveDefinite> {
    let size = h.nrows();
    assert_eq!(h.ncols(), size, "only square matrices have a Cholesky factor");
    let mut l = Array2::zeros((size, size));
    l.zip_mut_with(&h.slice(s![..;-1, ..;-1]), |l, &h| *l = f64::from(h));
    drop(h);
    factor(l.view_mut()).map_err(|(column, pivot)| NotPositiveDefinite {
        column: size - 1 - column,
        pivot,
        size,
    })?;
    clear_above_diagonal(l.view_mut());
    invert(l.view_mut());
    let mut u = Array2::zeros((size, size));
    for (row, mut out) in u.outer_iter_mut().enumerate() {
        let source = l.slice(s![size - 1 - row, ..size - row]);
        out.slice_mut(s![row..]).iter_mut().zip(source.iter().rev()).for_each(|(u, &l)| *u = l as f32);
    }
    Ok(u)
}

/// Overwrites the lower triangle of a with L, `a = L Lᵀ`, and what is above it with anything; on failure, the column
/// and its pivot.
fn factor(mut a: ArrayViewMut2<'_, f64>) -> Result<(), (usize, f64)> {
    let n = a.nrows();
    for from in (0..n).step_by(BLOCK) {
        let to = n.min(from + BLOCK);
        factor_block(a.slice_mut(s![from..to, from..to]))
            .map_err(|(column, pivot)| (from + column, pivot))?;
        if to == n {
            break;
        }
        let mut corner = a.slice(s![from..to, from..to]).to_owned();
        invert_block(corner.view_mut());
        let unscaled = a.slice(s![to.., from..to]).to_owned();
        product(1.0, unscaled.view(), corner.t(), 0.0, a.slice_mut(s![to.., from..to]));
        let panel = a.slice(s![to.., from..to]).to_owned();
        subtract_square(panel.view(), a.slice_mut(s![to.., to..]));
    }
    Ok(())
}

/// `rest -= panel panelᵀ` on and below the diagonal, in bands of rows.
fn subtract_square(panel: ArrayView2<'_, f64>, mut rest: ArrayViewMut2<'_, f64>) {
    const BAND: usize = 192;
    rest.axis_chunks_iter_mut(Axis(0), BAND).into_par_iter().with_max_len(1).enumerate().for_each(
        |(i, mut band)| {
            let (top, bottom) = (i * BAND, i * BAND + band.nrows());
            let right = panel.slice(s![..bottom, ..]).reversed_axes();
            product(-1.0, panel.slice(s![top..bottom, ..]), right, 1.0, band.slice_mut(s![.., ..bottom]));
        },
    );
}

/// [`factor`] for one small block, by rows; also clears what stood above the diagonal.
fn factor_block(mut a: ArrayViewMut2<'_, f64>) -> Result<(), (usize, f64)> {
    for i in 0..a.nrows() {
        for j in 0..i {
            let dot: f64 = (0..j).map(|k| a[[i, k]] * a[[j, k]]).sum();
            a[[i, j]] = (a[[i, j]] - dot) / a[[j, j]];
            a[[j, i]] = 0.0;
        }
        let pivot = a[[i, i]] - (0..i).map(|k| a[[i, k]] * a[[i, k]]).sum::<f64>();
        if !(pivot > 0.0 && pivot.is_finite()) {
            return Err((i, pivot));
        }
        a[[i, i]] = pivot.sqrt();
    }
    Ok(())
}

fn clear_above_diagonal(mut a: ArrayViewMut2<'_, f64>) {
    for (i, mut row) in a.outer_iter_mut().enumerate() {
        row.slice_mut(s![i + 1..]).fill(0.0);
    }
}

/// Overwrites the lower triangular l, zero above its diagonal, with its inverse, block row by block row from the top.
///
/// Row i of the inverse X is `-L_ii⁻¹ (L_i,<i X_<i)`, and X's rows above i stand where L's stood.
fn invert(mut l: ArrayViewMut2<'_, f64>) {
    const BAND: usize = 2 * BLOCK;
    let n = l.nrows();
    for from in (0..n).step_by(BLOCK) {
        let to = n.min(from + BLOCK);
        let (above, mut below) = l.view_mut().split_at(Axis(0), from);
        let above = above.view();
        let mut here = below.slice_mut(s![..to - from, ..to]);
        invert_block(here.slice_mut(s![.., from..]));
        let corner = here.slice(s![.., from..]).to_owned();
        let row = here.slice(s![.., ..from]).to_owned();
        here.slice_mut(s![.., ..from])
            .axis_chunks_iter_mut(Axis(1), BAND)
            .into_par_iter()
            .with_max_len(1)
            .enumerate()
            .for_each(|(j, out)| {
                let left = j * BAND;
                let columns = above.slice(s![left..from, left..left + out.ncols()]);
                let mut sum = Array2::zeros(out.raw_dim());
                product(1.0, row.slice(s![.., left..]), columns, 0.0, sum.view_mut());
                product(-1.0, corner.view(), sum.view(), 0.0, out);
            });
    }
}

/// [`invert`] for one small block by forward substitution.
fn invert_block(mut l: ArrayViewMut2<'_, f64>) {
    for i in 0..l.nrows() {
        let scale = l[[i, i]].recip();
        for j in 0..i {
            // Row i left of column j is X by now, from column j on still L: what this sum needs.
            let dot: f64 = (j..i).map(|k| l[[i, k]] * l[[k, j]]).sum();
            l[[i, j]] = -dot * scale;
        }
        l[[i, i]] = scale;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::gram_add;
    use crate::testing::{bits, in_pools, random};

    fn damped_gram(tokens: usize, n: usize) -> Array2<f32> {
        let mut h = Array2::eye(n) * (0.01 * tokens as f32);
        gram_add(random((tokens, n), 3).view(), &mut h);
        h
    }

    /// U h Uᵀ must be the identity, for then h⁻¹ = Uᵀ U.
    fn assert_factor(h: &Array2<f32>, u: &Array2<f32>) {
        let (h, u) = (h.mapv(f64::from), u.mapv(f64::from));
        let mut half = Array2::zeros(h.raw_dim());
        product(1.0, u.view(), h.view(), 0.0, half.view_mut());
        let mut identity = Array2::zeros(h.raw_dim());
        product(1.0, half.view(), u.t(), 0.0, identity.view_mut());
        for ((i, j), &x) in identity.indexed_iter() {
            let expected = f64::from(u8::from(i == j));
            assert!((x - expected).abs() < 2e-5, "{x} at ({i}, {j})");
        }
    }

    #[test]
    fn the_factor_squares_to_the_inverse_and_is_upper_triangular() {
        for n in [1, 2, 7, 95, 96, 97, 200, 500] {
            let h = damped_gram(2 * n + 5, n);
            let u = cholesky_of_inverse(h.clone()).unwrap();
            assert_factor(&h, &u);
            assert!(u.indexed_iter().all(|((i, j), &x)| i <= j || x == 0.0));
            assert!(u.diag().iter().all(|&x| x > 0.0));
        }
    }

    #[test]
    fn a_diagonal_matrix_gives_the_inverse_square_roots() {
        let h = Array2::from_diag(&ndarray::arr1(&[4.0f32, 16.0, 0.25]));
        let expected = Array2::from_diag(&ndarray::arr1(&[0.5f32, 0.25, 2.0]));
        assert_eq!(cholesky_of_inverse(h).unwrap(), expected);
    }

    #[test]
    fn only_the_upper_triangle_is_read() {
        let h = damped_gram(500, 330);
        let mut upper = h.clone();
        for ((i, j), x) in upper.indexed_iter_mut() {
            if i > j {
                *x = f32::NAN;
            }
        }
        assert_eq!(bits(&cholesky_of_inverse(h).unwrap()), bits(&cholesky_of_inverse(upper).unwrap()));
    }

    #[test]
    fn an_indefinite_matrix_is_refused_with_its_column() {
        let mut h = Array2::eye(300);
        h[[17, 17]] = -1.0;
        let error = cholesky_of_inverse(h).unwrap_err();
        assert_eq!(error, NotPositiveDefinite { column: 17, pivot: -1.0, size: 300 });
    }

    #[test]
    fn a_matrix_with_nan_or_infinity_is_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut h = Array2::eye(120);
            h[[3, 110]] = bad;
            h[[110, 3]] = bad;
            assert!(cholesky_of_inverse(h).is_err());
        }
    }

    #[test]
    fn threads_never_change_a_bit_of_the_factor() {
        let h = damped_gram(1500, 700);
        in_pools(|| bits(&cholesky_of_inverse(h.clone()).unwrap()));
    }
}
