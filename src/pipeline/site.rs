//! Where an output goes, and what is there already.

use std::path::{Path, PathBuf};

use attar_checkpoint::atomic::{self, Overwrite};
use attar_checkpoint::gguf::split::{part_path, part_sizes};
use attar_checkpoint::{TensorInfo, hf};

use super::is_gguf;
use crate::diagnostic::{Explain, Failure, Result};
use crate::source::Source;
use crate::talk::human_bytes;

/// What to do about something in the way.
const ANOTHER: &str = "name another output, or move away what is there";

/// The name of an output, and what must not be harmed there.
pub struct Site<'a> {
    /// The model that is read.
    pub source: &'a Source,
    /// The file or folder, as it was asked for.
    pub path: &'a Path,
    /// The files that will be there, or the folder.
    pub parts: &'a [PathBuf],
    /// Whether it is a GGUF.
    pub is_gguf: bool,
    /// Whether one that exists is replaced.
    pub overwrite: Overwrite,
}

impl Site<'_> {
    /// What would keep an output of so many `bytes` from being written, as far as can be told without writing; `rest` looks at
    /// what is to be written.
    ///
    /// # Errors
    /// An output that exists, a folder that is missing or read-only, a disk too full.
    pub fn check(&self, bytes: u64, rest: impl FnOnce() -> Result<()>) -> Result<()> {
        let at = || format!("while preparing `{}`", self.path.display());
        self.check_kind().doing(at)?;
        self.check_free()?;
        rest().doing(at)?;
        let _tried = NewFolders::above(self.path).doing(at)?;
        atomic::check_writable(self.path).doing(at)?;
        match atomic::free_bytes(self.path) {
            Some(free) if free < bytes => Err(Failure::new(format!(
                "the output takes {}, the disk has {} left",
                human_bytes(bytes),
                human_bytes(free)
            ))
            .hint("make room, or write to another disk")),
            _ => Ok(()),
        }
        .doing(at)
    }

    /// Refuses what is no place for such an output.
    fn check_kind(&self) -> Result<()> {
        if self.parts.iter().any(|part| self.source.is_at(part)) {
            return Err(Failure::new("the output is the model itself").hint("name another output"));
        }
        if self.is_gguf && self.path.as_os_str().as_encoded_bytes().last() == Some(&b'/') {
            return Err(Failure::new("a GGUF is a file, and its name ends in `/`").hint("leave that out"));
        }
        if self.is_gguf && self.parts.iter().any(|part| part.is_dir()) {
            return Err(Failure::new("a folder is in the way of the GGUF file").hint(ANOTHER));
        }
        if !self.is_gguf && self.path.is_file() {
            return Err(Failure::new("a file is in the way of the folder").hint(ANOTHER));
        }
        Ok(())
    }

    /// Refuses to replace what may not be.
    fn check_free(&self) -> Result<()> {
        let at = || format!("while preparing `{}`", self.path.display());
        let is_taken = |part: &&PathBuf| {
            if self.is_gguf {
                part.exists()
            } else {
                part.read_dir().is_ok_and(|mut entries| entries.next().is_some())
            }
        };
        let Some(taken) = self.parts.iter().find(is_taken) else { return Ok(()) };
        if self.overwrite == Overwrite::No {
            return Err(Failure::new(format!("`{}` exists already", taken.display()))
                .hint("--force replaces it, or name another output"));
        }
        if !self.is_gguf && self.holds_source() {
            return Err(Failure::new("the model lies in the folder that would be replaced").hint(ANOTHER))
                .doing(at);
        }
        if !self.is_gguf && !self.path.join(hf::CONFIG).is_file() {
            return Err(Failure::new("the folder is not empty, and there is no model in it")
                .hint("--force replaces models only: name another output, or empty the folder"))
            .doing(at);
        }
        Ok(())
    }

    /// Whether the model lies somewhere in the output.
    fn holds_source(&self) -> bool {
        match (self.source.path.canonicalize(), self.path.canonicalize()) {
            (Ok(source), Ok(output)) => source.starts_with(output),
            _ => false,
        }
    }
}

/// The files that a GGUF of these tensors will be, asked for as `path`, in parts of at most so many bytes where that is said.
pub fn part_paths(path: &Path, tensors: &[TensorInfo], max_part_bytes: Option<u64>) -> Vec<PathBuf> {
    let count = part_sizes(tensors, max_part_bytes.unwrap_or(u64::MAX)).len();
    (1..=count).map(|no| part_path(path, no, count)).collect()
}

/// Refuses to cut what is no GGUF.
///
/// # Errors
/// A size for the parts of a folder.
pub fn check_split(max_part_bytes: Option<u64>, output: &Path) -> Result<()> {
    if max_part_bytes.is_none() || is_gguf(output) {
        return Ok(());
    }
    Err(Failure::new(format!("--split-max-size is about GGUF files, and `{}` is to be a folder", output.display()))
        .hint("leave it out: a folder of more than 5 GB is cut into shards as it is; or let the output's name end in .gguf"))
}

/// What a plan says of files that are cut into parts.
pub fn told_parts(parts: &[PathBuf]) -> Option<String> {
    let [first, .., last] = parts else { return None };
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Some(format!("in {} files: {} to {}", parts.len(), name(first), name(last)))
}

/// The folders that had to be made above an output. Those that are empty when this is dropped go again.
#[derive(Debug)]
pub struct NewFolders(Vec<PathBuf>); // innermost first

impl NewFolders {
    /// Makes every missing folder above `path`.
    ///
    /// # Errors
    /// A file in the way, a folder that is read-only.
    pub fn above(path: &Path) -> std::io::Result<Self> {
        let missing =
            path.ancestors().skip(1).take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let made = Self(missing.map(Path::to_path_buf).collect());
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => std::fs::create_dir_all(parent).map(|()| made),
            None => Ok(made),
        }
    }
}

impl Drop for NewFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = std::fs::remove_dir(folder); // which spares what is not empty
        }
    }
}
