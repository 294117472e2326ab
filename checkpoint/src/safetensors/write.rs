//! Writing safetensors whose every offset is known before the first tensor is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::header::{MAX_HEADER_BYTES, METADATA_KEY};
use super::{INDEX, SINGLE};
use crate::atomic::{AtomicFile, Overwrite};
use crate::error::Misfit;
use crate::slots::{Slot, Slots};
use crate::{Error, TensorInfo};

/// A model being written into a folder: the headers at once, the tensors as they come.
///
/// The model is one file, [`SINGLE`], or shards and an [`INDEX`] where it is larger than one shard may be. Tensors may
/// come in any order and in pieces. The files appear under their names on [`Writer::finish`], the index last; dropped
/// before that they leave nothing.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    shards: Vec<AtomicFile>,
    index: Option<AtomicFile>,
    slots: Slots,
}

impl Writer {
    /// Checks the plan and writes the headers into the existing `folder`.
    ///
    /// `metadata` goes into every file (`{"format": "pt"}` is what transformers asks for). Tensors fill the shards in
    /// the order given; one larger than `max_shard_bytes` has a shard to itself.
    ///
    /// # Errors
    /// [`Error::Unwritable`] where the plan breaks the format, [`Error::Exists`] and [`Error::Io`] as
    /// [`AtomicFile::create`].
    pub fn create(
        folder: &Path,
        overwrite: Overwrite,
        metadata: &BTreeMap<String, String>,
        tensors: &[TensorInfo],
        max_shard_bytes: u64,
    ) -> Result<Self, Error> {
        let misfit = |source| Error::Unwritable { path: folder.to_path_buf(), source };
        let groups = split(tensors, max_shard_bytes);
        let names = shard_names(groups.len());
        let (mut shards, mut slots, mut weight_map) = (Vec::new(), Vec::new(), Map::new());
        for (shard, (group, name)) in groups.into_iter().zip(&names).enumerate() {
            let plan = Plan::new(metadata, group, shard).map_err(misfit)?;
            weight_map.extend(plan.slots.iter().map(|(info, _)| (info.name.clone(), json!(name))));
            slots.extend(plan.slots);
            let mut file = AtomicFile::create(&folder.join(name), overwrite)?;
            file.write_at(0, &plan.header)?;
            file.set_len(plan.file_len)?;
            shards.push(file);
        }
        let slots = Slots::new(slots).map_err(misfit)?;
        let mut index = None;
        if shards.len() > 1 {
            let total_size = tensors.iter().fold(0u64, |total, info| total.saturating_add(info.bytes));
            let json = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
            let mut file = AtomicFile::create(&folder.join(INDEX), overwrite)?;
            file.write_at(0, format!("{json:#}\n").as_bytes())?;
            index = Some(file);
        }
        Ok(Self { folder: folder.to_path_buf(), shards, index, slots })
    }

    /// Writes the next bytes of the tensor `name`.
    ///
    /// # Errors
    /// [`Error::Unwritable`] where the tensor is not planned, or has more bytes than planned; [`Error::Io`] where the
    /// disk refuses.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (shard, at) = self.slots.advance(name, bytes.len()).map_err(|source| self.misfit(source))?;
        self.shards[shard].write_at(at, bytes)
    }

    /// Flushes to the disk and gives the files their names.
    ///
    /// # Errors
    /// [`Error::Unwritable`] where a tensor is not complete; otherwise as [`AtomicFile::finish`].
    pub fn finish(self) -> Result<(), Error> {
        self.slots.check_complete().map_err(|source| self.misfit(source))?;
        self.shards.into_iter().chain(self.index).try_for_each(AtomicFile::finish)
    }

    fn misfit(&self, source: Misfit) -> Error {
        Error::Unwritable { path: self.folder.clone(), source }
    }
}

/// Cuts the list into runs of at most `max_bytes`; always at least one run.
fn split(tensors: &[TensorInfo], max_bytes: u64) -> Vec<&[TensorInfo]> {
    let (mut groups, mut start, mut bytes) = (Vec::new(), 0, 0u64);
    for (index, info) in tensors.iter().enumerate() {
        if index > start && bytes.saturating_add(info.bytes) > max_bytes {
            groups.push(&tensors[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes = bytes.saturating_add(info.bytes);
    }
    groups.push(&tensors[start..]);
    groups
}

fn shard_names(count: usize) -> Vec<String> {
    match count {
        1 => vec![SINGLE.to_owned()],
        _ => (1..=count).map(|no| format!("model-{no:05}-of-{count:05}.safetensors")).collect(),
    }
}

/// One file before its data are written.
struct Plan {
    header: Vec<u8>,
    slots: Vec<(TensorInfo, Slot)>,
    file_len: u64,
}

impl Plan {
    /// Wider types come first, so that every tensor begins at a multiple of its values' bytes.
    fn new(
        metadata: &BTreeMap<String, String>,
        tensors: &[TensorInfo],
        shard: usize,
    ) -> Result<Self, Misfit> {
        let mut order: Vec<&TensorInfo> = tensors.iter().collect();
        order.sort_by_key(|info| std::cmp::Reverse(info.dtype.block_bytes()));

        let mut json = Map::new();
        json.insert(METADATA_KEY.to_owned(), json!(metadata)); // even if empty: no tensor may take the name
        let mut offset = 0u64;
        let mut slots = Vec::with_capacity(order.len());
        for info in order {
            let end = offset.saturating_add(info.bytes);
            if json.insert(info.name.clone(), entry(info, offset, end)?).is_some() {
                return Err(Misfit::DuplicateTensor { name: info.name.clone() });
            }
            slots.push((info.clone(), Slot::new(shard, offset)));
            offset = end;
        }

        let header = with_prefix(Value::Object(json).to_string())?;
        for (_, slot) in &mut slots {
            slot.start = slot.start.saturating_add(header.len() as u64);
        }
        let file_len = offset.saturating_add(header.len() as u64);
        Ok(Self { header, slots, file_len })
    }
}

/// The header's length and the header, padded so that the data begin at a multiple of 8.
fn with_prefix(json: String) -> Result<Vec<u8>, Misfit> {
    let mut json = json.into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(Misfit::HeaderTooLong { bytes: json.len(), most: MAX_HEADER_BYTES as usize });
    }
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

fn entry(info: &TensorInfo, start: u64, end: u64) -> Result<Value, Misfit> {
    let Some(tag) = info.dtype.safetensors_name() else {
        return Err(Misfit::NoSuchType { name: info.name.clone(), dtype: info.dtype });
    };
    if info.dtype.bytes_for(&info.shape) != Some(info.bytes) {
        let (name, dtype, shape, planned) = (info.name.clone(), info.dtype, info.shape.clone(), info.bytes);
        return Err(Misfit::WrongSize { name, dtype, shape, planned });
    }
    Ok(json!({"dtype": tag, "shape": info.shape, "data_offsets": [start, end]}))
}
