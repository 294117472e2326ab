//! Eight-bit floats with a scale for each 128 x 128, as `DeepSeek`'s checkpoints have them and as vLLM, `SGLang` and transformers load
//! them.

use std::sync::Arc;

use attar_checkpoint::compressed_tensors::{Inputs, Rounds};
use attar_checkpoint::fp8::{Config, QUANT_METHOD};
use attar_checkpoint::quantization::Flaw;
use attar_checkpoint::{Container, Dtype};
use attar_model::TensorSpec;
use attar_quant::{Named, ScaleDtype, ScaledEncoding};
use serde_json::Value;

use super::{FolderLayout, Found, Quantization, and_head, check_tiles, fit, scale_of};
use crate::diagnostic::{Failure, Result};
use crate::scheme::Scheme;
use crate::source::StorageError;

/// `quant_method` fp8 with blocks.
#[derive(Debug)]
pub struct Fp8;

impl FolderLayout for Fp8 {
    fn name(&self) -> &'static str {
        QUANT_METHOD
    }

    fn holds(&self, scheme: Scheme) -> bool {
        matches!(scheme, Scheme::Numbers(numbers) if numbers.is_tiled())
    }

    fn encoding(&self, scheme: Scheme, spec: &TensorSpec, _float: Dtype) -> Result<Named> {
        if !self.holds(scheme) {
            return Err(Failure::new(format!("{QUANT_METHOD} cannot hold `{}`", scheme.name()))
                .hint("choose fp8-block"));
        }
        check_tiles(spec)?;
        Ok(ScaledEncoding::fp8_block_inv(ScaleDtype::F32).into())
    }

    fn describe(&self, _scheme: Scheme, ignored: Vec<String>) -> Result<Value> {
        Ok(Config { ignore: and_head(ignored) }.to_json())
    }

    fn read(&self, json: &Value) -> std::result::Result<Box<dyn Quantization>, Flaw> {
        Ok(Box::new(Config::from_json(json)?))
    }
}

impl Quantization for Config {
    fn find(&self, files: &dyn Container, weight: &str) -> std::result::Result<Option<Found>, StorageError> {
        let name = format!("{weight}_scale_inv");
        let Some(&[rows, cols]) = files.info(weight).map(|info| &info.shape[..]) else { return Ok(None) };
        if files.info(&name).is_none() {
            return Ok(None);
        }
        let encoding = ScaledEncoding::fp8_block_inv(scale_of(files, weight, &name)?);
        fit(files, weight, &encoding, [rows, cols])?;
        Ok(Some((Arc::new(encoding), [rows, cols])))
    }

    /// # Source
    /// vLLM, `fp8.py`: weights in blocks are multiplied by runs of as many inputs, whatever `activation_scheme` says.
    fn rounds(&self, files: &dyn Container, weight: &str) -> Rounds {
        let is_coded = files.info(&format!("{weight}_scale_inv")).is_some();
        is_coded.then_some(Inputs::FP8_RUNS).into()
    }
}
