//! llama.cpp's importance matrices: for every weight the sums of the squares of what it multiplies, column by column.
//!
//! Two layouts: GGUF, and the older `.dat`, which has means instead and no token counts. Both are read and written.

mod dat;
mod entry;
mod flaw;
mod gguf;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

pub use entry::Entry;
pub use flaw::Flaw;

use crate::Error;
use crate::atomic::Overwrite;
use crate::map::Map;

/// Tokens of a chunk where nothing else is said: llama-imatrix's own.
pub const CHUNK_SIZE: u32 = 512;

/// An importance matrix.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ImportanceMatrix {
    /// What is known of each weight, by its GGUF name.
    pub entries: BTreeMap<String, Entry>,
    /// The texts it was collected on, as their names were given.
    pub datasets: Vec<String>,
    /// Chunks of text that were run.
    pub chunk_count: u32,
    /// Tokens of a chunk; where a file does not tell, its counts are chunks and not tokens.
    pub chunk_size: Option<u32>,
    /// SHA-256 of the tokens of each run it was collected in, where the program that ran them wrote it down.
    pub sha256: Vec<String>,
}

/// How a file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// GGUF: sums and counts.
    Gguf,
    /// `.dat`: means times the number of chunks.
    Dat,
}

impl Layout {
    /// The one that a file's name stands for.
    pub fn of_name(path: &Path) -> Self {
        let is_dat = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("dat"));
        if is_dat { Self::Dat } else { Self::Gguf }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gguf => "gguf",
            Self::Dat => "dat",
        }
    }
}

/// The layout of the file at `path`, by what it begins with; `None` where it is no importance matrix, as far as its beginning tells.
pub fn layout_at(path: &Path) -> Option<Layout> {
    let map = Map::open(path).ok()?;
    if map.starts_with(gguf::MAGIC) {
        return gguf::is_one(path).then_some(Layout::Gguf);
    }
    dat::begins(&map).then_some(Layout::Dat)
}

impl ImportanceMatrix {
    /// Reads a file of either layout.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read, [`Error::Imatrix`] where it contradicts itself or holds what is no sum of squares,
    /// [`Error::Gguf`] where it is a broken GGUF.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let map = Map::open(path)?;
        let read = if map.starts_with(gguf::MAGIC) { gguf::read(path)? } else { dat::read(&map) };
        read.map_err(|source| Error::Imatrix { path: path.to_path_buf(), source: Box::new(source) })
    }

    /// Writes it, complete under its name or not at all. Only another importance matrix is replaced.
    ///
    /// # Errors
    /// [`Error::Exists`] where something is in the way, [`Error::Io`] where the disk refuses, [`Error::Unwritable`] where a name is
    /// too long.
    pub fn write(&self, path: &Path, overwrite: Overwrite, layout: Layout) -> Result<(), Error> {
        if path.exists() && layout_at(path).is_none() {
            return Err(Error::Exists { path: path.to_path_buf() });
        }
        match layout {
            Layout::Gguf => gguf::write(self, path, overwrite),
            Layout::Dat => dat::write(self, path, overwrite),
        }
    }

    /// The most tokens behind any of its sums; chunks where its [`chunk_size`](Self::chunk_size) is not known.
    pub fn most_counted(&self) -> u64 {
        self.entries.values().flat_map(Entry::counts).copied().max().unwrap_or(0)
    }

    /// Turns counts of chunks into counts of tokens where the size of a chunk was not known, and is taken for `chunk_size` now.
    pub fn assume_chunk_size(&mut self, chunk_size: u32) {
        if self.chunk_size.is_none() {
            self.entries.values_mut().for_each(|entry| entry.scale_up(chunk_size));
            self.chunk_size = Some(chunk_size);
        }
    }

    /// Lets its tokens count `weight` times; the means stay as they are.
    pub fn weigh(&mut self, weight: f64) {
        self.entries.values_mut().for_each(|entry| entry.weigh(weight));
    }

    /// Adds what another one saw: sums and counts add up, and so do the names of the texts.
    ///
    /// Chunks of `other` whose size is not known are taken to be as large as those here, 512 tokens where neither tells.
    ///
    /// # Errors
    /// Entries of other shapes.
    pub fn merge(&mut self, mut other: Self) -> Result<(), Flaw> {
        let chunk_size = self.chunk_size.or(other.chunk_size).unwrap_or(CHUNK_SIZE);
        self.assume_chunk_size(chunk_size);
        other.assume_chunk_size(chunk_size);
        for (name, entry) in &other.entries {
            if let Some(own) = self.entries.get(name) {
                own.check_mergeable(name, entry)?;
            }
        }
        for (name, entry) in other.entries {
            match self.entries.get_mut(&name) {
                Some(own) => own.merge(&entry),
                None => drop(self.entries.insert(name, entry)),
            }
        }
        self.datasets.extend(other.datasets);
        self.sha256.extend(other.sha256);
        let chunks = self.most_counted() / u64::from(chunk_size.max(1));
        self.chunk_count = u32::try_from(chunks).unwrap_or(u32::MAX);
        Ok(())
    }
}
