//! The products of a training step, in the precision it is computed in.
//!
//! Weights stay in f32, where small steps add up; where products are in bf16 each factor is rounded and laid out when it is first
//! read, and once for all products that read it.

use crate::{Precision, Weight};
use attar_tensor::op::{input_backward, weight_backward};
use attar_tensor::{Bf16Columns, Bf16Matrix, Bf16Rows, bf16_weight_backward, general_mat_mul};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, CowArray, Ix2};
use std::sync::OnceLock;

/// Activations or their gradients, `[tokens, features]`, as products read them.
pub(crate) struct Activations<'a> {
    numbers: CowArray<'a, f32, Ix2>,
    rows: OnceLock<Bf16Rows>,       // for products with weights
    columns: OnceLock<Bf16Columns>, // for sums over tokens
}

impl<'a> Activations<'a> {
    pub(crate) fn new(numbers: impl Into<CowArray<'a, f32, Ix2>>) -> Self {
        Self { numbers: numbers.into(), rows: OnceLock::new(), columns: OnceLock::new() }
    }

    /// `[tokens, features]`.
    pub(crate) fn view(&self) -> ArrayView2<'_, f32> {
        self.numbers.view()
    }

    fn rows(&self) -> &Bf16Rows {
        self.rows.get_or_init(|| Bf16Rows::from_f32(self.view()))
    }

    fn columns(&self) -> &Bf16Columns {
        self.columns.get_or_init(|| Bf16Columns::from_f32(self.view()))
    }
}

/// A matrix that learns, `[out_features, in_features]`, and its bias, `[out_features]`.
pub(crate) struct Learning<'a> {
    weight: ArrayView2<'a, f32>,
    bias: Option<&'a Array1<f32>>,
    precision: Precision,
    forward: OnceLock<Bf16Matrix>,  // what activations are multiplied by
    backward: OnceLock<Bf16Matrix>, // what gradients are multiplied by
}

impl<'a> Learning<'a> {
    /// # Panics
    /// If the weight is packed.
    pub(crate) fn new(weight: &'a Weight, bias: Option<&'a Array1<f32>>, precision: Precision) -> Self {
        let weight = weight.view();
        Self { weight, bias, precision, forward: OnceLock::new(), backward: OnceLock::new() }
    }

    fn forward(&self) -> &Bf16Matrix {
        self.forward.get_or_init(|| Bf16Matrix::from_f32(self.weight))
    }

    fn backward(&self) -> &Bf16Matrix {
        self.backward.get_or_init(|| Bf16Matrix::of_transposed(self.weight))
    }

    /// `x @ weight.T + bias`: `[tokens, in_features]` to `[tokens, out_features]`.
    pub(crate) fn apply(&self, x: &Activations<'_>) -> Array2<f32> {
        let mut out = Array2::zeros((x.view().nrows(), self.weight.nrows()));
        match self.bias {
            Some(bias) => {
                out.assign(bias);
                self.add_product(x, out.view_mut());
            }
            None => self.product_into(x, out.view_mut()),
        }
        out
    }

    /// `out += x @ weight.T + bias`.
    pub(crate) fn add_to(&self, mut out: ArrayViewMut2<'_, f32>, x: &Activations<'_>) {
        if let Some(bias) = self.bias {
            out += bias;
        }
        self.add_product(x, out);
    }

    /// `x @ weight.T` into `out`, which is not read.
    fn product_into(&self, x: &Activations<'_>, out: ArrayViewMut2<'_, f32>) {
        match self.precision {
            Precision::F32 => general_mat_mul(1.0, x.view(), self.weight.t(), 0.0, out),
            Precision::Bf16 => x.rows().linear_into(self.forward(), out),
        }
    }

    fn add_product(&self, x: &Activations<'_>, out: ArrayViewMut2<'_, f32>) {
        match self.precision {
            Precision::F32 => general_mat_mul(1.0, x.view(), self.weight.t(), 1.0, out),
            Precision::Bf16 => x.rows().linear_add(self.forward(), out),
        }
    }

    /// `d_out @ weight`, the gradient of what the matrix read, `[tokens, in_features]`.
    pub(crate) fn input_gradient(&self, d_out: &Activations<'_>) -> Array2<f32> {
        let mut d_x = Array2::zeros((d_out.view().nrows(), self.weight.ncols()));
        match self.precision {
            Precision::F32 => general_mat_mul(1.0, d_out.view(), self.weight, 0.0, d_x.view_mut()),
            Precision::Bf16 => d_out.rows().linear_into(self.backward(), d_x.view_mut()),
        }
        d_x
    }

    /// `d_x += d_out @ weight`, `[tokens, in_features]`.
    pub(crate) fn add_input_gradient(&self, d_out: &Activations<'_>, d_x: ArrayViewMut2<'_, f32>) {
        match self.precision {
            Precision::F32 => input_backward(d_out.view(), self.weight, d_x),
            Precision::Bf16 => d_out.rows().linear_add(self.backward(), d_x),
        }
    }

    /// `d_weight += d_out.T @ x`, shaped as the weight.
    pub(crate) fn add_weight_gradient(
        &self,
        d_out: &Activations<'_>,
        x: &Activations<'_>,
        d_weight: ArrayViewMut2<'_, f32>,
    ) {
        match self.precision {
            Precision::F32 => weight_backward(d_out.view(), x.view(), d_weight),
            Precision::Bf16 => bf16_weight_backward(d_out.columns(), x.columns(), d_weight),
        }
    }
}
