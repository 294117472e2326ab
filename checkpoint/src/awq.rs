//! What `config.json` says of weights in AWQ's layout.
//!
//! # Source
//! `AutoAWQ` 0.2.9, `awq/models/_config.py`; vLLM, `vllm/model_executor/layers/quantization/auto_awq.py`.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::quantization::{Flaw, group_size};

/// The layout's name in `quant_method`.
pub const QUANT_METHOD: &str = "awq";

/// Bits of a code.
pub const BITS: u8 = 4;

/// The one order of codes that is written and read here.
const GEMM: &str = "gemm";

/// What is said of all weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Weights of a row that share a scale and a zero point; `None` where the whole row does.
    pub group_size: Option<usize>,
    /// Modules left as they are; a part of a name stands for all that contain it. Only written: the tensors tell.
    pub ignore: Vec<String>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(alias = "w_bit")]
    bits: u8,
    #[serde(alias = "q_group_size")]
    group_size: i64, // AutoAWQ's own file has the longer name, config.json this one
    version: Option<String>,
}

impl Config {
    /// The value of [`CONFIG_KEY`](crate::quantization::CONFIG_KEY).
    pub fn to_json(&self) -> Value {
        json!({
            "quant_method": QUANT_METHOD,
            "bits": BITS,
            "group_size": self.group_size.map_or(-1, |size| size as i64),
            "zero_point": true,
            "version": GEMM,
            "modules_to_not_convert": self.ignore,
        })
    }

    /// Reads the value of [`CONFIG_KEY`](crate::quantization::CONFIG_KEY).
    ///
    /// # Errors
    /// [`Flaw::Json`] where it is not of the layout's form, [`Flaw::Unsupported`] where it asks for what is not read here.
    pub fn from_json(json: &Value) -> Result<Self, Flaw> {
        let raw = Raw::deserialize(json).map_err(|source| Flaw::Json { layout: QUANT_METHOD, source })?;
        if raw.bits != BITS {
            return Err(Flaw::unsupported("bits", &raw.bits, "4"));
        }
        let version = raw.version.as_deref().unwrap_or(GEMM);
        if !version.eq_ignore_ascii_case(GEMM) {
            return Err(Flaw::unsupported("version", &version, GEMM));
        }
        Ok(Self { group_size: group_size(raw.group_size)?, ignore: Vec::new() })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn any_config_reads_back_and_so_does_autoawq_s_own_file() {
        for group_size in [None, Some(64)] {
            let config = Config { group_size, ignore: Vec::new() };
            assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
        }
        let own = json!({"zero_point": true, "q_group_size": 128, "w_bit": 4, "version": "GEMM"});
        assert_eq!(Config::from_json(&own).unwrap().group_size, Some(128));
    }

    #[test]
    fn what_is_not_read_is_named_by_its_key() {
        for (key, value) in [
            ("bits", json!(3)),
            ("bits", json!(8)),
            ("group_size", json!(0)),
            ("version", json!("gemv")),
            ("version", json!("gemv_fast")),
        ] {
            let mut json = Config { group_size: Some(64), ignore: Vec::new() }.to_json();
            json[key] = value.clone();
            match Config::from_json(&json) {
                Err(Flaw::Unsupported { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{key} {value}: {other:?}"),
            }
        }
        assert!(matches!(Config::from_json(&json!({"bits": 4})), Err(Flaw::Json { .. })));
    }
}
