//! What the headers of a checkpoint say, of whatever kind it is: to be shown, not to be computed with.
//!
//! Headers are checked as they are for models, but for the types of tensors: one that nobody here knows has a name and bytes
//! all the same. Nothing of the data is read.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::Found;
use crate::{Error, gguf, hf, safetensors};

/// The headers of a file, or of all files of a model.
#[derive(Debug)]
pub struct Listing {
    /// How they are laid out.
    pub layout: Layout,
    /// The files, with their lengths in bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Files that belong to them and are not there.
    pub missing: Vec<PathBuf>,
    /// GGUF's metadata, or the free texts of safetensors.
    pub metadata: Vec<(String, gguf::Value)>,
    /// All tensors, in the order of the files.
    pub tensors: Vec<Tensor>,
}

/// The layout of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// GGUF.
    Gguf {
        /// The format's version.
        version: u32,
        /// What the data are aligned to, in bytes.
        alignment: u64,
    },
    /// safetensors.
    Safetensors,
    /// A folder of a model's other files.
    NoWeights,
}

/// A tensor as a header has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// Its storage type, in lower case: `q4_k`, `bf16`, `type 99`.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Bytes of its data; of an unknown type with the padding behind them.
    pub bytes: u64,
}

impl Tensor {
    /// How many values its shape has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product, dim| product.saturating_mul(*dim))
    }
}

impl Listing {
    /// Reads the headers at `path`: a GGUF file with its sister parts, a safetensors file, an index with its shards, a folder
    /// of either, or a folder that has a model's other files only.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] where it is none of these, [`Error::Io`] where a file cannot be opened, [`Error::Gguf`] and
    /// [`Error::Safetensors`] where a header is broken.
    pub fn open(path: &Path) -> Result<Self, Error> {
        fs::metadata(path).map_err(Error::io("open", path))?;
        let foreign = || Error::NotACheckpoint { path: path.to_path_buf(), found: Found::at(path) };
        if !path.is_dir() {
            return match Magic::of(path) {
                Magic::Gguf => gguf::list(path),
                Magic::Safetensors => safetensors::list(path)?.ok_or_else(foreign),
                Magic::Other => Err(foreign()),
            };
        }
        if let Some(listing) = safetensors::list(path)? {
            return Ok(listing);
        }
        let entries = fs::read_dir(path).map_err(Error::io("read", path))?;
        let mut ggufs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        ggufs.retain(|file| file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")));
        ggufs.sort();
        if let Some(first) = ggufs.first() {
            let listing = gguf::list(first)?;
            // One model, perhaps in parts.
            return if listing.files.len() == ggufs.len() { Ok(listing) } else { Err(foreign()) };
        }
        let is_there = |file: &&str| path.join(file).is_file();
        let described = [hf::CONFIG, "tokenizer.json", "tokenizer.model"].iter().any(is_there);
        if described && Found::at(path) == Found::Other {
            Ok(Self::new(Layout::NoWeights))
        } else {
            Err(foreign())
        }
    }

    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, files: Vec::new(), missing: Vec::new(), metadata: Vec::new(), tensors: Vec::new() }
    }

    pub(crate) fn add_file(&mut self, path: &Path, len: u64, tensors: Vec<Tensor>) {
        self.files.push((path.to_path_buf(), len));
        self.tensors.extend(tensors);
    }

    /// The metadata value of `key`.
    pub fn value(&self, key: &str) -> Option<&gguf::Value> {
        self.metadata.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }
}

/// What a file's name and first bytes promise.
enum Magic {
    Gguf,
    Safetensors,
    Other,
}

impl Magic {
    fn of(path: &Path) -> Self {
        let ends = |wanted: &str| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(wanted));
        let mut start = [0; 9];
        let read =
            path.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok();
        if ends("gguf") || read && start.starts_with(b"GGUF") {
            Self::Gguf
        } else if ends("safetensors")
            || path.to_str().is_some_and(|path| path.ends_with(safetensors::INDEX_ENDING))
            || read && start[8] == b'{' && start[4..8] == [0; 4]
        {
            Self::Safetensors
        } else {
            Self::Other
        }
    }
}
