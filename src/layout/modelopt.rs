//! Floats of eight and four bits as NVIDIA's Model Optimizer writes them, for TensorRT-LLM, vLLM and `SGLang`: read only.

use std::sync::Arc;

use attar_checkpoint::compressed_tensors::Rounds;
use attar_checkpoint::modelopt::{Config, QUANT_METHOD};
use attar_checkpoint::quantization::Flaw;
use attar_checkpoint::{Container, Dtype};
use attar_model::TensorSpec;
use attar_quant::{FolderEncoding as _, Named, ScaledEncoding};
use serde_json::Value;

use super::{FolderLayout, Found, Quantization, fit, scale_of};
use crate::diagnostic::{Failure, Result};
use crate::scheme::Scheme;
use crate::source::StorageError;

/// `quant_method` modelopt.
#[derive(Debug)]
pub struct ModelOpt;

impl FolderLayout for ModelOpt {
    fn name(&self) -> &'static str {
        QUANT_METHOD
    }

    /// None: what reads it wants to know how large inputs are, too.
    fn holds(&self, _scheme: Scheme) -> bool {
        false
    }

    fn encoding(&self, scheme: Scheme, _spec: &TensorSpec, _float: Dtype) -> Result<Named> {
        Err(unwritten(scheme))
    }

    fn describe(&self, scheme: Scheme, _ignored: Vec<String>) -> Result<Value> {
        Err(unwritten(scheme))
    }

    fn read(&self, json: &Value) -> std::result::Result<Box<dyn Quantization>, Flaw> {
        Ok(Box::new(Config::from_json(json)?))
    }
}

fn unwritten(scheme: Scheme) -> Failure {
    Failure::new(format!("{QUANT_METHOD} is read, not written, `{}` or otherwise", scheme.name()))
        .hint("compressed-tensors holds the same numbers for the same programs")
}

impl Quantization for Config {
    fn find(&self, files: &dyn Container, weight: &str) -> std::result::Result<Option<Found>, StorageError> {
        let info = |name: &str| files.info(name);
        let Some((stored, _)) = info(weight).zip(info(&format!("{weight}_scale"))) else { return Ok(None) };
        let (encoding, packed) = match self {
            Self::Fp8 => {
                (ScaledEncoding::fp8_tensor(scale_of(files, weight, &format!("{weight}_scale"))?), 1)
            }
            Self::Nvfp4 => (ScaledEncoding::NVFP4, 2),
        };
        let shape = match stored.shape[..] {
            [rows, cols] => cols.checked_mul(packed).map(|cols| [rows, cols]),
            _ => None,
        };
        let shape = shape.ok_or_else(|| StorageError::FitsNoGroup { weight: weight.to_owned() })?;
        let encoding = encoding.of_model_opt();
        fit(files, weight, &encoding, shape)?;
        // What all rows share is in the file: to read some of them no others are needed.
        Ok(Some((encoding.for_largest(1.0).unwrap_or_else(|| Arc::new(encoding)), shape)))
    }

    fn rounds(&self, files: &dyn Container, weight: &str) -> Rounds {
        let stem = weight.strip_suffix(".weight").unwrap_or(weight);
        if files.info(&format!("{stem}.input_scale")).is_some() { Rounds::Otherwise } else { Rounds::No }
    }
}
