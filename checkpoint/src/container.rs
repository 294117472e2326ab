//! What every file layout offers: named tensors and their bytes.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
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
pub trait Container: fmt::Debug + Send + Sync {
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

    /// Says that the tensor called `name` is not needed for now, so that its bytes need not stay in memory.
    fn release(&self, name: &str);

    /// Has the system read the tensor called `name` into its cache, because it will be needed soon.
    ///
    /// May take as long as the disk takes, so it is called beside other work. Unknown names are passed over.
    fn read_ahead(&self, name: &str);
}

/// A tensor and its bytes' place in its file.
pub(crate) type Placed = (TensorInfo, Range<usize>);

/// A list of tensors that can be asked by name, `T` being what the container keeps beside each.
#[derive(Debug)]
pub(crate) struct Directory<T> {
    infos: Vec<TensorInfo>,
    places: Vec<T>,
    by_name: HashMap<String, usize>,
}

impl<T> Directory<T> {
    /// Fails with the name where two tensors share one.
    pub(crate) fn new(entries: Vec<(TensorInfo, T)>) -> Result<Self, String> {
        let mut by_name = HashMap::with_capacity(entries.len());
        let (infos, places): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        for (index, info) in infos.iter().enumerate() {
            let info: &TensorInfo = info;
            if by_name.insert(info.name.clone(), index).is_some() {
                return Err(info.name.clone());
            }
        }
        Ok(Self { infos, places, by_name })
    }

    pub(crate) fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    pub(crate) fn get(&self, name: &str) -> Option<(&TensorInfo, &T)> {
        let &index = self.by_name.get(name)?;
        Some((&self.infos[index], &self.places[index]))
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<(&TensorInfo, &mut T)> {
        let &index = self.by_name.get(name)?;
        Some((&self.infos[index], &mut self.places[index]))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TensorInfo, &T)> {
        self.infos.iter().zip(&self.places)
    }

    /// [`Directory::get`], or the error a container answers an unknown name with.
    pub(crate) fn find(&self, name: &str, path: &Path) -> Result<(&TensorInfo, &T), Error> {
        self.get(name).ok_or_else(|| Error::NoTensor {
            name: name.to_owned(),
            count: self.infos.len(),
            path: path.to_path_buf(),
        })
    }
}
