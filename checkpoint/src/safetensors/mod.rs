//! safetensors: one file, or a folder of shards behind an index.

mod flaw;
mod header;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

pub use flaw::Flaw;
use serde::Deserialize;
pub use write::Writer;

use crate::container::{Directory, Placed};
use crate::error::Found;
use crate::listing::{Layout, Listing};
use crate::map::Map;
use crate::{Container, Error, TensorInfo, gguf};

/// The file of a model in one piece.
pub const SINGLE: &str = "model.safetensors";
/// The file that says which shard holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// An opened model: all tensors of its file or of its shards.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    shards: Vec<Map>,
    tensors: Directory<(usize, Range<usize>)>, // shard, bytes in it
}

/// The index of a sharded model.
#[derive(Deserialize)]
struct Index {
    weight_map: header::Entries<String>,
}

/// [`Folder::open`].
///
/// # Errors
/// As there.
pub fn open(path: &Path) -> Result<Folder, Error> {
    Folder::open(path)
}

impl Folder {
    /// Opens a folder that holds [`SINGLE`] or [`INDEX`] (the single file first, as transformers does), or one
    /// `.safetensors` file.
    ///
    /// Of a sharded model the tensors the index names are read, and no others.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] where there is neither, [`Error::Io`] where a file cannot be opened,
    /// [`Error::Safetensors`] where one is broken or the index does not fit the shards.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_file() {
            return Self::single(path, path);
        }
        let (single, index) = (path.join(SINGLE), path.join(INDEX));
        if single.exists() {
            Self::single(path, &single)
        } else if index.exists() {
            Self::sharded(path, &index)
        } else {
            fs::metadata(path).map_err(Error::io("open", path))?;
            Err(Error::NotACheckpoint { path: path.to_path_buf(), found: Found::at(path) })
        }
    }

    fn single(path: &Path, file: &Path) -> Result<Self, Error> {
        let (map, tensors) = open_file(file)?;
        let entries = tensors.into_iter().map(|(info, range)| (info, (0, range))).collect();
        let tensors = Directory::new(entries).map_err(|name| flawed(file)(Flaw::DuplicateTensor { name }))?;
        Ok(Self { path: path.to_path_buf(), shards: vec![map], tensors })
    }

    fn sharded(path: &Path, index: &Path) -> Result<Self, Error> {
        let by_shard = read_index(index)?;
        let (mut shards, mut entries) = (Vec::new(), Vec::new());
        for (shard, names) in by_shard {
            let file = path.join(&shard);
            if !file.exists() {
                return Err(flawed(index)(Flaw::MissingShard { path: file, tensors: names.len() }));
            }
            let (map, tensors) = open_file(&file)?;
            let mut wanted: BTreeMap<String, bool> = names.into_iter().map(|name| (name, false)).collect();
            for (info, range) in tensors {
                if let Some(seen) = wanted.get_mut(&info.name) {
                    *seen = true;
                    entries.push((info, (shards.len(), range)));
                }
            }
            if let Some((name, _)) = wanted.into_iter().find(|(_, seen)| !seen) {
                return Err(flawed(index)(Flaw::NotInShard { name, shard }));
            }
            shards.push(map);
        }
        let tensors =
            Directory::new(entries).map_err(|name| flawed(index)(Flaw::DuplicateTensor { name }))?;
        Ok(Self { path: path.to_path_buf(), shards, tensors })
    }

    /// The files the tensors lie in.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(Map::path)
    }
}

impl Container for Folder {
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
        let (_, (shard, range)) = self.tensors.find(name, &self.path)?;
        Ok(&self.shards[*shard][range.clone()])
    }

    fn release(&self, name: &str) {
        if let Some((_, (shard, range))) = self.tensors.get(name) {
            self.shards[*shard].release(range.clone());
        }
    }

    fn read_ahead(&self, name: &str) {
        if let Some((_, (shard, range))) = self.tensors.get(name) {
            self.shards[*shard].read_ahead(range.clone());
        }
    }
}

/// What index files are called, after whatever the model is.
pub(crate) const INDEX_ENDING: &str = ".safetensors.index.json";

/// What the headers of a file, of an index's shards or of all safetensors files in a folder say, whatever the types of the
/// tensors; none where the folder has no such file.
///
/// # Errors
/// As [`Folder::open`], but for types that are unknown and for shards that are not there.
pub(crate) fn list(path: &Path) -> Result<Option<Listing>, Error> {
    if path.is_dir() {
        let indexes = files_ending(path, INDEX_ENDING)?;
        let index = [path.join(INDEX)].into_iter().chain(indexes).find(|index| index.is_file());
        let single = Some(path.join(SINGLE)).filter(|single| single.is_file());
        return match (single, index) {
            (Some(single), _) => list_files(&[single]).map(Some),
            (None, Some(index)) => list_shards(&index).map(Some),
            (None, None) => {
                let files = files_ending(path, ".safetensors")?;
                if files.is_empty() { Ok(None) } else { list_files(&files).map(Some) }
            }
        };
    }
    let is_index = path.to_str().is_some_and(|path| path.ends_with(INDEX_ENDING));
    if is_index { list_shards(path) } else { list_files(&[path.to_owned()]) }.map(Some)
}

fn list_shards(index: &Path) -> Result<Listing, Error> {
    let shards = read_index(index)?.into_keys().map(|shard| index.with_file_name(shard)).collect::<Vec<_>>();
    list_files(&shards)
}

fn list_files(files: &[PathBuf]) -> Result<Listing, Error> {
    let mut listing = Listing::new(Layout::Safetensors);
    for file in files {
        if files.len() > 1 && !file.exists() {
            listing.missing.push(file.clone());
            continue;
        }
        let map = Map::open(file)?;
        let (tensors, texts) = header::list(&map).map_err(flawed(file))?;
        listing.add_file(file, map.len() as u64, tensors);
        for (key, text) in texts {
            if !listing.metadata.iter().any(|(known, _)| *known == key) {
                listing.metadata.push((key, gguf::Value::String(text)));
            }
        }
    }
    Ok(listing)
}

/// The files of a folder whose names end so, in their order.
fn files_ending(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = paths
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(ending)) && path.is_file())
        .collect();
    files.sort();
    Ok(files)
}

fn flawed(path: &Path) -> impl FnOnce(Flaw) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::Safetensors { path, source }
}

fn open_file(path: &Path) -> Result<(Map, Vec<Placed>), Error> {
    let map = Map::open(path)?;
    let tensors = header::parse(&map).map_err(flawed(path))?;
    Ok((map, tensors))
}

/// The tensors of each shard, as the index has them.
fn read_index(path: &Path) -> Result<BTreeMap<String, Vec<String>>, Error> {
    let json = fs::read(path).map_err(Error::io("read", path))?;
    let index: Index =
        serde_json::from_slice(&json).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    let header::Entries { entries, .. } = index.weight_map;
    if let Some(name) = header::duplicate(&entries) {
        return Err(flawed(path)(Flaw::DuplicateTensor { name: name.to_owned() }));
    }
    let mut by_shard: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, shard) in entries {
        let mut parts = Path::new(&shard).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(flawed(path)(Flaw::ShardName { name, shard }));
        }
        by_shard.entry(shard).or_default().push(name);
    }
    Ok(by_shard)
}
