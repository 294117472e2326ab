//! Products of row-major matrices, through a library that thinks in columns.
//!
//! A row-major matrix `[m, n]` is the library's `[n, m]`. So `c = a b` is asked for as `cᵀ = bᵀ aᵀ`: b comes first, and what is
//! transposed for us is straight for it exactly where we transposed nothing.

use super::machine::{Multiply, Turn};
use super::memory::{Element, Matrix, Rows, RowsMut};
use super::{Cuda, CudaError};

/// What becomes of what stood in the output of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It is overwritten.
    Nothing,
    /// The product is added to it.
    Sum,
}

impl Keep {
    fn factor(self) -> f64 {
        match self {
            Self::Nothing => 0.0,
            Self::Sum => 1.0,
        }
    }
}

impl Cuda {
    /// `out (+)= x @ w.T`: activations `[tokens, in_features]` through a weight `[out_features, in_features]`.
    ///
    /// Sums are f32 whatever the elements; out may be wider than what is multiplied.
    ///
    /// # Errors
    /// If the library is missing or refuses.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn linear<T: Element, O: Element>(
        &self,
        mut out: RowsMut<'_, O>,
        x: Rows<'_, T>,
        w: Rows<'_, T>,
        keep: Keep,
    ) -> Result<(), CudaError> {
        assert_eq!(x.dim().1, w.dim().1, "in_features of activations and weight");
        self.multiply((out.reborrow(), keep), (x, Turn::Straight), (w, Turn::Transposed), 1.0)
    }

    /// Backward of [`linear`](Self::linear): `d_x (+)= d_out @ w`.
    ///
    /// # Errors
    /// If the library is missing or refuses.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn input_backward<T: Element, O: Element>(
        &self,
        d_x: RowsMut<'_, O>,
        d_out: Rows<'_, T>,
        w: Rows<'_, T>,
        keep: Keep,
    ) -> Result<(), CudaError> {
        self.multiply((d_x, keep), (d_out, Turn::Straight), (w, Turn::Straight), 1.0)
    }

    /// Backward of [`linear`](Self::linear): `d_w (+)= d_out.T @ x`, in f32.
    ///
    /// # Errors
    /// If the library is missing or refuses.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn weight_backward<T: Element>(
        &self,
        d_w: RowsMut<'_, f32>,
        d_out: Rows<'_, T>,
        x: Rows<'_, T>,
        keep: Keep,
    ) -> Result<(), CudaError> {
        self.multiply((d_w, keep), (d_out, Turn::Transposed), (x, Turn::Straight), 1.0)
    }

    /// `c = alpha * turn(a) turn(b) (+ c)`, row-major: `[m, k] x [k, n] -> [m, n]` once turned.
    fn multiply<T: Element, O: Element>(
        &self,
        (out, keep): (RowsMut<'_, O>, Keep),
        a: (Rows<'_, T>, Turn),
        b: (Rows<'_, T>, Turn),
        alpha: f64,
    ) -> Result<(), CudaError> {
        let turned = |(x, turn): (Rows<'_, T>, Turn)| match turn {
            Turn::Straight => x.dim(),
            Turn::Transposed => (x.dim().1, x.dim().0),
        };
        let ((m, k), (other_k, n)) = (turned(a), turned(b));
        assert_eq!(k, other_k, "inner lengths of a {m}x{k} and a {other_k}x{n} matrix");
        assert_eq!(out.dim(), (m, n), "the output of a {m}x{k} by {k}x{n} product");
        if m == 0 || n == 0 || k == 0 {
            assert!(k > 0 || keep == Keep::Sum || m * n == 0, "a product over nothing");
            return Ok(());
        }
        let whole = |x: Rows<'_, T>| x.columns(0, x.dim().1);
        self.machine.multiply(&Multiply {
            left: (whole(b.0), b.1),
            right: (whole(a.0), a.1),
            out: out.view().columns(0, n),
            alpha,
            beta: keep.factor(),
        })
    }

    /// `gram += x.T @ x` on and above the diagonal, for activations `[tokens, features]`; below it nothing is touched until
    /// [`mirror`](Self::mirror). Sums are f32: products of bf16 are exact in it.
    ///
    /// In eight panels, 9/16 of the whole product.
    ///
    /// # Errors
    /// If the library is missing or refuses.
    ///
    /// # Panics
    /// If gram is not square in features.
    pub fn gram_add<T: Element>(&self, gram: &mut Matrix<f32>, x: Rows<'_, T>) -> Result<(), CudaError> {
        let (tokens, features) = x.dim();
        assert_eq!(gram.dim(), (features, features), "a Gram matrix is square in features");
        if tokens == 0 {
            return Ok(());
        }
        // Panels of whole tiles of the products, so that no panel begins at an odd address.
        let height = features.div_ceil(8).next_multiple_of(128);
        for from in (0..features).step_by(height) {
            let to = features.min(from + height);
            // Rows from..to, columns from.. of ours: the library's rows from.., columns from..to.
            self.machine.multiply(&Multiply {
                left: (x.columns(from, features), Turn::Straight),
                right: (x.columns(from, to), Turn::Transposed),
                out: gram.view().rows(from, to).columns(from, features),
                alpha: 1.0,
                beta: 1.0,
            })?;
        }
        Ok(())
    }
}
