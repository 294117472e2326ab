//! Writing a GGUF file, or the parts of one, whose every offset is known before the first tensor is.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::parse::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAX_DIMS};
use super::split::{MAX_PARTS, metadata_of_part, part_path, part_sizes};
use super::value::write_text;
use super::{Value, align_up};
use crate::atomic::{self, AtomicFile, Overwrite};
use crate::error::Misfit;
use crate::slots::{Slot, Slots};
use crate::{Error, TensorInfo};

/// Bytes llama.cpp has for a tensor's name, less the terminating zero.
const MAX_NAME_BYTES: usize = 63;

/// A GGUF file being written: the header at once, the tensors as they come.
///
/// Tensors may come in any order and in pieces. The file appears under its name on [`Writer::finish`], all of its parts where it
/// has several; dropped before that it leaves nothing.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    parts: Vec<AtomicFile>,
    slots: Slots,
}

impl Writer {
    /// Checks the plan and writes the header.
    ///
    /// The data are aligned to `general.alignment` where `metadata` has it, to 32 bytes otherwise.
    ///
    /// # Errors
    /// [`Error::Unwritable`] where the plan breaks the format, [`Error::Exists`] and [`Error::Io`] as
    /// [`AtomicFile::create`].
    pub fn create(
        path: &Path,
        overwrite: Overwrite,
        metadata: &[(String, Value)],
        tensors: &[TensorInfo],
    ) -> Result<Self, Error> {
        Self::create_parts(path, overwrite, metadata, tensors, u64::MAX)
    }

    /// The same in parts of at most `max_part_bytes` of tensors each, named as [`part_path`] says; a larger tensor has a part to
    /// itself. Where all fits into one it is a file like any other.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_parts(
        path: &Path,
        overwrite: Overwrite,
        metadata: &[(String, Value)],
        tensors: &[TensorInfo],
        max_part_bytes: u64,
    ) -> Result<Self, Error> {
        let misfit = |source| Error::Unwritable { path: path.to_path_buf(), source };
        let sizes = part_sizes(tensors, max_part_bytes);
        let count = sizes.len();
        if count > MAX_PARTS {
            return Err(misfit(Misfit::TooManyParts { parts: count, most: MAX_PARTS }));
        }
        let (mut parts, mut slots, mut rest) = (Vec::with_capacity(count), Vec::new(), tensors);
        for (no, size) in sizes.into_iter().enumerate() {
            let (own, others) = rest.split_at(size);
            rest = others;
            let told = (count > 1).then(|| metadata_of_part(metadata, no, count, tensors.len()));
            let (header, own, file_len) =
                plan(told.as_deref().unwrap_or(metadata), own, no).map_err(misfit)?;
            slots.extend(own);
            let mut file = AtomicFile::create(&part_path(path, no + 1, count), overwrite)?;
            file.write_at(0, &header)?;
            file.set_len(file_len)?;
            parts.push(file);
        }
        let slots = Slots::new(slots).map_err(misfit)?;
        Ok(Self { path: path.to_path_buf(), parts, slots })
    }

    /// Writes the next bytes of the tensor `name`.
    ///
    /// # Errors
    /// [`Error::Unwritable`] where the tensor is not planned, or has more bytes than planned; [`Error::Io`] where the
    /// disk refuses.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (part, at) = self.slots.advance(name, bytes.len()).map_err(|source| self.misfit(source))?;
        self.parts[part].write_at(at, bytes)
    }

    /// Flushes to the disk and gives the file its name, or its parts theirs once all are complete.
    ///
    /// # Errors
    /// [`Error::Unwritable`] where a tensor is not complete; otherwise as [`AtomicFile::finish`].
    pub fn finish(self) -> Result<(), Error> {
        self.slots.check_complete().map_err(|source| self.misfit(source))?;
        atomic::finish_together(self.parts)
    }

    fn misfit(&self, source: Misfit) -> Error {
        Error::Unwritable { path: self.path.clone(), source }
    }
}

/// The length that a file of these tensors will have.
///
/// # Errors
/// What breaks the format.
pub fn file_bytes(metadata: &[(String, Value)], tensors: &[TensorInfo]) -> Result<u64, Misfit> {
    plan(metadata, tensors, 0).map(|(_, _, file_len)| file_len)
}

/// Tensors and where each of them goes.
type Placed = Vec<(TensorInfo, Slot)>;

/// The header of part `no`, each tensor's place, and the length of the whole file.
fn plan(
    metadata: &[(String, Value)],
    tensors: &[TensorInfo],
    no: usize,
) -> Result<(Vec<u8>, Placed, u64), Misfit> {
    let alignment = alignment(metadata)?;
    let mut header = b"GGUF".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    let mut keys = HashSet::new();
    for (key, value) in metadata {
        if !keys.insert(key) {
            return Err(Misfit::DuplicateKey { key: key.clone() });
        }
        write_text(&mut header, key);
        value.write(&mut header);
    }

    let mut offset = 0;
    let mut slots = Vec::with_capacity(tensors.len());
    for info in tensors {
        write_entry(&mut header, info, offset)?;
        slots.push((info.clone(), Slot::new(no, offset)));
        // llama.cpp wants every tensor right behind the one before, padded to the alignment; the last one too
        offset = align_up(offset.saturating_add(info.bytes), alignment);
    }

    let data_start = align_up(header.len() as u64, alignment);
    header.resize(data_start as usize, 0);
    for (_, slot) in &mut slots {
        slot.start = slot.start.saturating_add(data_start);
    }
    Ok((header, slots, data_start.saturating_add(offset)))
}

fn alignment(metadata: &[(String, Value)]) -> Result<u64, Misfit> {
    match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, Value::U32(alignment))) if alignment.is_power_of_two() && *alignment < 1 << 31 => {
            Ok(u64::from(*alignment))
        }
        Some(_) => Err(Misfit::Alignment),
    }
}

fn write_entry(header: &mut Vec<u8>, info: &TensorInfo, offset: u64) -> Result<(), Misfit> {
    let name = info.name.clone();
    if name.len() > MAX_NAME_BYTES {
        return Err(Misfit::NameTooLong { bytes: name.len(), name, most: MAX_NAME_BYTES });
    }
    if info.shape.len() > MAX_DIMS {
        return Err(Misfit::TooManyDims { name, dims: info.shape.len(), most: MAX_DIMS });
    }
    let Some(ggml) = info.dtype.ggml_type() else {
        return Err(Misfit::NoSuchType { name, dtype: info.dtype });
    };
    if info.dtype.bytes_for(&info.shape) != Some(info.bytes) {
        let (dtype, shape, planned) = (info.dtype, info.shape.clone(), info.bytes);
        return Err(Misfit::WrongSize { name, dtype, shape, planned });
    }
    write_text(header, &info.name);
    header.extend((info.shape.len() as u32).to_le_bytes());
    for &dim in info.shape.iter().rev() {
        header.extend((dim as u64).to_le_bytes());
    }
    header.extend(ggml.id().to_le_bytes());
    header.extend(offset.to_le_bytes());
    Ok(())
}
