//! Gram matrices: the sum of x xᵀ over tokens, of which only the upper triangle is computed.

use crate::lanes::dispatch;
use crate::op::add_in_order;
use crate::product::{DEPTH, product_here};
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::slice::ParallelSlice;
use std::slice::ChunksExact;

/// `gram += x.T @ x` for activations x `[tokens, features]`; gram is `[features, features]`, symmetric before and after.
///
/// Costs about half of the full product: tiles on and above the diagonal, then a mirror image.
///
/// # Panics
/// If gram is not square in features.
pub fn gram_add(x: ArrayView2<'_, f32>, gram: &mut Array2<f32>) {
    let features = x.ncols();
    assert_eq!(gram.dim(), (features, features), "a Gram matrix is square in features");
    let side = tile_side(features);
    let width = features.div_ceil(rayon::current_num_threads()).next_multiple_of(side);
    let mut tiles = Vec::new();
    for (i, band) in gram.axis_chunks_iter_mut(Axis(0), side).enumerate() {
        let (_, mut rest) = band.split_at(Axis(1), i * side);
        let mut col = i * side;
        while rest.ncols() > 0 {
            let (tile, further) = rest.split_at(Axis(1), width.min(features - col));
            tiles.push((i * side, col, tile));
            (rest, col) = (further, col + width);
        }
    }
    tiles.into_par_iter().with_max_len(1).for_each(|(row, col, tile)| {
        let left = x.slice(s![.., row..row + tile.nrows()]);
        let right = x.slice(s![.., col..col + tile.ncols()]);
        product_here(1.0, left.reversed_axes(), right, 1.0, tile);
    });
    mirror(gram.view_mut());
}

/// `sums += ` the sum over tokens of the squares of x `[tokens, features]`; sums is `[features]`: the diagonal of what [`gram_add`]
/// adds, and on machines with fused steps its bits.
///
/// # Panics
/// If the numbers of features differ.
pub fn squares_add(x: ArrayView2<'_, f32>, sums: &mut Array1<f32>) {
    squares_of(x, DEPTH, sums, |rows, sums| {
        for row in rows {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum = x.mul_add(x, *sum));
        }
    });
}

/// Adds to sums `[features]` what `add` makes of `depth` rows of x at a time, each time from zero, in order.
pub(crate) fn squares_of(
    x: ArrayView2<'_, f32>,
    depth: usize,
    sums: &mut Array1<f32>,
    add: impl Fn(ChunksExact<'_, f32>, &mut [f32]) + Sync,
) {
    let features = x.ncols();
    assert_eq!(sums.len(), features, "a sum of squares for each feature");
    let x = x.as_standard_layout();
    let rows = x.as_slice().unwrap_or_default();
    let of_chunk = |rows: &[f32]| {
        let mut sums = vec![0.0; features];
        dispatch(
            #[inline(always)]
            || add(rows.chunks_exact(features), &mut sums),
        );
        sums
    };
    let partial: Vec<Vec<f32>> = rows.par_chunks((depth * features).max(1)).map(of_chunk).collect();
    add_in_order(Some(sums.view_mut()), &partial);
}

/// Rows of a tile: few of them skip more of the lower triangle, many multiply faster.
fn tile_side(features: usize) -> usize {
    if features > 3000 { 384 } else { 192 }
}

/// Rows and columns copied at once, so that both sides stay in cache.
const SIDE: usize = 64;

/// Copies the upper triangle onto the lower one.
pub(crate) fn mirror(mut h: ArrayViewMut2<'_, f32>) {
    let n = h.nrows();
    if n <= SIDE {
        for i in 0..n {
            for j in 0..i {
                h[[i, j]] = h[[j, i]];
            }
        }
        return;
    }
    let half = (n / 2).next_multiple_of(SIDE);
    let (upper, lower) = h.split_at(Axis(0), half);
    let (first, source) = upper.split_at(Axis(1), half);
    let (target, second) = lower.split_at(Axis(1), half);
    rayon::join(|| transpose(source.view(), target), || rayon::join(|| mirror(first), || mirror(second)));
}

/// `target = source.T`, by quarters down to squares that are copied by way of a buffer: rows of a large matrix are so far
/// apart that a column of them finds no room in the cache.
fn transpose(source: ArrayView2<'_, f32>, mut target: ArrayViewMut2<'_, f32>) {
    let (rows, cols) = source.dim();
    if rows.max(cols) <= SIDE {
        return target.assign(&source.to_owned().t());
    }
    let axis = Axis(usize::from(cols > rows));
    let half = (rows.max(cols) / 2).next_multiple_of(SIDE);
    let (source, further) = source.split_at(axis, half);
    let (target, rest) = target.split_at(Axis(1 - axis.index()), half);
    rayon::join(|| transpose(source, target), || transpose(further, rest));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul;
    use crate::testing::{bits, in_pools, random};

    #[test]
    fn a_gram_matrix_equals_the_full_product() {
        for (tokens, features) in [(1, 1), (5, 3), (700, 64), (100, 200), (1030, 450), (40, 385)] {
            let x = random((tokens, features), 7);
            let mut gram = Array2::zeros((features, features));
            gram_add(x.view(), &mut gram);
            assert_eq!(bits(&gram), bits(&matmul(x.t(), x.view())), "{tokens}x{features}");
        }
    }

    /// Where there are none `gemm` rounds each square before it is added.
    fn fused_steps() -> bool {
        #[cfg(target_arch = "x86_64")]
        return is_x86_feature_detected!("fma");
        #[cfg(not(target_arch = "x86_64"))]
        return cfg!(target_arch = "aarch64");
    }

    #[test]
    fn sums_of_squares_are_the_diagonal_of_the_gram_matrix() {
        for (tokens, features) in [(0, 3), (1, 1), (700, 64), (2048, 200), (1030, 450)] {
            let x = random((tokens, features), 7);
            let (mut gram, mut sums) = (Array2::zeros((features, features)), Array1::zeros(features));
            for _ in 0..2 {
                gram_add(x.view(), &mut gram);
                squares_add(x.view(), &mut sums);
            }
            for (found, truth) in sums.iter().zip(gram.diag()) {
                assert!((found - truth).abs() <= 1e-6 * truth, "{found} instead of {truth}");
                assert!(found.to_bits() == truth.to_bits() || !fused_steps(), "{found} instead of {truth}");
            }
        }
    }

    #[test]
    fn strides_and_threads_never_change_a_bit_of_sums_of_squares() {
        let x = random((1500, 70), 9);
        let of = |x: ArrayView2<'_, f32>| {
            let mut sums = Array1::zeros(70);
            squares_add(x, &mut sums);
            sums.mapv(f32::to_bits)
        };
        let plain = in_pools(|| of(x.view()));
        assert_eq!(plain, of(x.t().as_standard_layout().t()));
    }

    #[test]
    fn a_gram_matrix_is_exactly_symmetric() {
        let x = random((300, 3100), 8);
        let mut gram = Array2::zeros((3100, 3100));
        gram_add(x.view(), &mut gram);
        assert_eq!(bits(&gram), bits(&gram.t().as_standard_layout().to_owned()));
    }

    #[test]
    fn gram_matrices_of_parts_add_up() {
        let x = random((1024, 100), 9);
        let (mut whole, mut parts) = (Array2::zeros((100, 100)), Array2::zeros((100, 100)));
        gram_add(x.view(), &mut whole);
        gram_add(x.slice(s![..512, ..]), &mut parts);
        gram_add(x.slice(s![512.., ..]), &mut parts);
        assert_eq!(bits(&whole), bits(&parts));
    }

    #[test]
    fn threads_never_change_a_bit_of_a_gram_matrix() {
        let x = random((600, 1000), 10);
        in_pools(|| {
            let mut gram = Array2::ones((1000, 1000));
            gram_add(x.view(), &mut gram);
            bits(&gram)
        });
    }
}
