//! Error feedback on the device: the factor of a Hessian, and the pass over a weight's columns. The same steps as the CPU solver's.

use super::grid::Grid;
use super::launch::{Layout, arguments, int};
use super::machine::{Argument, Number, Triangle};
use super::memory::{Item, Matrix, Rows};
use super::{Cuda, CudaError};

/// How a Gram matrix becomes the Hessian that is factored, in units of its mean diagonal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Damping {
    /// The mean of the diagonal.
    pub mean: f64,
    /// The share of the matrix replaced by its own diagonal.
    pub shrinkage: f64,
    /// Added to the diagonal, in units of its mean.
    pub damping: f64,
}

/// The width in which a Hessian is factored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// As on the CPU.
    F64,
    /// Half the memory; for well-damped matrices.
    F32,
}

/// What a pass gives.
#[derive(Debug)]
pub struct Pass {
    /// `[rows, cols]`, columns as in the weight.
    pub codes: Matrix<u8>,
    /// `sum (w - q)² / pivot²` of each row, with the weights as they were when rounded.
    pub losses: Vec<f64>,
}

/// Columns rounded before their errors are passed on to the others of their span in one product.
pub(super) const BLOCK: usize = 128;
/// Columns whose errors are passed on to all later ones in one product: more of them read and write the weight less often.
pub(super) const SPAN: usize = 1024;
/// Rows of a block of threads: eight warps of two.
pub(super) const ROWS: usize = 16;

impl Cuda {
    /// The upper triangular U with `UᵀU` the inverse of the damped Hessian, rows and columns in `order`, `[n, n]`.
    ///
    /// With J turning the order around: L the factor of `J H J`, and `U = J L⁻¹ J`. One factorisation and one inverse of a
    /// triangle, `2/3 n³`.
    ///
    /// # Errors
    /// [`CudaError::NotPositiveDefinite`] with the column in the order given; otherwise if memory is short or a library refuses.
    ///
    /// # Panics
    /// If the Gram matrix is not square in the order's length.
    pub fn cholesky_of_inverse(
        &self,
        gram: Rows<'_, f32>,
        order: &[u32],
        damping: Damping,
        width: Width,
    ) -> Result<Matrix<f32>, CudaError> {
        match width {
            Width::F64 => self.factor_in::<f64>(gram, order, damping, ("WIDE=double", Number::F64)),
            Width::F32 => self.factor_in::<f32>(gram, order, damping, ("WIDE=float", Number::F32)),
        }
    }

    fn factor_in<W: Item>(
        &self,
        gram: Rows<'_, f32>,
        order: &[u32],
        damping: Damping,
        (definition, number): (&'static str, Number),
    ) -> Result<Matrix<f32>, CudaError> {
        let size = order.len();
        assert_eq!(gram.dim(), (size, size), "a Gram matrix is square in the columns ordered");
        let module = ("feedback", Some(definition));
        let wide = self.room::<W>((size, size))?;
        let ids = self.upload_items(order, (1, size))?;
        let off_diagonal = ((1.0 - damping.shrinkage) / damping.mean) as f32;
        let arguments = arguments![&wide, gram, &ids, int(size), off_diagonal, damping.mean, damping.damping];
        let layout =
            Layout { grid: [size.div_ceil(32), size.div_ceil(8), 1], block: [32, 8, 1], shared_bytes: 0 };
        self.run(module, "reversed_hessian", layout, arguments)?;
        let triangle = Triangle { address: wide.address(), number, size: size as u64 };
        let failed = match self.machine.factor(&triangle)? {
            None => self.machine.invert(&triangle)?,
            failed => failed,
        };
        if let Some(column) = failed {
            return Err(CudaError::NotPositiveDefinite { column: size - 1 - column as usize, size });
        }
        let upper = self.room((size, size))?;
        let arguments = arguments![&upper, &wide, int(size)];
        self.run(module, "reversed_inverse", Layout::squares(size, size), arguments)?;
        Ok(upper)
    }

    /// Rounds w `[rows, cols]` to the grid in the factor's order; the columns not yet rounded absorb each column's error.
    ///
    /// # Errors
    /// If memory is short, a launch fails or the library refuses.
    ///
    /// # Panics
    /// If the shapes do not fit.
    ///
    /// # Source
    /// Frantar et al., "GPTQ", arXiv:2210.17323, Algorithm 1.
    pub fn round_with_feedback(
        &self,
        w: Rows<'_, f32>,
        order: &[u32],
        upper: Rows<'_, f32>,
        grid: &Grid,
    ) -> Result<Pass, CudaError> {
        let (rows, cols) = w.dim();
        assert!(order.len() == cols && upper.dim() == (cols, cols), "a factor for {cols} columns");
        assert_eq!(grid.scale.dim(), (rows, cols.div_ceil(grid.group_size)), "a grid for another shape");
        let module = ("feedback", Some("WIDE=double"));
        let ids = self.upload_items(order, (1, cols))?;
        let rest = self.room::<f32>((rows, cols))?;
        let arguments = arguments![&rest, w, &ids, (rows * cols) as i64, int(cols)];
        self.run(module, "gather_columns", Layout::each(rows * cols), arguments)?;
        let (errors, codes) = (self.zeros::<f32>((rows, SPAN.min(cols)))?, self.room::<u8>((rows, cols))?);
        let losses = self.zeros::<f64>((1, rows))?;
        let parts = self.split(upper)?;
        let layout = Layout {
            grid: [rows.div_ceil(ROWS), 1, 1],
            block: [256, 1, 1],
            shared_bytes: (BLOCK * BLOCK * size_of::<f32>()) as u32,
        };
        for start in (0..cols).step_by(BLOCK) {
            let (from, end) = (start / SPAN * SPAN, cols.min(start + BLOCK));
            let (at, to) = (start - from, cols.min(from + SPAN));
            let arguments = arguments![
                Argument::Address(errors.address() + (at * size_of::<f32>()) as u64),
                &codes,
                &losses,
                &rest,
                upper,
                &ids,
                &grid.scale,
                &grid.zero,
                &grid.min,
                int(rows),
                int(cols),
                int(start),
                int(end - start),
                int(errors.dim().1),
                int(grid.group_size),
                int(grid.scale.dim().1),
                f32::from(grid.max_code),
            ];
            self.run(module, "round_block", layout, arguments)?;
            self.add_product(
                rest.view().columns(end, to),
                (-1.0, 1.0),
                errors.view().columns(at, end - from),
                upper.rows(start, end).columns(end, to),
            )?;
            if end == to {
                // What later spans have to take of this one.
                let errors = self.split(errors.view())?;
                let couplings = (&parts, from..to, to..cols);
                let later = rest.view().columns(to, cols);
                self.add_split_product(later, (-1.0, 1.0), (&errors, 0..to - from), couplings)?;
            }
        }
        let losses = self.download_items(losses.view())?;
        Ok(Pass { codes, losses })
    }
}
