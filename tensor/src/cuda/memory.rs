//! Arrays on the device, and the budget they come from.

use super::machine::{Address, Columns, Machine, Number};
use super::{Cuda, CudaError};
use half::bf16;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for u32 {}
    impl Sealed for u8 {}
    impl Sealed for half::bf16 {}
}

/// What arrays on the device hold: plain numbers, any of whose bytes make a value.
pub trait Item: sealed::Sealed + Copy + Default + Send + Sync + 'static {}
impl Item for f32 {}
impl Item for f64 {}
impl Item for u32 {}
impl Item for u8 {}
impl Item for bf16 {}

/// How activations are stored: f32 or bf16. Arithmetic is f32 in both.
pub trait Element: Item {
    /// The macro that compiles a kernel for it.
    const DEFINITION: &'static str;
    /// As the libraries call it.
    const NUMBER: Number;
    /// To the nearest, ties to even.
    fn of(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const DEFINITION: &'static str = "ELEMENT=float";
    const NUMBER: Number = Number::F32;
    fn of(x: f32) -> Self {
        x
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const DEFINITION: &'static str = "ELEMENT=bf16";
    const NUMBER: Number = Number::Bf16;
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

/// The bytes of plain numbers, as they stand in memory.
pub fn bytes<T: Item>(items: &[T]) -> &[u8] {
    // SAFETY: an `Item` has no padding, and bytes may be read at any address.
    unsafe { std::slice::from_raw_parts(items.as_ptr().cast(), size_of_val(items)) }
}

fn bytes_mut<T: Item>(items: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and any bytes make an `Item`.
    unsafe { std::slice::from_raw_parts_mut(items.as_mut_ptr().cast(), size_of_val(items)) }
}

/// How much of the device may be used, and how much is.
#[derive(Debug)]
pub(crate) struct Budget {
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

impl Budget {
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes: AtomicU64::new(0) }
    }

    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    fn take(&self, bytes: u64, what: &str) -> Result<(), CudaError> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit_bytes);
        let taken = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.map(drop).map_err(|used| CudaError::TooLittleMemory {
            what: what.to_owned(),
            needed_bytes: bytes,
            free_bytes: self.limit_bytes.saturating_sub(used),
            fits: None,
        })
    }

    fn give_back(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Device memory, given back when dropped.
#[derive(Debug)]
struct Block {
    machine: Arc<dyn Machine>,
    budget: Arc<Budget>,
    address: Address,
    bytes: u64,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.machine.release(self.address);
        self.budget.give_back(self.bytes);
    }
}

/// `rows x cols` numbers on the device, row after row. A vector has one row.
#[derive(Debug)]
pub struct Matrix<T> {
    block: Block,
    rows: usize,
    cols: usize,
    item: PhantomData<T>,
}

/// Whole consecutive rows of a [`Matrix`], to be read.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    address: Address,
    dim: (usize, usize),
    owner: PhantomData<&'a T>,
}

/// Whole consecutive rows of a [`Matrix`], to be written.
#[derive(Debug)]
pub struct RowsMut<'a, T> {
    rows: Rows<'a, T>,
    owner: PhantomData<&'a mut T>,
}

impl<T: Item> Matrix<T> {
    /// `(rows, cols)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// All rows, to be read.
    pub fn view(&self) -> Rows<'_, T> {
        Rows { address: self.block.address, dim: (self.rows, self.cols), owner: PhantomData }
    }

    /// All rows, to be written.
    pub fn view_mut(&mut self) -> RowsMut<'_, T> {
        RowsMut { rows: self.view(), owner: PhantomData }
    }

    pub(crate) fn address(&self) -> Address {
        self.block.address
    }
}

impl<T: Item> Rows<'_, T> {
    /// A matrix that stands in memory of another owner.
    pub(super) fn at(address: Address, dim: (usize, usize)) -> Self {
        Self { address, dim, owner: PhantomData }
    }

    /// `(rows, cols)`.
    pub fn dim(self) -> (usize, usize) {
        self.dim
    }

    /// All elements.
    pub(crate) fn count(self) -> usize {
        self.dim.0 * self.dim.1
    }

    /// Rows `from..to` of these.
    ///
    /// # Panics
    /// If there are not as many.
    #[must_use]
    pub fn rows(self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.dim.0, "rows {from}..{to} of {}", self.dim.0);
        let address = self.address + (from * self.dim.1 * size_of::<T>()) as u64;
        Self { address, dim: (to - from, self.dim.1), ..self }
    }

    /// The same elements in rows of another length.
    ///
    /// # Panics
    /// If they are not whole rows of that length.
    #[must_use]
    pub fn reshaped(self, cols: usize) -> Self {
        assert!(cols > 0 && self.count().is_multiple_of(cols), "{} elements in rows of {cols}", self.count());
        Self { dim: (self.count() / cols, cols), ..self }
    }

    pub(crate) fn address(self) -> Address {
        self.address
    }

    /// Columns `from..to` of all rows, transposed, as the libraries see them: our rows are their columns.
    pub(crate) fn columns(self, from: usize, to: usize) -> Columns
    where
        T: Element,
    {
        assert!(from <= to && to <= self.dim.1, "columns {from}..{to} of {}", self.dim.1);
        Columns {
            address: self.address + (from * size_of::<T>()) as u64,
            number: T::NUMBER,
            rows: (to - from) as u64,
            cols: self.dim.0 as u64,
            stride: self.dim.1 as u64,
        }
    }
}

impl<T: Item> RowsMut<'_, T> {
    /// `(rows, cols)`.
    pub fn dim(&self) -> (usize, usize) {
        self.rows.dim()
    }

    /// To be read for a while.
    pub fn view(&self) -> Rows<'_, T> {
        self.rows
    }

    /// To be written for a while.
    pub fn reborrow(&mut self) -> RowsMut<'_, T> {
        RowsMut { rows: self.rows, owner: PhantomData }
    }

    /// Rows `from..to` of these.
    ///
    /// # Panics
    /// If there are not as many.
    #[must_use]
    pub fn rows(self, from: usize, to: usize) -> Self {
        Self { rows: self.rows.rows(from, to), ..self }
    }

    /// The same elements in rows of another length.
    ///
    /// # Panics
    /// If they are not whole rows of that length.
    #[must_use]
    pub fn reshaped(self, cols: usize) -> Self {
        Self { rows: self.rows.reshaped(cols), ..self }
    }

    /// The rows before row `at` and those from there on.
    ///
    /// # Panics
    /// If there are not as many.
    #[must_use]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let (rows, owner) = (self.rows, PhantomData);
        let part = |from, to| Self { rows: rows.rows(from, to), owner };
        (part(0, at), part(at, rows.dim.0))
    }

    pub(crate) fn address(&self) -> Address {
        self.rows.address
    }
}

/// All elements, row after row.
fn rounded<T: Element>(x: ArrayView2<'_, f32>) -> Vec<T> {
    let x = x.as_standard_layout();
    x.as_slice().unwrap_or_default().par_iter().map(|&x| T::of(x)).collect()
}

impl Cuda {
    /// Room for `rows x cols` numbers, whose values are anything.
    ///
    /// # Errors
    /// [`CudaError::TooLittleMemory`].
    pub fn room<T: Item>(&self, (rows, cols): (usize, usize)) -> Result<Matrix<T>, CudaError> {
        let bytes = rows as u64 * cols as u64 * size_of::<T>() as u64;
        self.budget.take(bytes, "an array")?;
        let address = self.machine.allocate(bytes).inspect_err(|_| self.budget.give_back(bytes))?;
        let block =
            Block { machine: Arc::clone(&self.machine), budget: Arc::clone(&self.budget), address, bytes };
        Ok(Matrix { block, rows, cols, item: PhantomData })
    }

    /// Zeros.
    ///
    /// # Errors
    /// [`CudaError::TooLittleMemory`].
    pub fn zeros<T: Item>(&self, dim: (usize, usize)) -> Result<Matrix<T>, CudaError> {
        let mut matrix = self.room(dim)?;
        self.clear(&mut matrix)?;
        Ok(matrix)
    }

    /// Sets all of a matrix to 0.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn clear<T: Item>(&self, matrix: &mut Matrix<T>) -> Result<(), CudaError> {
        self.machine.clear(matrix.address(), matrix.block.bytes)
    }

    /// Copies rows to others on the device.
    ///
    /// # Errors
    /// If the device refuses.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn copy<T: Item>(&self, to: RowsMut<'_, T>, from: Rows<'_, T>) -> Result<(), CudaError> {
        assert_eq!(to.dim(), from.dim(), "a copy keeps its shape");
        self.machine.copy(to.address(), from.address(), (from.count() * size_of::<T>()) as u64)
    }

    /// A second copy of rows on the device.
    ///
    /// # Errors
    /// [`CudaError::TooLittleMemory`].
    pub fn copied<T: Item>(&self, rows: Rows<'_, T>) -> Result<Matrix<T>, CudaError> {
        let mut matrix = self.room(rows.dim())?;
        self.copy(matrix.view_mut(), rows)?;
        Ok(matrix)
    }

    /// Copies the bytes of rows of numbers, as they stand in memory, to rows that are on the device already.
    ///
    /// # Errors
    /// If the device refuses.
    ///
    /// # Panics
    /// If there are not as many bytes as the rows have.
    pub fn write_bytes<T: Item>(&self, to: RowsMut<'_, T>, from: &[u8]) -> Result<(), CudaError> {
        assert_eq!(to.view().count() * size_of::<T>(), from.len(), "bytes of rows of {}", to.dim().1);
        self.machine.upload(to.address(), from)
    }

    /// A copy on the device, rounded to its elements.
    ///
    /// # Errors
    /// [`CudaError::TooLittleMemory`].
    pub fn upload<T: Element>(&self, x: ArrayView2<'_, f32>) -> Result<Matrix<T>, CudaError> {
        self.upload_items(&rounded(x), x.dim())
    }

    /// Copies to rows that are on the device already, rounded to their elements.
    ///
    /// # Errors
    /// If the device refuses.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn write<T: Element>(&self, to: RowsMut<'_, T>, x: ArrayView2<'_, f32>) -> Result<(), CudaError> {
        assert_eq!(to.dim(), x.dim(), "a copy keeps its shape");
        self.machine.upload(to.address(), bytes(&rounded::<T>(x)))
    }

    /// A copy on the device of numbers in rows.
    ///
    /// # Errors
    /// [`CudaError::TooLittleMemory`].
    ///
    /// # Panics
    /// If there are not `rows * cols`.
    pub fn upload_items<T: Item>(&self, items: &[T], dim: (usize, usize)) -> Result<Matrix<T>, CudaError> {
        assert_eq!(items.len(), dim.0 * dim.1, "items of a {} x {} matrix", dim.0, dim.1);
        let matrix = self.room(dim)?;
        self.machine.upload(matrix.address(), bytes(items))?;
        Ok(matrix)
    }

    /// A copy on the device of numbers that stand in memory as bytes, in rows.
    ///
    /// # Errors
    /// [`CudaError::TooLittleMemory`].
    ///
    /// # Panics
    /// If there are not as many as `rows * cols` take.
    pub fn upload_bytes<T: Item>(&self, bytes: &[u8], dim: (usize, usize)) -> Result<Matrix<T>, CudaError> {
        assert_eq!(bytes.len(), dim.0 * dim.1 * size_of::<T>(), "bytes of a {} x {} matrix", dim.0, dim.1);
        let matrix = self.room(dim)?;
        self.machine.upload(matrix.address(), bytes)?;
        Ok(matrix)
    }

    /// A copy of rows on the host, as f32.
    ///
    /// # Errors
    /// If something asked for before has failed.
    pub fn download<T: Element>(&self, x: Rows<'_, T>) -> Result<Array2<f32>, CudaError> {
        let items = self.download_items(x)?.into_par_iter().map(T::to_f32).collect();
        Ok(Array2::from_shape_vec(x.dim(), items).unwrap_or_else(|_| unreachable!("as many as there are")))
    }

    /// A copy of rows on the host, as they are.
    ///
    /// # Errors
    /// If something asked for before has failed.
    pub fn download_items<T: Item>(&self, x: Rows<'_, T>) -> Result<Vec<T>, CudaError> {
        let mut items = vec![T::default(); x.count()];
        self.machine.download(bytes_mut(&mut items), x.address())?;
        Ok(items)
    }
}
