//! Why numbers cannot be had.

use attar_checkpoint::compressed_tensors;

/// Why a tensor's numbers cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file.
    #[error(transparent)]
    File(#[from] attar_checkpoint::Error),
    /// The description of packed integers.
    #[error(transparent)]
    Packed(#[from] compressed_tensors::Flaw),
    /// The bytes.
    #[error(transparent)]
    Bytes(#[from] attar_quant::Error),
    /// A name that is none of the model's.
    #[error("the model has no tensor `{name}`")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A tensor the configuration promises and the file lacks.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// The name in the file.
        name: String,
    },
    /// A number format that is written by others and not known here.
    #[error("tensor `{name}` is stored as `{stored}`, which attar does not decode")]
    Type {
        /// The name in the file.
        name: String,
        /// The format.
        stored: String,
    },
    /// A row past the last.
    #[error("tensor `{name}` has {rows} rows, row {row} was asked for")]
    Row {
        /// The tensor.
        name: String,
        /// The row.
        row: usize,
        /// Rows there are.
        rows: usize,
    },
}
