//! Root-mean-square normalisation.

use crate::lanes::{dispatch, sum, sum_of_three};
use crate::op::{SUM_ROWS, add_in_order, task_rows};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

/// `weight * x / sqrt(mean(x²) + eps)`, each row x `[features]` on its own; weight is `[features]`.
///
/// # Panics
/// If weight has another length than the rows.
pub fn rms_norm(x: ArrayView2<'_, f32>, weight: ArrayView1<'_, f32>, eps: f32) -> Array2<f32> {
    assert_eq!(x.ncols(), weight.len(), "the norm's weight has one value per feature");
    let mut out = x.as_standard_layout().into_owned();
    let weight = weight.as_standard_layout();
    out.axis_chunks_iter_mut(Axis(0), task_rows(x.ncols())).into_par_iter().for_each(|mut rows| {
        if let (Some(rows), Some(weight)) = (rows.as_slice_mut(), weight.as_slice()) {
            norm_each(rows, weight, eps);
        }
    });
    out
}

/// [`rms_norm`] in place of every head of x `[tokens, heads * head_dim]`; weight is `[head_dim]`.
///
/// # Panics
/// If the rows are not a whole number of heads, or x is not contiguous.
pub fn rms_norm_heads(mut x: ArrayViewMut2<'_, f32>, weight: ArrayView1<'_, f32>, eps: f32) {
    assert!(x.ncols().is_multiple_of(weight.len()), "the norm's weight has one value per feature of a head");
    assert!(x.is_standard_layout(), "heads are normalised in contiguous rows");
    let weight = weight.as_standard_layout();
    let rows = task_rows(x.ncols());
    x.axis_chunks_iter_mut(Axis(0), rows).into_par_iter().for_each(|mut rows| {
        if let (Some(rows), Some(weight)) = (rows.as_slice_mut(), weight.as_slice()) {
            norm_each(rows, weight, eps);
        }
    });
}

/// Backward of [`rms_norm`]: adds the gradient of x to `d_x`, and that of the weight to `d_weight` where it is asked for.
///
/// x, `d_out` and `d_x` are `[tokens, features]`, the weights `[features]`.
///
/// # Panics
/// If the shapes do not fit or `d_x` is not contiguous.
pub fn rms_norm_backward(
    x: ArrayView2<'_, f32>,
    weight: ArrayView1<'_, f32>,
    eps: f32,
    d_out: ArrayView2<'_, f32>,
    mut d_x: ArrayViewMut2<'_, f32>,
    d_weight: Option<ArrayViewMut1<'_, f32>>,
) {
    assert_eq!(x.ncols(), weight.len(), "the norm's weight has one value per feature");
    assert!(x.dim() == d_out.dim() && x.dim() == d_x.dim(), "x and both gradients have one shape");
    assert!(d_x.is_standard_layout(), "gradients are added to contiguous rows");
    let (x, d_out, weight) =
        (x.as_standard_layout(), d_out.as_standard_layout(), weight.as_standard_layout());
    let (Some(x), Some(d_out), Some(d_x), Some(weight)) =
        (x.as_slice(), d_out.as_slice(), d_x.as_slice_mut(), weight.as_slice())
    else {
        unreachable!("all four were made contiguous");
    };
    let len = SUM_ROWS * weight.len().max(1);
    let tasks = d_x.par_chunks_mut(len).zip(x.par_chunks(len)).zip(d_out.par_chunks(len));
    let partial: Vec<Vec<f32>> = tasks
        .map(|((d_x, x), d_out)| {
            let mut d_weight = vec![0.0; weight.len()];
            norm_backward_each([x, d_out], weight, eps, d_x, &mut d_weight);
            d_weight
        })
        .collect();
    add_in_order(d_weight, &partial);
}

/// Backward of [`rms_norm_heads`]: turns the gradient of its output, `d` `[tokens, heads * head_dim]`, into that of x as it was
/// before, and adds the weight's to `d_weight` `[head_dim]` where it is asked for.
///
/// # Panics
/// If the shapes do not fit or `d` is not contiguous.
pub fn rms_norm_heads_backward(
    x: ArrayView2<'_, f32>,
    weight: ArrayView1<'_, f32>,
    eps: f32,
    mut d: ArrayViewMut2<'_, f32>,
    d_weight: Option<ArrayViewMut1<'_, f32>>,
) {
    let head_dim = weight.len();
    assert!(x.ncols().is_multiple_of(head_dim), "the norm's weight has one value per feature of a head");
    assert_eq!(x.dim(), d.dim(), "x and its gradient have one shape");
    assert!(d.is_standard_layout(), "heads are normalised in contiguous rows");
    let heads = (x.len() / head_dim, head_dim);
    let mut d_x = Array2::zeros(heads);
    let (x, d_out) = (x.as_standard_layout(), d.view());
    let (Ok(x), Ok(d_out)) = (x.view().into_shape_with_order(heads), d_out.into_shape_with_order(heads))
    else {
        unreachable!("contiguous rows are contiguous heads");
    };
    rms_norm_backward(x, weight, eps, d_out, d_x.view_mut(), d_weight);
    if let (Some(d), Some(d_x)) = (d.as_slice_mut(), d_x.as_slice()) {
        d.copy_from_slice(d_x);
    }
}

/// Consecutive rows of `weight.len()` elements: with s = 1 / sqrt(mean(x²) + eps), n = x s and g = weight `d_out`,
/// `d_x += s (g - n mean(g n))` and `d_weight += d_out n`.
fn norm_backward_each(
    [x, d_out]: [&[f32]; 2],
    weight: &[f32],
    eps: f32,
    d_x: &mut [f32],
    d_weight: &mut [f32],
) {
    let features = weight.len().max(1);
    let rows = x.chunks_exact(features).zip(d_out.chunks_exact(features)).zip(d_x.chunks_exact_mut(features));
    dispatch(
        #[inline(always)]
        || {
            for ((x, d_out), d_x) in rows {
                let scale = 1.0 / (sum(x, |x| x * x) / features as f32 + eps).sqrt();
                let along = sum_of_three(x, weight, d_out) * scale / features as f32; // mean(g n)
                let back = along * scale;
                let each = x.iter().zip(weight).zip(d_out).zip(d_x.iter_mut().zip(d_weight.iter_mut()));
                for (((&x, &weight), &d_out), (d_x, d_weight)) in each {
                    *d_x += scale * (weight * d_out - x * back);
                    *d_weight += d_out * (x * scale);
                }
            }
        },
    );
}

/// Normalises consecutive rows of `weight.len()` elements.
fn norm_each(rows: &mut [f32], weight: &[f32], eps: f32) {
    dispatch(
        #[inline(always)]
        || {
            for row in rows.chunks_exact_mut(weight.len().max(1)) {
                let mean = sum(row, |x| x * x) / weight.len() as f32;
                let scale = 1.0 / (mean + eps).sqrt();
                for (x, w) in row.iter_mut().zip(weight) {
                    *x = w * (*x * scale);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, bits, in_pools, random};
    use ndarray::s;

    #[test]
    fn a_norm_equals_its_definition() {
        let (x, w) = (random((9, 77), 1), random((1, 77), 2));
        let found = rms_norm(x.view(), w.row(0), 1e-5);
        for (x, found) in x.outer_iter().zip(found.outer_iter()) {
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 77.0;
            for ((&x, &w), &found) in x.iter().zip(w.row(0)).zip(found) {
                let truth = f64::from(w) * f64::from(x) / (mean + 1e-5).sqrt();
                assert!((f64::from(found) - truth).abs() < 1e-6, "{found} instead of {truth}");
            }
        }
    }

    #[test]
    fn a_norm_of_heads_is_the_norm_of_each_head_alone() {
        let (mut x, w) = (random((5, 24), 3), random((1, 8), 4));
        let whole = x.clone();
        rms_norm_heads(x.view_mut(), w.row(0), 1e-6);
        for head in 0..3 {
            let columns = s![.., head * 8..(head + 1) * 8];
            let alone = rms_norm(whole.slice(columns), w.row(0), 1e-6);
            assert_eq!(bits(&alone), bits(&x.slice(columns).to_owned()));
        }
    }

    fn by_definition(x: &Array2<f64>, weight: &Array2<f64>, eps: f64) -> Array2<f64> {
        let features = weight.len();
        let mut out = x.clone();
        for row in out.exact_chunks_mut((1, features)) {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / features as f64;
            let scale = 1.0 / (mean + eps).sqrt();
            for (x, weight) in row.into_iter().zip(weight) {
                *x *= weight * scale;
            }
        }
        out
    }

    #[test]
    fn the_gradient_of_a_norm_equals_finite_differences() {
        for (rows, features, eps) in [(9, 77, 1e-5), (2, 1, 0.5), (200, 6, 0.1)] {
            let [x, d_out] = [1, 2].map(|seed| random((rows, features), seed));
            let w = random((1, features), 3);
            let (mut d_x, mut d_w) = (Array2::zeros(x.dim()), Array2::zeros(w.dim()));
            rms_norm_backward(x.view(), w.row(0), eps, d_out.view(), d_x.view_mut(), Some(d_w.row_mut(0)));
            assert_gradients(&[&x, &w], &[&d_x, &d_w], &d_out, |x| by_definition(&x[0], &x[1], eps.into()));
        }
    }

    #[test]
    fn the_gradient_of_a_norm_of_heads_equals_finite_differences() {
        let [x, d_out] = [4, 5].map(|seed| random((70, 24), seed));
        let w = random((1, 8), 6);
        let (mut d_x, mut d_w) = (d_out.clone(), Array2::zeros(w.dim()));
        rms_norm_heads_backward(x.view(), w.row(0), 0.1, d_x.view_mut(), Some(d_w.row_mut(0)));
        let eps = f64::from(0.1f32);
        assert_gradients(&[&x, &w], &[&d_x, &d_w], &d_out, |x| by_definition(&x[0], &x[1], eps));
    }

    #[test]
    fn gradients_of_a_norm_are_added_to_what_was_there() {
        let [x, d_out, before] = [7, 8, 9].map(|seed| random((5, 16), seed));
        let w = random((1, 16), 10);
        let (mut alone, mut added) = (Array2::zeros(x.dim()), before.clone());
        rms_norm_backward(x.view(), w.row(0), 1e-5, d_out.view(), alone.view_mut(), None);
        rms_norm_backward(x.view(), w.row(0), 1e-5, d_out.view(), added.view_mut(), None);
        assert!((added - before - alone).iter().all(|x| x.abs() < 1e-6));
    }

    #[test]
    fn threads_never_change_a_bit_of_a_norms_gradient() {
        let [x, d_out] = [11, 12].map(|seed| random((1000, 48), seed));
        let w = random((1, 48), 13);
        in_pools(|| {
            let (mut d_x, mut d_w) = (Array2::zeros(x.dim()), Array2::zeros(w.dim()));
            let d_w_row = Some(d_w.row_mut(0));
            rms_norm_backward(x.view(), w.row(0), 1e-5, d_out.view(), d_x.view_mut(), d_w_row);
            [bits(&d_x), bits(&d_w)]
        });
    }

    #[test]
    fn threads_never_change_a_bit_of_a_norm() {
        let (x, w) = (random((500, 300), 5), random((1, 300), 6));
        in_pools(|| bits(&rms_norm(x.view(), w.row(0), 1e-5)));
    }
}
