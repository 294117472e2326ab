//! What `config.json` says of eight-bit floats with a scale for each block, as `DeepSeek`'s checkpoints have them.
//!
//! # Source
//! `config.json` of `deepseek-ai/DeepSeek-V3`; transformers, `utils/quantization_config.py` (`FineGrainedFP8Config`); vLLM,
//! `vllm/model_executor/layers/quantization/fp8.py`.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::quantization::Flaw;

/// The layout's name in `quant_method`.
pub const QUANT_METHOD: &str = "fp8";

/// Rows and columns that share a scale: all that is written and read here.
pub const BLOCK: [usize; 2] = [128, 128];

/// What is said of all weights.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Modules left as they are. Only written: the tensors tell.
    pub ignore: Vec<String>,
}

#[derive(Deserialize)]
struct Raw {
    weight_block_size: Option<Value>,
    fmt: Option<String>,
}

impl Config {
    /// The value of [`CONFIG_KEY`](crate::quantization::CONFIG_KEY).
    pub fn to_json(&self) -> Value {
        json!({
            "quant_method": QUANT_METHOD,
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": BLOCK,
            "modules_to_not_convert": self.ignore,
        })
    }

    /// Reads the value of [`CONFIG_KEY`](crate::quantization::CONFIG_KEY).
    ///
    /// # Errors
    /// [`Flaw::Json`] where it is not of the layout's form, [`Flaw::Unsupported`] where it asks for what is not read here.
    pub fn from_json(json: &Value) -> Result<Self, Flaw> {
        let raw = Raw::deserialize(json).map_err(|source| Flaw::Json { layout: QUANT_METHOD, source })?;
        let block = raw.weight_block_size.unwrap_or_default();
        if block != json!(BLOCK) {
            return Err(Flaw::unsupported("weight_block_size", &block, "[128, 128]"));
        }
        match raw.fmt.as_deref() {
            None | Some("e4m3") => Ok(Self::default()),
            Some(other) => Err(Flaw::unsupported("fmt", &other, "e4m3")),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_and_what_deepseek_wrote_reads_back() {
        let written = Config { ignore: vec!["lm_head".to_owned()] }.to_json();
        let deepseek = json!({"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
            "weight_block_size": [128, 128]});
        for json in [written, deepseek] {
            assert_eq!(Config::from_json(&json).unwrap(), Config::default());
        }
    }

    #[test]
    fn other_blocks_and_other_floats_are_refused() {
        let with = |key: &str, value: Value| {
            let mut json = Config::default().to_json();
            json[key] = value;
            Config::from_json(&json).unwrap_err()
        };
        for (key, value) in [
            ("weight_block_size", json!(null)),
            ("weight_block_size", json!([64, 128])),
            ("weight_block_size", json!("128x128")),
            ("fmt", json!("e5m2")),
        ] {
            assert!(
                matches!(with(key, value), Flaw::Unsupported { key: found, .. } if found == key),
                "{key}"
            );
        }
        assert!(matches!(with("fmt", json!(8)), Flaw::Json { .. }));
    }
}
