//! Gram matrices: the sum of x xᵀ over tokens, of which only the upper triangle is computed.

use crate::product::product_here;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

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
    let mut tiles = Vec::new();
    for (i, band) in gram.axis_chunks_iter_mut(Axis(0), side).enumerate() {
        let (_, mut rest) = band.split_at(Axis(1), i * side);
        let mut col = i * side;
        while rest.ncols() > 0 {
            let (tile, further) = rest.split_at(Axis(1), side.min(features - col));
            tiles.push((i * side, col, tile));
            (rest, col) = (further, col + side);
        }
    }
    tiles.into_par_iter().with_max_len(1).for_each(|(row, col, tile)| {
        let left = x.slice(s![.., row..row + tile.nrows()]);
        let right = x.slice(s![.., col..col + tile.ncols()]);
        product_here(1.0, left.reversed_axes(), right, 1.0, tile);
    });
    mirror(gram.view_mut());
}

/// Small tiles skip more of the lower triangle and feed more threads, large ones multiply faster.
fn tile_side(features: usize) -> usize {
    if features > 3000 { 384 } else { 192 }
}

/// Copies the upper triangle onto the lower one, tile by tile so that both sides stay in cache.
fn mirror(mut h: ArrayViewMut2<'_, f32>) {
    const SIDE: usize = 64;
    let n = h.nrows();
    for top in (0..n).step_by(SIDE) {
        let bottom = n.min(top + SIDE);
        let (upper, mut lower) = h.view_mut().split_at(Axis(0), bottom);
        for left in (bottom..n).step_by(SIDE) {
            let right = n.min(left + SIDE);
            let source = upper.slice(s![top.., left..right]);
            lower.slice_mut(s![left - bottom..right - bottom, top..bottom]).assign(&source.t());
        }
        for i in top..bottom {
            for j in top..i {
                h[[i, j]] = h[[j, i]];
            }
        }
    }
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
