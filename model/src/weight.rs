//! A weight as the forward pass multiplies by it.

use crate::Rounding;
use attar_tensor::{Bf16Matrix, Bf16Rows, Precision, general_mat_mul};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, CowArray, Ix2};
use std::cell::OnceCell;

/// Activations `[tokens, in_features]` on their way into weights that read the same ones: packed once for all that are packed.
#[derive(Debug)]
pub struct Input<'a> {
    x: CowArray<'a, f32, Ix2>,
    packed: OnceCell<Bf16Rows>, // made for the first packed weight
    rounded: OnceCell<(Rounding, Box<Input<'static>>)>, // made for the first that reads them so
}

impl<'a> From<ArrayView2<'a, f32>> for Input<'a> {
    fn from(x: ArrayView2<'a, f32>) -> Self {
        Self::of(x.into())
    }
}

impl<'a> Input<'a> {
    fn of(x: CowArray<'a, f32, Ix2>) -> Self {
        Self { x, packed: OnceCell::new(), rounded: OnceCell::new() }
    }

    /// How many there are.
    pub fn tokens(&self) -> usize {
        self.x.nrows()
    }

    fn packed(&self) -> &Bf16Rows {
        self.packed.get_or_init(|| Bf16Rows::from_f32(self.x.view()))
    }

    /// Runs `f` on what is left of them when they are rounded.
    pub(crate) fn with_rounded<T>(&self, rounding: Option<Rounding>, f: impl FnOnce(&Input<'_>) -> T) -> T {
        let Some(rounding) = rounding else { return f(self) };
        let make = || Input::of(rounding.apply(self.x.view()).into());
        let (first, rounded) = self.rounded.get_or_init(|| (rounding, Box::new(make())));
        if *first == rounding { f(rounded) } else { f(&make()) }
    }
}

/// A matrix `[out_features, in_features]`: its numbers, or what is left of them once it is only multiplied by.
#[derive(Debug, Clone)]
pub enum Weight {
    /// All of them.
    Full(Array2<f32>),
    /// Rounded to bf16, in the order of the kernel.
    Bf16(Bf16Matrix),
}

impl From<Array2<f32>> for Weight {
    fn from(w: Array2<f32>) -> Self {
        Self::Full(w)
    }
}

impl Weight {
    /// `(out_features, in_features)`.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::Full(w) => w.dim(),
            Self::Bf16(w) => w.dim(),
        }
    }

    /// The numbers.
    ///
    /// # Panics
    /// If they are packed: what is left of them is [`Bf16Matrix::to_f32`].
    pub fn view(&self) -> ArrayView2<'_, f32> {
        match self {
            Self::Full(w) => w.view(),
            Self::Bf16(_) => panic!("a packed weight is only multiplied by"),
        }
    }

    /// The numbers, to be changed in place.
    ///
    /// # Panics
    /// If they are packed.
    pub fn view_mut(&mut self) -> ArrayViewMut2<'_, f32> {
        match self {
            Self::Full(w) => w.view_mut(),
            Self::Bf16(_) => panic!("a packed weight is only multiplied by"),
        }
    }

    /// Keeps what products in `precision` need: in bf16 half the memory. In f32, and where it is packed already, nothing
    /// changes.
    pub fn pack(&mut self, precision: Precision) {
        if let (Self::Full(w), Precision::Bf16) = (&*self, precision) {
            *self = Self::Bf16(Bf16Matrix::from_f32(w.view()));
        }
    }

    /// `x @ self.T`: activations `[tokens, in_features]` to `[tokens, out_features]`.
    ///
    /// # Panics
    /// If the numbers of `in_features` differ.
    pub fn apply(&self, x: &Input<'_>) -> Array2<f32> {
        let mut out = Array2::zeros((x.tokens(), self.dim().0));
        self.apply_into(out.view_mut(), x);
        out
    }

    /// `out = x @ self.T`; what out held is not read.
    ///
    /// # Panics
    /// If the shapes do not fit, or, of a packed weight, the rows of out are not contiguous.
    pub fn apply_into(&self, out: ArrayViewMut2<'_, f32>, x: &Input<'_>) {
        match self {
            Self::Full(w) => general_mat_mul(1.0, x.x.view(), w.t(), 0.0, out),
            Self::Bf16(w) => x.packed().linear_into(w, out),
        }
    }

    /// `out += x @ self.T`.
    ///
    /// # Panics
    /// As [`apply_into`](Self::apply_into).
    pub fn add_to(&self, out: ArrayViewMut2<'_, f32>, x: &Input<'_>) {
        match self {
            Self::Full(w) => general_mat_mul(1.0, x.x.view(), w.t(), 1.0, out),
            Self::Bf16(w) => x.packed().linear_add(w, out),
        }
    }
}
