//! The ways a GGUF file can be broken or lie.

use crate::Dtype;

/// What is wrong with a GGUF file. Positions and lengths are bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Flaw {
    #[error("it begins with {found:02x?} instead of \"GGUF\"")]
    Magic { found: Vec<u8> },
    #[error("it is written big-endian")]
    BigEndian,
    #[error("it is of version {version}; versions 2 and 3 are read")]
    Version { version: u32 },
    #[error("it ends at byte {len}, within {what}, which begins at {at} and takes {needs}")]
    Ends { what: &'static str, at: u64, needs: u64, len: u64 },
    #[error("it announces {count} {what}, but the {left} bytes left hold at most {most}")]
    Count { what: &'static str, count: u64, left: u64, most: u64 },
    #[error("{what} at byte {at} is not UTF-8")]
    NotUtf8 { what: &'static str, at: u64 },
    #[error("`{key}` has the unknown value type {id}")]
    ValueType { key: String, id: u32 },
    #[error("`{key}` is an array of arrays")]
    NestedArray { key: String },
    #[error("`{key}` holds the truth value {byte}")]
    Bool { key: String, byte: u8 },
    #[error("the metadata `{key}` is there twice")]
    DuplicateKey { key: String },
    #[error("`general.alignment` is {value}, which is no power of two below 2^31 stored as an integer")]
    Alignment { value: String },
    #[error("the tensor `{name}` is there twice")]
    DuplicateTensor { name: String },
    #[error("`{name}` has {dims} dimensions; a GGUF tensor has at most 4")]
    Dims { name: String, dims: u32 },
    #[error("the dimensions {dims:?} of `{name}` multiply to more than can be addressed")]
    Overflow { name: String, dims: Vec<u64> },
    #[error("`{name}` is of type {id}, which {}", if *removed { "ggml has removed" } else { "is unknown" })]
    TensorType { name: String, id: u32, removed: bool },
    #[error(
        "rows of `{name}` are {row_len} long, which {block_len}, the block length of {dtype}, does not divide"
    )]
    BlockDoesNotDivide { name: String, row_len: u64, block_len: usize, dtype: Dtype },
    #[error("`{name}` begins at {offset}, which is no multiple of the alignment {alignment}")]
    Misaligned { name: String, offset: u64, alignment: u64 },
    #[error("`{name}` takes {bytes} bytes from {offset} on, but the file has {data_len} bytes of data")]
    OutsideData { name: String, offset: u64, bytes: u64, data_len: u64 },
    #[error("`{first}` and `{second}` share bytes")]
    Overlap { first: String, second: String },
    #[error("it is one of {count} parts, and `{name}`, part {no}, is not there")]
    MissingPart { no: usize, count: usize, name: String },
    #[error("`{key}` says {value}, but {because}")]
    Split { key: &'static str, value: u64, because: String },
}

impl Flaw {
    /// What the user could do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Ends { .. } | Self::OutsideData { .. } => {
                Some("the file looks cut short: download or copy it again and compare its size")
            }
            Self::Version { .. } | Self::TensorType { removed: true, .. } => {
                Some("convert the model again with a current tool")
            }
            Self::Split { .. } | Self::MissingPart { .. } => {
                Some("keep all parts of a split model in one folder, under their own names")
            }
            _ => None,
        }
    }
}
