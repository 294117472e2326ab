//! Some rows of some columns, laid out so that the rows are side by side in vector registers.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

use crate::Grid;
use crate::grid::{decode_one, encode_level, encode_one};

/// Rows worked on together, a fixed number so that results never depend on the number of threads.
pub(super) const ROWS: usize = 64;

/// `[columns][rows]`; rows that do not exist are 0.
pub(super) struct Panel(pub Vec<[f32; ROWS]>);

impl Panel {
    /// From `[columns, rows]`, at most 64 rows.
    #[inline(always)]
    pub fn load(from: ArrayView2<'_, f32>) -> Self {
        Self(from.axis_iter(Axis(0)).map(|from| padded(from.iter().copied())).collect())
    }

    /// Leaves column `j`'s error in its place, and takes its couplings' shares of it from the columns that come later.
    #[inline(always)]
    pub fn pass_on(&mut self, j: usize, error: [f32; ROWS], triangle: ArrayView2<'_, f32>) {
        for (k, later) in self.0.iter_mut().enumerate().skip(j + 1) {
            let coupling = triangle[[j, k]];
            for r in 0..ROWS {
                later[r] -= error[r] * coupling;
            }
        }
        self.0[j] = error;
    }

    /// Back into `[columns, rows]`.
    #[inline(always)]
    pub fn store(&self, mut to: ArrayViewMut2<'_, f32>) {
        for (mut to, from) in to.axis_iter_mut(Axis(0)).zip(&self.0) {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
        }
    }
}

#[inline(always)]
fn padded(from: impl Iterator<Item = f32>) -> [f32; ROWS] {
    let mut to = [0.0; ROWS];
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from);
    to
}

/// A [`Grid`] with the rows of a group side by side.
pub(super) struct ByGroup {
    scale: Array2<f32>, // [groups, rows]
    zero: Array2<f32>,  // [groups, rows]
    min: Array2<f32>,   // [groups, rows]
    group_size: usize,
    max_code: f32,
    levels: Option<&'static [f32]>,
}

impl ByGroup {
    pub fn new(grid: &Grid) -> Self {
        let turned = |a: &Array2<f32>| a.t().as_standard_layout().into_owned();
        Self {
            scale: turned(&grid.scale),
            zero: turned(&grid.zero),
            min: turned(&grid.min),
            group_size: grid.group_size,
            max_code: f32::from(grid.max_code),
            levels: grid.levels,
        }
    }

    /// The values that rows `first_row..` of column `col` may take.
    #[inline(always)]
    pub fn rows(&self, col: usize, first_row: usize) -> GroupRows {
        let group = col / self.group_size;
        let load = |a: &Array2<f32>| padded(a.row(group).iter().skip(first_row).copied());
        GroupRows {
            scale: load(&self.scale),
            zero: load(&self.zero),
            min: load(&self.min),
            max_code: self.max_code,
            levels: self.levels,
        }
    }
}

/// Scale, zero and min of one column, row by row.
pub(super) struct GroupRows {
    scale: [f32; ROWS],
    zero: [f32; ROWS],
    min: [f32; ROWS],
    max_code: f32,
    levels: Option<&'static [f32]>,
}

impl GroupRows {
    /// The nearest codes.
    #[inline(always)]
    pub fn encode(&self, x: &[f32; ROWS]) -> [u8; ROWS] {
        let mut codes = [0; ROWS];
        match self.levels {
            None => {
                for r in 0..ROWS {
                    codes[r] = encode_one(x[r], self.scale[r], self.zero[r], self.min[r], self.max_code);
                }
            }
            Some(levels) => {
                for r in 0..ROWS {
                    codes[r] = encode_level(x[r], self.scale[r], self.zero[r], self.min[r], levels);
                }
            }
        }
        codes
    }

    /// Weights as distances from the zero, in units of the scale; 0 where that is 0.
    #[inline(always)]
    pub fn units(&self, x: &[f32; ROWS]) -> [f32; ROWS] {
        let mut units = [0.0; ROWS];
        for r in 0..ROWS {
            let scale = self.scale[r];
            units[r] = if scale == 0.0 { 0.0 } else { (x[r] + self.min[r]) / scale } + self.zero[r];
        }
        units
    }

    /// The values of codes.
    #[inline(always)]
    pub fn decode(&self, codes: &[u8; ROWS]) -> [f32; ROWS] {
        let mut values = [0.0; ROWS];
        for r in 0..ROWS {
            let level = self.levels.map_or(f32::from(codes[r]), |levels| levels[usize::from(codes[r])]);
            values[r] = decode_one(level, self.scale[r], self.zero[r], self.min[r]);
        }
        values
    }
}
