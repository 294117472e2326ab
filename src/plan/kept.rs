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
        let candidates = FILE_HOLDERS.into_iter().filter_map(encoding);
        let mut refused = None;
        let fits = |named: &Named| {
            refused = holds(source, spec, named)?;
            Ok::<_, Failure>(refused.is_none())
        };
        let found = find(candidates, fits).doing(|| format!("while planning `{}`", spec.name))?;
        let found = found.ok_or_else(|| {
            Failure::new(format!(
                "no type of a GGUF file holds `{}` as it is stored, {}: {}",
                spec.name,
                source.stored_type(spec),
                refused.unwrap_or_default()
            ))
            .hint("decode it with --dtype bf16, or choose new codes with attar quantize")
        })?;
        encodings.insert(spec.name.clone(), found);
    }
    let types = coded(source).filter_map(|spec| Some((encodings.get(&spec.name)?.name(), spec.len())));
    let of_file = |name: &str| FILE_TYPES.iter().find(|t| t.default_type.name() == name).map(|t| t.id);
    let file_type = of_most(types).and_then(|main| of_file(&main));
    let file_type = file_type.unwrap_or_else(|| kept_file_type(source));
    Ok(Kept { encodings, output: Output::Gguf { file_type } })
}

/// One scheme for all, as a folder has it: that of most weights.
fn in_folder(source: &Source, layout: &'static dyn FolderLayout) -> Result<Kept> {
    let inner = || coded(source).filter(|spec| reads_inputs(spec));
    let named = |spec: &TensorSpec| source.stored_as(spec).map(|(scheme, _)| scheme.name());
    let main = of_most(inner().filter_map(|spec| Some((named(spec)?, spec.len()))));
    let main = main
        .and_then(|name| name.parse::<Scheme>().ok())
        .map(Scheme::in_folder)
        .map(|main| by_rows(source, main));
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
        let Some((_, scales)) = source.stored_as(spec).filter(|(own, _)| by_rows(source, *own) == main)
        else {
            continue;
        };
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

/// The same scheme said of rows where every group of every matrix is a row.
fn by_rows(source: &Source, scheme: Scheme) -> Scheme {
    let Scheme::Integer(integers) = scheme else { return scheme };
    let mut stored = coded(source).filter(|spec| reads_inputs(spec)).filter_map(|spec| {
        let (Scheme::Integer(own), _) = source.stored_as(spec)? else { return None };
        Some(own.group_size == Some(rows_and_cols(spec)[1]))
    });
    if stored.all(|is_row| is_row) {
        Scheme::Integer(IntegerScheme { group_size: None, ..integers })
    } else {
        scheme
    }
}

/// The matrices that are codes.
fn coded(source: &Source) -> impl Iterator<Item = &TensorSpec> {
    source.specs.iter().filter(|spec| source.has_codes(spec))
}

fn find<T>(all: impl IntoIterator<Item = T>, mut fits: impl FnMut(&T) -> Result<bool>) -> Result<Option<T>> {
    for each in all {
        if fits(&each)? {
            return Ok(Some(each));
        }
    }
    Ok(None)
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
