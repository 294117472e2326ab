//! Grids on the device: the search for them, the nearest codes, what codes decode to. The same numbers as on the CPU.

use super::launch::{Layout, arguments, int};
use super::machine::Argument;
use super::memory::{Element, Matrix, Rows};
use super::{Cuda, CudaError};

/// The values a weight may take, `scale * (code - zero) - min`, one triple for each row and group of columns; `[rows, groups]`.
#[derive(Debug)]
pub struct Grid {
    /// Distance of neighbouring values.
    pub scale: Matrix<f32>,
    /// The code that decodes to `-min`, integer valued.
    pub zero: Matrix<f32>,
    /// What is subtracted at the end.
    pub min: Matrix<f32>,
    /// Consecutive columns that share one triple.
    pub group_size: usize,
    /// The largest code.
    pub max_code: u8,
}

/// Where the zero of a group may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    /// In the middle of the codes.
    Middle,
    /// At the integer that suits the group.
    Free,
}

/// How scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// As they are computed.
    F32,
}

/// Grouped integers, and the ranges tried in their search.
#[derive(Debug, Clone, Copy)]
pub struct GroupSearch<'a> {
    /// Columns that share a scale.
    pub group_size: usize,
    /// The largest code, one less than a power of two.
    pub max_code: u8,
    /// Where zeros may be.
    pub zero: Zero,
    /// How scales are stored.
    pub stored: Stored,
    /// How far the range reaches, in units of what would just cover the group; at most 32.
    pub reaches: &'a [f32],
}

impl Grid {
    fn groups(&self) -> usize {
        self.scale.dim().1
    }

    /// Scale, zero and min, as kernels take them.
    fn arguments(&self) -> [Argument; 3] {
        [&self.scale, &self.zero, &self.min].map(Argument::from)
    }

    fn assert_fits(&self, (rows, cols): (usize, usize)) {
        assert_eq!(self.scale.dim(), (rows, cols.div_ceil(self.group_size)), "a grid for another shape");
    }
}

impl Cuda {
    /// Scale and zero of each group of w `[rows, cols]`, of least error weighted by the importance of each column.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If rows are not whole groups, the importance has not a value for each column, or there are more than 32 reaches.
    pub fn search_groups(
        &self,
        w: Rows<'_, f32>,
        importance: Option<&[f32]>,
        search: GroupSearch<'_>,
    ) -> Result<Grid, CudaError> {
        let (rows, cols) = w.dim();
        let GroupSearch { group_size, max_code, zero, stored, reaches } = search;
        assert!(cols.is_multiple_of(group_size), "{cols} columns are not whole groups of {group_size}");
        assert!(reaches.len() <= 32, "a lane for each of {} reaches", reaches.len());
        assert!(
            importance.is_none_or(|importance| importance.len() == cols),
            "an importance for each column"
        );
        let dim = (rows, cols / group_size);
        let grid = Grid {
            scale: self.room(dim)?,
            zero: self.room(dim)?,
            min: self.zeros(dim)?,
            group_size,
            max_code,
        };
        let (weights, ranges) = (self.vector(importance.unwrap_or(&[1.0]))?, self.vector(reaches)?);
        let count = dim.0 * dim.1;
        let stored = match stored {
            Stored::F16 => 0,
            Stored::Bf16 => 1,
            Stored::F32 => 2,
        };
        let arguments = arguments![
            &grid.scale,
            &grid.zero,
            w,
            &weights,
            &ranges,
            count as i64,
            int(cols),
            int(group_size),
            i32::from(importance.is_some()),
            if zero == Zero::Middle { 2 } else { 0 },
            stored,
            int(reaches.len()),
            f32::from(max_code / 2 + 1),
            f32::from(max_code),
        ];
        let layout = Layout { grid: [count.div_ceil(8), 1, 1], block: [256, 1, 1], shared_bytes: 0 };
        self.run_for::<f32>("grid", "search_groups", layout, arguments)?;
        Ok(grid)
    }

    /// The nearest code of each of w `[rows, cols]`.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the grid is for another shape.
    pub fn nearest_codes(&self, w: Rows<'_, f32>, grid: &Grid) -> Result<Matrix<u8>, CudaError> {
        grid.assert_fits(w.dim());
        let codes = self.room(w.dim())?;
        let [scale, zero, min] = grid.arguments();
        let [count, cols, group_size, groups] = sizes(w.dim(), grid);
        let top = f32::from(grid.max_code);
        let arguments = arguments![&codes, w, scale, zero, min, count, cols, group_size, groups, top];
        self.run_for::<f32>("grid", "nearest_codes", Layout::each(w.count()), arguments)?;
        Ok(codes)
    }

    /// The values of codes `[rows, cols]`, rounded to their elements.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the grid is for another shape.
    pub fn decode<T: Element>(&self, codes: Rows<'_, u8>, grid: &Grid) -> Result<Matrix<T>, CudaError> {
        grid.assert_fits(codes.dim());
        let out = self.room(codes.dim())?;
        let [scale, zero, min] = grid.arguments();
        let [count, cols, group_size, groups] = sizes(codes.dim(), grid);
        let arguments = arguments![&out, codes, scale, zero, min, count, cols, group_size, groups];
        self.run_for::<T>("grid", "decode", Layout::each(codes.count()), arguments)?;
        Ok(out)
    }

    /// w `[rows, cols]` less the values of its codes.
    ///
    /// # Errors
    /// If memory is short or the launch fails.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rounding_errors(
        &self,
        w: Rows<'_, f32>,
        codes: Rows<'_, u8>,
        grid: &Grid,
    ) -> Result<Matrix<f32>, CudaError> {
        assert_eq!(w.dim(), codes.dim(), "a code for each weight");
        grid.assert_fits(w.dim());
        let out = self.room(w.dim())?;
        let [scale, zero, min] = grid.arguments();
        let [count, cols, group_size, groups] = sizes(w.dim(), grid);
        let arguments = arguments![&out, w, codes, scale, zero, min, count, cols, group_size, groups];
        self.run_for::<f32>("grid", "rounding_errors", Layout::each(w.count()), arguments)?;
        Ok(out)
    }
}

/// Elements, columns, columns of a group, and groups, as kernels take them.
fn sizes((rows, cols): (usize, usize), grid: &Grid) -> [Argument; 4] {
    let count = Argument::Long((rows * cols) as i64);
    let [cols, group_size, groups] = [cols, grid.group_size, grid.groups()].map(|x| Argument::Int(int(x)));
    [count, cols, group_size, groups]
}
