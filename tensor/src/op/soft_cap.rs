//! A soft bound on logits.

use crate::exp::tanh;
use crate::lanes::dispatch;
use crate::op::task_rows;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayViewMut2, Axis};

/// `cap * tanh(x / cap)` of every element of x `[tokens, features]`, in place: what is small stays, nothing leaves
/// `[-cap, cap]`.
pub fn soft_cap(mut x: ArrayViewMut2<'_, f32>, cap: f32) {
    let rows = task_rows(x.ncols());
    x.axis_chunks_iter_mut(Axis(0), rows).into_par_iter().for_each(|mut rows| match rows.as_slice_mut() {
        Some(row) => cap_each(row, cap),
        None => rows.mapv_inplace(|x| capped(x, cap)),
    });
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
    use crate::testing::{bits, in_pools, random};
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
