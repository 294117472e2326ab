//! Output that is there whole or not at all.
//!
//! Everything is written under a temporary name beside its destination, flushed to the disk, and
//! only then renamed. Dropping an unfinished output removes it; a killed process leaves at most a
//! `.NAME.partial-*`, never a half-written file under the name somebody asked for. What is being written is locked, so
//! whoever begins the same output next knows what a killed process left, and removes it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::Error;
use crate::hf::CONFIG;

/// What to do about an output that exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overwrite {
    /// Refuse.
    No,
    /// Replace it, once the new one is complete.
    Yes,
}

/// A file that appears under its name only when finished.
#[derive(Debug)]
pub struct AtomicFile {
    temp: NamedTempFile,
    path: PathBuf,
    overwrite: Overwrite,
}

impl AtomicFile {
    /// Opens a temporary file in the folder of `path`.
    ///
    /// # Errors
    /// [`Error::Exists`] where `path` may not be replaced (never a folder); [`Error::Io`] where its folder cannot be
    /// written to.
    pub fn create(path: &Path, overwrite: Overwrite) -> Result<Self, Error> {
        refuse_existing(path, overwrite, Kind::File)?;
        remove_abandoned(path);
        let temp =
            partial(path).tempfile_in(folder_of(path)).map_err(Error::io("create a file for", path))?;
        let _ = temp.as_file().try_lock(); // where the system has no locks nothing is taken for abandoned
        Ok(Self { temp, path: path.to_path_buf(), overwrite })
    }

    /// Writes `bytes` from byte `at` of the file on.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses.
    pub fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let file = self.temp.as_file_mut();
        let written = file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes));
        written.map_err(Error::io("write", &self.path))
    }

    /// Makes the file `len` bytes long; what was not written reads as zeros.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk refuses.
    pub fn set_len(&mut self, len: u64) -> Result<(), Error> {
        self.temp.as_file().set_len(len).map_err(Error::io("write", &self.path))
    }

    /// The name the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes to the disk and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Io`] where flushing or renaming fails; [`Error::Exists`] where the name has been taken meanwhile.
    /// The temporary file is gone either way.
    pub fn finish(self) -> Result<(), Error> {
        let Self { temp, path, overwrite } = self;
        temp.as_file().sync_all().map_err(Error::io("write", &path))?;
        let renamed = match overwrite {
            Overwrite::Yes => temp.persist(&path),
            Overwrite::No => temp.persist_noclobber(&path),
        };
        renamed.map_err(|failed| match failed.error.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: path.clone() },
            _ => Error::io("rename the finished file to", &path)(failed.error),
        })?;
        sync_folder(folder_of(&path))
    }
}

/// Flushes all of `files`, and gives them their names once every one is on the disk.
///
/// The first is what readers begin with: an old one goes before any other gets its name, and the new one is the last to come, so
/// that at no moment old files and new ones pass for one model.
///
/// # Errors
/// As [`AtomicFile::finish`]; where a name has been taken meanwhile none of them appears.
pub fn finish_together(files: Vec<AtomicFile>) -> Result<(), Error> {
    if files.len() > 1 {
        for AtomicFile { temp, path, overwrite } in &files {
            temp.as_file().sync_all().map_err(Error::io("write", path))?;
            refuse_existing(path, *overwrite, Kind::File)?;
        }
        if let Some(AtomicFile { path, .. }) = files.first().filter(|first| first.path.exists()) {
            fs::remove_file(path).map_err(Error::io("replace", path))?;
        }
    }
    let mut named: Vec<PathBuf> = Vec::new();
    let mut files = files.into_iter();
    let first = files.next();
    for file in files.chain(first) {
        let path = file.path.clone();
        if let Err(error) = file.finish() {
            for path in named {
                let _ = fs::remove_file(path); // of no use without the others
            }
            return Err(error);
        }
        named.push(path);
    }
    Ok(())
}

/// A folder that appears under its name only when finished.
#[derive(Debug)]
pub struct AtomicFolder {
    temp: TempDir,
    path: PathBuf,
    overwrite: Overwrite,
    marker: &'static str,
    held: Option<File>, // locked, where the system has locks
}

impl AtomicFolder {
    /// Makes a temporary folder beside `path`.
    ///
    /// An empty folder at `path` counts as absent. With [`Overwrite::Yes`] only a folder that looks like a model (it
    /// has a `config.json`) is replaced: a slip of the hand must not cost a home folder.
    ///
    /// # Errors
    /// [`Error::Exists`] where `path` may not be replaced, [`Error::Io`] where its parent cannot be written to.
    pub fn create(path: &Path, overwrite: Overwrite) -> Result<Self, Error> {
        Self::create_marked(path, overwrite, CONFIG)
    }

    /// The same for a folder of another kind: with [`Overwrite::Yes`] only one that has a file `marker` is replaced.
    ///
    /// # Errors
    /// As [`AtomicFolder::create`].
    pub fn create_marked(path: &Path, overwrite: Overwrite, marker: &'static str) -> Result<Self, Error> {
        refuse_existing(path, overwrite, Kind::Folder { marker })?;
        remove_abandoned(path);
        let temp =
            partial(path).tempdir_in(folder_of(path)).map_err(Error::io("create a folder for", path))?;
        let held = hold(temp.path());
        Ok(Self { temp, path: path.to_path_buf(), overwrite, marker, held })
    }

    /// The temporary folder, to write files into.
    pub fn temp_path(&self) -> &Path {
        self.temp.path()
    }

    /// The name the folder will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes every file to the disk and gives the folder its name.
    ///
    /// An old folder changes places with it and is then removed: at every moment one complete version has the name. Where the
    /// system cannot exchange names the old one is first moved aside, and for an instant neither has it.
    ///
    /// # Errors
    /// As [`AtomicFile::finish`]. Where renaming fails the old folder is put back.
    pub fn finish(self) -> Result<(), Error> {
        let Self { temp, path, overwrite, marker, held: _held } = self;
        sync_tree(temp.path())?;
        refuse_existing(&path, overwrite, Kind::Folder { marker })?;
        let parent = folder_of(&path);
        if exchange(temp.path(), &path) {
            return sync_folder(parent); // the old one has the temporary name now, and goes with it
        }
        let aside = move_aside(&path, parent)?;
        if let Err(reason) = fs::rename(temp.path(), &path) {
            if let Some(aside) = aside {
                let aside = aside.keep(); // must outlive this function, put back or not
                fs::rename(aside.join(OLD), &path).map_err(Error::io("put back the old", &path))?;
                let _ = fs::remove_dir(aside);
            }
            return Err(Error::io("rename the finished folder to", &path)(reason));
        }
        let _ = temp.keep(); // renamed: nothing left to remove under the temporary name
        sync_folder(parent)
    }
}

/// Lets two folders change their names in one step; whether that was done.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn exchange(one: &Path, other: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok()
}

/// Lets two folders change their names in one step; whether that was done.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn exchange(_one: &Path, _other: &Path) -> bool {
    false
}

/// What a folder is called while it waits in another for its replacement.
const OLD: &str = "old";

/// Frees the name `path`; the folder it had, if any, is in the one returned, and goes when that is dropped.
fn move_aside(path: &Path, parent: &Path) -> Result<Option<TempDir>, Error> {
    if !path.exists() {
        return Ok(None);
    }
    if is_empty_or_absent(path) {
        fs::remove_dir(path).map_err(Error::io("replace the empty", path))?;
        return Ok(None);
    }
    let aside = partial(path).tempdir_in(parent).map_err(Error::io("create a folder for", path))?;
    fs::rename(path, aside.path().join(OLD)).map_err(Error::io("move aside", path))?;
    Ok(Some(aside))
}

/// Removes what killed processes left on their way to `path`: files and folders under temporary names of it that nobody has locked.
/// What cannot be removed stays; it is in nobody's way.
pub fn remove_abandoned(path: &Path) {
    let Ok(entries) = fs::read_dir(folder_of(path)) else { return };
    for entry in entries.flatten().filter(|entry| is_partial_of(path, &entry.file_name())) {
        let left = entry.path();
        let Some(_held) = hold(&left) else { continue };
        let _ = if left.is_dir() { fs::remove_dir_all(&left) } else { fs::remove_file(&left) };
    }
}

/// Whether a name is a temporary one of `path`: the process that made it, and six more characters.
fn is_partial_of(path: &Path, name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let rest = name.strip_prefix(&prefix_of(path)).and_then(|rest| rest.split_once('-'));
    rest.is_some_and(|(process, more)| process.parse::<u32>().is_ok() && more.len() == 6)
}

/// Locks a file or folder until what is returned is dropped, or the process ends; none where another has, or it cannot be done.
fn hold(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    file.try_lock().ok()?;
    Some(file)
}

/// Tries whether a file or folder could be made at `path`, and leaves nothing behind.
///
/// # Errors
/// [`Error::Io`] where the parent folder is missing, read-only or full.
pub fn check_writable(path: &Path) -> Result<(), Error> {
    partial(path).tempfile_in(folder_of(path)).map_err(Error::io("create a file for", path))?;
    Ok(())
}

/// Bytes a user may still write to the file system that holds (or would hold) `path`; `None` where that is unknown.
#[cfg(unix)]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder_of(path)).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Bytes a user may still write to the file system that holds (or would hold) `path`; `None` where that is unknown.
#[cfg(not(unix))]
pub fn free_bytes(_path: &Path) -> Option<u64> {
    None
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    /// Replaceable where it holds the file `marker`.
    Folder {
        marker: &'static str,
    },
}

fn refuse_existing(path: &Path, overwrite: Overwrite, kind: Kind) -> Result<(), Error> {
    let may = match kind {
        Kind::File => !path.exists() || overwrite == Overwrite::Yes && path.is_file(),
        Kind::Folder { marker } => {
            is_empty_or_absent(path) || overwrite == Overwrite::Yes && path.join(marker).is_file()
        }
    };
    if may { Ok(()) } else { Err(Error::Exists { path: path.to_path_buf() }) }
}

fn is_empty_or_absent(path: &Path) -> bool {
    !path.exists() || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

fn partial(path: &Path) -> Builder {
    Builder { prefix: format!("{}{}-", prefix_of(path), std::process::id()) }
}

/// What temporary names of `path` begin with.
fn prefix_of(path: &Path) -> String {
    format!(".{}.partial-", path.file_name().unwrap_or_default().to_string_lossy())
}

/// A temporary name with the permissions any other new file would have.
struct Builder {
    prefix: String,
}

impl Builder {
    fn tempfile_in(&self, folder: &Path) -> io::Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&self.prefix);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // less the umask
        builder.tempfile_in(folder)
    }

    fn tempdir_in(&self, folder: &Path) -> io::Result<TempDir> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&self.prefix);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777)); // less the umask
        builder.tempdir_in(folder)
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

fn sync_tree(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("write", &path))?;
        }
    }
    sync_folder(folder)
}

/// A rename lives in the folder, so the folder is flushed too, where the system can.
fn sync_folder(folder: &Path) -> Result<(), Error> {
    if cfg!(unix) {
        File::open(folder).and_then(|file| file.sync_all()).map_err(Error::io("write", folder))?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn write_file(path: &Path, overwrite: Overwrite, bytes: &[u8]) -> Result<(), Error> {
        let mut file = AtomicFile::create(path, overwrite)?;
        file.write_at(0, bytes)?;
        file.finish()
    }

    fn write_folder(path: &Path, overwrite: Overwrite, config: &str) -> Result<(), Error> {
        let folder = AtomicFolder::create(path, overwrite)?;
        fs::write(folder.temp_path().join("config.json"), config).unwrap();
        folder.finish()
    }

    #[test]
    fn a_file_has_its_name_only_once_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut file = AtomicFile::create(&path, Overwrite::No).unwrap();
        file.write_at(2, b"cd").unwrap();
        file.write_at(0, b"ab").unwrap();
        assert!(!path.exists());
        assert!(names_in(folder.path())[0].starts_with(".out.partial-"));
        file.finish().unwrap();
        assert_eq!(names_in(folder.path()), ["out"]);
        assert_eq!(fs::read(&path).unwrap(), b"abcd");
    }

    #[test]
    fn outputs_dropped_unfinished_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let out = AtomicFolder::create(&folder.path().join("dir"), Overwrite::No).unwrap();
        fs::create_dir(out.temp_path().join("sub")).unwrap();
        fs::write(out.temp_path().join("sub/x"), "x").unwrap();
        let mut file = AtomicFile::create(&folder.path().join("file"), Overwrite::No).unwrap();
        file.set_len(1000).unwrap();
        assert_eq!(names_in(folder.path()).len(), 2);
        drop((out, file));
        assert!(names_in(folder.path()).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_killed_process_left_goes_once_its_output_is_begun_again_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut running = AtomicFile::create(&path, Overwrite::No).unwrap();
        let beside = AtomicFolder::create(&path, Overwrite::No).unwrap();
        let live = names_in(folder.path());
        fs::create_dir_all(folder.path().join(".out.partial-123-abcdef/optimizer")).unwrap();
        fs::write(folder.path().join(".out.partial-4294967295-abcdef"), "half").unwrap();
        let others = [".out.partial-notes", ".out.partial-1-abcdefg", ".other.partial-1-abcdef"];
        for name in others {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        drop(AtomicFile::create(&path, Overwrite::No).unwrap());
        let mut expected: Vec<_> = live.into_iter().chain(others.map(str::to_owned)).collect();
        expected.sort();
        assert_eq!(names_in(folder.path()), expected);
        drop(beside);
        running.write_at(0, b"whole").unwrap();
        running.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn an_existing_file_is_replaced_only_when_told_and_only_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        write_file(&path, Overwrite::No, b"old").unwrap();
        assert!(matches!(write_file(&path, Overwrite::No, b"new"), Err(Error::Exists { .. })));
        let mut file = AtomicFile::create(&path, Overwrite::Yes).unwrap();
        file.write_at(0, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names_in(folder.path()), ["out"]);
    }

    #[test]
    fn a_name_taken_while_writing_is_not_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let file = AtomicFile::create(&path, Overwrite::No).unwrap();
        fs::write(&path, "someone else's").unwrap();
        assert!(matches!(file.finish(), Err(Error::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"someone else's");
        assert_eq!(names_in(folder.path()), ["out"]);
    }

    #[test]
    fn a_file_never_replaces_a_folder_nor_a_folder_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let (file, dir) = (folder.path().join("file"), folder.path().join("dir"));
        fs::write(&file, "x").unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("config.json"), "{}").unwrap();
        assert!(matches!(write_file(&dir, Overwrite::Yes, b""), Err(Error::Exists { .. })));
        assert!(matches!(write_folder(&file, Overwrite::Yes, ""), Err(Error::Exists { .. })));
    }

    #[test]
    fn an_existing_folder_is_replaced_whole_and_only_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        write_folder(&path, Overwrite::No, "old").unwrap();
        fs::write(path.join("stale"), "x").unwrap();
        assert!(matches!(write_folder(&path, Overwrite::No, "new"), Err(Error::Exists { .. })));
        write_folder(&path, Overwrite::Yes, "new").unwrap();
        assert_eq!(names_in(&path), ["config.json"]);
        assert_eq!(fs::read(path.join("config.json")).unwrap(), b"new");
        assert_eq!(names_in(folder.path()), ["out"]);
    }

    /// Where names can be exchanged nobody ever finds the name free, however often the folder is replaced meanwhile.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_name_of_a_folder_that_is_replaced_is_never_free() {
        let folder = tempfile::tempdir().unwrap();
        let (path, spare) = (folder.path().join("out"), folder.path().join("spare"));
        write_folder(&path, Overwrite::No, "0").unwrap();
        fs::create_dir(&spare).unwrap();
        let can_exchange = exchange(&spare, &path) && exchange(&spare, &path);
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                for turn in 1..50 {
                    write_folder(&path, Overwrite::Yes, &turn.to_string()).unwrap();
                }
            });
            while !writing.is_finished() {
                assert!(path.is_dir() || !can_exchange, "there is no folder of this name");
            }
        });
        assert_eq!(fs::read(path.join("config.json")).unwrap(), b"49");
        assert_eq!(names_in(folder.path()), ["out", "spare"]);
    }

    #[test]
    fn a_folder_that_is_no_model_is_never_replaced_but_an_empty_one_is_filled() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        write_folder(&home, Overwrite::No, "x").unwrap();
        fs::remove_file(home.join("config.json")).unwrap();
        fs::write(home.join("letters.txt"), "dear").unwrap();
        assert!(matches!(write_folder(&home, Overwrite::Yes, "x"), Err(Error::Exists { .. })));
        assert_eq!(names_in(&home), ["letters.txt"]);
    }

    #[test]
    fn a_missing_parent_is_named_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent/out");
        assert!(
            matches!(AtomicFile::create(&path, Overwrite::No), Err(Error::Io { path: p, .. }) if p == path)
        );
        assert!(matches!(AtomicFolder::create(&path, Overwrite::No), Err(Error::Io { .. })));
        assert!(matches!(check_writable(&path), Err(Error::Io { .. })));
        check_writable(&folder.path().join("out")).unwrap();
        assert!(names_in(folder.path()).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing() {
        // /dev/full refuses every write the way a full disk does
        let full = File::options().write(true).open("/dev/full").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let AtomicFile { temp, path, overwrite } = AtomicFile::create(&path, Overwrite::No).unwrap();
        let (_, temp_path) = temp.into_parts();
        let mut file = AtomicFile { temp: NamedTempFile::from_parts(full, temp_path), path, overwrite };
        let error = file.write_at(0, b"x").unwrap_err();
        assert!(matches!(&error, Error::Io { path, source, .. }
            if path.ends_with("out") && source.kind() == io::ErrorKind::StorageFull));
        assert!(error.hint().is_some());
        drop(file);
        assert!(names_in(folder.path()).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_system_that_takes_no_files_is_an_error_before_any_work() {
        assert!(matches!(check_writable(Path::new("/proc/out")), Err(Error::Io { .. })));
        assert!(matches!(AtomicFolder::create(Path::new("/proc/out"), Overwrite::No), Err(Error::Io { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn new_files_have_the_permissions_of_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        fs::write(folder.path().join("plain"), "").unwrap();
        fs::create_dir(folder.path().join("plain_dir")).unwrap();
        write_file(&folder.path().join("out"), Overwrite::No, b"").unwrap();
        write_folder(&folder.path().join("dir"), Overwrite::No, "").unwrap();
        assert_eq!(mode("out"), mode("plain"));
        assert_eq!(mode("dir"), mode("plain_dir"));
    }

    #[cfg(unix)]
    #[test]
    fn free_space_is_known_here() {
        assert!(free_bytes(&tempfile::tempdir().unwrap().path().join("out")).is_some_and(|bytes| bytes > 0));
    }
}
