//! GGUF, llama.cpp's single-file format: metadata and tensors behind one header.
//!
//! [`File`] reads versions 2 and 3, in one part or split; [`Writer`] writes version 3.

mod flaw;
mod parse;
pub mod split;
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
use split::{check_part, check_tensors, part_paths};

/// An opened GGUF file; where the model is split, all of its parts.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    paths: Vec<PathBuf>, // of the parts, in their order
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
        let paths = part_paths(path, &header.metadata).map_err(flawed(path))?;
        let (mut parts, mut headers) = (vec![map], vec![header]);
        if paths.len() > 1 {
            (parts, headers) = open_parts(path, &paths)?.into_iter().unzip();
        }

        let version = headers[0].version;
        let metadata = std::mem::take(&mut headers[0].metadata);
        let by_key = metadata.iter().enumerate().map(|(index, (key, _))| (key.clone(), index)).collect();
        let entries = headers.into_iter().enumerate().flat_map(|(part, header)| {
            header.tensors.into_iter().map(move |(info, range)| (info, (part, range)))
        });
        let tensors =
            Directory::new(entries.collect()).map_err(|name| flawed(path)(Flaw::DuplicateTensor { name }))?;
        Ok(Self { path: path.to_path_buf(), paths, parts, version, metadata, by_key, tensors })
    }

    /// The format's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The files it is made of, in the order of their numbers.
    pub fn parts(&self) -> &[PathBuf] {
        &self.paths
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
/// As [`File::open`], but for types that are unknown, for sister parts that are not there, and for tensors that are.
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
    let count = parts.len();
    for (no, part) in parts.into_iter().enumerate() {
        if part.exists() {
            let (listed, len) = read(&part)?;
            check_part(no, count, &listed.metadata).map_err(flawed(&part))?;
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

/// All parts of the model that the one at `path` belongs to, each held to what it says of itself and of all.
fn open_parts(path: &Path, paths: &[PathBuf]) -> Result<Vec<(Map, parse::Header)>, Error> {
    if let Some(no) = paths.iter().position(|part| !part.exists()) {
        let name = paths[no].file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(flawed(path)(Flaw::MissingPart { no: no + 1, count: paths.len(), name }));
    }
    let parts = paths.iter().map(|path| open_part(path)).collect::<Result<Vec<_>, _>>()?;
    let tensors = parts.iter().map(|(_, header)| header.tensors.len()).sum();
    for (no, (path, (_, header))) in paths.iter().zip(&parts).enumerate() {
        check_part(no, paths.len(), &header.metadata).map_err(flawed(path))?;
    }
    for (path, (_, header)) in paths.iter().zip(&parts) {
        check_tensors(&header.metadata, tensors).map_err(flawed(path))?;
    }
    Ok(parts)
}

fn flawed(path: &Path) -> impl FnOnce(Flaw) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::Gguf { path, source }
}

/// The least multiple of `alignment`, a power of two, that is not below `at`.
fn align_up(at: u64, alignment: u64) -> u64 {
    at.saturating_add(alignment - 1) & !(alignment - 1)
}
