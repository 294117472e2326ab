//! Integers as GPTQ's tools write them, for vLLM, `SGLang`, transformers and `GPTQModel`.

use std::sync::Arc;

use attar_checkpoint::gptq::{BITS, Config, QUANT_METHOD, Version};
use attar_checkpoint::quantization::Flaw;
use attar_checkpoint::{Container, Dtype};
use attar_model::TensorSpec;
use attar_quant::{Named, Transposed, Words};
use serde_json::Value;

use super::{FolderLayout, Found, Quantization, Shapes, fit, scale_of};
use crate::diagnostic::Result;
use crate::scheme::{IntegerScheme, Scheme};
use crate::source::StorageError;

/// `quant_method` gptq: version 1 of symmetric schemes, which every reader knows; version 2 of others, because version 1 cannot say all
/// zero points.
#[derive(Debug)]
pub struct Gptq;

/// # Source
/// `GPTQModel` 7.7, `gptqmodel/nn_modules/qlinear/torch.py` (`SUPPORTS_GROUP_SIZE`); words: vLLM,
/// `vllm/model_executor/layers/quantization/auto_gptq.py` (`create_weights`, whose `pack_factor` divides inputs and outputs).
const SHAPES: Shapes =
    Shapes { layout: QUANT_METHOD, groups: &[16, 32, 64, 128, 256, 512, 1024], words_of_inputs: true };

impl FolderLayout for Gptq {
    fn name(&self) -> &'static str {
        QUANT_METHOD
    }

    fn holds(&self, scheme: Scheme) -> bool {
        matches!(scheme, Scheme::Integer(IntegerScheme { bits, .. }) if BITS.contains(&bits))
    }

    fn encoding(&self, scheme: Scheme, spec: &TensorSpec, _float: Dtype) -> Result<Named> {
        let scheme = scheme.integers(QUANT_METHOD)?;
        SHAPES.check(scheme, spec)?;
        Ok(Transposed::new(scheme.encoding(spec.shape[1]), words(version(scheme))).into())
    }

    fn describe(&self, scheme: Scheme, ignore: Vec<String>) -> Result<Value> {
        let scheme = scheme.integers(QUANT_METHOD)?;
        let IntegerScheme { bits, group_size, symmetric } = scheme;
        let version = version(scheme);
        Ok(Config { bits, group_size, symmetric, ordered: false, version, ignore }.to_json())
    }

    fn read(&self, json: &Value) -> std::result::Result<Box<dyn Quantization>, Flaw> {
        Ok(Box::new(Config::from_json(json)?))
    }
}

impl Quantization for Config {
    fn find(&self, files: &dyn Container, weight: &str) -> std::result::Result<Option<Found>, StorageError> {
        let Some(stem) = weight.strip_suffix(".weight") else { return Ok(None) };
        let Some(&[words_in, rows]) = files.info(&format!("{stem}.qweight")).map(|info| &info.shape[..])
        else {
            return Ok(None);
        };
        let shape = [rows, words_in * 32 / usize::from(self.bits)];
        let Self { bits, group_size, symmetric, .. } = *self;
        let scheme = IntegerScheme { bits, group_size, symmetric };
        let integers =
            scheme.encoding(shape[1]).with_scale(scale_of(files, weight, &format!("{stem}.scales"))?);
        let encoding = Transposed::new(integers, words(self.version));
        fit(files, weight, &encoding, shape)?;
        Ok(Some((Arc::new(encoding), shape)))
    }
}

fn version(scheme: IntegerScheme) -> Version {
    if scheme.symmetric { Version::V1 } else { Version::V2 }
}

fn words(version: Version) -> Words {
    match version {
        Version::V1 => Words::GptqV1,
        Version::V2 => Words::GptqV2,
    }
}
