//! Finished tensors on their way to the output: written at once, or by a thread of its own while a device goes on.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use attar_checkpoint::Dtype;
use attar_quant::{Facts, Grid, Named, Solution};
use ndarray::Array2;

use super::tune::Parts;
use super::write::{Rows, Sink};
use crate::diagnostic::{Failure, Result};
use crate::plan::PlannedTensor;

/// Matrices that wait to be written at most, so that a device which is done with several at once goes on: each holds its codes, a byte
/// for a weight.
const MOST_WAITING: usize = 4;

/// Where finished rows go.
pub(super) enum Outlet<'a> {
    /// To the output, before the call returns.
    Here(&'a mut Sink),
    /// To the thread that writes them.
    Behind { rows: Rows, pieces: SyncSender<Piece> },
    /// Into memory, for what is still to change.
    Kept { rows: Rows, parts: &'a mut Parts },
}

/// Rows of a tensor that are to be written.
pub(super) enum Piece {
    Codes { tensor: PlannedTensor, encoding: Named, grid: Box<Grid>, codes: Array2<u8>, facts: Facts },
    Floats { tensor: PlannedTensor, dtype: Dtype, values: Vec<f32> },
}

impl Piece {
    fn write(self, sink: &mut Sink) -> Result<()> {
        match self {
            Self::Codes { tensor, encoding, grid, codes, facts } => {
                let decoded = grid.decode_all(codes.view());
                sink.codes(&tensor, &encoding, &Solution { grid: *grid, codes, decoded, facts })
            }
            Self::Floats { tensor, dtype, values } => sink.floats(&tensor, dtype, values),
        }
    }
}

impl Outlet<'_> {
    /// The runs of rows a tensor must be written in, about `weights` long.
    pub fn row_step(&self, tensor: &PlannedTensor, weights: usize) -> usize {
        match self {
            Self::Here(sink) => sink.rows().step(tensor, weights),
            Self::Behind { rows, .. } | Self::Kept { rows, .. } => rows.step(tensor, weights),
        }
    }

    /// Writes the next rows of a coded tensor.
    ///
    /// # Errors
    /// As [`Sink::codes`]; a thread that has stopped.
    pub fn codes(&mut self, tensor: &PlannedTensor, encoding: &Named, solution: &Solution) -> Result<()> {
        match self {
            Self::Here(sink) => sink.codes(tensor, encoding, solution),
            Self::Behind { .. } | Self::Kept { .. } => {
                let Solution { grid, codes, facts, .. } = solution.clone();
                self.grid_and_codes(tensor, encoding, (grid, codes), facts)
            }
        }
    }

    /// The same of rows whose values nobody has worked out here.
    ///
    /// # Errors
    /// As [`codes`](Self::codes).
    pub fn grid_and_codes(
        &mut self,
        tensor: &PlannedTensor,
        encoding: &Named,
        (grid, codes): (Grid, Array2<u8>),
        facts: Facts,
    ) -> Result<()> {
        let (tensor, grid) = (tensor.clone(), Box::new(grid));
        self.put(Piece::Codes { tensor, encoding: encoding.clone(), grid, codes, facts })
    }

    /// Writes the next rows of a float tensor.
    ///
    /// # Errors
    /// As [`Sink::floats`]; a thread that has stopped.
    pub fn floats(&mut self, tensor: &PlannedTensor, dtype: Dtype, values: Vec<f32>) -> Result<()> {
        self.put(Piece::Floats { tensor: tensor.clone(), dtype, values })
    }

    fn put(&mut self, piece: Piece) -> Result<()> {
        match self {
            Self::Here(sink) => piece.write(sink),
            Self::Behind { pieces, .. } => {
                pieces.send(piece).map_err(|_| Failure::new("nobody writes the output any more"))
            }
            Self::Kept { parts, .. } => {
                parts.add(piece);
                Ok(())
            }
        }
    }
}

/// Does some work whose tensors are written by a thread beside it; what that thread could not do comes first.
///
/// # Errors
/// Those of the work; a disk that refuses.
pub(super) fn writing_behind<T>(sink: &mut Sink, work: impl FnOnce(Outlet<'_>) -> Result<T>) -> Result<T> {
    let (pieces, waiting) = sync_channel(MOST_WAITING);
    let rows = sink.rows();
    thread::scope(|scope| {
        let writer = scope.spawn(move || write_all(sink, waiting));
        let result = work(Outlet::Behind { rows, pieces });
        joined(writer).and(result)
    })
}

fn write_all(sink: &mut Sink, waiting: Receiver<Piece>) -> Result<()> {
    waiting.into_iter().try_for_each(|piece| piece.write(sink))
}

fn joined(writer: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
