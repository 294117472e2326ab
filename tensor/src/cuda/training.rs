//! The optimizer's step.

use super::launch::{Layout, arguments};
use super::memory::{Matrix, Rows};
use super::{Cuda, CudaError};
use half::bf16;

/// Adam with decoupled weight decay: the figures of one step.
///
/// # Source
/// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101, Algorithm 2, with the decay multiplied by the
/// learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Its number, the first being 1.
    pub number: u32,
    /// How far it goes.
    pub learning_rate: f32,
    /// How much of the mean gradient is kept.
    pub beta1: f32,
    /// How much of the mean squared gradient is kept.
    pub beta2: f32,
    /// Added to the root of the mean squared gradient.
    pub eps: f32,
    /// How much of a weight is taken away per unit of learning rate.
    pub weight_decay: f32,
    /// What gradients are multiplied by: where clipping enters.
    pub gradient_scale: f32,
}

/// A weight in training on the device: itself in f32, as the products read it, and what the optimizer remembers.
#[derive(Debug)]
pub struct Trained {
    /// The weight.
    pub weight: Matrix<f32>,
    /// The same in bf16.
    pub narrow: Matrix<bf16>,
    mean: Matrix<f32>,
    mean_square: Matrix<f32>,
}

impl Cuda {
    /// A weight that no step has changed yet.
    ///
    /// # Errors
    /// If memory is short.
    pub fn trained(&self, weight: Matrix<f32>) -> Result<Trained, CudaError> {
        let narrow = self.narrow(weight.view())?;
        let (mean, mean_square) = (self.zeros(weight.dim())?, self.zeros(weight.dim())?);
        Ok(Trained { weight, narrow, mean, mean_square })
    }

    /// Moves a weight against its gradient.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the step's number is 0 or the shapes differ.
    pub fn step(&self, trained: &mut Trained, gradient: Rows<'_, f32>, step: Step) -> Result<(), CudaError> {
        assert!(step.number > 0, "steps are counted from 1");
        assert_eq!(gradient.dim(), trained.weight.dim(), "a gradient is shaped as its weight");
        let unbiased = |beta: f32| 1.0 - f64::from(beta).powf(step.number.into());
        let rate = (f64::from(step.learning_rate) / unbiased(step.beta1)) as f32;
        let root = (1.0 / unbiased(step.beta2).sqrt()) as f32;
        let kept = 1.0 - step.learning_rate * step.weight_decay;
        let count = gradient.count();
        let arguments = arguments![
            &trained.weight,
            &trained.narrow,
            &trained.mean,
            &trained.mean_square,
            gradient,
            count as i64,
            step.gradient_scale,
            rate,
            root,
            kept,
            step.beta1,
            step.beta2,
            step.eps,
        ];
        self.run(("adamw", None), "adamw", Layout::each(count), arguments)
    }
}
