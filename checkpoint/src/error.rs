//! What can go wrong with a file, with the numbers that show it.

use std::io;
use std::path::{Path, PathBuf};

use crate::Dtype;

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: missing, unreadable, read-only, full.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being tried, as a verb: `"open"`, `"write"`.
        action: &'static str,
        /// The file or folder it was tried on.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The output is there already and was not to be replaced.
    #[error("{} exists already", path.display())]
    Exists {
        /// The output's path.
        path: PathBuf,
    },
    /// The file is not JSON, or not the JSON its reader needs.
    #[error("{} is not the JSON it should be", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// The container has no tensor of this name.
    #[error("no tensor `{name}` among the {count} of {}", path.display())]
    NoTensor {
        /// The name asked for.
        name: String,
        /// How many tensors there are.
        count: usize,
        /// The container's path.
        path: PathBuf,
    },
    /// Values of this storage type are not plain floats.
    #[error("{dtype} holds no plain floating-point values")]
    NotFloats {
        /// The storage type.
        dtype: Dtype,
    },
    /// A tensor's bytes are not as many as its shape and type need.
    #[error("{dtype} values take {unit_bytes} bytes each, which does not divide {bytes} bytes")]
    OddBytes {
        /// The storage type.
        dtype: Dtype,
        /// Bytes of one value.
        unit_bytes: usize,
        /// Bytes given.
        bytes: usize,
    },
}

impl Error {
    /// Wraps an operating-system error with what was tried on which path.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
