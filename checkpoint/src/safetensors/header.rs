//! The header of a safetensors file, read as if its author were an enemy.
//!
//! Layout: the header's length as a little-endian u64, the header as JSON, the data. The header maps each tensor's
//! name to its type, shape and place; the tensors cover the data without gap or overlap.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::Flaw;
use crate::container::Placed;
use crate::{Dtype, TensorInfo, listing};

/// Headers longer than this are refused, as the format's own library refuses them.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The one key that is not a tensor's name: free texts.
pub(super) const METADATA_KEY: &str = "__metadata__";
/// Bytes of the header's length.
pub(super) const PREFIX_BYTES: usize = 8;

/// Every tensor with its bytes' place in the file, in the order of those places.
pub(super) fn parse(file: &[u8]) -> Result<Vec<Placed>, Flaw> {
    Ok(tensors(file, RawInfo::known)?.0)
}

/// Every tensor, of whatever type, in the order of their places, and the free texts.
pub(super) fn list(file: &[u8]) -> Result<(Vec<listing::Tensor>, BTreeMap<String, String>), Flaw> {
    let (tensors, texts) = tensors(file, RawInfo::any)?;
    Ok((tensors.into_iter().map(|(tensor, _)| tensor).collect(), texts))
}

type Tensors<T> = (Vec<(T, Range<usize>)>, BTreeMap<String, String>);

/// What `look` makes of every tensor, with its bytes' place in the file, in the order of those places; and the free texts.
fn tensors<T>(file: &[u8], look: impl Fn(RawInfo, String) -> Result<T, Flaw>) -> Result<Tensors<T>, Flaw> {
    let (json, data) = split(file)?;
    let Entries { entries: mut raw, texts } = serde_json::from_slice(json).map_err(Flaw::Json)?;
    if let Some(name) = duplicate(&raw) {
        return Err(Flaw::DuplicateTensor { name: name.to_owned() });
    }
    raw.sort_by_key(|(_, info): &(String, RawInfo)| info.data_offsets);

    let data_len = data.len() as u64;
    let mut covered = 0;
    let mut tensors = Vec::with_capacity(raw.len());
    for (name, raw) in raw {
        let (start, end) = raw.data_offsets;
        let info = look(raw, name.clone())?;
        if end > data_len {
            return Err(Flaw::OutsideData { name, end, data_len });
        }
        if start < covered {
            return Err(Flaw::Overlap { name, start, before: covered });
        }
        if start > covered {
            return Err(Flaw::Gap { start: covered, end: start });
        }
        covered = end;
        let data_start = file.len() - data.len();
        tensors.push((info, data_start + start as usize..data_start + end as usize));
    }
    if covered < data_len {
        return Err(Flaw::Gap { start: covered, end: data_len });
    }
    Ok((tensors, texts))
}

/// The header's JSON and the data behind it.
fn split(file: &[u8]) -> Result<(&[u8], &[u8]), Flaw> {
    let Some((prefix, rest)) = file.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(Flaw::NoHeader { len: file.len() as u64 });
    };
    let header_len = u64::from_le_bytes(*prefix);
    if header_len > MAX_HEADER_BYTES {
        return Err(Flaw::HeaderTooLong { header_len, most: MAX_HEADER_BYTES });
    }
    rest.split_at_checked(header_len as usize)
        .ok_or(Flaw::HeaderPastEnd { header_len, left: rest.len() as u64 })
}

/// A tensor as the JSON has it, nothing believed yet.
#[derive(Deserialize)]
struct RawInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawInfo {
    /// What can be told of a tensor whatever its type.
    fn any(self, name: String) -> Result<listing::Tensor, Flaw> {
        if Dtype::from_safetensors_name(&self.dtype).is_some() {
            let TensorInfo { name, dtype, shape, bytes } = self.known(name)?;
            let shape = shape.iter().map(|&dim| dim as u64).collect();
            return Ok(listing::Tensor { name, dtype: dtype.to_string(), shape, bytes });
        }
        let Self { dtype, shape, data_offsets: (start, end) } = self;
        match end.checked_sub(start) {
            None => Err(Flaw::Backwards { name, start, end }),
            Some(bytes) => Ok(listing::Tensor { name, dtype: dtype.to_ascii_lowercase(), shape, bytes }),
        }
    }

    /// What a tensor is, where its type is known.
    fn known(self, name: String) -> Result<TensorInfo, Flaw> {
        let Self { dtype: tag, shape, data_offsets: (start, end) } = self;
        let Some(dtype) = Dtype::from_safetensors_name(&tag) else {
            return Err(Flaw::Dtype { name, dtype: tag });
        };
        let dims = shape.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<usize>>>();
        let Some((dims, needs)) = dims.and_then(|dims| dtype.bytes_for(&dims).map(|bytes| (dims, bytes)))
        else {
            return Err(Flaw::Overflow { name, shape });
        };
        match end.checked_sub(start) {
            None => Err(Flaw::Backwards { name, start, end }),
            Some(given) if given != needs => Err(Flaw::WrongSize { name, given, needs, shape, dtype: tag }),
            Some(bytes) => Ok(TensorInfo { name, dtype, shape: dims, bytes }),
        }
    }
}

/// A JSON object as the list of its entries, so that a name given twice is seen.
pub(super) struct Entries<T> {
    pub(super) entries: Vec<(String, T)>,
    /// What stands under [`METADATA_KEY`].
    pub(super) texts: BTreeMap<String, String>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Collect<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry per tensor")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entries<T>, M::Error> {
                let (mut entries, mut texts) = (Vec::new(), BTreeMap::new());
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        texts = map.next_value()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries { entries, texts })
            }
        }

        deserializer.deserialize_map(Collect(PhantomData))
    }
}

/// A name that stands in `entries` twice.
pub(super) fn duplicate<T>(entries: &[(String, T)]) -> Option<&str> {
    let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}
