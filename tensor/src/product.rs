//! Matrix products over the `gemm` crate, split into output tiles of our own.
//!
//! Legend: c is `[m, n]`, a `[m, k]`, b `[k, n]`.
//!
//! An element of c is a sum over k taken in chunks of [`DEPTH`]: inside a chunk `gemm` adds the terms one after
//! another into one register, and the chunks are added in order. Tiles of c only decide who computes which
//! elements, so neither the tiling nor the number of threads can change a bit.

use gemm::Parallelism;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, LinalgScalar, s};

/// Terms of a sum that `gemm` adds without writing to memory; up to 512 it never splits a sum further.
pub(crate) const DEPTH: usize = 512;

/// Columns of a tile, at least and at most: multiples of every register tile's width (48 with AVX-512).
const TILE_COLS: (usize, usize) = (192, 768);

/// The least rows of a tile where rows are split at all.
const TILE_ROWS: usize = 96;

/// The least multiply-adds that are worth another thread's attention.
const TASK_WORK: usize = 1 << 20;

/// `a @ b`, shapes `[m, k] x [k, n] -> [m, n]`, for any strides.
///
/// # Panics
/// If the inner lengths differ.
pub fn matmul(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut c = Array2::zeros((a.nrows(), b.ncols()));
    product(1.0, a, b, 0.0, c.view_mut());
    c
}

/// `x @ w.T`: activations `[tokens, in_features]` through a weight `[out_features, in_features]` to
/// `[tokens, out_features]`.
///
/// # Panics
/// If the numbers of `in_features` differ.
pub fn linear(x: ArrayView2<'_, f32>, w: ArrayView2<'_, f32>) -> Array2<f32> {
    matmul(x, w.reversed_axes())
}

/// `c = beta * c + alpha * a @ b`, for any strides. With `beta` 0 what c held is not read.
///
/// # Panics
/// If the shapes do not fit.
pub fn general_mat_mul(
    alpha: f32,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    beta: f32,
    c: ArrayViewMut2<'_, f32>,
) {
    product(alpha, a, b, beta, c);
}

/// The two widths this crate multiplies in.
pub(crate) trait Float: LinalgScalar + Send + Sync + PartialEq {}
impl Float for f32 {}
impl Float for f64 {}

/// [`general_mat_mul`] for either width, in parallel over tiles of c.
pub(crate) fn product<T: Float>(
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    beta: T,
    mut c: ArrayViewMut2<'_, T>,
) {
    let (m, k) = a.dim();
    let n = b.ncols();
    assert_eq!(k, b.nrows(), "inner lengths of a {m}x{k} and a {}x{n} matrix", b.nrows());
    assert_eq!(c.dim(), (m, n), "the output of a {m}x{k} by {k}x{n} product");
    let (tile_rows, tile_cols) = tile(m, n, k);
    if tile_rows >= m && tile_cols >= n {
        return product_here(alpha, a, b, beta, c);
    }
    c.axis_chunks_iter_mut(Axis(0), tile_rows).into_par_iter().enumerate().for_each(|(i, mut band)| {
        let a = a.slice(s![i * tile_rows..i * tile_rows + band.nrows(), ..]);
        band.axis_chunks_iter_mut(Axis(1), tile_cols).into_par_iter().enumerate().for_each(|(j, c)| {
            let b = b.slice(s![.., j * tile_cols..j * tile_cols + c.ncols()]);
            product_here(alpha, a, b, beta, c);
        });
    });
}

/// Rows and columns of a tile: as large as leaves a few tiles to every thread.
///
/// A tile packs its own copy of the columns of b it reads, so columns are split first: for a weight, whose columns of b lie
/// across memory, 192 columns of 2048 rows cost nothing against one tile, 192 rows of 1024 columns two fifths of the speed.
fn tile(m: usize, n: usize, k: usize) -> (usize, usize) {
    let threads = rayon::current_num_threads();
    let work = m.saturating_mul(n).saturating_mul(k);
    let tasks = if threads == 1 { 1 } else { (3 * threads).min(work / TASK_WORK).max(1) };
    let cols = n.div_ceil(tasks).next_multiple_of(48).clamp(TILE_COLS.0, TILE_COLS.1);
    let bands = tasks.div_ceil(n.div_ceil(cols).max(1));
    (m.div_ceil(bands).next_multiple_of(48).max(TILE_ROWS), cols)
}

/// [`product`] on the calling thread.
///
/// `gemm` sums in another order where c is a vector or holds at most 256 elements; such a c is widened, so that
/// these elements too come out as they would inside a larger product.
pub(crate) fn product_here<T: Float>(
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    beta: T,
    mut c: ArrayViewMut2<'_, T>,
) {
    let ((m, k), n) = (a.dim(), b.ncols());
    assert!(k == b.nrows() && c.dim() == (m, n), "shapes of a product that fit");
    let (mut wide_m, mut wide_n) = (m.max(2), n.max(2));
    if wide_m * wide_n <= 256 {
        (wide_m, wide_n) = (m.max(17), n.max(17));
    }
    if (wide_m, wide_n) == (m, n) {
        return by_depth(alpha, a, b, beta, c);
    }
    let wide_a = (wide_m > m).then(|| {
        let mut wide = Array2::zeros((wide_m, k));
        wide.slice_mut(s![..m, ..]).assign(&a);
        wide
    });
    let wide_b = (wide_n > n).then(|| {
        let mut wide = Array2::zeros((k, wide_n));
        wide.slice_mut(s![.., ..n]).assign(&b);
        wide
    });
    let mut wide_c = Array2::zeros((wide_m, wide_n));
    wide_c.slice_mut(s![..m, ..n]).assign(&c);
    let a = wide_a.as_ref().map_or(a, |wide| wide.view());
    let b = wide_b.as_ref().map_or(b, |wide| wide.view());
    by_depth(alpha, a, b, beta, wide_c.view_mut());
    c.assign(&wide_c.slice(s![..m, ..n]));
}

/// The product, in chunks of [`DEPTH`] along the summed length.
fn by_depth<T: Float>(
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    beta: T,
    mut c: ArrayViewMut2<'_, T>,
) {
    let k = a.ncols();
    let mut keep = beta;
    for from in (0..k.max(1)).step_by(DEPTH) {
        let to = k.min(from + DEPTH);
        call_gemm(alpha, a.slice(s![.., from..to]), b.slice(s![from..to, ..]), keep, c.view_mut());
        keep = T::one();
    }
}

fn call_gemm<T: Float>(
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    beta: T,
    mut c: ArrayViewMut2<'_, T>,
) {
    let ((m, k), n) = (a.dim(), b.ncols());
    let (&[a_row, a_col], &[b_row, b_col]) = (a.strides(), b.strides()) else {
        unreachable!("matrices have two strides");
    };
    let (c_row, c_col) = (c.strides()[0], c.strides()[1]);
    // SAFETY: the pointers and strides are those of three live views whose shapes `product_here` found to fit;
    // c is borrowed exclusively, so it overlaps neither a nor b.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            c_col,
            c_row,
            beta != T::zero(),
            a.as_ptr(),
            a_col,
            a_row,
            b.as_ptr(),
            b_col,
            b_row,
            beta,
            alpha,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, in_pools, random};
    use proptest::prelude::*;

    /// The truth: one f64 sum per element.
    fn by_definition(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Array2<f64> {
        let mut c = Array2::zeros((a.nrows(), b.ncols()));
        for ((i, j), c) in c.indexed_iter_mut() {
            *c = a.row(i).iter().zip(b.column(j)).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
        }
        c
    }

    fn assert_close(found: &Array2<f32>, truth: &Array2<f64>, k: usize) {
        let allowed = 1e-6 + 1e-7 * k as f64; // k roundings of partial sums that stay below 50
        for (x, y) in found.iter().zip(truth) {
            assert!((f64::from(*x) - y).abs() <= allowed, "{x} instead of {y}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_product_equals_its_definition(m in 1usize..70, n in 1usize..70, k in 0usize..1100, seed: u64) {
            let (a, b) = (random((m, k), seed), random((k, n), seed ^ 1));
            assert_close(&matmul(a.view(), b.view()), &by_definition(a.view(), b.view()), k);
        }

        #[test]
        fn a_row_does_not_depend_on_the_rows_beside_it(
            m in 1usize..130, n in 1usize..130, k in 1usize..1200, seed: u64, from in 0usize..130, len in 1usize..130
        ) {
            let (x, w) = (random((m, k), seed), random((n, k), seed ^ 1));
            let (from, to) = (from % m, (from % m + len).min(m));
            let whole = linear(x.view(), w.view());
            let part = linear(x.slice(s![from..to, ..]), w.view());
            prop_assert_eq!(bits(&part), bits(&whole.slice(s![from..to, ..]).to_owned()));
        }
    }

    #[test]
    fn threads_never_change_a_bit_of_a_product() {
        for (m, n, k) in
            [(1, 4096, 512), (700, 1500, 300), (2048, 256, 256), (33, 9000, 130), (513, 770, 1025)]
        {
            let (x, w) = (random((m, k), 1), random((n, k), 2));
            in_pools(|| bits(&linear(x.view(), w.view())));
        }
    }

    #[test]
    fn any_strides_give_the_same_bits() {
        let (a, b) = (random((37, 600), 3), random((600, 41), 4));
        let plain = matmul(a.view(), b.view());
        let (a_t, b_t) = (a.t().as_standard_layout().to_owned(), b.t().as_standard_layout().to_owned());
        assert_eq!(bits(&plain), bits(&matmul(a_t.t(), b_t.t())));
        let mut spread = Array2::zeros((74, 600));
        spread.slice_mut(s![..;2, ..;-1]).assign(&a);
        assert_eq!(bits(&plain), bits(&matmul(spread.slice(s![..;2, ..;-1]), b.view())));
        let mut c = Array2::zeros((41, 37));
        general_mat_mul(1.0, a.view(), b.view(), 0.0, c.view_mut().reversed_axes());
        assert_eq!(bits(&plain), bits(&c.t().as_standard_layout().to_owned()));
    }

    #[test]
    fn alpha_and_beta_scale_product_and_output() {
        let (a, b, c) = (random((20, 700), 5), random((700, 30), 6), random((20, 30), 7));
        let mut found = c.clone();
        general_mat_mul(-2.0, a.view(), b.view(), 0.5, found.view_mut());
        let truth = by_definition(a.view(), b.view()) * -2.0 + c.mapv(|c| f64::from(c) * 0.5);
        assert_close(&found, &truth, 2800);
    }

    #[test]
    fn beta_zero_does_not_read_the_output() {
        let (a, b) = (random((3, 5), 8), random((5, 4), 9));
        let mut c = Array2::from_elem((3, 4), f32::NAN);
        general_mat_mul(1.0, a.view(), b.view(), 0.0, c.view_mut());
        assert_eq!(bits(&c), bits(&matmul(a.view(), b.view())));
    }

    #[test]
    fn an_empty_sum_is_zero_and_an_empty_output_is_empty() {
        let empty = matmul(Array2::zeros((3, 0)).view(), Array2::zeros((0, 2)).view());
        assert_eq!(empty, Array2::<f32>::zeros((3, 2)));
        assert_eq!(matmul(Array2::zeros((0, 4)).view(), Array2::zeros((4, 2)).view()).dim(), (0, 2));
    }

    #[test]
    #[should_panic(expected = "inner lengths")]
    fn shapes_that_do_not_fit_are_refused() {
        matmul(Array2::zeros((2, 3)).view(), Array2::zeros((4, 2)).view());
    }
}
