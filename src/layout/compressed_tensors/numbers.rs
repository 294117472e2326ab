//! Numbers of eight and four bits with scales, kind by kind.

use std::sync::Arc;

use attar_checkpoint::compressed_tensors::{NUMBERS, Numbers};
use attar_checkpoint::{Container, Dtype};
use attar_model::TensorSpec;
use attar_quant::{Encoding as _, FolderEncoding, Named, ScaleDtype, ScaledEncoding};

use crate::diagnostic::{Failure, Result};
use crate::layout::{Found, check_tiles, fit};

/// The encoding of a kind with scales of a type, where they are floats.
type Make = fn(ScaleDtype) -> ScaledEncoding;

/// The encoding of each of [`attar_checkpoint::compressed_tensors::NUMBERS`].
const ENCODINGS: [(&str, Make); 7] = [
    ("w8a8", ScaledEncoding::int8),
    ("fp8", ScaledEncoding::fp8),
    ("fp8-tensor", ScaledEncoding::fp8_tensor),
    ("fp8-block", ScaledEncoding::fp8_block),
    ("mxfp8", |_| ScaledEncoding::MXFP8),
    ("mxfp4", |_| ScaledEncoding::MXFP4),
    ("nvfp4", |_| ScaledEncoding::NVFP4),
];

fn scaled(numbers: &Numbers, scale: ScaleDtype) -> Option<ScaledEncoding> {
    ENCODINGS.iter().find(|(name, _)| *name == numbers.name).map(|(_, make)| make(scale))
}

/// The kind that an encoding is, by either name of it.
pub fn kind_of(encoding: &str) -> Option<&'static Numbers> {
    let is_it =
        |numbers: &&Numbers| scaled(numbers, ScaleDtype::F32).is_some_and(|own| own.name() == encoding);
    Numbers::named(encoding).or_else(|| NUMBERS.iter().find(is_it))
}

/// How a matrix whose floats would be `float` is held.
///
/// # Errors
/// Rows that are no whole groups, or as [`check_tiles`].
pub fn encoding(numbers: &Numbers, spec: &TensorSpec, float: Dtype) -> Result<Named> {
    let (cols, role) = (spec.shape[1], spec.role.as_str());
    let scale = ScaleDtype::of(float).unwrap_or(ScaleDtype::F32);
    let encoding = scaled(numbers, scale)
        .ok_or_else(|| Failure::new(format!("there is no encoding of `{}`", numbers.name)))?;
    let group = encoding.block_len();
    if !cols.is_multiple_of(group) {
        return Err(Failure::new(format!("groups of {group} do not divide its rows of {cols}"))
            .hint(format!("leave it unquantized: --tensor '{role}=float'")));
    }
    if numbers.is_tiled() {
        check_tiles(spec)?;
    }
    Ok(encoding.into())
}

/// The first of `kinds` whose tensors stand for `weight`; `None` where no kind's do.
pub fn find<'a>(
    files: &dyn Container,
    weight: &str,
    kinds: impl IntoIterator<Item = &'a Numbers>,
) -> Option<Found> {
    let stem = weight.strip_suffix(".weight")?;
    let info = |ending: &str| files.info(&format!("{stem}.{ending}"));
    let shape = match info("weight_packed") {
        Some(packed) => match packed.shape[..] {
            [rows, cols] => [rows, cols.checked_mul(2)?],
            _ => return None,
        },
        None => <[usize; 2]>::try_from(&info("weight")?.shape[..]).ok()?,
    };
    let scale = ScaleDtype::of(info("weight_scale")?.dtype).unwrap_or(ScaleDtype::F32);
    let mut fitting = kinds.into_iter().filter_map(|kind| scaled(kind, scale));
    let encoding = fitting.find(|encoding| fit(files, weight, encoding, shape).is_ok())?;
    // What all rows share is in the file: to read some of them no others are needed.
    Some((encoding.for_largest(1.0).unwrap_or_else(|| Arc::new(encoding)), shape))
}
