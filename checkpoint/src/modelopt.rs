//! What NVIDIA's Model Optimizer says of the weights it wrote: in `config.json`, or in a file of its own beside it.
//!
//! # Source
//! vLLM, `vllm/model_executor/layers/quantization/modelopt.py`; "Unified Hugging Face checkpoint" of the Model Optimizer's manual.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::quantization::Flaw;

/// The layout's name in `quant_method`.
pub const QUANT_METHOD: &str = "modelopt";

/// The file that says it where `config.json` does not.
pub const FILE: &str = "hf_quant_config.json";

/// What the weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Config {
    /// Eight-bit floats, one scale for each matrix.
    Fp8,
    /// Four-bit floats, 16 to an eight-bit float.
    Nvfp4,
}

#[derive(Deserialize)]
struct Raw {
    quant_algo: Option<String>,
    group_size: Option<i64>,
}

impl Config {
    /// Reads the value of [`CONFIG_KEY`](crate::quantization::CONFIG_KEY).
    ///
    /// # Errors
    /// [`Flaw::Json`] where it is not of the layout's form, [`Flaw::Unsupported`] where it asks for what is not read here.
    pub fn from_json(json: &Value) -> Result<Self, Flaw> {
        let raw = Raw::deserialize(json).map_err(|source| Flaw::Json { layout: QUANT_METHOD, source })?;
        let algo = raw.quant_algo.unwrap_or_else(|| "none".to_owned());
        match (algo.to_ascii_uppercase().as_str(), raw.group_size) {
            ("FP8", _) => Ok(Self::Fp8),
            ("NVFP4" | "NVFP4_AWQ", None | Some(16)) => Ok(Self::Nvfp4),
            ("NVFP4" | "NVFP4_AWQ", Some(other)) => Err(Flaw::unsupported("group_size", &other, "16")),
            _ => Err(Flaw::unsupported("quant_algo", &algo, "FP8 and NVFP4")),
        }
    }

    /// What [`FILE`] says, as `config.json` would; `None` where it says nothing.
    pub fn in_file(object: &Value) -> Option<Value> {
        let mut said: Map<_, _> = object.get("quantization")?.as_object()?.clone();
        said.insert("quant_method".to_owned(), QUANT_METHOD.into());
        Some(said.into())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_optimizer_says_is_understood_in_either_place() {
        let file = json!({"producer": {"name": "modelopt", "version": "0.33.0"},
            "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head"]}});
        let said = Config::in_file(&file).unwrap();
        assert_eq!(
            (&said["quant_method"], Config::from_json(&said).unwrap()),
            (&json!("modelopt"), Config::Nvfp4)
        );
        let fp8 = json!({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]});
        assert_eq!(Config::from_json(&fp8).unwrap(), Config::Fp8);
        assert_eq!(Config::in_file(&json!({"quantization": null})), None);
    }

    #[test]
    fn other_algorithms_and_groups_are_refused() {
        for (json, key) in [
            (json!({"quant_algo": "W4A8_AWQ"}), "quant_algo"),
            (json!({"quant_algo": null}), "quant_algo"),
            (json!({"quant_algo": "NVFP4", "group_size": 32}), "group_size"),
            (json!({"quant_algo": 4}), "not of the form"),
        ] {
            let told = Config::from_json(&json).unwrap_err().to_string();
            assert!(told.contains(key), "{told}");
        }
    }
}
