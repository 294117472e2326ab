//! Files in memory, by map.

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::Error;

/// A whole file, mapped for reading.
#[derive(Debug)]
pub(crate) struct Map {
    path: PathBuf,
    map: Mmap,
}

impl Map {
    /// Maps the file at `path`; folders, pipes and devices are refused before they can block.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let failed = || Error::io("open", path);
        if !fs::metadata(path).map_err(failed())?.is_file() {
            return Err(failed()(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let file = File::open(path).map_err(failed())?;
        // SAFETY: the map is read-only and private to this process. Another process that cuts the file short while it
        // is mapped can end ours with SIGBUS; no reader of mapped files can prevent that, and our own writers never do
        // it, for they replace files by renaming.
        let map = unsafe { Mmap::map(&file) }.map_err(failed())?;
        Ok(Self { path: path.to_path_buf(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
