//! Files in memory, by map.

use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::{Advice, UncheckedAdvice};

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

    /// Gives back the memory that holds these bytes of the file; reading them again brings them back.
    ///
    /// Without it a whole checkpoint, read once from end to end, counts as this process's memory.
    #[cfg(unix)]
    pub(crate) fn release(&self, bytes: Range<usize>) {
        let len = bytes.end.saturating_sub(bytes.start);
        if len == 0 || bytes.end > self.map.len() {
            return;
        }
        // SAFETY: the map is of a file and read-only, so no page of it holds anything that the file does not; a page
        // given up is filled from the file again when it is touched.
        let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, len) };
        // Advice that is not taken costs memory and nothing else.
        drop(advised);
    }

    /// Nothing to do where memory is not given back by the page.
    #[cfg(not(unix))]
    pub(crate) fn release(&self, _bytes: Range<usize>) {}

    /// Has the system read these bytes of the file into its cache. They take no memory of this process before they are
    /// touched.
    #[cfg(unix)]
    pub(crate) fn read_ahead(&self, bytes: Range<usize>) {
        // What the system reads for one word of advice is bounded; of more than this it would skip a part.
        const STEP: usize = 128 << 10;
        let bytes = bytes.start..bytes.end.min(self.map.len());
        for start in bytes.clone().step_by(STEP) {
            // Advice that is not taken costs time and nothing else.
            let _ = self.map.advise_range(Advice::WillNeed, start, STEP.min(bytes.end - start));
        }
    }

    /// Nothing to do where the system takes no advice.
    #[cfg(not(unix))]
    pub(crate) fn read_ahead(&self, _bytes: Range<usize>) {}

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
