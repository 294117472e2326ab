//! Finds CUDA's libraries where people have them: on the loader's path, in a pip environment, in a toolkit's folder.
//!
//! `cudarc` opens a library by its bare name, and panics where that fails. A library already open under its full path answers to
//! its bare name too, so it is found and opened here first, and `cudarc` is asked whether it sees it.

use super::CudaError;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// One of CUDA's libraries, with what it loads itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Library {
    Nvrtc,
    CublasLt,
    Cusolver,
}

impl Library {
    /// As its file is called, without `.so`.
    fn name(self) -> &'static str {
        match self {
            Self::Nvrtc => "libnvrtc",
            Self::CublasLt => "libcublasLt",
            Self::Cusolver => "libcusolver",
        }
    }

    /// What must be open before it, then itself.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Nvrtc => &["libnvrtc"],
            Self::CublasLt => &["libcublasLt"],
            Self::Cusolver => &["libnvJitLink", "libcublasLt", "libcublas", "libcusparse", "libcusolver"],
        }
    }

    fn is_present(self) -> bool {
        // SAFETY: opening one of CUDA's libraries by name runs nothing but its loader's initialisers.
        unsafe {
            match self {
                Self::Nvrtc => cudarc::nvrtc::sys::is_culib_present(),
                Self::CublasLt => cudarc::cublaslt::sys::is_culib_present(),
                Self::Cusolver => cudarc::cusolver::sys::is_culib_present(),
            }
        }
    }
}

/// Makes `library` answer to its bare name.
///
/// # Errors
/// [`CudaError::NoLibrary`] with the folders searched.
pub(crate) fn open(library: Library) -> Result<(), CudaError> {
    static ORDER: Mutex<()> = Mutex::new(());
    let _one_at_a_time = ORDER.lock();
    let named = named_folders();
    // What the user points at comes before what the loader would find.
    if (!named.is_empty() && open_from(library, &named) || library.is_present()) && library.is_present() {
        return Ok(());
    }
    let folders = usual_folders();
    if open_from(library, &folders) && library.is_present() {
        return Ok(());
    }
    let mut searched = vec!["the loader's path".to_owned()];
    searched.extend(named.iter().chain(&folders).map(|folder| folder.display().to_string()));
    Err(CudaError::NoLibrary { library: library.name(), searched })
}

/// Opens what it needs from `folders` and keeps it open; whether the library itself was among them.
fn open_from(library: Library, folders: &[PathBuf]) -> bool {
    let mut opened = false;
    for name in library.files() {
        opened = folders.iter().filter_map(|folder| newest_in(folder, name)).any(|file| keep_open(&file));
    }
    opened
}

#[cfg(unix)]
fn keep_open(file: &Path) -> bool {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: opening one of CUDA's libraries runs nothing but its loader's initialisers; it is never closed.
    unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) }.map(std::mem::forget).is_ok()
}

#[cfg(not(unix))]
fn keep_open(file: &Path) -> bool {
    // SAFETY: as above.
    unsafe { libloading::Library::new(file) }.map(std::mem::forget).is_ok()
}

/// The file `name.so` or `name.so.VERSION` of a folder, of the highest version by name.
fn newest_in(folder: &Path, name: &str) -> Option<PathBuf> {
    let start = format!("{name}.so");
    let fits = |file: &str| {
        file.strip_prefix(&start)
            .is_some_and(|rest| rest.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit()))
    };
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|file| fits(file)).max().map(|file| folder.join(file))
}

/// The folders of `ATTAR_CUDA_LIBS`.
fn named_folders() -> Vec<PathBuf> {
    env::var_os("ATTAR_CUDA_LIBS").map(|folders| env::split_paths(&folders).collect()).unwrap_or_default()
}

/// The `nvidia/*/lib` folders of the environment's Python packages, then the toolkits under /usr/local and /opt.
fn usual_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let homes = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let homes = homes.chain(env::var_os("HOME").map(|home| PathBuf::from(home).join(".local")));
    for home in homes {
        for python in folders_in(&home.join("lib"), "python3") {
            for package in folders_in(&python.join("site-packages/nvidia"), "") {
                folders.push(package.join("lib"));
            }
        }
    }
    for toolkit in folders_in(Path::new("/usr/local"), "cuda") {
        folders.push(toolkit.join("lib64"));
    }
    folders.push(PathBuf::from("/opt/cuda/lib64"));
    folders.retain(|folder| folder.is_dir());
    folders
}

/// Sub-folders whose name starts with `start`, the last name first: the newest version, mostly.
fn folders_in(folder: &Path, start: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let named = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(start);
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(named)
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::newest_in;

    #[test]
    fn a_library_is_known_by_its_name_and_version_and_no_other_file_is_taken_for_it() {
        let folder = std::env::temp_dir().join(format!("attar-libraries-{}", std::process::id()));
        let Ok(()) = std::fs::create_dir_all(&folder) else { panic!("no temporary folder") };
        for name in
            ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc-builtins.so.13.5", "libnvrtc.so.alt", "libnvrtc.a"]
        {
            assert!(std::fs::write(folder.join(name), []).is_ok());
        }
        assert_eq!(newest_in(&folder, "libnvrtc"), Some(folder.join("libnvrtc.so.13")));
        assert_eq!(newest_in(&folder, "libcublas"), None);
        assert!(std::fs::remove_dir_all(&folder).is_ok());
        assert_eq!(newest_in(&folder, "libnvrtc"), None);
    }
}
