//! An importance matrix that a model is quantized by in place of a text.

use std::fmt;
use std::path::{Path, PathBuf};

use attar_checkpoint::gguf::Value;
use attar_checkpoint::imatrix::{CHUNK_SIZE, Entry, ImportanceMatrix};
use attar_eval::report;
use attar_model::{ModelConfig, TensorSpec};
use attar_quant::{Statistics, Sums};
use ndarray::Array1;
use sha2::{Digest, Sha256};

use crate::cli::Method;
use crate::diagnostic::{Explain, Failure, Result};
use crate::scheme::Scheme;
use crate::source::{Source, rows_and_cols};
use crate::text::hex;

/// A file that was read.
#[derive(Debug)]
pub struct Imatrix {
    matrix: ImportanceMatrix,
    used: Used,
    sha256: String,
}

/// What is said of it where it was used.
#[derive(Clone, Debug)]
pub struct Used {
    /// The path as given.
    pub file: PathBuf,
    /// The texts it was collected on.
    pub datasets: Vec<String>,
    /// The weights it tells of.
    pub entries: usize,
    chunks: u32,
}

/// What it tells of one matrix.
pub enum Told {
    /// How large each input was.
    Inputs(Statistics),
    /// That no token came to this expert: all columns count alike.
    NoToken(Statistics),
    /// Nothing.
    Nothing,
}

impl Imatrix {
    /// Reads a file of either layout, to be used with a scheme and a method.
    ///
    /// # Errors
    /// A scheme without codes, a method that asks for more; a file that cannot be read, is none or holds what is no sum of squares.
    pub fn read(path: &Path, scheme: Scheme, method: Method) -> Result<Self> {
        let at = || format!("while reading the importance matrix `{}`", path.display());
        if !matches!(method, Method::Auto | Method::Rtn) {
            let name = method.name();
            return Err(Failure::new(format!(
                "{name} feeds errors back or equalizes by how inputs go together, and an importance matrix tells only how large each is"
            ))
            .hint("leave --method out, or give the text itself with --calib in place of --imatrix"));
        }
        if !scheme.has_codes() {
            return Err(Failure::new(format!(
                "`{}` has no codes that an importance matrix could choose",
                scheme.name()
            ))
            .hint("leave --imatrix out"));
        }
        let mut matrix = ImportanceMatrix::read(path).doing(at)?;
        let sha256 = hex(&Sha256::digest(std::fs::read(path).doing(at)?));
        // Means are the same whatever a chunk is; what it changes is how many tokens the report tells.
        matrix.assume_chunk_size(CHUNK_SIZE);
        let used = Used {
            file: path.to_owned(),
            datasets: matrix.datasets.clone(),
            entries: matrix.entries.len(),
            chunks: matrix.chunk_count,
        };
        Ok(Self { matrix, used, sha256 })
    }

    /// What is said of it where it was used.
    pub fn used(&self) -> &Used {
        &self.used
    }

    /// Refuses one of another model.
    ///
    /// # Errors
    /// As [`check_belongs`].
    pub fn check(&self, source: &Source) -> Result<()> {
        check_belongs(&self.matrix, source)
            .doing(|| format!("while matching `{}` with the model", self.used.file.display()))
    }

    /// What it tells of a tensor of a model that it belongs to.
    pub fn of(&self, spec: &TensorSpec, config: &ModelConfig) -> Told {
        let Some(entry) = self.matrix.entries.get(&spec.gguf_name) else { return Told::Nothing };
        let (row, rows) = place(spec, config);
        let (sums, tokens) = entry.row(row, rows);
        let squares = |sums: Array1<f32>, tokens| Statistics { sums: Sums::Squares(sums), tokens };
        match tokens {
            0 => Told::NoToken(squares(Array1::ones(sums.len()), 1)),
            _ => Told::Inputs(squares(Array1::from(sums.to_vec()), tokens)),
        }
    }

    /// What a report says of it.
    pub fn facts(&self) -> report::Calibration {
        report::Calibration {
            files: vec![self.used.file.display().to_string()],
            sha256: self.sha256.clone(),
            tokens: self.matrix.most_counted(),
            ctx: self.matrix.chunk_size.unwrap_or(CHUNK_SIZE).into(),
            imatrix: Some(report::Imatrix {
                datasets: self.used.datasets.clone(),
                entries: self.used.entries as u64,
            }),
            ..report::Calibration::default()
        }
    }
}

impl Used {
    /// What llama-quantize writes of it into a GGUF, which has room for 127 bytes of a text.
    pub fn metadata(&self) -> Vec<(String, Value)> {
        let text = |text: &str| Value::from(&text[..text.floor_char_boundary(127)]);
        let count = |count: usize| Value::U32(u32::try_from(count).unwrap_or(u32::MAX));
        let mut metadata = vec![("quantize.imatrix.file", text(&self.file.to_string_lossy()))];
        metadata.extend(self.datasets.first().map(|name| ("quantize.imatrix.dataset", text(name))));
        metadata.push(("quantize.imatrix.entries_count", count(self.entries)));
        let chunks = Some(self.chunks).filter(|chunks| *chunks > 0);
        metadata.extend(chunks.map(|chunks| ("quantize.imatrix.chunks_count", Value::U32(chunks))));
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// The lines of a plan that say what codes are chosen by.
impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = self.datasets.join(", ");
        let texts = if texts.is_empty() { texts } else { format!(" of {texts}") };
        writeln!(f, "importance matrix: {}, {} entries{texts}", self.file.display(), self.entries)?;
        writeln!(f, "it tells how large inputs are, not how they go together: errors are not fed back")
    }
}

/// Where a tensor stands in the entry of its name, and how many rows that has.
fn place(spec: &TensorSpec, config: &ModelConfig) -> (usize, usize) {
    match (spec.expert, &config.experts) {
        (Some(expert), Some(experts)) => (expert.index, experts.num_experts),
        _ => (0, 1),
    }
}

/// Refuses an importance matrix that was collected on another model.
///
/// # Errors
/// Entries of other widths, of layers there are not, or none of any weight of the model.
pub fn check_belongs(matrix: &ImportanceMatrix, source: &Source) -> Result<()> {
    const HINT: &str = "collect one on this very model: attar imatrix MODEL --text FILE -o FILE";
    let config = &source.config;
    let mut known = 0;
    for spec in source.specs.iter().filter(|spec| spec.is_matrix()) {
        let Some(entry) = matrix.entries.get(&spec.gguf_name) else { continue };
        let ((_, rows), [_, cols]) = (place(spec, config), rows_and_cols(spec));
        check_widths(entry, &spec.gguf_name, rows, cols).hint(|| HINT)?;
        known += 1;
    }
    let layer = |name: &String| name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok();
    let last = matrix.entries.keys().filter_map(layer).max();
    if let Some(last) = last.filter(|last| *last >= config.num_hidden_layers) {
        let layers = config.num_hidden_layers;
        return Err(Failure::new(format!(
            "it has entries of layer {last}, and the model's {layers} layers are numbered from 0"
        ))
        .hint(HINT));
    }
    if known == 0 {
        return Err(Failure::new("it has no entry of any weight of the model").hint(HINT));
    }
    Ok(())
}

fn check_widths(entry: &Entry, name: &str, rows: usize, cols: usize) -> Result<()> {
    let (sums, counts) = (entry.sums().len(), entry.counts().len());
    if Some(sums) != rows.checked_mul(cols) || ![1, rows].contains(&counts) {
        let experts = if rows > 1 { format!("{rows} experts of ") } else { String::new() };
        return Err(Failure::new(format!(
            "`{name}` has {sums} sums and {counts} counts there, and {experts}{cols} columns in the model"
        )));
    }
    Ok(())
}
