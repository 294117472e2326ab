//! The written file, opened as a stranger would: does it say what was meant?

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use attar_checkpoint::gguf;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::is_gguf;
use super::write::Hashes;
use crate::diagnostic::{Explain, Failure, Result};
use crate::plan::Plan;
use crate::source::Source;
use crate::talk::Talk;
use crate::text::hex;

/// What is known of a written output as a whole.
#[derive(Debug)]
pub struct Facts {
    /// Bytes of all its files.
    pub bytes: u64,
    /// SHA-256 of the file, or of a folder's weight files in order of name.
    pub sha256: String,
}

/// Opens what was written at `path` and compares every number with what it should decode to: `hashes` by Hugging Face
/// name.
///
/// # Errors
/// A file that does not open, or the first tensor that decodes to something else.
pub fn reopen(path: &Path, plan: &Plan, hashes: &Hashes, talk: Talk) -> Result<(Source, Facts)> {
    let written = Source::open(path)?;
    let stage = talk.stage("verifying", plan.weights(), "weights");
    plan.tensors.par_iter().try_for_each(|tensor| {
        let name = &tensor.spec.name;
        let found = written.decoded_sha256(&tensor.spec).doing(|| format!("while verifying `{name}`"))?;
        if hashes.get(name) != Some(&found) {
            return Err(Failure::new(format!(
                "`{}` reads back other numbers for `{name}` than were written",
                path.display()
            ))
            .hint("the disk may be failing; otherwise this is a bug in attar, please report it"));
        }
        stage.step(tensor.weights() as u64, tensor.spec.role.as_str());
        Ok(())
    })?;
    stage.done();
    let facts = Facts::of(path, talk)?;
    Ok((written, facts))
}

impl Facts {
    /// Of the file or folder at `path`.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn of(path: &Path, talk: Talk) -> Result<Self> {
        facts(path, talk).doing(|| format!("while reading `{}` back", path.display()))
    }

    /// Bytes of all files at `path`, without a look into them.
    ///
    /// # Errors
    /// Files that are not there.
    pub fn bytes_of(path: &Path) -> Result<u64> {
        let bytes =
            || files(path)?.iter().map(|file| Ok(fs::metadata(file)?.len())).sum::<std::io::Result<u64>>();
        bytes().doing(|| format!("while looking at the size of `{}`", path.display()))
    }
}

/// The file, or its parts where it is a GGUF of several, or a folder's files in order of name.
fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        // What does not open is a file like any other here.
        let parts = gguf::File::open(path).ok().filter(|_| is_gguf(path));
        return Ok(parts.map_or_else(|| vec![path.to_owned()], |file| file.parts().to_vec()));
    }
    let mut files =
        fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

fn facts(path: &Path, talk: Talk) -> std::io::Result<Facts> {
    let files = files(path)?;
    let mut bytes = 0;
    for file in &files {
        bytes += fs::metadata(file)?.len();
    }
    let is_weights =
        |file: &&PathBuf| path.is_file() || file.extension().is_some_and(|ending| ending == "safetensors");
    let errand = talk.errand("hashing", bytes, "bytes");
    let mut hash = Sha256::new();
    for file in files.iter().filter(is_weights) {
        hash_file(file, &mut hash, |len| errand.step(len, ""))?;
    }
    errand.done();
    Ok(Facts { bytes, sha256: hex(&hash.finalize()) })
}

fn hash_file(path: &Path, hash: &mut Sha256, hashed: impl Fn(u64)) -> std::io::Result<()> {
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            len => {
                hash.update(&buffer[..len]);
                hashed(len as u64);
            }
        }
    }
}
