//! The optimizer's step.

use super::launch::{Layout, arguments};
use super::machine::Number;
use super::memory::{Element, Matrix, Rows};
use super::{Cuda, CudaError};
use crate::Precision;
use crate::op::AdamW;
use half::bf16;

/// A weight in training on the device: itself in f32, as the products read it, and what the optimizer remembers.
#[derive(Debug)]
pub struct Trained {
    /// The weight.
    pub weight: Matrix<f32>,
    narrow: Option<Matrix<bf16>>, // where products are in bf16
    /// The running mean of its gradient.
    pub mean: Matrix<f32>,
    /// The running mean of its gradient's square.
    pub mean_square: Matrix<f32>,
}

impl Trained {
    /// The weight as products of `T` read it.
    ///
    /// # Panics
    /// If it is trained for products of other elements.
    pub fn read<T: Element>(&self) -> Rows<'_, T> {
        let address = match (T::NUMBER, &self.narrow) {
            (Number::Bf16, Some(narrow)) => narrow.address(),
            (Number::F32, _) => self.weight.address(),
            _ => panic!("a weight trained for products in f32"),
        };
        Rows::at(address, self.weight.dim())
    }
}

impl Cuda {
    /// A weight that no step has changed yet, for products in `precision`.
    ///
    /// # Errors
    /// If memory is short.
    pub fn trained(&self, weight: Matrix<f32>, precision: Precision) -> Result<Trained, CudaError> {
        let narrow = match precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(self.narrow(weight.view())?),
        };
        let (mean, mean_square) = (self.zeros(weight.dim())?, self.zeros(weight.dim())?);
        Ok(Trained { weight, narrow, mean, mean_square })
    }

    /// What products read follows a weight that was written to.
    ///
    /// # Errors
    /// If the launch fails.
    pub fn follow(&self, trained: &mut Trained) -> Result<(), CudaError> {
        let Some(narrow) = &trained.narrow else { return Ok(()) };
        let count = trained.weight.view().count();
        let arguments = arguments![narrow, &trained.weight, count as i64];
        self.run(("cast", None), "narrow", Layout::each(count), arguments)
    }

    /// Step number `number`, the first being 1, of [`AdamW`]: moves a weight against `gradient_scale * gradient`. The scale is where
    /// clipping enters.
    ///
    /// # Errors
    /// If the launch fails.
    ///
    /// # Panics
    /// If the step's number is 0 or the shapes differ.
    pub fn step(
        &self,
        trained: &mut Trained,
        gradient: Rows<'_, f32>,
        adamw: AdamW,
        number: u32,
        gradient_scale: f32,
    ) -> Result<(), CudaError> {
        assert!(number > 0, "steps are counted from 1");
        assert_eq!(gradient.dim(), trained.weight.dim(), "a gradient is shaped as its weight");
        let AdamW { learning_rate, beta1, beta2, eps, weight_decay } = adamw;
        let unbiased = |beta: f32| 1.0 - f64::from(beta).powf(number.into());
        let rate = (f64::from(learning_rate) / unbiased(beta1)) as f32;
        let root = (1.0 / unbiased(beta2).sqrt()) as f32;
        let kept = 1.0 - learning_rate * weight_decay;
        let count = gradient.count();
        let narrow = trained.narrow.as_ref().map_or(0, Matrix::address);
        let arguments = arguments![
            &trained.weight,
            Rows::<bf16>::at(narrow, gradient.dim()),
            &trained.mean,
            &trained.mean_square,
            gradient,
            count as i64,
            gradient_scale,
            rate,
            root,
            kept,
            beta1,
            beta2,
            eps,
        ];
        self.run(("adamw", None), "adamw", Layout::each(count), arguments)
    }
}
