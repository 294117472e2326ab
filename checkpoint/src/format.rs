//! The file layouts a checkpoint may have, and opening one without knowing which.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::error::Found;
use crate::{Container, Error, gguf, safetensors};

/// A file layout.
pub trait Format: Sync {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// Whether the path looks like it. A yes may still turn out broken on opening.
    fn recognises(&self, path: &Path) -> bool;

    /// Opens it.
    ///
    /// # Errors
    /// What is missing, broken or lying.
    fn open(&self, path: &Path) -> Result<Box<dyn Container>, Error>;
}

/// Every layout that can be read.
pub const FORMATS: &[&dyn Format] = &[&Gguf, &Safetensors];

/// Opens the checkpoint at `path`, whatever its layout.
///
/// # Errors
/// [`Error::Io`] where there is nothing, [`Error::NotACheckpoint`] where no layout recognises what is there, and what
/// the layout finds wrong.
pub fn open(path: &Path) -> Result<Box<dyn Container>, Error> {
    fs::metadata(path).map_err(Error::io("open", path))?;
    match FORMATS.iter().find(|format| format.recognises(path)) {
        Some(format) => format.open(path),
        None => Err(Error::NotACheckpoint { path: path.to_path_buf(), found: Found::at(path) }),
    }
}

struct Gguf;

impl Format for Gguf {
    fn name(&self) -> &'static str {
        "gguf"
    }

    fn recognises(&self, path: &Path) -> bool {
        has_ending(path, "gguf") && path.is_file() || starts_with(path, *b"GGUF")
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Container>, Error> {
        Ok(Box::new(gguf::File::open(path)?))
    }
}

struct Safetensors;

impl Format for Safetensors {
    fn name(&self) -> &'static str {
        "safetensors"
    }

    fn recognises(&self, path: &Path) -> bool {
        if path.is_dir() {
            path.join(safetensors::SINGLE).exists() || path.join(safetensors::INDEX).exists()
        } else {
            has_ending(path, "safetensors")
        }
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Container>, Error> {
        Ok(Box::new(safetensors::Folder::open(path)?))
    }
}

fn has_ending(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(wanted))
}

/// Whether a regular file begins with `magic`; anything unreadable does not.
fn starts_with(path: &Path, magic: [u8; 4]) -> bool {
    let mut first = [0; 4];
    path.is_file()
        && File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok()
        && first == magic
}
