//! Packed integers, and numbers of eight and four bits, as vLLM and transformers load them.

mod numbers;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use attar_checkpoint::compressed_tensors::{
    Group, Packed, QUANT_METHOD, Rounds, Scheme as GroupScheme, Weights,
};
use attar_checkpoint::quantization::Flaw;
use attar_checkpoint::{Container, Dtype};
use attar_model::TensorSpec;
use attar_quant::{Named, ScaleDtype};
use serde_json::Value;

pub use self::numbers::kind_of;
use super::{FolderLayout, Found, Quantization, and_head, fit, scale_of};
use crate::diagnostic::{Failure, Result};
use crate::scheme::{IntegerScheme, Scheme};
use crate::source::StorageError;

/// The layout of the `compressed-tensors` package.
#[derive(Debug)]
pub struct CompressedTensors;

impl FolderLayout for CompressedTensors {
    fn name(&self) -> &'static str {
        QUANT_METHOD
    }

    fn holds(&self, scheme: Scheme) -> bool {
        matches!(scheme, Scheme::Integer(_) | Scheme::Numbers(_))
    }

    fn encoding(&self, scheme: Scheme, spec: &TensorSpec, float: Dtype) -> Result<Named> {
        if let Scheme::Numbers(kind) = scheme {
            return numbers::encoding(kind, spec, float);
        }
        let scheme = scheme.integers(QUANT_METHOD)?;
        let (rows, cols, role) = (spec.shape[0], spec.shape[1], spec.role.as_str());
        let IntegerScheme { bits, symmetric, .. } = scheme;
        scheme.check_groups(cols, role)?;
        if !symmetric && !(rows * usize::from(bits)).is_multiple_of(32) {
            return Err(Failure::new(format!(
                "{rows} zero points of {bits} bits do not fill whole 32-bit words"
            ))
            .hint(format!("use the symmetric scheme, or leave it unquantized: --tensor '{role}=float'")));
        }
        let encoding = scheme.encoding(cols);
        Ok(encoding.with_scale(ScaleDtype::of(float).unwrap_or(ScaleDtype::F32)).into())
    }

    fn describe(&self, scheme: Scheme, ignored: Vec<String>) -> Result<Value> {
        let weights = if let Scheme::Numbers(kind) = scheme {
            Weights::Numbers(kind)
        } else {
            let IntegerScheme { bits, group_size, symmetric } = scheme.integers(QUANT_METHOD)?;
            Weights::Integers(GroupScheme { num_bits: bits, group_size, symmetric })
        };
        Ok(Packed { groups: vec![Group::of_linear(weights)], ignore: and_head(ignored) }.to_json())
    }

    fn read(&self, json: &Value) -> std::result::Result<Box<dyn Quantization>, Flaw> {
        Ok(Box::new(Packed::from_json(json)?))
    }
}

impl Quantization for Packed {
    /// The first group whose scheme gives exactly the tensors found is the one: no pattern has to be matched. A weight that is floats has
    /// no scales.
    fn find(&self, files: &dyn Container, weight: &str) -> std::result::Result<Option<Found>, StorageError> {
        let Some(stem) = weight.strip_suffix(".weight") else { return Ok(None) };
        let info = |ending: &str| files.info(&format!("{stem}.weight_{ending}"));
        let misfit = || StorageError::FitsNoGroup { weight: weight.to_owned() };
        let is_integers = info("packed").is_some_and(|packed| packed.dtype != Dtype::U8);
        if !is_integers {
            let kinds = self.groups.iter().filter_map(|group| match group.weights {
                Weights::Numbers(kind) => Some(kind),
                Weights::Integers(_) => None,
            });
            let found = numbers::find(files, weight, kinds);
            let is_floats = info("packed").is_none() && info("scale").is_none();
            return if found.is_none() && !is_floats { Err(misfit()) } else { Ok(found) };
        }
        let shape = read_shape(files.bytes(&format!("{stem}.weight_shape"))?).ok_or_else(misfit)?;
        let scale = scale_of(files, weight, &format!("{stem}.weight_scale"))?;
        let symmetric = info("zero_point").is_none();
        self.groups
            .iter()
            .filter_map(|group| match group.weights {
                Weights::Integers(scheme) => Some(scheme),
                Weights::Numbers(_) => None,
            })
            .filter(|scheme| scheme.symmetric == symmetric)
            .map(|scheme| {
                let (bits, group_size) = (scheme.num_bits, scheme.group_size);
                IntegerScheme { bits, group_size, symmetric }.encoding(shape[1]).with_scale(scale)
            })
            .find(|encoding| fit(files, weight, encoding, shape).is_ok())
            .map_or_else(|| Err(misfit()), |encoding| Ok(Some((Arc::new(encoding) as _, shape))))
    }

    fn rounds(&self, files: &dyn Container, weight: &str) -> Rounds {
        let holds = |group: &&Group| match group.weights {
            Weights::Numbers(kind) => numbers::find(files, weight, [kind]).is_some(),
            // Groups of integers that differ in what they read are not told apart.
            Weights::Integers(_) => {
                files.info(&format!("{weight}_packed")).is_some_and(|p| p.dtype == Dtype::I32)
            }
        };
        self.groups.iter().find(holds).map_or(Rounds::No, |group| group.inputs)
    }
}

/// The two numbers of a `weight_shape`, small enough that no count of words or bytes overflows.
fn read_shape(bytes: &[u8]) -> Option<[usize; 2]> {
    let ([out_features, in_features], []) = bytes.as_chunks::<8>() else { return None };
    let dim = |bytes: &[u8; 8]| usize::try_from(i64::from_le_bytes(*bytes)).ok();
    let dim = |bytes| dim(bytes).filter(|dim| (1..1 << 28).contains(dim));
    Some([dim(out_features)?, dim(in_features)?])
}
