use std::borrow::Cow;

use crate::Sparsity;

/// What can be wrong with numbers handed to this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Rows cannot be cut into whole blocks.
    #[error("in_features {in_features} is not a multiple of {block_len}, the block length of `{encoding}`")]
    BlockDoesNotDivide {
        /// Row length of the matrix.
        in_features: usize,
        /// Weights per block.
        block_len: usize,
        /// The encoding's name.
        encoding: Cow<'static, str>,
    },
    /// Packed bytes are not as many as the shape needs.
    #[error("`{encoding}` needs {expected} bytes for {rows} x {cols} weights, found {found}")]
    Length {
        /// The encoding's name.
        encoding: Cow<'static, str>,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Bytes that shape takes.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// Packed bytes hold a pattern that stands for no number.
    #[error("row {row} of {rows} x {cols} weights in `{encoding}` holds a byte that stands for no number")]
    NoNumber {
        /// The encoding's name.
        encoding: Cow<'static, str>,
        /// Rows of the matrix.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// The first such row.
        row: usize,
    },
    /// A column belongs to a group that is not there.
    #[error("column {column} belongs to group {index}, of {groups}")]
    GroupIndex {
        /// The column.
        column: usize,
        /// The group it is said to belong to.
        index: i32,
        /// Groups there are.
        groups: usize,
    },
    /// Values of another format that this one has not.
    #[error("`{encoding}` cannot hold the same values: {reason}")]
    NotHeld {
        /// The encoding's name.
        encoding: Cow<'static, str>,
        /// Why not.
        reason: &'static str,
    },
    /// A weight is NaN or infinite.
    #[error("{count} of {total} weights are not finite, the first at row {row}, column {col}")]
    NotFinite {
        /// How many.
        count: usize,
        /// Out of how many.
        total: usize,
        /// Row of the first.
        row: usize,
        /// Column of the first.
        col: usize,
    },
    /// A solver that feeds errors back was given no statistics of the inputs.
    #[error("solver `{solver}` needs statistics of the inputs and got none")]
    NoStatistics {
        /// The solver's name.
        solver: &'static str,
    },
    /// Statistics of another width than the weight.
    #[error("statistics are over {statistics} features, the weight has {in_features}")]
    Features {
        /// Width of the statistics.
        statistics: usize,
        /// Row length of the weight.
        in_features: usize,
    },
    /// Rows cannot be cut into whole groups of a pattern of zeros.
    #[error("in_features {in_features} is not a multiple of {} for the pattern {sparsity}", sparsity.together())]
    PatternDoesNotDivide {
        /// Row length of the matrix.
        in_features: usize,
        /// The pattern.
        sparsity: Sparsity,
    },
    /// Zeros are wanted in a format that has no exact zero.
    #[error("`{encoding}` cannot hold zeros: each block has a minimum of its own")]
    NoZero {
        /// The encoding's name.
        encoding: Cow<'static, str>,
    },
    /// A device that fails, or whose memory is short.
    #[error("the device")]
    Device(#[from] attar_tensor::cuda::CudaError),
}
