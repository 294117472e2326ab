//! The header of a GGUF file, read as if its author were an enemy.
//!
//! Layout, all little-endian: `"GGUF"`, version u32, tensor count u64, metadata count u64, the metadata (key, type
//! u32, value), the tensor entries (name, dimension count u32, dimensions u64 innermost first, type u32, offset u64),
//! padding to the alignment, data. Texts are a u64 length and UTF-8.

use std::collections::HashSet;
use std::ops::Range;

use super::value::{self, Array, Value};
use super::{Flaw, align_up};
use crate::container::Placed;
use crate::{Dtype, GgmlType, TensorInfo, listing};

/// Alignment of the data where the metadata name no other.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
/// The metadata key that names another.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Dimensions ggml has room for.
pub(super) const MAX_DIMS: usize = 4;

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: Vec<(String, Value)>,
    /// Each tensor with its bytes' place in the file.
    pub(super) tensors: Vec<Placed>,
}

/// Reads and checks the header of `file`.
pub(super) fn parse(file: &[u8]) -> Result<Header, Flaw> {
    let Outline { version, metadata, alignment, data, entries } = outline(file, Entry::known)?;
    let extents: Vec<_> =
        entries.iter().map(|(info, offset)| (info.name.as_str(), *offset, info.bytes)).collect();
    let places = place(&extents, &data, alignment)?;
    let tensors = entries.into_iter().zip(places).map(|((info, _), range)| (info, range)).collect();
    Ok(Header { version, metadata, tensors })
}

/// A header with tensors that may be of types nobody here knows.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) version: u32,
    pub(super) alignment: u64,
    pub(super) metadata: Vec<(String, Value)>,
    pub(super) tensors: Vec<listing::Tensor>,
}

/// Reads the header of `file`, and checks all of it but the tensors' types.
///
/// How many bytes a tensor of an unknown type takes is told by where the next one begins.
pub(super) fn list(file: &[u8]) -> Result<Listed, Flaw> {
    let Outline { version, metadata, alignment, data, entries } = outline(file, Entry::any)?;
    let mut starts: Vec<u64> = entries.iter().map(|(_, offset)| *offset).collect();
    starts.sort_unstable();
    let data_len = data.end - data.start;
    let mut tensors = Vec::with_capacity(entries.len());
    for ((tensor, bytes), offset) in entries {
        let next = starts.get(starts.partition_point(|start| *start <= offset)).copied();
        let bytes = bytes.unwrap_or_else(|| next.unwrap_or(data_len).saturating_sub(offset));
        tensors.push((listing::Tensor { bytes, ..tensor }, offset));
    }
    let extents: Vec<_> =
        tensors.iter().map(|(tensor, at)| (tensor.name.as_str(), *at, tensor.bytes)).collect();
    place(&extents, &data, alignment)?;
    Ok(Listed {
        version,
        alignment,
        metadata,
        tensors: tensors.into_iter().map(|(tensor, _)| tensor).collect(),
    })
}

/// A header before its tensors have been placed.
struct Outline<T> {
    version: u32,
    metadata: Vec<(String, Value)>,
    alignment: u64,
    data: Range<u64>,
    entries: Vec<(T, u64)>, // and where the data begin, counted from the first data byte
}

fn outline<T>(file: &[u8], look: impl Fn(Entry) -> Result<T, Flaw>) -> Result<Outline<T>, Flaw> {
    let mut cursor = Cursor { file, at: 0 };
    let version = preamble(&mut cursor)?;
    let tensor_count = u64::from_le_bytes(cursor.array("the tensor count")?);
    let metadata_count = u64::from_le_bytes(cursor.array("the metadata count")?);
    let metadata = metadata(&mut cursor, metadata_count)?;
    let alignment = alignment(&metadata)?;
    let entries = entries(&mut cursor, tensor_count, look)?;
    let data_start = align_up(cursor.at as u64, alignment);
    Ok(Outline { version, metadata, alignment, data: data_start..data_start.max(file.len() as u64), entries })
}

fn preamble(cursor: &mut Cursor) -> Result<u32, Flaw> {
    if !cursor.file.starts_with(b"GGUF") {
        return Err(Flaw::Magic { found: cursor.file.iter().copied().take(4).collect() });
    }
    cursor.at = 4;
    match u32::from_le_bytes(cursor.array("the version")?) {
        version @ 2..=3 => Ok(version),
        swapped if matches!(swapped.swap_bytes(), 1..=3) => Err(Flaw::BigEndian),
        version => Err(Flaw::Version { version }),
    }
}

fn metadata(cursor: &mut Cursor, count: u64) -> Result<Vec<(String, Value)>, Flaw> {
    cursor.can_hold("metadata values", count, 8 + 4 + 1)?;
    let mut keys = HashSet::new();
    let mut metadata = Vec::new();
    for _ in 0..count {
        let key = cursor.text("a metadata key")?;
        if !keys.insert(key.clone()) {
            return Err(Flaw::DuplicateKey { key });
        }
        let value = cursor.value(&key)?;
        metadata.push((key, value));
    }
    Ok(metadata)
}

/// The alignment the metadata ask for.
fn alignment(metadata: &[(String, Value)]) -> Result<u64, Flaw> {
    let Some((_, value)) = metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() && alignment < 1 << 31 => Ok(alignment),
        _ => Err(Flaw::Alignment { value: format!("{value:?}") }),
    }
}

fn entries<T>(
    cursor: &mut Cursor,
    count: u64,
    look: impl Fn(Entry) -> Result<T, Flaw>,
) -> Result<Vec<(T, u64)>, Flaw> {
    cursor.can_hold("tensors", count, 8 + 4 + 4 + 8)?;
    let mut names = HashSet::new();
    let mut entries = Vec::new();
    for _ in 0..count {
        let entry = entry(cursor)?;
        let (name, offset) = (entry.name.clone(), entry.offset);
        let looked_at = look(entry)?;
        if !names.insert(name.clone()) {
            return Err(Flaw::DuplicateTensor { name });
        }
        entries.push((looked_at, offset));
    }
    Ok(entries)
}

/// A tensor as the file has it, nothing believed yet.
struct Entry {
    name: String,
    dims: Vec<u64>, // innermost first
    id: u32,
    offset: u64,
}

fn entry(cursor: &mut Cursor) -> Result<Entry, Flaw> {
    let name = cursor.text("a tensor's name")?;
    let dim_count = u32::from_le_bytes(cursor.array("a dimension count")?);
    if dim_count as usize > MAX_DIMS {
        return Err(Flaw::Dims { name, dims: dim_count });
    }
    let dims = (0..dim_count)
        .map(|_| cursor.array("a dimension").map(u64::from_le_bytes))
        .collect::<Result<Vec<u64>, Flaw>>()?;
    let id = u32::from_le_bytes(cursor.array("a tensor's type")?);
    let offset = u64::from_le_bytes(cursor.array("a tensor's offset")?);
    Ok(Entry { name, dims, id, offset })
}

impl Entry {
    /// What the tensor is, where its type is known.
    fn known(self) -> Result<TensorInfo, Flaw> {
        let Self { name, dims, id, .. } = self;
        let Some(ggml) = GgmlType::from_id(id) else {
            let removed = REMOVED.iter().any(|(removed, _)| *removed == id);
            return Err(Flaw::TensorType { name, id, removed });
        };
        let dtype = Dtype::from(ggml);
        let row_len = dims.first().copied().unwrap_or(1);
        if row_len % dtype.block_len() as u64 != 0 {
            return Err(Flaw::BlockDoesNotDivide { name, row_len, block_len: dtype.block_len(), dtype });
        }
        let shape = dims.iter().rev().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<usize>>>();
        match shape.and_then(|shape| dtype.bytes_for(&shape).map(|bytes| (shape, bytes))) {
            Some((shape, bytes)) => Ok(TensorInfo { name, dtype, shape, bytes }),
            None => Err(Flaw::Overflow { name, dims }),
        }
    }

    /// What can be told of the tensor whatever its type, and its bytes where that is known.
    fn any(self) -> Result<(listing::Tensor, Option<u64>), Flaw> {
        if GgmlType::from_id(self.id).is_some() {
            let TensorInfo { name, dtype, shape, bytes } = self.known()?;
            let shape = shape.iter().map(|&dim| dim as u64).collect();
            return Ok((listing::Tensor { name, dtype: dtype.to_string(), shape, bytes }, Some(bytes)));
        }
        let removed = REMOVED.iter().find(|(id, _)| *id == self.id);
        let dtype = removed.map_or_else(|| format!("type {}", self.id), |(_, name)| (*name).to_owned());
        let shape = self.dims.into_iter().rev().collect();
        Ok((listing::Tensor { name: self.name, dtype, shape, bytes: 0 }, None))
    }
}

/// Types that ggml had once: id and name.
const REMOVED: [(u32, &str); 8] = [
    (4, "q4_2"),
    (5, "q4_3"),
    (31, "q4_0_4_4"),
    (32, "q4_0_4_8"),
    (33, "q4_0_8_8"),
    (36, "iq4_nl_4_4"),
    (37, "iq4_nl_4_8"),
    (38, "iq4_nl_8_8"),
];

/// Turns names, offsets and lengths into places in the file: aligned, inside the `data`, and no two sharing a byte.
fn place(extents: &[(&str, u64, u64)], data: &Range<u64>, alignment: u64) -> Result<Vec<Range<usize>>, Flaw> {
    let data_len = data.end - data.start;
    let mut places = Vec::with_capacity(extents.len());
    for &(name, offset, bytes) in extents {
        let name = || name.to_owned();
        if offset % alignment != 0 {
            return Err(Flaw::Misaligned { name: name(), offset, alignment });
        }
        if offset.checked_add(bytes).is_none_or(|end| end > data_len) {
            return Err(Flaw::OutsideData { name: name(), offset, bytes, data_len });
        }
        let start = (data.start + offset) as usize; // at most the length of a slice
        places.push(start..start + bytes as usize);
    }

    let mut order: Vec<usize> = (0..places.len()).filter(|&at| !places[at].is_empty()).collect();
    order.sort_by_key(|&at| places[at].start);
    for pair in order.windows(2) {
        if places[pair[0]].end > places[pair[1]].start {
            let [first, second] = [pair[0], pair[1]].map(|at| extents[at].0.to_owned());
            return Err(Flaw::Overlap { first, second });
        }
    }
    Ok(places)
}

/// A place in the file and the only ways to move it on.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.file.len() - self.at) as u64
    }

    fn take(&mut self, needs: u64, what: &'static str) -> Result<&'a [u8], Flaw> {
        if needs > self.left() {
            return Err(Flaw::Ends { what, at: self.at as u64, needs, len: self.file.len() as u64 });
        }
        let taken = &self.file[self.at..self.at + needs as usize];
        self.at += needs as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Flaw> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    /// Refuses a count that the rest of the file could not hold at `least_bytes` apiece.
    fn can_hold(&self, what: &'static str, count: u64, least_bytes: u64) -> Result<(), Flaw> {
        let (left, most) = (self.left(), self.left() / least_bytes);
        if count > most { Err(Flaw::Count { what, count, left, most }) } else { Ok(()) }
    }

    fn text(&mut self, what: &'static str) -> Result<String, Flaw> {
        let len = u64::from_le_bytes(self.array(what)?);
        let at = self.at as u64;
        let bytes = self.take(len, what)?;
        str::from_utf8(bytes).map(str::to_owned).map_err(|_| Flaw::NotUtf8 { what, at })
    }

    fn value(&mut self, key: &str) -> Result<Value, Flaw> {
        const WHAT: &str = "a metadata value";
        let id = u32::from_le_bytes(self.array("a value type")?);
        Ok(match id {
            value::U8 => Value::U8(u8::from_le_bytes(self.array(WHAT)?)),
            value::I8 => Value::I8(i8::from_le_bytes(self.array(WHAT)?)),
            value::U16 => Value::U16(u16::from_le_bytes(self.array(WHAT)?)),
            value::I16 => Value::I16(i16::from_le_bytes(self.array(WHAT)?)),
            value::U32 => Value::U32(u32::from_le_bytes(self.array(WHAT)?)),
            value::I32 => Value::I32(i32::from_le_bytes(self.array(WHAT)?)),
            value::F32 => Value::F32(f32::from_le_bytes(self.array(WHAT)?)),
            value::BOOL => Value::Bool(truth(self.array(WHAT)?, key)?),
            value::STRING => Value::String(self.text(WHAT)?),
            value::ARRAY => Value::Array(self.values(key)?),
            value::U64 => Value::U64(u64::from_le_bytes(self.array(WHAT)?)),
            value::I64 => Value::I64(i64::from_le_bytes(self.array(WHAT)?)),
            value::F64 => Value::F64(f64::from_le_bytes(self.array(WHAT)?)),
            id => return Err(Flaw::ValueType { key: key.to_owned(), id }),
        })
    }

    fn values(&mut self, key: &str) -> Result<Array, Flaw> {
        let id = u32::from_le_bytes(self.array("an array's element type")?);
        let count = u64::from_le_bytes(self.array("an array's length")?);
        Ok(match id {
            value::U8 => Array::U8(self.numbers(count, u8::from_le_bytes)?),
            value::I8 => Array::I8(self.numbers(count, i8::from_le_bytes)?),
            value::U16 => Array::U16(self.numbers(count, u16::from_le_bytes)?),
            value::I16 => Array::I16(self.numbers(count, i16::from_le_bytes)?),
            value::U32 => Array::U32(self.numbers(count, u32::from_le_bytes)?),
            value::I32 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            value::F32 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            value::U64 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            value::I64 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            value::F64 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            value::BOOL => {
                let bytes: Vec<[u8; 1]> = self.numbers(count, |byte| byte)?;
                Array::Bool(bytes.into_iter().map(|byte| truth(byte, key)).collect::<Result<_, _>>()?)
            }
            value::STRING => {
                self.can_hold("array elements", count, 8)?;
                Array::String((0..count).map(|_| self.text("an array's text")).collect::<Result<_, _>>()?)
            }
            value::ARRAY => return Err(Flaw::NestedArray { key: key.to_owned() }),
            id => return Err(Flaw::ValueType { key: key.to_owned(), id }),
        })
    }

    fn numbers<const N: usize, T>(&mut self, count: u64, decode: fn([u8; N]) -> T) -> Result<Vec<T>, Flaw> {
        self.can_hold("array elements", count, N as u64)?;
        let bytes = self.take(count * N as u64, "an array")?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| decode(*chunk)).collect())
    }
}

fn truth([byte]: [u8; 1], key: &str) -> Result<bool, Flaw> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        byte => Err(Flaw::Bool { key: key.to_owned(), byte }),
    }
}
