//! Root-mean-square normalisation.

use crate::lanes::{dispatch, sum};
use crate::op::task_rows;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis};

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
    use crate::testing::{bits, in_pools, random};
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

    #[test]
    fn threads_never_change_a_bit_of_a_norm() {
        let (x, w) = (random((500, 300), 5), random((1, 300), 6));
        in_pools(|| bits(&rms_norm(x.view(), w.row(0), 1e-5)));
    }
}
