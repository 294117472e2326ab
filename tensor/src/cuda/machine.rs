//! What the operations ask of a device, and nothing more: memory, launches, products, triangles, a second lane for copies.
//!
//! Two things do it: the GPU, and the emulator of the tests, which runs the same texts, launched with the same dimensions and
//! arguments, on a machine without one. So whatever stands above this trait is tested everywhere.

use super::CudaError;
use super::kernel::Module;
use std::fmt::Debug;

/// A place in device memory.
pub type Address = u64;

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// As its maker calls it.
    pub name: String,
    /// Compute capability, `(9, 0)` for `sm_90`.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub processors: u32,
    /// All of its memory.
    pub memory_bytes: u64,
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// A pointer.
    Address(Address),
    /// An `int`.
    Int(i32),
    /// A `long long`.
    Long(i64),
    /// A `float`.
    Float(f32),
    /// A `double`.
    Double(f64),
}

impl Argument {
    /// Its bytes, in the low end of eight.
    pub fn bits(self) -> u64 {
        match self {
            Self::Address(address) => address,
            Self::Int(int) => u64::from(int.cast_unsigned()),
            Self::Long(long) => long.cast_unsigned(),
            Self::Float(float) => u64::from(float.to_bits()),
            Self::Double(double) => double.to_bits(),
        }
    }

    /// How many of them the kernel's parameter has.
    pub fn bytes(self) -> usize {
        match self {
            Self::Int(_) | Self::Float(_) => 4,
            Self::Address(_) | Self::Long(_) | Self::Double(_) => 8,
        }
    }
}

/// A kernel over a grid of blocks of threads.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// What it is compiled into.
    pub module: Module,
    /// Its name.
    pub kernel: &'static str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Shared memory it names when launched.
    pub shared_bytes: u32,
    /// In the kernel's order.
    pub arguments: &'a [Argument],
}

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Number {
    /// The upper half of an f32.
    Bf16,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
}

/// A matrix as cuBLAS sees it: by **columns**, `stride` elements from one to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// The first element.
    pub address: Address,
    /// Of an element.
    pub number: Number,
    /// Elements of a column.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Elements from a column to the next, at least `rows`.
    pub stride: u64,
}

/// How an operand enters a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Turn {
    /// As it stands.
    Straight,
    /// Transposed.
    Transposed,
}

/// `out = alpha * turn(left) turn(right) + beta * out`, cuBLASLt's product. With `beta` 0 out is not read.
///
/// Sums are f32 where out is f32 or bf16, without TF32, and f64 where it is f64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multiply {
    /// The first operand and how it enters.
    pub left: (Columns, Turn),
    /// The second.
    pub right: (Columns, Turn),
    /// What is written.
    pub out: Columns,
    /// Of the product.
    pub alpha: f64,
    /// Of what stood there.
    pub beta: f64,
}

/// The lower triangle of a square matrix stored by columns without gaps, f32 or f64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Triangle {
    /// The first element.
    pub address: Address,
    /// Of an element.
    pub number: Number,
    /// Rows and columns.
    pub size: u64,
}

/// The two lanes in which a device works at once; each keeps its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Kernels, products, factorisations, and all copies but the streamed ones.
    Compute,
    /// Streamed copies.
    Copy,
}

/// A point in a lane, to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event(pub u64);

/// Memory of the host that a device reads by itself.
#[derive(Debug, Clone, Copy)]
pub struct Pinned(pub *mut u8);

// SAFETY: an address; whoever reads or writes through it says why they may.
unsafe impl Send for Pinned {}

/// A device. Work is done in the order in which it is asked for within a [`Lane`].
///
/// Addresses are the caller's responsibility: every method that takes one needs memory of this device, large enough.
pub trait Machine: Debug + Send + Sync {
    /// What it is.
    fn facts(&self) -> &Facts;

    /// Memory not in use by anybody.
    ///
    /// # Errors
    /// If the device does not answer.
    fn free_bytes(&self) -> Result<u64, CudaError>;

    /// Memory of its own, at a multiple of 16; what stands in it is anything.
    ///
    /// # Errors
    /// [`CudaError::TooLittleMemory`].
    fn allocate(&self, bytes: u64) -> Result<Address, CudaError>;

    /// Gives memory back once what was asked for before in [`Lane::Compute`] is done.
    fn release(&self, address: Address);

    /// Copies to the device; `from` has been read when it returns.
    ///
    /// # Errors
    /// If the device refuses.
    fn upload(&self, to: Address, from: &[u8]) -> Result<(), CudaError>;

    /// Copies from the device, after all that was asked for before.
    ///
    /// # Errors
    /// If the device refuses, or something asked for before has failed.
    fn download(&self, to: &mut [u8], from: Address) -> Result<(), CudaError>;

    /// Copies within the device; the two do not overlap.
    ///
    /// # Errors
    /// If the device refuses.
    fn copy(&self, to: Address, from: Address, bytes: u64) -> Result<(), CudaError>;

    /// Sets bytes to 0.
    ///
    /// # Errors
    /// If the device refuses.
    fn clear(&self, at: Address, bytes: u64) -> Result<(), CudaError>;

    /// Runs a kernel.
    ///
    /// # Errors
    /// If it does not compile or the device refuses the launch.
    fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError>;

    /// Multiplies.
    ///
    /// # Errors
    /// If the library is missing or refuses.
    fn multiply(&self, multiply: &Multiply) -> Result<(), CudaError>;

    /// Overwrites a lower triangle with its Cholesky factor; the column where that failed, if it did. Above the diagonal nothing
    /// is read or written.
    ///
    /// # Errors
    /// If the library is missing or refuses.
    fn factor(&self, triangle: &Triangle) -> Result<Option<u64>, CudaError>;

    /// Overwrites a lower triangle with its inverse; the column where that failed, if it did.
    ///
    /// # Errors
    /// If the library is missing or refuses.
    fn invert(&self, triangle: &Triangle) -> Result<Option<u64>, CudaError>;

    /// Waits for all that was asked for in both lanes.
    ///
    /// # Errors
    /// If something asked for has failed.
    fn wait(&self) -> Result<(), CudaError>;

    /// Host memory for [`send`](Self::send).
    ///
    /// # Errors
    /// If the system has none left to pin.
    fn pin(&self, bytes: usize) -> Result<Pinned, CudaError>;

    /// Gives it back; nothing may be on its way from there.
    fn unpin(&self, pinned: Pinned);

    /// Starts a copy in [`Lane::Copy`].
    ///
    /// # Errors
    /// If the device refuses.
    ///
    /// # Safety
    /// The bytes at `from` must stay as they are until an event recorded after this has passed.
    unsafe fn send(&self, to: Address, from: Pinned, bytes: usize) -> Result<(), CudaError>;

    /// An event not yet recorded, which counts as passed.
    ///
    /// # Errors
    /// If the device refuses.
    fn event(&self) -> Result<Event, CudaError>;

    /// Forgets an event.
    fn forget(&self, event: Event);

    /// Moves the event to the end of a lane.
    ///
    /// # Errors
    /// If the device refuses.
    fn record(&self, event: Event, lane: Lane) -> Result<(), CudaError>;

    /// What is asked for in `lane` from now on waits for the event.
    ///
    /// # Errors
    /// If the device refuses.
    fn hold(&self, lane: Lane, event: Event) -> Result<(), CudaError>;

    /// Waits here for the event.
    ///
    /// # Errors
    /// If something before it has failed.
    fn wait_for(&self, event: Event) -> Result<(), CudaError>;
}
