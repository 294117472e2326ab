//! From an operation to a launch: which module, how many blocks.

use super::kernel::Module;
use super::machine::{Argument, Launch};
use super::memory::{Element, Item, Matrix, Rows, RowsMut};
use super::{Cuda, CudaError};

/// Threads of a block where every thread takes one element.
pub(super) const THREADS: u32 = 256;

/// The most blocks a grid has in y and z.
const MOST_IN_Y: usize = 65_535;

impl From<i32> for Argument {
    fn from(x: i32) -> Self {
        Self::Int(x)
    }
}

impl From<i64> for Argument {
    fn from(x: i64) -> Self {
        Self::Long(x)
    }
}

impl From<f32> for Argument {
    fn from(x: f32) -> Self {
        Self::Float(x)
    }
}

impl From<f64> for Argument {
    fn from(x: f64) -> Self {
        Self::Double(x)
    }
}

impl<T: Item> From<Rows<'_, T>> for Argument {
    fn from(x: Rows<'_, T>) -> Self {
        Self::Address(x.address())
    }
}

impl<T: Item> From<&RowsMut<'_, T>> for Argument {
    fn from(x: &RowsMut<'_, T>) -> Self {
        Self::Address(x.address())
    }
}

impl<T: Item> From<&Matrix<T>> for Argument {
    fn from(x: &Matrix<T>) -> Self {
        Self::Address(x.address())
    }
}

/// Lists arguments in a kernel's order.
macro_rules! arguments {
    ($($x:expr),* $(,)?) => { &[$($crate::cuda::machine::Argument::from($x)),*] };
}
pub(super) use arguments;

/// A number of rows, columns or elements as a kernel's `int`.
///
/// # Panics
/// If it is above two thousand million: no side of a matrix is.
pub(super) fn int(x: usize) -> i32 {
    i32::try_from(x).unwrap_or_else(|_| panic!("{x} is too long for one side of a matrix"))
}

/// How the threads are laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub grid: [usize; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
}

impl Layout {
    /// One thread for each of `count`.
    pub fn each(count: usize) -> Self {
        Self { grid: [count.div_ceil(THREADS as usize), 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 }
    }

    /// One block for each of `count` rows of `features`: whole warps, no more threads than elements, at most `most`.
    pub fn rows(count: usize, features: usize, most: u32) -> Self {
        let threads = features.next_multiple_of(32).min(most as usize) as u32;
        Self { grid: [count, 1, 1], block: [threads.max(32), 1, 1], shared_bytes: 0 }
    }

    /// Squares of 32 by 32 elements in blocks of 32 by 8 threads.
    pub fn squares(rows: usize, cols: usize) -> Self {
        Self { grid: [cols.div_ceil(32), rows.div_ceil(32), 1], block: [32, 8, 1], shared_bytes: 0 }
    }
}

impl Cuda {
    /// Runs a kernel of the source's variant for `T`; nothing where there are no blocks.
    pub(super) fn run_for<T: Element>(
        &self,
        source: &'static str,
        kernel: &'static str,
        layout: Layout,
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        self.run((source, Some(T::DEFINITION)), kernel, layout, arguments)
    }

    /// Runs a kernel of the variant that has the definition; nothing where there are no blocks.
    ///
    /// # Panics
    /// If the grid is larger than a device's.
    pub(super) fn run(
        &self,
        (source, definition): (&'static str, Option<&str>),
        kernel: &'static str,
        layout: Layout,
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        let [x, y, z] = layout.grid;
        if x * y * z == 0 {
            return Ok(());
        }
        assert!(i32::try_from(x).is_ok() && y <= MOST_IN_Y && z <= MOST_IN_Y, "{x} x {y} x {z} blocks");
        let Some(module) = Module::find(source, definition) else {
            unreachable!("{source} has a variant {definition:?}");
        };
        self.machine.launch(&Launch {
            module,
            kernel,
            grid: layout.grid.map(|blocks| blocks as u32),
            block: layout.block,
            shared_bytes: layout.shared_bytes,
            arguments,
        })
    }
}
