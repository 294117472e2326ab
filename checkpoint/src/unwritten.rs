//! A checkpoint before it is written.

use std::path::{Path, PathBuf};

use crate::container::Directory;
use crate::error::Misfit;
use crate::{Container, Error, TensorInfo};

/// Tensors that are going to be written: names, types and shapes, and no bytes yet.
#[derive(Debug)]
pub struct Unwritten {
    path: PathBuf,
    tensors: Directory<()>,
}

impl Unwritten {
    /// What is going to be written at `path`.
    ///
    /// # Errors
    /// [`Misfit::DuplicateTensor`] where two tensors share a name.
    pub fn new(path: &Path, tensors: Vec<TensorInfo>) -> Result<Self, Error> {
        let entries = tensors.into_iter().map(|info| (info, ())).collect();
        let tensors = Directory::new(entries).map_err(|name| Error::Unwritable {
            path: path.to_path_buf(),
            source: Misfit::DuplicateTensor { name },
        })?;
        Ok(Self { path: path.to_path_buf(), tensors })
    }
}

impl Container for Unwritten {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.tensors.infos()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(info, ())| info)
    }

    fn bytes(&self, name: &str) -> Result<&[u8], Error> {
        self.tensors.find(name, &self.path)?;
        Err(Error::NotYetWritten { name: name.to_owned(), path: self.path.clone() })
    }

    fn release(&self, _name: &str) {}

    fn read_ahead(&self, _name: &str) {}
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::Dtype;

    #[test]
    fn shapes_are_known_and_numbers_are_not() {
        let info = TensorInfo::new("a", Dtype::Bf16, &[2, 3]);
        let promised = Unwritten::new(Path::new("out"), vec![info.clone()]).unwrap();
        assert_eq!((promised.info("a"), promised.tensors().len()), (Some(&info), 1));
        assert!(matches!(promised.bytes("a"), Err(Error::NotYetWritten { .. })));
        assert!(matches!(promised.bytes("b"), Err(Error::NoTensor { count: 1, .. })));
        assert!(Unwritten::new(Path::new("out"), vec![info.clone(), info]).is_err());
    }
}
