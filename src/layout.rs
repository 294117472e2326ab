//! How a folder of safetensors holds quantized weights.
//!
//! To add a layout, write one file beside the others and add one line to [`LAYOUTS`].

mod awq;
mod compressed_tensors;
#[cfg(test)]
mod forge;
mod fp8;
mod gptq;
mod modelopt;

use std::fmt;
use std::sync::Arc;

use attar_checkpoint::compressed_tensors::{Inputs, Rounds};
use attar_checkpoint::fp8::BLOCK;
use attar_checkpoint::quantization::{Flaw, described};
use attar_checkpoint::{Container, Dtype};
use attar_model::{Number, Rounding, TensorSpec};
use attar_quant::{FolderEncoding, Named, ScaleDtype};
use serde_json::Value;

use crate::diagnostic::{Failure, Result};
use crate::scheme::{IntegerScheme, Scheme};
use crate::source::StorageError;

/// A way to hold quantized weights in a folder of safetensors.
pub trait FolderLayout: Send + Sync + fmt::Debug {
    /// Its name on the command line, in reports, and as `quant_method` in `config.json`.
    fn name(&self) -> &'static str;

    /// Whether matrices of `scheme` can be held.
    fn holds(&self, scheme: Scheme) -> bool;

    /// How a matrix of `scheme`, whose floats would be `float`, is held.
    ///
    /// # Errors
    /// A shape that no reader of the layout accepts.
    fn encoding(&self, scheme: Scheme, spec: &TensorSpec, float: Dtype) -> Result<Named>;

    /// What `config.json` says of `scheme`; `ignored` are the modules whose matrices stay as they are.
    ///
    /// # Errors
    /// A scheme that cannot be held.
    fn describe(&self, scheme: Scheme, ignored: Vec<String>) -> Result<Value>;

    /// Understands what `config.json` says.
    ///
    /// # Errors
    /// What is not of the layout's form, or a part of it that is not read here.
    fn read(&self, json: &Value) -> std::result::Result<Box<dyn Quantization>, Flaw>;
}

/// How the weights of an opened folder were quantized.
pub trait Quantization: Send + Sync + fmt::Debug {
    /// The encoding and shape of `weight`, told by the tensors that stand for it; `None` where there are none of these.
    ///
    /// # Errors
    /// Tensors that contradict each other or what `config.json` says.
    fn find(&self, files: &dyn Container, weight: &str) -> std::result::Result<Option<Found>, StorageError>;

    /// How what `weight` multiplies is rounded while it is read.
    fn rounds(&self, _files: &dyn Container, _weight: &str) -> Rounds {
        Rounds::No
    }
}

pub use self::compressed_tensors::kind_of;

/// A rounding as the forward pass does it.
pub fn rounding(inputs: Inputs) -> Rounding {
    let number = if inputs.is_float() { Number::E4m3 } else { Number::Int8 };
    Rounding { number, run: inputs.run() }
}

/// How a weight is stored, and its shape.
pub type Found = (Arc<dyn FolderEncoding>, [usize; 2]);

/// Every layout; where two hold a scheme, the first is taken unless the other is asked for.
pub const LAYOUTS: &[&dyn FolderLayout] =
    &[&compressed_tensors::CompressedTensors, &gptq::Gptq, &awq::Awq, &fp8::Fp8, &modelopt::ModelOpt];

/// What a `config.json` says of how its weights were quantized; `None` where they were not.
///
/// # Errors
/// A layout that is unknown, or as [`FolderLayout::read`].
pub fn quantization(config: &Value) -> std::result::Result<Option<Box<dyn Quantization>>, Flaw> {
    let Some(json) = described(config) else { return Ok(None) };
    let method = json["quant_method"].as_str().unwrap_or("none");
    let layout = LAYOUTS.iter().find(|layout| layout.name() == method).ok_or_else(|| {
        let known: Vec<_> = LAYOUTS.iter().map(|layout| layout.name()).collect();
        Flaw::unsupported("quant_method", &method, known.join(", "))
    })?;
    layout.read(json).map(Some)
}

/// What readers of a layout need of a matrix.
struct Shapes {
    layout: &'static str,
    groups: &'static [usize], // what readers have kernels for
    words_of_inputs: bool, // whether codes of inputs share words: those of outputs always do, of zeros at least
}

impl Shapes {
    /// Whether a matrix can be held by `scheme`.
    ///
    /// # Errors
    /// A shape or group size that no reader accepts.
    fn check(&self, scheme: IntegerScheme, spec: &TensorSpec) -> Result<()> {
        let (rows, cols, role) = (spec.shape[0], spec.shape[1], spec.role.as_str());
        let IntegerScheme { bits, group_size, .. } = scheme;
        scheme.check_groups(cols, role)?;
        if let Some(group_size) = group_size.filter(|group_size| !self.groups.contains(group_size)) {
            let groups = self.groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(Failure::new(format!(
                "no reader of {} has kernels for groups of {group_size}",
                self.layout
            ))
            .hint(format!("groups of {groups} are read; compressed-tensors holds others")));
        }
        let sides = [("outputs", rows, true), ("inputs", cols, self.words_of_inputs)];
        for (what, count, _) in sides.into_iter().filter(|&(.., packed)| packed) {
            if !(count * usize::from(bits)).is_multiple_of(32) {
                return Err(Failure::new(format!(
                    "its {count} {what} of {bits} bits do not fill whole 32-bit words, as {} needs",
                    self.layout
                ))
                .hint(format!("leave it unquantized: --tensor '{role}=float'")));
            }
        }
        Ok(())
    }
}

/// The modules left as they are with the head among them: one that the embedding stands for is no tensor, but a module all the same.
fn and_head(mut ignored: Vec<String>) -> Vec<String> {
    let head = "lm_head".to_owned();
    if !ignored.contains(&head) {
        ignored.push(head);
    }
    ignored
}

/// Whether the rows of a matrix are whole tiles.
///
/// # Errors
/// Where they are not: programs that read several matrices as one refuse part of a tile between them.
fn check_tiles(spec: &TensorSpec) -> Result<()> {
    let [tile, _] = BLOCK;
    let (rows, role) = (spec.shape[0], spec.role.as_str());
    if rows.is_multiple_of(tile) {
        return Ok(());
    }
    Err(Failure::new(format!("its {rows} rows are no whole blocks of {tile}"))
        .hint(format!("leave it unquantized: --tensor '{role}=float'")))
}

/// How the scales of a weight are stored.
fn scale_of(
    files: &dyn Container,
    weight: &str,
    name: &str,
) -> std::result::Result<ScaleDtype, StorageError> {
    let part = || StorageError::NoPart { weight: weight.to_owned(), name: name.to_owned() };
    let dtype = files.info(name).ok_or_else(part)?.dtype;
    ScaleDtype::of(dtype).ok_or_else(|| StorageError::Type {
        name: weight.to_owned(),
        stored: format!("integers with scales of type {dtype}"),
    })
}

/// Whether the tensors that `encoding` has for `weight` are there, in type and shape.
///
/// # Errors
/// The first that is missing or different.
fn fit(
    files: &dyn Container,
    weight: &str,
    encoding: &dyn FolderEncoding,
    [rows, cols]: [usize; 2],
) -> std::result::Result<(), StorageError> {
    encoding.check(cols)?;
    for part in encoding.parts(rows, cols) {
        let missing = |name| StorageError::NoPart { weight: weight.to_owned(), name };
        let name = part.name(weight).ok_or_else(|| missing(part.ending.to_owned()))?;
        let found = files.info(&name).ok_or_else(|| missing(name.clone()))?;
        if (found.dtype, &found.shape) != (part.dtype, &part.shape) {
            let tell = |dtype: Dtype, shape: &[usize]| format!("{dtype} {shape:?}");
            let (found, wanted) = (tell(found.dtype, &found.shape), tell(part.dtype, &part.shape));
            return Err(StorageError::Part { name, found, wanted });
        }
    }
    Ok(())
}
