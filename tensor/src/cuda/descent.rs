//! Coordinate descent on the device: the same steps as the CPU solver's.

use super::feedback::{BLOCK, ROWS};
use super::grid::Grid;
use super::launch::{Layout, arguments, int};
use super::machine::Turn;
use super::memory::{Matrix, Rows};
use super::product::Keep;
use super::{Cuda, CudaError};

/// A Hessian as a Gram matrix and a diagonal: `scale * gram + diagonal`.
#[derive(Debug, Clone, Copy)]
pub struct Metric<'a> {
    /// `[n, n]`, both of its triangles.
    pub gram: Rows<'a, f32>,
    /// Of the Gram matrix.
    pub scale: f32,
    /// `[1, n]`.
    pub diagonal: Rows<'a, f32>,
}

impl Cuda {
    /// Sweeps `sweeps` times over the columns of w `[rows, n]`: each code becomes the best one given all others. No sweep raises
    /// `tr(E H Eᵀ)` of the errors E.
    ///
    /// # Errors
    /// If memory is short, a launch fails or the library refuses.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn descend(
        &self,
        w: Rows<'_, f32>,
        codes: &mut Matrix<u8>,
        h: Metric<'_>,
        grid: &Grid,
        sweeps: u32,
    ) -> Result<(), CudaError> {
        let (rows, n) = w.dim();
        assert!(h.gram.dim() == (n, n) && h.diagonal.dim() == (1, n), "a metric for {n} columns");
        let mut pull = self.pull(w, codes, h, grid)?;
        let change = self.room::<f32>((rows, BLOCK))?;
        let layout = Layout {
            grid: [rows.div_ceil(ROWS), 1, 1],
            block: [256, 1, 1],
            shared_bytes: (BLOCK * BLOCK * size_of::<f32>()) as u32,
        };
        for start in (0..sweeps).flat_map(|_| (0..n).step_by(BLOCK)) {
            let width = BLOCK.min(n - start);
            let arguments = arguments![
                &change,
                &*codes,
                &pull,
                h.gram,
                h.diagonal,
                &grid.scale,
                &grid.zero,
                &grid.min,
                int(rows),
                int(n),
                int(start),
                int(width),
                int(grid.group_size),
                int(grid.scale.dim().1),
                f32::from(grid.max_code),
                h.scale,
            ];
            self.run(("descent", None), "descend_block", layout, arguments)?;
            self.add_couplings(&mut pull, (f64::from(h.scale), &change), h.gram, [start, width, 0])?;
        }
        Ok(())
    }

    /// E H of the errors that codes make, `[rows, n]`.
    fn pull(
        &self,
        w: Rows<'_, f32>,
        codes: &Matrix<u8>,
        h: Metric<'_>,
        grid: &Grid,
    ) -> Result<Matrix<f32>, CudaError> {
        let errors = self.rounding_errors(w, codes.view(), grid)?;
        let mut pull = self.room::<f32>(w.dim())?;
        let arguments = arguments![&pull, &errors, h.diagonal, w.count() as i64, int(w.dim().1)];
        self.run(("descent", None), "times_diagonal", Layout::each(w.count()), arguments)?;
        let operands = ((errors.view(), Turn::Straight), (h.gram, Turn::Straight));
        self.multiply((pull.view_mut(), Keep::Sum), operands.0, operands.1, h.scale.into())?;
        Ok(pull)
    }
}
