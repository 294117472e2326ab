//! The layout of today: a GGUF of `NAME.in_sum2` and `NAME.counts`.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Entry, Flaw, ImportanceMatrix};
use crate::atomic::Overwrite;
use crate::gguf::{File, Value, Writer};
use crate::{Container, Dtype, Error, TensorInfo, decode_floats, encode_floats};

pub(super) const MAGIC: &[u8] = b"GGUF";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
/// Not llama.cpp's, which passes it over.
const SHA256: &str = "attar.calibration.sha256";

/// Whether the GGUF at `path` says that it is one, or has the tensors of one.
pub(super) fn is_one(path: &Path) -> bool {
    crate::gguf::list(path).is_ok_and(|listing| {
        listing.value("general.type").and_then(Value::as_str) == Some("imatrix")
            || listing.tensors.iter().any(|tensor| tensor.name.ends_with(SUMS))
    })
}

pub(super) fn read(path: &Path) -> Result<Result<ImportanceMatrix, Flaw>, Error> {
    let file = File::open(path)?;
    let mut halves: BTreeMap<&str, [Option<&TensorInfo>; 2]> = BTreeMap::new();
    for info in file.tensors() {
        for (half, ending) in [SUMS, COUNTS].into_iter().enumerate() {
            if let Some(name) = info.name.strip_suffix(ending) {
                halves.entry(name).or_default()[half] = Some(info);
            }
        }
    }
    let mut matrix = ImportanceMatrix::default();
    for (name, halves) in halves {
        match entry(&file, name, halves)? {
            Ok(entry) => drop(matrix.entries.insert(name.to_owned(), entry)),
            Err(flaw) => return Ok(Err(flaw)),
        }
    }
    if matrix.entries.is_empty() {
        return Ok(Err(Flaw::NoEntries));
    }
    let texts = |key: &str| file.metadata(key).and_then(Value::as_strings).unwrap_or_default().to_vec();
    let number = |key: &str| file.metadata(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    matrix.datasets = texts(DATASETS);
    matrix.sha256 = texts(SHA256);
    matrix.chunk_count = number(CHUNK_COUNT).unwrap_or(0);
    // Counts are tokens here, whether the size of a chunk is told or not.
    matrix.chunk_size = Some(number(CHUNK_SIZE).filter(|size| *size > 0).unwrap_or(super::CHUNK_SIZE));
    Ok(Ok(matrix))
}

fn entry(file: &File, name: &str, halves: [Option<&TensorInfo>; 2]) -> Result<Result<Entry, Flaw>, Error> {
    let half = |has, lacks| Flaw::Half { name: name.to_owned(), has, lacks };
    let (sums, counts) = match halves {
        [Some(sums), Some(counts)] => (sums, counts),
        [Some(_), None] => return Ok(Err(half("sums", "counts"))),
        _ => return Ok(Err(half("counts", "sums"))),
    };
    if let Some(info) = [sums, counts].into_iter().find(|info| info.dtype != Dtype::F32) {
        return Ok(Err(Flaw::Type { name: info.name.clone(), dtype: info.dtype.to_string() }));
    }
    let floats = |info: &TensorInfo| decode_floats(Dtype::F32, file.bytes(&info.name)?);
    let (sums, counts) = (floats(sums)?, floats(counts)?);
    if let Some(place) = counts.iter().position(|count| !count.is_finite() || *count < 0.0) {
        let value = counts[place].to_string();
        return Ok(Err(Flaw::NoCount { name: name.to_owned(), place, value }));
    }
    Ok(Entry::new(name, sums, counts.iter().map(|count| count.round() as u64).collect()))
}

pub(super) fn write(matrix: &ImportanceMatrix, path: &Path, overwrite: Overwrite) -> Result<(), Error> {
    let mut metadata = vec![
        ("general.type".to_owned(), Value::from("imatrix")),
        (DATASETS.to_owned(), Value::from(matrix.datasets.clone())),
        (CHUNK_COUNT.to_owned(), Value::U32(matrix.chunk_count)),
        (CHUNK_SIZE.to_owned(), Value::U32(matrix.chunk_size.unwrap_or(super::CHUNK_SIZE))),
    ];
    if !matrix.sha256.is_empty() {
        metadata.push((SHA256.to_owned(), Value::from(matrix.sha256.clone())));
    }
    let infos = matrix.entries.iter().flat_map(|(name, entry)| {
        let rows = entry.counts().len();
        let columns = entry.sums().len() / rows;
        [
            TensorInfo::new(format!("{name}{SUMS}"), Dtype::F32, &[rows, columns]),
            TensorInfo::new(format!("{name}{COUNTS}"), Dtype::F32, &[rows, 1]),
        ]
    });
    let mut writer = Writer::create(path, overwrite, &metadata, &infos.collect::<Vec<_>>())?;
    for (name, entry) in &matrix.entries {
        let counts: Vec<f32> = entry.counts().iter().map(|count| *count as f32).collect();
        writer.write(&format!("{name}{SUMS}"), &encode_floats(Dtype::F32, entry.sums())?)?;
        writer.write(&format!("{name}{COUNTS}"), &encode_floats(Dtype::F32, &counts)?)?;
    }
    writer.finish()
}
