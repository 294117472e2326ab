//! The gated activations of a decoder: `SwiGLU`'s and `GeGLU`'s.

use crate::exp::exp;
use crate::lanes::dispatch;
use crate::op::TASK_ELEMENTS;
use ndarray::{Array2, ArrayView2, Zip};
use rayon::prelude::*;

/// `silu(gate) * up` element by element, with `silu(x) = x / (1 + e^-x)`; `[tokens, intermediate_size]` all three.
///
/// # Panics
/// If the shapes differ.
pub fn silu_mul(gate: Array2<f32>, up: ArrayView2<'_, f32>) -> Array2<f32> {
    gate_each(gate, up, silu)
}

/// `gelu(gate) * up` element by element, with `gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`;
/// `[tokens, intermediate_size]` all three.
///
/// # Panics
/// If the shapes differ.
pub fn gelu_mul(gate: Array2<f32>, up: ArrayView2<'_, f32>) -> Array2<f32> {
    gate_each(gate, up, gelu)
}

fn gate_each(
    mut gate: Array2<f32>,
    up: ArrayView2<'_, f32>,
    activation: impl Fn(f32) -> f32 + Copy + Sync,
) -> Array2<f32> {
    assert_eq!(gate.dim(), up.dim(), "gate and up have one shape");
    if let (Some(gate), Some(up)) = (gate.as_slice_mut(), up.as_slice()) {
        gate.par_chunks_mut(TASK_ELEMENTS).zip(up.par_chunks(TASK_ELEMENTS)).for_each(|(gate, up)| {
            dispatch(
                #[inline(always)]
                || gate.iter_mut().zip(up).for_each(|(gate, &up)| *gate = activation(*gate) * up),
            );
        });
    } else {
        Zip::from(&mut gate).and(up).for_each(|gate, &up| *gate = activation(*gate) * up);
    }
    gate
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `(1 + tanh(y)) / 2` is `1 / (1 + e^-2y)`, which loses no digits to the left of zero.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    const TWICE_ROOT: f32 = 2.0 * 0.797_884_6; // 2 sqrt(2 / pi)
    x / (1.0 + exp(-TWICE_ROOT * (x + 0.044_715 * (x * x * x))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, in_pools, random};

    #[test]
    fn a_gate_equals_its_definition() {
        let (gate, up) = (random((13, 50), 1) * 20.0, random((13, 50), 2));
        let found = silu_mul(gate.clone(), up.view());
        Zip::from(&found).and(&gate).and(&up).for_each(|&found, &gate, &up| {
            let gate = f64::from(gate);
            let truth = gate / (1.0 + (-gate).exp()) * f64::from(up);
            assert!(
                (f64::from(found) - truth).abs() <= 1e-6 * truth.abs().max(1e-6),
                "{found} instead of {truth}"
            );
        });
    }

    #[test]
    fn a_gelu_gate_equals_its_definition() {
        let (gate, up) = (random((13, 50), 1) * 6.0, random((13, 50), 2));
        let found = gelu_mul(gate.clone(), up.view());
        Zip::from(&found).and(&gate).and(&up).for_each(|&found, &gate, &up| {
            let gate = f64::from(gate);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
            // 1 + tanh(y) without the digits that the sum would lose
            let truth = gate / (1.0 + (-2.0 * inner).exp()) * f64::from(up);
            assert!(
                (f64::from(found) - truth).abs() <= 4e-6 * truth.abs() + 1e-9,
                "{found} instead of {truth}"
            );
        });
    }

    #[test]
    fn a_gate_far_from_zero_is_finite() {
        let gate = Array2::from_shape_vec((1, 4), vec![-1e4, -100.0, 100.0, 1e4]).unwrap_or_default();
        let up = Array2::ones((1, 4));
        for gated in [silu_mul, gelu_mul] {
            assert_eq!(gated(gate.clone(), up.view()).as_slice(), Some(&[-0.0, -0.0, 100.0, 1e4][..]));
        }
    }

    #[test]
    fn strides_and_threads_never_change_a_bit_of_a_gate() {
        let (gate, up) = (random((200, 500), 3), random((500, 200), 4));
        let plain = in_pools(|| bits(&silu_mul(gate.clone(), up.t().as_standard_layout().view())));
        assert_eq!(plain, bits(&silu_mul(gate, up.t())));
    }
}
