//! The ways a safetensors file or its index can be broken or lie.

use std::path::PathBuf;

/// What is wrong with a safetensors file or index. Positions and lengths are bytes.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Flaw {
    #[error("it has {len} bytes, too few for the 8 that give the header's length")]
    NoHeader { len: u64 },
    #[error("its header is said to be {header_len} bytes long; at most {most} are accepted")]
    HeaderTooLong { header_len: u64, most: u64 },
    #[error("its header is said to be {header_len} bytes long, but only {left} follow")]
    HeaderPastEnd { header_len: u64, left: u64 },
    #[error("its header is not the JSON of a safetensors header")]
    Json(#[source] serde_json::Error),
    #[error("the header names `{name}` twice")]
    DuplicateTensor { name: String },
    #[error("`{name}` has the unknown type {dtype}")]
    Dtype { name: String, dtype: String },
    #[error("the dimensions {shape:?} of `{name}` multiply to more than can be addressed")]
    Overflow { name: String, shape: Vec<u64> },
    #[error("`{name}` ends at {end}, before it begins at {start}")]
    Backwards { name: String, start: u64, end: u64 },
    #[error("`{name}` is given {given} bytes, but its shape {shape:?} in {dtype} takes {needs}")]
    WrongSize { name: String, given: u64, needs: u64, shape: Vec<u64>, dtype: String },
    #[error("`{name}` ends at {end}, but the file has {data_len} bytes of data")]
    OutsideData { name: String, end: u64, data_len: u64 },
    #[error("`{name}` begins at {start}, inside the tensor before it, which ends at {before}")]
    Overlap { name: String, start: u64, before: u64 },
    #[error("nothing claims the bytes {start} to {end} of the data")]
    Gap { start: u64, end: u64 },
    #[error("the index puts `{name}` into `{shard}`, which is no plain file name")]
    ShardName { name: String, shard: String },
    #[error("the index names the shard {} for {tensors} tensors, but it is not there", path.display())]
    MissingShard { path: PathBuf, tensors: usize },
    #[error("the index puts `{name}` into the shard `{shard}`, which does not have it")]
    NotInShard { name: String, shard: String },
}

impl Flaw {
    /// What the user could do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoHeader { .. } | Self::HeaderPastEnd { .. } | Self::OutsideData { .. } => {
                Some("the file looks cut short: download or copy it again and compare its size")
            }
            Self::HeaderTooLong { .. } | Self::Json(_) => {
                Some("if the first lines are text, it may be a Git LFS pointer: fetch the file itself")
            }
            Self::MissingShard { .. } => Some("download the missing shard into the same folder"),
            _ => None,
        }
    }
}
