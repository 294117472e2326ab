//! Why numbers cannot be had.

/// Why a tensor's numbers cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file.
    #[error(transparent)]
    File(#[from] attar_checkpoint::Error),
    /// The tensors of a weight contradict each other and what the configuration says.
    #[error("the tensors that stand for `{weight}` fit no group of the quantization_config")]
    FitsNoGroup {
        /// The weight.
        weight: String,
    },
    /// A tensor is missing that others need to stand for a weight.
    #[error("`{weight}` is quantized, and its `{name}` is missing")]
    NoPart {
        /// The weight.
        weight: String,
        /// What is missing.
        name: String,
    },
    /// A tensor that helps to stand for a weight is not what the others and the configuration ask for.
    #[error("`{name}` is {found}; the quantization_config and the tensors beside it ask for {wanted}")]
    Part {
        /// The tensor.
        name: String,
        /// Its type and shape.
        found: String,
        /// What they should be.
        wanted: String,
    },
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
