//! Compiled kernels on disk, by the hash of everything they were made from.

use sha2::{Digest, Sha256};
use std::env;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of compiled kernels. What cannot be read or written is as if it were not there: compiling again costs a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// What a file begins with: the format, then the hash of the rest.
const MAGIC: &[u8; 16] = b"attar-kernel/1\n\0";

impl Cache {
    /// `attar/kernels` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`); none where there is no home.
    pub fn of_user() -> Self {
        let absolute = |path: &PathBuf| path.is_absolute();
        let caches = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(absolute);
        let caches = caches.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
        Self { folder: caches.map(|folder| folder.join("attar/kernels")) }
    }

    /// In a folder of its own, made when first written to.
    pub fn in_folder(folder: PathBuf) -> Self {
        Self { folder: Some(folder) }
    }

    /// The name of what `parts` are compiled to.
    pub(crate) fn key(parts: &[&str]) -> String {
        let mut hash = Sha256::new();
        for part in parts {
            // Lengths first, so that no two lists of parts run together alike.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.finalize().iter().fold(String::new(), |mut name, byte| {
            for half in [byte >> 4, byte & 15] {
                name.extend(char::from_digit(u32::from(half), 16));
            }
            name
        })
    }

    /// What was stored under `key`; `None` where nothing was, or what stands there is not what was written.
    pub(crate) fn read(&self, key: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.folder.as_ref()?.join(key)).ok()?;
        let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
        let (hash, payload) = rest.split_at_checked(32)?;
        let whole = magic == MAGIC && hash == &Sha256::digest(payload)[..] && !payload.is_empty();
        whole.then(|| payload.to_vec())
    }

    /// Stores `payload` under `key`, complete or not at all; whether it was stored.
    pub(crate) fn write(&self, key: &str, payload: &[u8]) -> bool {
        static WRITTEN: AtomicU32 = AtomicU32::new(0);
        let Some(folder) = &self.folder else { return false };
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let unfinished = folder.join(format!("{key}.{}-{number}", std::process::id()));
        let stored = fs::create_dir_all(folder)
            .and_then(|()| fs::File::create_new(&unfinished))
            .and_then(|mut file| {
                file.write_all(MAGIC)?;
                file.write_all(&Sha256::digest(payload))?;
                file.write_all(payload)
            })
            .and_then(|()| fs::rename(&unfinished, folder.join(key)));
        if stored.is_err() {
            // Nothing to do where even that fails: the file has a name nobody reads.
            let _ = fs::remove_file(&unfinished);
        }
        stored.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder for one test, gone when it ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            Self(env::temp_dir().join(format!("attar-cache-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_was_stored_is_read_back_and_nothing_else() {
        let folder = Folder::new("round-trip");
        let cache = Cache::in_folder(folder.0.clone());
        let key = Cache::key(&["text", "sm_90"]);
        assert_eq!(cache.read(&key), None);
        assert!(cache.write(&key, b"cubin"));
        assert_eq!(cache.read(&key).as_deref(), Some(&b"cubin"[..]));
        assert_eq!(cache.read(&Cache::key(&["text", "sm_80"])), None);
        let files = fs::read_dir(&folder.0).map(Iterator::count);
        assert_eq!(files.ok(), Some(1), "an unfinished file was left");
    }

    #[test]
    fn a_file_cut_short_or_changed_is_as_if_it_were_not_there_and_is_replaced() {
        let folder = Folder::new("corrupt");
        let cache = Cache::in_folder(folder.0.clone());
        let key = Cache::key(&["text"]);
        assert!(cache.write(&key, b"some compiled kernel"));
        let file = folder.0.join(&key);
        let Ok(good) = fs::read(&file) else { panic!("written and not there") };
        for len in 0..good.len() {
            assert!(fs::write(&file, &good[..len]).is_ok());
            assert_eq!(cache.read(&key), None, "{len} of {} bytes", good.len());
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(fs::write(&file, &bad).is_ok());
            assert_eq!(cache.read(&key), None, "byte {at} changed");
        }
        assert!(cache.write(&key, b"anew"));
        assert_eq!(cache.read(&key).as_deref(), Some(&b"anew"[..]));
    }

    #[test]
    fn parts_that_run_together_alike_have_different_keys() {
        assert_ne!(Cache::key(&["ab", "c"]), Cache::key(&["a", "bc"]));
        assert_ne!(Cache::key(&["ab"]), Cache::key(&["ab", ""]));
    }

    #[test]
    fn a_cache_that_cannot_be_written_stores_nothing_and_says_so() {
        let folder = Folder::new("file-in-the-way");
        assert!(fs::write(&folder.0, b"").is_ok());
        assert!(!Cache::in_folder(folder.0.join("below")).write("key", b"x"));
        let _ = fs::remove_file(&folder.0);
    }
}
