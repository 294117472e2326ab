//! Models in several files: `NAME-00001-of-00003.gguf` and so on, as llama-gguf-split lays them out.
//!
//! The first part has all that is said of the model, each part says which one it is and how many tensors all have together.

use std::path::{Path, PathBuf};

use super::parse::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT};
use super::{Flaw, Value, align_up};
use crate::TensorInfo;

const SPLIT_NO: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";

/// What a part says of itself, which a file of all has no use for.
const SPLIT_KEYS: [&str; 3] = [SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS];

/// The most parts that `split.count` can count.
pub const MAX_PARTS: usize = u16::MAX as usize;

/// Whether a key is about the part it stands in, not about the model.
pub fn is_of_part(key: &str) -> bool {
    SPLIT_KEYS.contains(&key)
}

/// How many of `tensors` go into each part, where none is to have more than `max_bytes` of them unless it has a single one.
///
/// # Source
/// llama.cpp, `split_strategy` of gguf-split.cpp, which gives up where one tensor alone is larger.
pub fn part_sizes(tensors: &[TensorInfo], max_bytes: u64) -> Vec<usize> {
    let (mut sizes, mut bytes) = (vec![0], 0u64);
    for info in tensors {
        let more = align_up(info.bytes, DEFAULT_ALIGNMENT);
        let last = sizes.len() - 1;
        if sizes[last] > 0 && bytes.saturating_add(more) > max_bytes {
            sizes.push(1);
            bytes = more;
        } else {
            sizes[last] += 1;
            bytes = bytes.saturating_add(more);
        }
    }
    sizes
}

/// The path of part `no` of `count`, counted from 1, of the model that would lie at `path` were it one file; that path where
/// there is one part only.
pub fn part_path(path: &Path, no: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_path_buf();
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ends = name
        .len()
        .checked_sub(5)
        .filter(|at| name.is_char_boundary(*at) && name[*at..].eq_ignore_ascii_case(".gguf"));
    let stem = ends.map_or(&name[..], |at| &name[..at]);
    path.with_file_name(format!("{stem}{}", suffix(no, count)))
}

/// The name without its ending and, of a part, without what says which it is.
pub fn stem_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let whole = || {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, no) = rest.rsplit_once('-')?;
        let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(no) && is_number(count)).then_some(name)
    };
    whole().unwrap_or(&stem).to_owned()
}

fn suffix(no: usize, count: usize) -> String {
    format!("-{no:05}-of-{count:05}.gguf")
}

/// What the header of part `no` of several says, counted from 0: the first all that is said of the model, every other how its data
/// lie.
pub(super) fn metadata_of_part(
    metadata: &[(String, Value)],
    no: usize,
    count: usize,
    tensors: usize,
) -> Vec<(String, Value)> {
    let is_told = |key: &str| !is_of_part(key) && (no == 0 || key == ALIGNMENT_KEY);
    let mut told: Vec<_> = metadata.iter().filter(|(key, _)| is_told(key)).cloned().collect();
    let [no, count] = [no, count].map(|value| Value::U16(u16::try_from(value).unwrap_or(u16::MAX)));
    let tensors = Value::I32(i32::try_from(tensors).unwrap_or(i32::MAX));
    // In the order of llama-gguf-split, which learns the number of parts last.
    let keys = [(SPLIT_NO, no), (SPLIT_TENSORS, tensors), (SPLIT_COUNT, count)];
    told.extend(keys.map(|(key, value)| (key.to_owned(), value)));
    told
}

fn integer(metadata: &[(String, Value)], wanted: &str) -> Option<u64> {
    metadata.iter().find(|(key, _)| key == wanted).and_then(|(_, value)| value.as_u64())
}

/// The paths of all parts of the model whose part at `path` has these metadata.
pub(super) fn part_paths(path: &Path, metadata: &[(String, Value)]) -> Result<Vec<PathBuf>, Flaw> {
    let count = integer(metadata, SPLIT_COUNT).unwrap_or(1);
    if count <= 1 {
        return Ok(vec![path.to_path_buf()]);
    }
    let split = |key, value, because| Flaw::Split { key, value, because };
    if count > MAX_PARTS as u64 {
        return Err(split(SPLIT_COUNT, count, format!("a model has at most {MAX_PARTS} parts")));
    }
    let no = integer(metadata, SPLIT_NO).unwrap_or(0);
    let suffix = format!("-{:05}-of-{count:05}.gguf", no.saturating_add(1));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(&suffix) else {
        let (key, value) = if name.ends_with(&format!("-of-{count:05}.gguf")) {
            (SPLIT_NO, no)
        } else {
            (SPLIT_COUNT, count)
        };
        return Err(split(key, value, format!("the file's name does not end in `{suffix}`")));
    };
    Ok((1..=count as usize)
        .map(|no| path.with_file_name(format!("{stem}{}", self::suffix(no, count as usize))))
        .collect())
}

/// Holds part `no` of `count` to its own word.
pub(super) fn check_part(no: usize, count: usize, metadata: &[(String, Value)]) -> Result<(), Flaw> {
    for (key, expected) in [(SPLIT_NO, no), (SPLIT_COUNT, count)] {
        let value = integer(metadata, key).unwrap_or(0);
        if value != expected as u64 {
            return Err(Flaw::Split { key, value, because: format!("the file's name says {expected}") });
        }
    }
    Ok(())
}

/// Holds a part to the tensors that are in all parts together.
pub(super) fn check_tensors(metadata: &[(String, Value)], found: usize) -> Result<(), Flaw> {
    match integer(metadata, SPLIT_TENSORS) {
        Some(value) if value != found as u64 => Err(Flaw::Split {
            key: SPLIT_TENSORS,
            value,
            because: format!("all parts together have {found}: one of them is another model's"),
        }),
        _ => Ok(()),
    }
}
