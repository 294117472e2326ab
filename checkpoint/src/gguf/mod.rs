//! GGUF, llama.cpp's single-file format: metadata and tensors behind one header.
//!
//! [`File`] reads versions 2 and 3, in one part or split; [`Writer`] writes version 3.

mod flaw;
mod parse;
#[cfg(test)]
mod tests;
mod value;
mod write;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use flaw::Flaw;
pub use value::{Array, Value};
pub use write::{Writer, file_bytes};

use crate::container::Directory;
use crate::listing::{Layout, Listing};
use crate::map::Map;
use crate::{Container, Error, TensorInfo};

/// An opened GGUF file; where the model is split, all of its parts.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    parts: Vec<Map>,
    version: u32,
    metadata: Vec<(String, Value)>,
    by_key: HashMap<String, usize>,
    tensors: Directory<(usize, Range<usize>)>, // part, bytes in it
}

impl File {
    /// Opens the file at `path`, and its sister parts where it is one of several.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be opened, [`Error::Gguf`] where one is broken.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (map, header) = open_part(path)?;
        let part_paths = part_paths(path, &header.metadata).map_err(flawed(path))?;
        let (mut parts, mut headers) = (vec![map], vec![header]);
        if part_paths.len() > 1 {
            (parts, headers) = part_paths
                .iter()
                .map(|path| open_part(path))
                .collect::<Result<Vec<_>, _>>()?
                .into_iter()
                .unzip();
            for (no, (part, header)) in part_paths.iter().zip(&headers).enumerate() {
                check_part(no, part_paths.len(), &header.metadata).map_err(flawed(part))?;
            }
        }

        let version = headers[0].version;
        let metadata = std::mem::take(&mut headers[0].metadata);
        let by_key = metadata.iter().enumerate().map(|(index, (key, _))| (key.clone(), index)).collect();
        let entries = headers.into_iter().enumerate().flat_map(|(part, header)| {
            header.tensors.into_iter().map(move |(info, range)| (info, (part, range)))
        });
        let tensors =
            Directory::new(entries.collect()).map_err(|name| flawed(path)(Flaw::DuplicateTensor { name }))?;
        Ok(Self { path: path.to_path_buf(), parts, version, metadata, by_key, tensors })
    }

    /// The format's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata value of `key`.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|&index| &self.metadata[index].1)
    }

    /// All metadata in the file's order; of a split model, the first part's.
    pub fn all_metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }
}

impl Container for File {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.tensors.infos()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(info, _)| info)
    }

    fn bytes(&self, name: &str) -> Result<&[u8], Error> {
        let (_, (part, range)) = self.tensors.find(name, &self.path)?;
        Ok(&self.parts[*part][range.clone()])
    }

    fn release(&self, name: &str) {
        if let Some((_, (part, range))) = self.tensors.get(name) {
            self.parts[*part].release(range.clone());
        }
    }

    fn read_ahead(&self, name: &str) {
        if let Some((_, (part, range))) = self.tensors.get(name) {
            self.parts[*part].read_ahead(range.clone());
        }
    }
}

/// What the headers of the file at `path` and of its sister parts say, whatever the types of its tensors.
///
/// # Errors
/// As [`File::open`], but for types that are unknown and for sister parts that are not there.
pub(crate) fn list(path: &Path) -> Result<Listing, Error> {
    let read = |path: &Path| {
        let map = Map::open(path)?;
        let listed = parse::list(&map).map_err(flawed(path))?;
        Ok((listed, map.len() as u64))
    };
    let (first, first_len) = read(path)?;
    let parts = part_paths(path, &first.metadata).map_err(flawed(path))?;
    let (version, alignment) = (first.version, first.alignment);
    let mut listing = Listing::new(Layout::Gguf { version, alignment });
    if parts.len() == 1 {
        listing.add_file(path, first_len, first.tensors);
        listing.metadata = first.metadata;
        return Ok(listing);
    }
    for part in parts {
        if part.exists() {
            let (listed, len) = read(&part)?;
            listing.add_file(&part, len, listed.tensors);
            if listing.metadata.len() < listed.metadata.len() {
                listing.metadata = listed.metadata; // the first part has all that is said of the model
            }
        } else {
            listing.missing.push(part);
        }
    }
    Ok(listing)
}

fn open_part(path: &Path) -> Result<(Map, parse::Header), Error> {
    let map = Map::open(path)?;
    let header = parse::parse(&map).map_err(flawed(path))?;
    Ok((map, header))
}

fn flawed(path: &Path) -> impl FnOnce(Flaw) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::Gguf { path, source }
}

const SPLIT_NO: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";

fn integer(metadata: &[(String, Value)], wanted: &str) -> Option<u64> {
    metadata.iter().find(|(key, _)| key == wanted).and_then(|(_, value)| value.as_u64())
}

/// The paths of all parts of the model whose part at `path` has these metadata: `NAME-00001-of-00003.gguf` and so on.
fn part_paths(path: &Path, metadata: &[(String, Value)]) -> Result<Vec<PathBuf>, Flaw> {
    let count = integer(metadata, SPLIT_COUNT).unwrap_or(1);
    if count <= 1 {
        return Ok(vec![path.to_path_buf()]);
    }
    let split = |key, value, because| Flaw::Split { key, value, because };
    if count > u64::from(u16::MAX) {
        return Err(split(SPLIT_COUNT, count, "a model has at most 65535 parts".to_owned()));
    }
    let no = integer(metadata, SPLIT_NO).unwrap_or(0);
    let suffix = format!("-{:05}-of-{count:05}.gguf", no.saturating_add(1));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(&suffix) else {
        return Err(split(SPLIT_COUNT, count, format!("the file's name does not end in `{suffix}`")));
    };
    Ok((1..=count).map(|no| path.with_file_name(format!("{stem}-{no:05}-of-{count:05}.gguf"))).collect())
}

/// Holds part `no` of `count` to its own word.
fn check_part(no: usize, count: usize, metadata: &[(String, Value)]) -> Result<(), Flaw> {
    for (key, expected) in [(SPLIT_NO, no), (SPLIT_COUNT, count)] {
        let value = integer(metadata, key).unwrap_or(0);
        if value != expected as u64 {
            return Err(Flaw::Split { key, value, because: format!("the file's name says {expected}") });
        }
    }
    Ok(())
}

/// The least multiple of `alignment`, a power of two, that is not below `at`.
fn align_up(at: u64, alignment: u64) -> u64 {
    at.saturating_add(alignment - 1) & !(alignment - 1)
}
