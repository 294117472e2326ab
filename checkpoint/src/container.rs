//! What every file layout offers: named tensors and their bytes.

use std::path::Path;

use crate::{Dtype, Error};

/// One tensor as its container declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// How its values are stored.
    pub dtype: Dtype,
    /// Dimensions, outermost first, as Hugging Face writes them (GGUF's order is turned round).
    pub shape: Vec<usize>,
    /// Bytes of its data.
    pub bytes: u64,
}

impl TensorInfo {
    /// A tensor to be written, its bytes counted from type and shape.
    ///
    /// # Panics
    /// Where [`Dtype::bytes_for`] has no answer: the last dimension must be whole blocks.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Self {
        let bytes = dtype.bytes_for(shape);
        let bytes = bytes.unwrap_or_else(|| panic!("{shape:?} is no whole number of {dtype} blocks"));
        Self { name: name.into(), dtype, shape: shape.to_vec(), bytes }
    }

    /// How many values there are.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }
}

/// An opened checkpoint whose header has been checked: every tensor lies inside its file.
pub trait Container: Send + Sync {
    /// Where it was opened.
    fn path(&self) -> &Path;

    /// All tensors, in the file's order.
    fn tensors(&self) -> &[TensorInfo];

    /// The tensor called `name`.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// The bytes of the tensor called `name`, straight from the memory map.
    ///
    /// # Errors
    /// [`Error::NoTensor`] where there is none.
    fn bytes(&self, name: &str) -> Result<&[u8], Error>;
}
