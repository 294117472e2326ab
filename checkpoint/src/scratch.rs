//! Bytes that find no room in memory, in a file without a name.
//!
//! The file is unlinked when it is made, so it is gone whatever ends the process. Its length is reserved when it is
//! made, so a disk that is too full says so before any work. It is read and written, never mapped: pages of a map count
//! as this process's memory, and those of the system's cache do not.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::{Error, atomic};

/// A nameless file of a fixed length.
#[derive(Debug)]
pub struct Scratch {
    file: Mutex<File>, // one position for all who read and write
    folder: PathBuf,
    len: u64,
}

impl Scratch {
    /// Makes a file of `len` bytes, all zero, in `folder`.
    ///
    /// # Errors
    /// [`Error::NoRoom`] where the disk has fewer bytes left, [`Error::Io`] where the folder cannot be written to.
    pub fn create(folder: &Path, len: u64) -> Result<Self, Error> {
        check_room(folder, len)?;
        let failed = || Error::io("make a temporary file in", folder);
        let file = tempfile::tempfile_in(folder).map_err(failed())?;
        reserve(&file, len).map_err(failed())?;
        Ok(Self { file: Mutex::new(file), folder: folder.to_path_buf(), len })
    }

    /// Fills `bytes` from byte `at` of the file on.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk fails.
    ///
    /// # Panics
    /// If the file is shorter.
    pub fn read_at(&self, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.assert_inside(at, bytes.len());
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(bytes));
        read.map_err(Error::io("read a temporary file in", &self.folder))
    }

    /// Writes `bytes` from byte `at` of the file on.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses; what of `bytes` has been written is then unknown.
    ///
    /// # Panics
    /// If the file is shorter.
    pub fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        self.assert_inside(at, bytes.len());
        let file = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        let written = file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes));
        written.map_err(Error::io("write a temporary file in", &self.folder))
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn assert_inside(&self, at: u64, bytes: usize) {
        let end = at.saturating_add(bytes as u64);
        assert!(end <= self.len, "bytes {at} to {end} of a temporary file of {}", self.len);
    }
}

/// Finds out whether `folder` has room for a temporary file of `len` bytes.
///
/// # Errors
/// [`Error::NoRoom`] with the numbers.
pub fn check_room(folder: &Path, len: u64) -> Result<(), Error> {
    match atomic::free_bytes(&folder.join("in it")) {
        Some(free_bytes) if free_bytes < len => {
            Err(Error::NoRoom { folder: folder.to_path_buf(), needed_bytes: len, free_bytes })
        }
        _ => Ok(()),
    }
}

/// Where temporary files go: the folder the environment names, or else one that lies on a disk.
///
/// Many systems keep `/tmp` in memory, where a file saves none; `/var/tmp` is for the large ones. `None` where every
/// candidate lies in memory.
pub fn default_folder() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("TMPDIR").filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    [std::env::temp_dir(), PathBuf::from("/var/tmp")]
        .into_iter()
        .find(|folder| folder.is_dir() && !lies_in_memory(folder))
}

/// Reserves the blocks, so that writing them cannot find the disk full; where a file system cannot, the length is only
/// set.
#[cfg(target_os = "linux")]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};

    if len == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(len),
        reserved => Ok(reserved?),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(file: &File, len: u64) -> io::Result<()> {
    file.set_len(len)
}

#[cfg(target_os = "linux")]
fn lies_in_memory(folder: &Path) -> bool {
    // tmpfs; the literal takes whatever width the field has on this machine
    rustix::fs::statfs(folder).is_ok_and(|stat| stat.f_type == 0x0102_1994)
}

#[cfg(not(target_os = "linux"))]
fn lies_in_memory(_folder: &Path) -> bool {
    false
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_file_gives_back_what_was_written_and_zeros_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::create(folder.path(), 10).unwrap();
        scratch.write_at(3, b"abc").unwrap();
        scratch.write_at(0, b"x").unwrap();
        let mut all = [9; 10];
        scratch.read_at(0, &mut all).unwrap();
        assert_eq!(&all, b"x\0\0abc\0\0\0\0");
        assert_eq!(scratch.len(), 10);
    }

    #[cfg(unix)]
    #[test]
    fn a_temporary_file_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let _scratch = Scratch::create(folder.path(), 1 << 16).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_disk_too_full_is_an_error_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        let error = Scratch::create(folder.path(), 1 << 60).unwrap_err();
        assert!(matches!(error, Error::NoRoom { needed_bytes, .. } if needed_bytes == 1 << 60), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("TMPDIR")));
    }

    #[test]
    fn a_missing_folder_is_an_error_with_its_name() {
        let error = Scratch::create(Path::new("/no/such/folder"), 1).unwrap_err();
        assert_eq!(error.to_string(), "cannot make a temporary file in /no/such/folder");
    }

    #[test]
    #[should_panic(expected = "bytes 8 to 12 of a temporary file of 10")]
    fn bytes_past_the_end_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _ = Scratch::create(folder.path(), 10).unwrap().read_at(8, &mut [0; 4]);
    }
}
