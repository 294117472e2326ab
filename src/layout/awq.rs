//! Integers of 4 bits as AWQ's tools write them, for vLLM, `SGLang`, transformers and `AutoAWQ`.

use std::sync::Arc;

use attar_checkpoint::awq::{BITS, Config, QUANT_METHOD};
use attar_checkpoint::quantization::Flaw;
use attar_checkpoint::{Container, Dtype};
use attar_model::TensorSpec;
use attar_quant::{Named, Transposed, Words};
use serde_json::Value;

use super::{FolderLayout, Found, Quantization, Shapes, and_head, fit, scale_of};
use crate::diagnostic::Result;
use crate::scheme::{IntegerScheme, Scheme};
use crate::source::StorageError;

/// `quant_method` awq, version gemm: zero points are stored of symmetric schemes too.
#[derive(Debug)]
pub struct Awq;

/// # Source
/// `GPTQModel` 7.7, `gptqmodel/nn_modules/qlinear/torch_awq.py` (`SUPPORTS_GROUP_SIZE`); words: `AutoAWQ` 0.2.9, `awq/modules/linear/gemm.py`
/// (`WQLinear_GEMM` asserts whole groups of inputs and whole words of outputs).
const SHAPES: Shapes = Shapes { layout: QUANT_METHOD, groups: &[16, 32, 64, 128], words_of_inputs: false };

impl FolderLayout for Awq {
    fn name(&self) -> &'static str {
        QUANT_METHOD
    }

    fn holds(&self, scheme: Scheme) -> bool {
        matches!(scheme, Scheme::Integer(IntegerScheme { bits: BITS, .. }))
    }

    fn encoding(&self, scheme: Scheme, spec: &TensorSpec, _float: Dtype) -> Result<Named> {
        let scheme = scheme.integers(QUANT_METHOD)?;
        SHAPES.check(scheme, spec)?;
        Ok(Transposed::new(scheme.encoding(spec.shape[1]), Words::AwqGemm).into())
    }

    fn describe(&self, scheme: Scheme, ignored: Vec<String>) -> Result<Value> {
        let group_size = scheme.integers(QUANT_METHOD)?.group_size;
        Ok(Config { group_size, ignore: and_head(ignored) }.to_json())
    }

    fn read(&self, json: &Value) -> std::result::Result<Box<dyn Quantization>, Flaw> {
        Ok(Box::new(Config::from_json(json)?))
    }
}

impl Quantization for Config {
    fn find(&self, files: &dyn Container, weight: &str) -> std::result::Result<Option<Found>, StorageError> {
        let Some(stem) = weight.strip_suffix(".weight") else { return Ok(None) };
        let Some(&[cols, words_out]) = files.info(&format!("{stem}.qweight")).map(|info| &info.shape[..])
        else {
            return Ok(None);
        };
        let shape = [words_out * 32 / usize::from(BITS), cols];
        let scheme = IntegerScheme { bits: BITS, group_size: self.group_size, symmetric: false };
        let integers = scheme.encoding(cols).with_scale(scale_of(files, weight, &format!("{stem}.scales"))?);
        let encoding = Transposed::new(integers, Words::AwqGemm);
        fit(files, weight, &encoding, shape)?;
        Ok(Some((Arc::new(encoding), shape)))
    }
}
