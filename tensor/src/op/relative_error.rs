//! How far rows are from those they are to be.

use super::task_rows;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Zip};

/// The sum over rows of `weight * |x - target|² / |target|²`; x `[tokens, features]` becomes its gradient,
/// `2 * weight * (x - target) / |target|²`.
///
/// Each row counts relative to its own target: a few tokens whose residual streams are hundreds of times as large as those of all
/// others would otherwise be all that counts. A row whose target is zero counts nothing.
///
/// # Panics
/// If the shapes differ.
pub fn relative_error_backward(
    mut x: ArrayViewMut2<'_, f32>,
    target: ArrayView2<'_, f32>,
    weight: f32,
) -> f64 {
    assert_eq!(x.dim(), target.dim(), "a target for each row");
    let min_len = task_rows(x.ncols());
    let rows = x.axis_iter_mut(Axis(0)).into_par_iter().with_min_len(min_len);
    let errors: Vec<f64> = rows
        .zip(target.axis_iter(Axis(0)))
        .map(|(mut row, target)| {
            let size: f64 = target.iter().map(|&x| f64::from(x).powi(2)).sum();
            if size == 0.0 {
                row.fill(0.0);
                return 0.0;
            }
            row -= &target;
            let error = Zip::from(&row).fold(0.0, |sum, &x| sum + f64::from(x).powi(2)) / size;
            row *= (2.0 * f64::from(weight) / size) as f32;
            error
        })
        .collect();
    f64::from(weight) * errors.into_iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, bits, in_pools, random};
    use ndarray::{Array2, array};

    #[test]
    fn the_gradient_of_a_relative_error_equals_finite_differences() {
        let (x, mut target) = (random((6, 19), 1), random((6, 19), 2));
        target.row_mut(2).mapv_inplace(|x| 300.0 * x);
        target.row_mut(4).fill(0.0);
        let mut gradient = x.clone();
        let found = relative_error_backward(gradient.view_mut(), target.view(), 0.3);
        let by_definition = |x: &Array2<f64>| -> f64 {
            let of_row = |row: usize| {
                let target = target.row(row).mapv(f64::from);
                let size = target.dot(&target);
                let apart = &x.row(row) - &target;
                if size > 0.0 { f64::from(0.3f32) * apart.dot(&apart) / size } else { 0.0 }
            };
            (0..6).map(of_row).sum()
        };
        assert!((found - by_definition(&x.mapv(f64::from))).abs() < 1e-5);
        assert_gradients(&[&x], &[&gradient], &array![[1.0]], |x| array![[by_definition(&x[0])]]);
    }

    #[test]
    fn a_row_that_is_its_target_is_not_apart_and_one_of_zeros_is_as_far_as_the_target_is_large() {
        let target = random((3, 8), 3);
        let mut same = target.clone();
        assert!(relative_error_backward(same.view_mut(), target.view(), 2.0) == 0.0);
        assert!(same.iter().all(|&x| x == 0.0));
        let found = relative_error_backward(Array2::zeros((3, 8)).view_mut(), target.view(), 0.5);
        assert!((found - 1.5).abs() < 1e-6, "{found}");
    }

    #[test]
    fn strides_and_threads_never_change_a_bit_of_a_relative_error() {
        let (x, target) = (random((100, 700), 4), random((100, 700), 5));
        let run = |mut gradient: Array2<f32>| {
            let error = relative_error_backward(gradient.view_mut(), target.view(), 0.01);
            (error.to_bits(), bits(&gradient))
        };
        let plain = in_pools(|| run(x.clone()));
        assert!(plain == run(x.t().as_standard_layout().into_owned().reversed_axes()));
    }
}
