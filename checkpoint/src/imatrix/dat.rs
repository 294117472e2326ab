//! The layout before GGUF, little endian, without a magic number.
//!
//! ```text
//! entries                        i32
//!   name                         i32 bytes, then so many
//!   calls                        i32: chunks
//!   values                       i32, then so many f32: mean square * calls
//! chunks                         i32  may be missing, and so may what follows
//! dataset                        i32 bytes, then so many
//! ```

use std::path::Path;

use super::{Entry, Flaw, ImportanceMatrix};
use crate::Error;
use crate::atomic::{AtomicFile, Overwrite};

/// Bytes of a name that a file may begin with and be taken for one of these.
const LIKELY_NAME: usize = 256;

/// Whether the bytes begin as such a file does: some entries, the first of which has a name.
pub(super) fn begins(bytes: &[u8]) -> bool {
    let mut cursor = Cursor { bytes, at: 0 };
    let mut looks = || {
        let entries = cursor.count("number of entries", 1)?;
        let name = cursor.text("the first name")?;
        Ok::<_, Flaw>(entries < 1 << 20 && name.len() <= LIKELY_NAME && is_name(name))
    };
    looks().unwrap_or(false)
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
}

pub(super) fn read(bytes: &[u8]) -> Result<ImportanceMatrix, Flaw> {
    let mut cursor = Cursor { bytes, at: 0 };
    let count = cursor.count("number of entries", 0)?;
    let mut matrix = ImportanceMatrix::default();
    for number in 1..=count {
        let name = cursor.text(&format!("the name of entry {number}"))?;
        let name = std::str::from_utf8(name).ok().filter(|name| is_name(name.as_bytes()));
        let name = name.ok_or(Flaw::NoName { number })?.to_owned();
        let calls = cursor.count(&format!("number of chunks of `{name}`"), 0)?;
        let values = cursor.count(&format!("number of values of `{name}`"), 1)?;
        let values = cursor.take(values.checked_mul(4), &format!("the values of `{name}`"))?;
        let values = values.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]));
        // Of no chunks the values are means already.
        let entry = Entry::new(&name, values.collect(), vec![calls.max(1) as u64])?;
        if matrix.entries.insert(name.clone(), entry).is_some() {
            return Err(Flaw::Duplicate { name });
        }
    }
    if matrix.entries.is_empty() {
        return Err(Flaw::NoEntries);
    }
    if cursor.at < bytes.len() {
        matrix.chunk_count = cursor.count("number of chunks", 0)? as u32;
    }
    if cursor.at < bytes.len() {
        let name = cursor.text("the name of its dataset")?;
        let name = String::from_utf8_lossy(name).into_owned();
        matrix.datasets.extend(Some(name).filter(|name| !name.is_empty()));
    }
    match bytes.len() - cursor.at {
        0 => Ok(matrix),
        bytes => Err(Flaw::Trailing { bytes }),
    }
}

/// Experts that no token reached get ones, entries that none reached are left out.
pub(super) fn write(matrix: &ImportanceMatrix, path: &Path, overwrite: Overwrite) -> Result<(), Error> {
    let chunk_size = u64::from(matrix.chunk_size.map_or(1, |size| size.max(1)));
    let reached = |(_, entry): &(&String, &Entry)| entry.counts().iter().any(|count| *count > 0);
    let entries: Vec<_> = matrix.entries.iter().filter(reached).collect();
    let mut bytes = Vec::new();
    put(&mut bytes, entries.len());
    for (name, entry) in entries {
        put(&mut bytes, name.len());
        bytes.extend(name.as_bytes());
        let calls = entry.counts().iter().copied().max().unwrap_or(0).div_ceil(chunk_size);
        put(&mut bytes, usize::try_from(calls).unwrap_or(usize::MAX));
        put(&mut bytes, entry.sums().len());
        let rows = entry.counts().len();
        for row in 0..rows {
            let (sums, count) = entry.row(row, rows);
            let mean = |sum: &f32| if count == 0 { 1.0 } else { sum / count as f32 };
            bytes.extend(sums.iter().flat_map(|sum| (mean(sum) * calls as f32).min(f32::MAX).to_le_bytes()));
        }
    }
    put(&mut bytes, matrix.chunk_count as usize);
    let dataset = matrix.datasets.last().map_or("", String::as_str);
    put(&mut bytes, dataset.len());
    bytes.extend(dataset.as_bytes());
    let mut file = AtomicFile::create(path, overwrite)?;
    file.write_at(0, &bytes)?;
    file.finish()
}

/// A count, which the layout has 31 bits for.
fn put(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend(i32::try_from(count).unwrap_or(i32::MAX).to_le_bytes());
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// So many bytes, if there are any left to take them from; `None` is more than any file has.
    fn take(&mut self, len: Option<usize>, what: &str) -> Result<&'a [u8], Flaw> {
        let ends = || Flaw::Ends { what: what.to_owned(), at: self.at, len: self.bytes.len() };
        let end = len.and_then(|len| self.at.checked_add(len)).ok_or_else(ends)?;
        let taken = self.bytes.get(self.at..end).ok_or_else(ends)?;
        self.at = end;
        Ok(taken)
    }

    /// A count that is not below `least`.
    fn count(&mut self, what: &str, least: i32) -> Result<usize, Flaw> {
        let bytes = self.take(Some(4), &format!("its {what}"))?;
        let value = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if value < least {
            return Err(Flaw::Count { what: what.to_owned(), value: value.into() });
        }
        Ok(value as usize)
    }

    /// A text behind its length.
    fn text(&mut self, what: &str) -> Result<&'a [u8], Flaw> {
        let len = self.count(&format!("length of {what}"), 0)?;
        self.take(Some(len), what)
    }
}
