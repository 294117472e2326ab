//! Products of f32 matrices on tensor cores: each matrix as the sum of two in bf16, three products of them.

use super::launch::{Layout, arguments};
use super::machine::{Columns, Multiply, Turn};
use super::memory::{Matrix, Rows};
use super::{Cuda, CudaError};
use half::bf16;
use std::ops::Range;

/// An f32 matrix as the sum of two bf16 ones: sixteen bits of each number's mantissa.
///
/// # Source
/// Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations",
/// arXiv:1904.06376, with two terms; the product of the two low ones is left out.
#[derive(Debug)]
pub struct Split {
    high: Matrix<bf16>,
    low: Matrix<bf16>,
}

impl Split {
    /// `(rows, cols)`.
    pub fn dim(&self) -> (usize, usize) {
        self.high.dim()
    }
}

impl Cuda {
    /// The two parts of x.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    pub fn split(&self, x: Rows<'_, f32>) -> Result<Split, CudaError> {
        let split = Split { high: self.room(x.dim())?, low: self.room(x.dim())? };
        let arguments = arguments![&split.high, &split.low, x, x.count() as i64];
        self.run(("cast", None), "split", Layout::each(x.count()), arguments)?;
        Ok(split)
    }

    /// `out = alpha * x @ h + beta * out` for parts of matrices in f32; nothing where one of them is empty.
    pub(super) fn add_product(
        &self,
        out: Columns,
        (alpha, beta): (f64, f64),
        x: Columns,
        h: Columns,
    ) -> Result<(), CudaError> {
        if out.rows * out.cols * h.cols == 0 {
            return Ok(());
        }
        self.machine.multiply(&Multiply {
            left: (h, Turn::Straight),
            right: (x, Turn::Straight),
            out,
            alpha,
            beta,
        })
    }

    /// The same of x's columns and h's rows of two ranges of one length, in three products.
    pub(super) fn add_split_product(
        &self,
        out: Columns,
        (alpha, beta): (f64, f64),
        (x, inner): (&Split, Range<usize>),
        (h, rows, cols): (&Split, Range<usize>, Range<usize>),
    ) -> Result<(), CudaError> {
        let of_x = |part: &Matrix<bf16>| part.view().columns(inner.start, inner.end);
        let of_h = |part: &Matrix<bf16>| part.view().rows(rows.start, rows.end).columns(cols.start, cols.end);
        self.add_product(out, (alpha, beta), of_x(&x.high), of_h(&h.high))?;
        self.add_product(out, (alpha, 1.0), of_x(&x.low), of_h(&h.high))?;
        self.add_product(out, (alpha, 1.0), of_x(&x.high), of_h(&h.low))
    }
}
