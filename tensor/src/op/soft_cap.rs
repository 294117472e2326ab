//! A soft bound on logits.

use crate::exp::tanh;
use crate::lanes::dispatch;
use crate::op::task_rows;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

/// `cap * tanh(x / cap)` of every element of x `[tokens, features]`, in place: what is small stays, nothing leaves
/// `[-cap, cap]`.
pub fn soft_cap(mut x: ArrayViewMut2<'_, f32>, cap: f32) {
    let rows = task_rows(x.ncols());
    x.axis_chunks_iter_mut(Axis(0), rows).into_par_iter().for_each(|mut rows| match rows.as_slice_mut() {
        Some(row) => cap_each(row, cap),
        None => rows.mapv_inplace(|x| capped(x, cap)),
    });
}

/// Backward of [`soft_cap`]: turns the gradient of what came out, `d`, into that of what went in, from what came out, `capped`;
/// both `[tokens, features]`.
///
/// # Panics
/// If the shapes differ.
pub fn soft_cap_backward(capped: ArrayView2<'_, f32>, cap: f32, mut d: ArrayViewMut2<'_, f32>) {
    assert_eq!(capped.dim(), d.dim(), "a cap's output and its gradient");
    let rows = task_rows(d.ncols());
    let tasks = d.axis_chunks_iter_mut(Axis(0), rows).into_par_iter();
    tasks.zip(capped.axis_chunks_iter(Axis(0), rows)).for_each(|(mut d, capped)| {
        d.zip_mut_with(&capped, |d, &capped| *d *= slope(capped, cap));
    });
}

/// The slope of a cap where it gives `capped`.
#[inline(always)]
pub fn slope(capped: f32, cap: f32) -> f32 {
    let share = capped / cap;
    1.0 - share * share
}

/// [`soft_cap`] of a slice.
pub fn cap_each(row: &mut [f32], cap: f32) {
    dispatch(
        #[inline(always)]
        || row.iter_mut().for_each(|x| *x = capped(*x, cap)),
    );
}

#[inline(always)]
fn capped(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, bits, in_pools, random};
    use ndarray::Zip;

    #[test]
    fn a_soft_cap_equals_its_definition() {
        let x = random((9, 77), 1) * 100.0;
        let mut found = x.clone();
        soft_cap(found.view_mut(), 30.0);
        Zip::from(&found).and(&x).for_each(|&found, &x| {
            let truth = 30.0 * (f64::from(x) / 30.0).tanh();
            assert!((f64::from(found) - truth).abs() <= 1e-6 * truth.abs(), "{found} instead of {truth}");
        });
    }

    #[test]
    fn the_gradient_of_a_soft_cap_equals_finite_differences() {
        let (x, d_out) = (random((5, 12), 3) * 60.0, random((5, 12), 4));
        let (mut capped, mut d_x) = (x.clone(), d_out.clone());
        soft_cap(capped.view_mut(), 30.0);
        soft_cap_backward(capped.view(), 30.0, d_x.view_mut());
        assert_gradients(&[&x], &[&d_x], &d_out, |x| x[0].mapv(|x| 30.0 * (x / 30.0).tanh()));
    }

    #[test]
    fn strides_and_threads_never_change_a_bit_of_a_soft_cap() {
        let x = random((300, 500), 2) * 100.0;
        let plain = in_pools(|| {
            let mut x = x.clone();
            soft_cap(x.view_mut(), 50.0);
            bits(&x)
        });
        let mut turned = x.t().as_standard_layout().into_owned();
        soft_cap(turned.view_mut().reversed_axes(), 50.0);
        assert_eq!(plain, bits(&turned.t().to_owned()));
    }
}
