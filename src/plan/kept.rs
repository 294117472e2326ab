//! Codes that change their container and nothing else.

use std::collections::HashMap;

use attar_model::TensorSpec;
use attar_quant::{Named, encoding};

use super::{Output, Request, kept_file_type, reads_inputs};
use crate::diagnostic::{Explain, Failure, Result};
use crate::layout::FolderLayout;
use crate::mix::FILE_TYPES;
use crate::scheme::{IntegerScheme, Scheme};
use crate::source::{CHUNK_WEIGHTS, Source, of_most, rows_and_cols};

/// The types of a GGUF file that hold codes of other containers, the smallest first.
const FILE_HOLDERS: [&str; 4] = ["mxfp4", "q4_0", "q5_0", "q8_0"];

/// Where the codes of a model go.
pub(super) struct Kept {
    /// The encoding of each matrix that stays codes, by Hugging Face name.
    pub encodings: HashMap<String, Named>,
    /// The container.
    pub output: Output,
}

impl Kept {
    /// Finds a place for the codes of every matrix, which is read for that.
    ///
    /// # Errors
    /// A matrix whose values the container has not.
    pub fn of(request: &Request) -> Result<Self> {
        match request.layout {
            Some(layout) => in_folder(request.source, layout),
            None => in_file(request.source),
        }
    }
}

/// The smallest type of a GGUF file for each matrix.
fn in_file(source: &Source) -> Result<Kept> {
    let mut encodings = HashMap::new();
    for spec in coded(source) {
        let found = smallest(source, spec).doing(|| format!("while planning `{}`", spec.name))?;
        encodings.insert(spec.name.clone(), found);
    }
    let types = coded(source).filter_map(|spec| Some((encodings.get(&spec.name)?.name(), spec.len())));
    let of_file = |name: &str| FILE_TYPES.iter().find(|t| t.default_type.name() == name).map(|t| t.id);
    let file_type = of_most(types).and_then(|main| of_file(&main));
    let file_type = file_type.unwrap_or_else(|| kept_file_type(source));
    Ok(Kept { encodings, output: Output::Gguf { file_type } })
}

/// The first of [`FILE_HOLDERS`] that has all values of a matrix.
fn smallest(source: &Source, spec: &TensorSpec) -> Result<Named> {
    let mut refused = String::new();
    for named in FILE_HOLDERS.into_iter().filter_map(encoding) {
        match holds(source, spec, &named)? {
            Some(reason) => refused = reason,
            None => return Ok(named),
        }
    }
    let stored = source.stored_type(spec);
    Err(Failure::new(format!("no type of a GGUF file holds it as it is stored, {stored}: {refused}"))
        .hint("decode it with --dtype bf16, or choose new codes with attar quantize"))
}

/// One scheme for all, as a folder has it: that of most weights.
fn in_folder(source: &Source, layout: &'static dyn FolderLayout) -> Result<Kept> {
    let inner = || coded(source).filter(|spec| reads_inputs(spec));
    let by_rows = inner().all(|spec| has_rows_for_groups(source, spec));
    let stored_as = |spec: &TensorSpec| match source.stored_as(spec)? {
        (Scheme::Integer(integers), scales) if by_rows => {
            Some((Scheme::Integer(IntegerScheme { group_size: None, ..integers }), scales))
        }
        stored => Some(stored),
    };
    let main = of_most(inner().filter_map(|spec| Some((stored_as(spec)?.0.name(), spec.len()))));
    let main = main.and_then(|name| name.parse::<Scheme>().ok()).map(Scheme::in_folder);
    let main = main.ok_or_else(|| {
        let stored = of_most(inner().map(|spec| (source.stored_type(spec), spec.len()))).unwrap_or_default();
        Failure::new(format!("a folder of safetensors holds no codes such as the model's, {stored}"))
            .hint("decode them: leave --format out; or choose new codes with attar quantize")
    })?;
    if !layout.holds(main) {
        return Err(Failure::new(format!(
            "{} cannot hold `{}`, which most weights are",
            layout.name(),
            main.name()
        ))
        .hint("compressed-tensors holds the most; or decode: leave --format out"));
    }
    let mut encodings = HashMap::new();
    for spec in inner() {
        let at = || format!("while planning `{}`", spec.name);
        let Some((_, scales)) = stored_as(spec).filter(|(own, _)| *own == main) else { continue };
        let named = layout.encoding(main, spec, scales).doing(at)?;
        if let Some(reason) = holds(source, spec, &named).doing(at)? {
            return Err(
                Failure::new(reason).hint("another --format may hold them; or decode: leave --format out")
            )
            .doing(at);
        }
        encodings.insert(spec.name.clone(), named);
    }
    Ok(Kept { encodings, output: Output::Folder { layout, scheme: main } })
}

/// Whether a matrix is integers of which all in a row share a scale.
fn has_rows_for_groups(source: &Source, spec: &TensorSpec) -> bool {
    let row = Some(rows_and_cols(spec)[1]);
    matches!(source.stored_as(spec), Some((Scheme::Integer(own), _)) if own.group_size == row)
}

/// The matrices that are codes.
fn coded(source: &Source) -> impl Iterator<Item = &TensorSpec> {
    source.specs.iter().filter(|spec| source.has_codes(spec))
}

/// Why an encoding has not all values of a matrix; `None` where it has.
fn holds(source: &Source, spec: &TensorSpec, named: &Named) -> Result<Option<String>> {
    let [rows, cols] = rows_and_cols(spec);
    if let Err(error) = named.check(cols) {
        return Ok(Some(error.to_string()));
    }
    let step = (CHUNK_WEIGHTS / cols.max(1)).max(128) / 128 * 128;
    for first in (0..rows).step_by(step) {
        let fit = source.codes(spec, first..rows.min(first + step))?;
        let held = fit.zip(named.grid()).map(|(fit, grid)| grid.holding(&fit));
        if let Some(Err(error)) = held {
            return Ok(Some(error.to_string()));
        }
    }
    Ok(None)
}
