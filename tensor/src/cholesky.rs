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

/// Columns of the factor that are kept together.
const BAND: usize = 2 * BLOCK;

/// Rows of an [`UpperTriangle`] that are kept together.
const PANEL: usize = 128;

/// An upper triangular matrix, `[size, size]`, in half the memory: of each row only what stands from the diagonal on,
/// give or take what makes the rows of a panel equally long.
#[derive(Debug, Clone, PartialEq)]
pub struct UpperTriangle {
    size: usize,
    panels: Vec<Array2<f32>>, // [rows, size - first row]
}

impl UpperTriangle {
    /// Rows and columns.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Some rows at a time, from the top: the first one's index, and `[rows, size - index]` from its diagonal on. Below
    /// the diagonal stand zeros.
    pub fn panels(&self) -> impl Iterator<Item = (usize, ArrayView2<'_, f32>)> {
        self.panels.iter().enumerate().map(|(i, panel)| (i * PANEL, panel.view()))
    }

    /// Whether every element is a finite number.
    pub fn is_finite(&self) -> bool {
        self.panels.par_iter().all(|panel| panel.iter().all(|x| x.is_finite()))
    }

    /// All of it, zeros included, `[size, size]`.
    pub fn to_array(&self) -> Array2<f32> {
        let mut all = Array2::zeros((self.size, self.size));
        for (first, panel) in self.panels() {
            all.slice_mut(s![first..first + panel.nrows(), first..]).assign(&panel);
        }
        all
    }
}

/// [`cholesky_of_inverse_by_rows`] of a matrix that stands in memory, `[n, n]`, and the whole factor.
///
/// # Errors
/// [`NotPositiveDefinite`] with the column where a pivot was not positive.
///
/// # Panics
/// If h is not square.
pub fn cholesky_of_inverse(h: &Array2<f32>) -> Result<Array2<f32>, NotPositiveDefinite> {
    let size = h.nrows();
    assert_eq!(h.ncols(), size, "only square matrices have a Cholesky factor");
    let row = |row: usize, out: &mut [f32]| {
        out.iter_mut().zip(h.slice(s![row, row..])).for_each(|(to, &h)| *to = h);
    };
    Ok(cholesky_of_inverse_by_rows(size, row)?.to_array())
}

/// The upper triangular U with `h⁻¹ = Uᵀ U`, computed in f64, of a symmetric h `[size, size]` that need not stand in
/// memory: `row(i, out)` is to fill `out` with its row i from the diagonal on.
///
/// Reversing rows and columns turns h into a matrix whose ordinary factor L, reversed back, is upper triangular:
/// `h = R Rᵀ`. R's inverse is U. One factorisation and one triangular inverse, two thirds of n³ in all, where
/// inverting h and factoring the inverse take twice as much.
///
/// At its peak it holds `4 n²` bytes, half a matrix in f64, and gives back half of that.
///
/// # Errors
/// [`NotPositiveDefinite`] with the column where a pivot was not positive.
pub fn cholesky_of_inverse_by_rows(
    size: usize,
    row: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<UpperTriangle, NotPositiveDefinite> {
    let mut l = Lower::reversed(size, row);
    l.factor().map_err(|(column, pivot)| NotPositiveDefinite { column: size - 1 - column, pivot, size })?;
    l.clear_above_diagonal();
    l.invert();
    Ok(l.into_reversed())
}

/// A lower triangular matrix in bands of columns, each from its first diagonal element down: `[size - left, columns]`.
struct Lower {
    size: usize,
    bands: Vec<Array2<f64>>,
}

impl Lower {
    /// The lower triangle of the symmetric matrix that `row` gives the upper one of, rows and columns reversed.
    fn reversed(size: usize, row: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let band = |left: usize| Array2::zeros((size - left, BAND.min(size - left)));
        let mut bands: Vec<_> = (0..size).step_by(BAND).map(band).collect();
        let mut rows = Array2::<f32>::zeros((BLOCK, size));
        for start in (0..size).step_by(BLOCK) {
            let end = size.min(start + BLOCK);
            rows.outer_iter_mut().into_par_iter().zip(start..end).for_each(|(mut out, i)| {
                row(i, &mut out.as_slice_mut().expect("rows lie one after the other")[i..]);
            });
            bands.par_iter_mut().with_max_len(1).enumerate().for_each(|(j, band)| {
                let left = j * BAND;
                for (source, i) in rows.rows().into_iter().zip((0..size - start).rev()) {
                    let Some(at) = i.checked_sub(left) else { break };
                    let right = (i + 1).min(left + band.ncols());
                    let source = source.slice_move(s![size - right..size - left]);
                    let to = band.slice_mut(s![at, ..right - left]);
                    to.into_iter().zip(source.iter().rev()).for_each(|(l, &h)| *l = f64::from(h));
                }
            });
        }
        Self { size, bands }
    }

    /// Overwrites the lower triangle of a with L, `a = L Lᵀ`, and what is above it with anything; on failure, the column
    /// and its pivot.
    fn factor(&mut self) -> Result<(), (usize, f64)> {
        for from in (0..self.size).step_by(BLOCK) {
            let to = self.size.min(from + BLOCK);
            let (index, col, width) = (from / BAND, from % BAND, to - from);
            let (_, rest) = self.bands.split_at_mut(index);
            let [here, later @ ..] = rest else { unreachable!("every column is in a band") };
            let (top, mut below) = here.view_mut().split_at(Axis(0), col + width);
            let mut corner = top.slice_move(s![col.., col..col + width]);
            factor_block(corner.view_mut()).map_err(|(column, pivot)| (from + column, pivot))?;
            if to == self.size {
                break;
            }
            let mut corner = corner.to_owned();
            invert_block(corner.view_mut());
            let mut panel = Array2::zeros((self.size - to, width));
            let mut scaled = below.slice_mut(s![.., col..col + width]);
            product(1.0, scaled.view(), corner.t(), 0.0, panel.view_mut());
            scaled.assign(&panel);
            // What is left of this band, then the later ones, each with its first column.
            let later = later.iter_mut().zip((index + 1)..).map(|(band, i)| (i * BAND, band.view_mut()));
            let rest: Vec<_> =
                [(to, below.slice_move(s![.., col + width..]))].into_iter().chain(later).collect();
            rest.into_par_iter().with_max_len(1).for_each(|(left, c)| {
                let right = left + c.ncols() - to;
                let (rows, columns) =
                    (panel.slice(s![left - to.., ..]), panel.slice(s![left - to..right, ..]));
                product(-1.0, rows, columns.t(), 1.0, c);
            });
        }
        Ok(())
    }

    fn clear_above_diagonal(&mut self) {
        for band in &mut self.bands {
            for (i, mut row) in band.outer_iter_mut().enumerate().take(BAND) {
                row.iter_mut().skip(i + 1).for_each(|x| *x = 0.0);
            }
        }
    }

    /// Overwrites the triangle, zero above its diagonal, with its inverse, block row by block row from the top.
    ///
    /// Row i of the inverse X is `-L_ii⁻¹ (L_i,<i X_<i)`, and X's rows above i stand where L's stood.
    fn invert(&mut self) {
        for from in (0..self.size).step_by(BLOCK) {
            let height = self.size.min(from + BLOCK) - from;
            let (index, col) = (from / BAND, from % BAND);
            let row = self.rows(from, height);
            let mut corner = self.bands[index].slice_mut(s![col..col + height, col..col + height]);
            invert_block(corner.view_mut());
            let corner = corner.to_owned();
            let bands = &mut self.bands[..from.div_ceil(BAND)];
            bands.par_iter_mut().with_max_len(1).enumerate().for_each(|(j, band)| {
                let left = j * BAND;
                let width = band.ncols().min(from - left);
                let (above, mut below) = band.view_mut().split_at(Axis(0), from - left);
                let mut sum = Array2::zeros((height, width));
                product(1.0, row.slice(s![.., left..]), above.slice(s![.., ..width]), 0.0, sum.view_mut());
                product(-1.0, corner.view(), sum.view(), 0.0, below.slice_mut(s![..height, ..width]));
            });
        }
    }

    /// What stands left of the diagonal block in `height` rows from `from` on, `[height, from]`.
    fn rows(&self, from: usize, height: usize) -> Array2<f64> {
        let mut rows = Array2::zeros((height, from));
        for (mut to, band) in rows.axis_chunks_iter_mut(Axis(1), BAND).zip(&self.bands) {
            let width = to.ncols();
            let top = band.nrows() + from - self.size; // the row of this band that is row `from`
            to.assign(&band.slice(s![top..top + height, ..width]));
        }
        rows
    }

    /// The triangle with rows and columns reversed, in f32. Bands go one by one as they are rounded, so that no more
    /// memory is needed than they took.
    fn into_reversed(self) -> UpperTriangle {
        let size = self.size;
        let bands: Vec<Array2<f32>> = self.bands.into_iter().map(|band| band.mapv(|x| x as f32)).collect();
        let starts: Vec<usize> = (0..size).step_by(PANEL).collect();
        let panels = starts.into_par_iter().map(|start| {
            let mut panel = Array2::zeros((PANEL.min(size - start), size - start));
            for (mut out, i) in panel.outer_iter_mut().zip((0..size - start).rev()) {
                for (j, band) in bands.iter().enumerate() {
                    let left = j * BAND;
                    let Some(at) = i.checked_sub(left) else { break };
                    let right = (i + 1).min(left + band.ncols());
                    let to = out.slice_mut(s![size - right - start..size - left - start]);
                    let from = band.slice(s![at, ..right - left]);
                    to.into_iter().zip(from.iter().rev()).for_each(|(u, &l)| *u = l);
                }
            }
            panel
        });
        UpperTriangle { size, panels: panels.collect() }
    }
}

/// [`Lower::factor`] for one small block, by rows; also clears what stood above the diagonal.
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

/// [`Lower::invert`] for one small block by forward substitution.
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
            let u = cholesky_of_inverse(&h).unwrap();
            assert_factor(&h, &u);
            assert!(u.indexed_iter().all(|((i, j), &x)| i <= j || x == 0.0));
            assert!(u.diag().iter().all(|&x| x > 0.0));
        }
    }

    #[test]
    fn a_diagonal_matrix_gives_the_inverse_square_roots() {
        let h = Array2::from_diag(&ndarray::arr1(&[4.0f32, 16.0, 0.25]));
        let expected = Array2::from_diag(&ndarray::arr1(&[0.5f32, 0.25, 2.0]));
        assert_eq!(cholesky_of_inverse(&h).unwrap(), expected);
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
        assert_eq!(bits(&cholesky_of_inverse(&h).unwrap()), bits(&cholesky_of_inverse(&upper).unwrap()));
    }

    #[test]
    fn an_indefinite_matrix_is_refused_with_its_column() {
        let mut h = Array2::eye(300);
        h[[17, 17]] = -1.0;
        let error = cholesky_of_inverse(&h).unwrap_err();
        assert_eq!(error, NotPositiveDefinite { column: 17, pivot: -1.0, size: 300 });
    }

    #[test]
    fn a_matrix_with_nan_or_infinity_is_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut h = Array2::eye(120);
            h[[3, 110]] = bad;
            h[[110, 3]] = bad;
            assert!(cholesky_of_inverse(&h).is_err());
        }
    }

    #[test]
    fn threads_never_change_a_bit_of_the_factor() {
        let h = damped_gram(1500, 700);
        in_pools(|| bits(&cholesky_of_inverse(&h).unwrap()));
    }
}
