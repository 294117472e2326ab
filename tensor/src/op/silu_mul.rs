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

/// The output of a gate and the gradients of what it reads, `[tokens, intermediate_size]` all three.
#[derive(Debug)]
pub struct GateBackward {
    /// `activation(gate) * up` once more: what the next matrix reads.
    pub out: Array2<f32>,
    /// The gradient of gate.
    pub d_gate: Array2<f32>,
    /// The gradient of up.
    pub d_up: Array2<f32>,
}

/// Backward of [`silu_mul`], in the memory of its three arguments, `[tokens, intermediate_size]` each.
///
/// # Panics
/// If the shapes differ.
pub fn silu_mul_backward(gate: Array2<f32>, up: Array2<f32>, d_out: Array2<f32>) -> GateBackward {
    gate_each_backward(gate, up, d_out, silu_and_slope)
}

/// Backward of [`gelu_mul`], in the memory of its three arguments, `[tokens, intermediate_size]` each.
///
/// # Panics
/// If the shapes differ.
pub fn gelu_mul_backward(gate: Array2<f32>, up: Array2<f32>, d_out: Array2<f32>) -> GateBackward {
    gate_each_backward(gate, up, d_out, gelu_and_slope)
}

fn gate_each_backward(
    gate: Array2<f32>,
    up: Array2<f32>,
    d_out: Array2<f32>,
    activation: impl Fn(f32) -> [f32; 2] + Copy + Sync,
) -> GateBackward {
    assert!(gate.dim() == up.dim() && gate.dim() == d_out.dim(), "gate, up and the gradient have one shape");
    let (mut d_gate, mut d_up, mut out) = (contiguous(gate), contiguous(up), contiguous(d_out));
    if let (Some(gate), Some(up), Some(d_out)) =
        (d_gate.as_slice_mut(), d_up.as_slice_mut(), out.as_slice_mut())
    {
        let chunks = gate.par_chunks_mut(TASK_ELEMENTS).zip(up.par_chunks_mut(TASK_ELEMENTS));
        chunks.zip(d_out.par_chunks_mut(TASK_ELEMENTS)).for_each(|((gate, up), d_out)| {
            dispatch(
                #[inline(always)]
                || {
                    for ((gate, up), d_out) in gate.iter_mut().zip(up).zip(d_out) {
                        let [value, slope] = activation(*gate);
                        (*gate, *up, *d_out) = (*d_out * *up * slope, *d_out * value, value * *up);
                    }
                },
            );
        });
    }
    GateBackward { out, d_gate, d_up }
}

/// The same values in rows one after another.
fn contiguous(x: Array2<f32>) -> Array2<f32> {
    if x.is_standard_layout() { x } else { x.as_standard_layout().into_owned() }
}

#[inline(always)]
fn silu_and_slope(x: f32) -> [f32; 2] {
    let sigmoid = 1.0 / (1.0 + exp(-x));
    let silu = x * sigmoid;
    [silu, sigmoid + silu * (1.0 - sigmoid)]
}

/// With s the sigmoid that multiplies x in [`gelu`], the slope is `s + x s (1 - s)` times the slope of what s is taken of.
#[inline(always)]
fn gelu_and_slope(x: f32) -> [f32; 2] {
    let square = x * x;
    let sigmoid = 1.0 / (1.0 + exp(-TWICE_ROOT * (x + CUBIC * (square * x))));
    let gelu = x * sigmoid;
    [gelu, sigmoid + gelu * (1.0 - sigmoid) * (TWICE_ROOT * (1.0 + 3.0 * CUBIC * square))]
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `(1 + tanh(y)) / 2` is `1 / (1 + e^-2y)`, which loses no digits to the left of zero.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    x / (1.0 + exp(-TWICE_ROOT * (x + CUBIC * (x * x * x))))
}

const TWICE_ROOT: f32 = 2.0 * 0.797_884_6; // 2 sqrt(2 / pi)
const CUBIC: f32 = 0.044_715;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, bits, in_pools, random};

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
    fn the_gradients_of_gates_equal_finite_differences() {
        type Backward = fn(Array2<f32>, Array2<f32>, Array2<f32>) -> GateBackward;
        type Forward = fn(Array2<f32>, ArrayView2<'_, f32>) -> Array2<f32>;
        type Gate = (Backward, Forward, fn(f64) -> f64);
        fn silu(x: f64) -> f64 {
            x / (1.0 + (-x).exp())
        }
        fn gelu(x: f64) -> f64 {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        let gates: [Gate; 2] = [(silu_mul_backward, silu_mul, silu), (gelu_mul_backward, gelu_mul, gelu)];
        for (backward, forward, by_definition) in gates {
            let (gate, up, d_out) = (random((9, 14), 5) * 5.0, random((9, 14), 6), random((9, 14), 7));
            let found = backward(gate.clone(), up.clone(), d_out.clone());
            assert_gradients(&[&gate, &up], &[&found.d_gate, &found.d_up], &d_out, |x| {
                &x[0].mapv(by_definition) * &x[1]
            });
            assert!((forward(gate, up.view()) - found.out).iter().all(|x| x.abs() < 1e-6));
        }
    }

    #[test]
    fn the_gradient_of_a_gate_far_from_zero_is_finite() {
        let gate = Array2::from_shape_vec((1, 4), vec![-1e4, -100.0, 100.0, 1e4]).unwrap_or_default();
        for backward in [silu_mul_backward, gelu_mul_backward] {
            let found = backward(gate.clone(), Array2::ones((1, 4)), Array2::ones((1, 4)));
            assert_eq!(found.d_gate.as_slice(), Some(&[0.0, 0.0, 1.0, 1.0][..]));
            assert_eq!(found.d_up.as_slice(), Some(&[-0.0, -0.0, 100.0, 1e4][..]));
        }
    }

    #[test]
    fn strides_and_threads_never_change_a_bit_of_a_gates_gradient() {
        let [gate, up, d_out] = [1, 2, 3].map(|seed| random((300, 400), seed));
        let of = |found: GateBackward| [bits(&found.out), bits(&found.d_gate), bits(&found.d_up)];
        let plain = in_pools(|| of(silu_mul_backward(gate.clone(), up.clone(), d_out.clone())));
        let across = up.t().as_standard_layout().into_owned().reversed_axes();
        assert!(plain == of(silu_mul_backward(gate, across, d_out)));
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
