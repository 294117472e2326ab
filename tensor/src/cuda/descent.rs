//! Coordinate descent on the device: the same steps as the CPU solver's.

use super::feedback::{BLOCK, ROWS, SPAN};
use super::grid::Grid;
use super::launch::{Layout, arguments, int};
use super::machine::Argument;
use super::memory::{Matrix, Rows};
use super::split::Split;
use super::{Cuda, CudaError};
use std::ops::Range;

/// A Hessian as a Gram matrix and a diagonal: `scale * gram + diagonal`.
#[derive(Debug, Clone, Copy)]
pub struct Metric<'a> {
    /// `[n, n]`, both of its triangles.
    pub gram: Rows<'a, f32>,
    /// The same.
    pub split: &'a Split,
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
        let pull = self.pull(w, codes, h, grid)?;
        let change = self.zeros::<f32>((rows, SPAN.min(n)))?;
        for sweep in 0..sweeps {
            for from in (0..n).step_by(SPAN) {
                let span = from..n.min(from + SPAN);
                self.descend_span(&change, (codes, &pull), h, grid, span.clone())?;
                // What the columns of other spans have to take: those before this one for the next sweep only.
                let moved = self.split(change.view())?;
                let before = if sweep + 1 < sweeps { 0..from } else { 0..0 };
                for others in [before, span.end..n] {
                    let out = pull.view().columns(others.start, others.end);
                    let moved = (&moved, 0..span.len());
                    let factors = (f64::from(h.scale), 1.0);
                    self.add_split_product(out, factors, moved, (h.split, span.clone(), others))?;
                }
            }
        }
        Ok(())
    }

    /// One span of columns, block by block; `change` `[rows, span]` gets the change of E in it.
    fn descend_span(
        &self,
        change: &Matrix<f32>,
        (codes, pull): (&Matrix<u8>, &Matrix<f32>),
        h: Metric<'_>,
        grid: &Grid,
        span: Range<usize>,
    ) -> Result<(), CudaError> {
        let (rows, n) = pull.dim();
        let layout = Layout {
            grid: [rows.div_ceil(ROWS), 1, 1],
            block: [256, 1, 1],
            shared_bytes: (BLOCK * BLOCK * size_of::<f32>()) as u32,
        };
        for start in span.clone().step_by(BLOCK) {
            let (at, width) = (start - span.start, BLOCK.min(span.end - start));
            let arguments = arguments![
                Argument::Address(change.address() + (at * size_of::<f32>()) as u64),
                codes,
                pull,
                h.gram,
                h.diagonal,
                &grid.scale,
                &grid.zero,
                &grid.min,
                int(rows),
                int(n),
                int(start),
                int(width),
                int(change.dim().1),
                int(grid.group_size),
                int(grid.scale.dim().1),
                f32::from(grid.max_code),
                h.scale,
            ];
            self.run(("descent", None), "descend_block", layout, arguments)?;
            self.add_product(
                pull.view().columns(span.start, span.end),
                (h.scale.into(), 1.0),
                change.view().columns(at, at + width),
                h.gram.rows(start, start + width).columns(span.start, span.end),
            )?;
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
        let n = w.dim().1;
        let errors = self.rounding_errors(w, codes.view(), grid)?;
        let pull = self.room::<f32>(w.dim())?;
        let arguments = arguments![&pull, &errors, h.diagonal, w.count() as i64, int(n)];
        self.run(("descent", None), "times_diagonal", Layout::each(w.count()), arguments)?;
        let parts = self.split(errors.view())?;
        drop(errors);
        let factors = (f64::from(h.scale), 1.0);
        self.add_split_product(pull.view().columns(0, n), factors, (&parts, 0..n), (h.split, 0..n, 0..n))?;
        Ok(pull)
    }
}
