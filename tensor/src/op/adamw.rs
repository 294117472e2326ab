//! The optimizer that language models are trained with.

use crate::lanes::{dispatch, fold};
use crate::op::TASK_ELEMENTS;
use ndarray::{ArrayD, ArrayViewD, ArrayViewMutD};
use rayon::prelude::*;

/// Adam with decoupled weight decay.
///
/// # Source
/// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101, Algorithm 2, with the decay multiplied by the
/// learning rate as `PyTorch` does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// How far a step goes.
    pub learning_rate: f32,
    /// How much of the mean gradient is kept from step to step.
    pub beta1: f32,
    /// How much of the mean squared gradient is kept from step to step.
    pub beta2: f32,
    /// Added to the root of the mean squared gradient.
    pub eps: f32,
    /// How much of a weight is taken away per unit of learning rate.
    pub weight_decay: f32,
}

impl Default for AdamW {
    /// `PyTorch`'s defaults.
    fn default() -> Self {
        Self { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// What the optimizer remembers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// The running mean of the gradient, shaped as the tensor.
    pub mean: ArrayD<f32>,
    /// The running mean of its square.
    pub mean_square: ArrayD<f32>,
}

impl Moments {
    /// Those of a tensor that no step has changed yet.
    pub fn zeros(shape: &[usize]) -> Self {
        Self { mean: ArrayD::zeros(shape), mean_square: ArrayD::zeros(shape) }
    }
}

impl AdamW {
    /// Step number `step`, the first being 1: moves a weight against `gradient_scale * gradient`. The scale is where clipping enters.
    ///
    /// # Panics
    /// If step is 0, the shapes differ, or one of the arrays is not contiguous.
    pub fn step(
        &self,
        step: u32,
        mut weight: ArrayViewMutD<'_, f32>,
        gradient: ArrayViewD<'_, f32>,
        gradient_scale: f32,
        moments: &mut Moments,
    ) {
        assert!(step > 0, "steps are counted from 1");
        let shape = weight.shape();
        assert_eq!(shape, gradient.shape(), "a gradient has its weight's shape");
        assert!(shape == moments.mean.shape() && shape == moments.mean_square.shape(), "moments' shape");
        let (Some(weight), Some(gradient), Some(mean), Some(mean_square)) = (
            weight.as_slice_mut(),
            gradient.as_slice(),
            moments.mean.as_slice_mut(),
            moments.mean_square.as_slice_mut(),
        ) else {
            panic!("the optimizer steps over contiguous arrays");
        };
        let unbiased = |beta: f32| 1.0 - f64::from(beta).powf(step.into());
        let rate = (f64::from(self.learning_rate) / unbiased(self.beta1)) as f32;
        let root = (1.0 / unbiased(self.beta2).sqrt()) as f32;
        let len = TASK_ELEMENTS;
        let weights = weight.par_chunks_mut(len).zip(gradient.par_chunks(len));
        let moments = mean.par_chunks_mut(len).zip(mean_square.par_chunks_mut(len));
        weights.zip(moments).for_each(|((weight, gradient), (mean, mean_square))| {
            dispatch(
                #[inline(always)]
                || {
                    let kept = 1.0 - self.learning_rate * self.weight_decay;
                    let weights = weight.iter_mut().zip(gradient);
                    for ((weight, gradient), (m, v)) in weights.zip(mean.iter_mut().zip(mean_square)) {
                        let gradient = gradient * gradient_scale;
                        *m = self.beta1 * *m + (1.0 - self.beta1) * gradient;
                        *v = self.beta2 * *v + (1.0 - self.beta2) * (gradient * gradient);
                        *weight = *weight * kept - rate * *m / (v.sqrt() * root + self.eps);
                    }
                },
            );
        });
    }
}

/// The root of the sum of all squares of several arrays, summed in f64 in their order.
///
/// Gradients are clipped to a norm by stepping with the scale `largest / norm` where that is below 1.
///
/// # Panics
/// If one of the arrays is not contiguous.
pub fn global_norm<'a>(gradients: impl IntoIterator<Item = ArrayViewD<'a, f32>>) -> f64 {
    let squares = |gradient: ArrayViewD<'a, f32>| -> f64 {
        let Some(gradient) = gradient.as_slice() else { panic!("norms are taken of contiguous arrays") };
        let parts: Vec<f64> = gradient.par_chunks(TASK_ELEMENTS).map(sum_of_squares).collect();
        parts.into_iter().sum()
    };
    gradients.into_iter().map(squares).sum::<f64>().sqrt()
}

fn sum_of_squares(x: &[f32]) -> f64 {
    dispatch(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; 16];
            for x in x.chunks(16) {
                for (lane, &x) in lanes.iter_mut().zip(x) {
                    *lane += f64::from(x) * f64::from(x);
                }
            }
            fold(lanes, |a, b| a + b)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{in_pools, random};

    /// Algorithm 2 in f64: the weights after each of some steps with given gradients.
    fn by_definition(adamw: AdamW, weight: &[f32], gradients: &[Vec<f32>]) -> Vec<f64> {
        let [rate, b1, b2, eps, decay] =
            [adamw.learning_rate, adamw.beta1, adamw.beta2, adamw.eps, adamw.weight_decay].map(f64::from);
        let of_one = |i: usize| {
            let (mut w, mut m, mut v) = (f64::from(weight[i]), 0.0, 0.0);
            for (step, gradient) in (1..).zip(gradients) {
                let g = f64::from(gradient[i]);
                m = b1 * m + (1.0 - b1) * g;
                v = b2 * v + (1.0 - b2) * g * g;
                let (m_hat, v_hat) = (m / (1.0 - b1.powi(step)), v / (1.0 - b2.powi(step)));
                w -= rate * (m_hat / (v_hat.sqrt() + eps) + decay * w);
            }
            w
        };
        (0..weight.len()).map(of_one).collect()
    }

    fn flat(len: usize, seed: u64) -> Vec<f32> {
        random((1, len), seed).into_raw_vec_and_offset().0
    }

    #[test]
    fn steps_equal_their_definition() {
        let adamw = AdamW { learning_rate: 0.05, beta1: 0.8, beta2: 0.95, eps: 1e-3, weight_decay: 0.3 };
        let start = flat(40, 1);
        let gradients: Vec<_> = (2..12).map(|seed| flat(40, seed)).collect();
        let mut weight = ArrayD::from_shape_vec(&[40][..], start.clone()).unwrap_or_default();
        let mut moments = Moments::zeros(&[40]);
        for (step, gradient) in (1..).zip(&gradients) {
            let gradient = ArrayD::from_shape_vec(&[40][..], gradient.clone()).unwrap_or_default() * 4.0;
            adamw.step(step, weight.view_mut(), gradient.view(), 0.25, &mut moments);
        }
        for (found, truth) in weight.iter().zip(by_definition(adamw, &start, &gradients)) {
            assert!((f64::from(*found) - truth).abs() < 1e-6, "{found} instead of {truth}");
        }
    }

    #[test]
    fn without_a_gradient_only_decay_moves_a_weight() {
        let adamw = AdamW { learning_rate: 0.5, weight_decay: 0.5, ..AdamW::default() };
        let mut weight = ArrayD::from_elem(&[3][..], 2.0f32);
        adamw.step(1, weight.view_mut(), ArrayD::zeros(&[3][..]).view(), 1.0, &mut Moments::zeros(&[3]));
        assert_eq!(weight.as_slice(), Some(&[1.5f32; 3][..]));
    }

    #[test]
    fn a_norm_is_that_of_all_arrays_laid_end_to_end() {
        let (a, b) = (random((300, 200), 3), random((1, 7), 4));
        let truth: f64 = a.iter().chain(&b).map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let found = in_pools(|| global_norm([a.view().into_dyn(), b.view().into_dyn()]).to_bits());
        assert!((f64::from_bits(found) / truth - 1.0).abs() < 1e-12);
    }
}
