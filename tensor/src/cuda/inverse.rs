//! The inverse of a triangle, in place, by products, which is what a device does fastest.

use super::launch::{Layout, arguments, int};
use super::machine::{Argument, Columns, Triangle};
use super::memory::{Item, Matrix};
use super::{Cuda, CudaError};
use std::ops::Range;

/// Rows of the triangles on the diagonal that one kernel inverts.
const CORNER: usize = 64;
/// Products with a triangle go by so many parts, so that fewer of its zeros are multiplied.
const PARTS: usize = 4;
/// Fewer rows than this are one part.
const LEAST_ROWS: usize = 512;

impl Cuda {
    /// Overwrites a lower triangle stored by columns with its inverse, and what stands above the diagonal with zeros.
    ///
    /// With blocks A on the diagonal, B below it and C after it: A and C are inverted, then B becomes `-C^-1 B A^-1`.
    pub(super) fn invert<W: Item>(
        &self,
        triangle: Triangle,
        definition: &'static str,
    ) -> Result<(), CudaError> {
        let (size, module) = (triangle.size as usize, ("feedback", Some(definition)));
        let tiles =
            Layout { grid: [size.div_ceil(32), size.div_ceil(8), 1], block: [32, 8, 1], shared_bytes: 0 };
        let arguments = arguments![Argument::Address(triangle.address), int(size)];
        self.run(module, "clear_above", tiles, arguments)?;
        let layout = Layout {
            grid: [size.div_ceil(CORNER), 1, 1],
            block: [CORNER as u32, 1, 1],
            shared_bytes: (2 * CORNER * (CORNER + 1) * size_of::<W>()) as u32,
        };
        self.run(module, "invert_corners", layout, arguments)?;
        let half = size.div_ceil(2).next_multiple_of(CORNER);
        let room = self.room::<W>((half, half))?;
        self.join(Stored { triangle, width: size_of::<W>() }, &room, 0..size)
    }

    /// The inverse of some rows and columns on the diagonal, of which the corners are inverted.
    fn join<W: Item>(&self, all: Stored, room: &Matrix<W>, range: Range<usize>) -> Result<(), CudaError> {
        let Range { start, end } = range;
        if end - start <= CORNER {
            return Ok(());
        }
        let middle = start + (end - start).div_ceil(2).next_multiple_of(CORNER);
        self.join(all, room, start..middle)?;
        self.join(all, room, middle..end)?;
        let (left, below) = (middle - start, end - middle);
        let between = |rows: Range<usize>, cols: Range<usize>| Columns {
            address: room.address() + ((cols.start * below + rows.start) * all.width) as u64,
            number: all.triangle.number,
            rows: rows.len() as u64,
            cols: cols.len() as u64,
            stride: below as u64,
        };
        for cols in parts(left) {
            // Rows of A^-1 above its diagonal are zeros.
            let b = all.part(middle..end, start + cols.start..middle);
            let a = all.part(start + cols.start..middle, start + cols.start..start + cols.end);
            self.add_product(between(0..below, cols), (1.0, 0.0), a, b)?;
        }
        for rows in parts(below) {
            let c = all.part(middle + rows.start..middle + rows.end, middle..middle + rows.end);
            let b = all.part(middle + rows.start..middle + rows.end, start..middle);
            self.add_product(b, (-1.0, 0.0), between(0..rows.end, 0..left), c)?;
        }
        Ok(())
    }
}

/// A triangle, and the bytes of its numbers.
#[derive(Debug, Clone, Copy)]
struct Stored {
    triangle: Triangle,
    width: usize,
}

impl Stored {
    fn part(self, rows: Range<usize>, cols: Range<usize>) -> Columns {
        let Triangle { address, number, size } = self.triangle;
        Columns {
            address: address + ((cols.start * size as usize + rows.start) * self.width) as u64,
            number,
            rows: rows.len() as u64,
            cols: cols.len() as u64,
            stride: size,
        }
    }
}

fn parts(size: usize) -> impl Iterator<Item = Range<usize>> {
    let step = size.div_ceil(PARTS).next_multiple_of(CORNER).max(LEAST_ROWS);
    (0..size).step_by(step).map(move |from| from..size.min(from + step))
}
