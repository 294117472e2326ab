//! What `config.json` says of weights in GPTQ's layout.
//!
//! # Source
//! `GPTQModel` 7.7, `gptqmodel/quantization/config.py`; vLLM, `vllm/model_executor/layers/quantization/auto_gptq.py`.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::quantization::{Flaw, group_size};

/// The layout's name in `quant_method`.
pub const QUANT_METHOD: &str = "gptq";

/// Bits a code may have.
pub const BITS: [u8; 4] = [2, 3, 4, 8];

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Less 1, in packed words.
    V1,
    /// As they are.
    V2,
}

const VERSIONS: [(Version, &str); 2] = [(Version::V1, "gptq"), (Version::V2, "gptq_v2")];

/// What is said of all weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Bits of a code, one of [`BITS`].
    pub bits: u8,
    /// Weights of a row that share a scale; `None` where the whole row does.
    pub group_size: Option<usize>,
    /// Whether all zero points are in the middle of the codes. They are stored all the same.
    pub symmetric: bool,
    /// Whether columns belong to groups in an order of their own.
    pub ordered: bool,
    /// How zero points are stored.
    pub version: Version,
    /// Modules of the blocks that are left as they are. Only written: the tensors tell.
    pub ignore: Vec<String>,
}

#[derive(Deserialize)]
struct Raw {
    bits: u8,
    group_size: i64,
    #[serde(default = "yes")]
    sym: bool,
    #[serde(default)]
    desc_act: bool,
    checkpoint_format: Option<String>,
    format: Option<String>,
    pack_dtype: Option<String>,
}

fn yes() -> bool {
    true
}

impl Config {
    /// The value of [`CONFIG_KEY`](crate::quantization::CONFIG_KEY).
    pub fn to_json(&self) -> Value {
        let format = VERSIONS.iter().find(|(version, _)| *version == self.version).map(|(_, name)| name);
        let mut json = json!({
            "quant_method": QUANT_METHOD,
            "bits": self.bits,
            "group_size": self.group_size.map_or(-1, |size| size as i64),
            "sym": self.symmetric,
            "desc_act": self.ordered,
            "checkpoint_format": format,
            "lm_head": false,
            "pack_dtype": "int32",
        });
        if !self.ignore.is_empty() {
            let rule = |module: &String| (format!("-:^{}$", module.replace('.', "\\.")), json!({}));
            json["dynamic"] = self.ignore.iter().map(rule).collect::<serde_json::Map<_, _>>().into();
        }
        json
    }

    /// Reads the value of [`CONFIG_KEY`](crate::quantization::CONFIG_KEY).
    ///
    /// # Errors
    /// [`Flaw::Json`] where it is not of the layout's form, [`Flaw::Unsupported`] where it asks for what is not read here.
    pub fn from_json(json: &Value) -> Result<Self, Flaw> {
        let raw = Raw::deserialize(json).map_err(|source| Flaw::Json { layout: QUANT_METHOD, source })?;
        if !BITS.contains(&raw.bits) {
            return Err(Flaw::unsupported("bits", &raw.bits, "2, 3, 4, 8"));
        }
        let pack_dtype = raw.pack_dtype.as_deref().unwrap_or("int32");
        if pack_dtype != "int32" {
            return Err(Flaw::unsupported("pack_dtype", &pack_dtype, "int32"));
        }
        let format = raw.checkpoint_format.or(raw.format);
        let format = format.as_deref().unwrap_or("gptq");
        let version = VERSIONS.iter().find(|(_, name)| *name == format).map(|(version, _)| *version);
        Ok(Self {
            bits: raw.bits,
            group_size: group_size(raw.group_size)?,
            symmetric: raw.sym,
            ordered: raw.desc_act,
            version: version
                .ok_or_else(|| Flaw::unsupported("checkpoint_format", &format, "gptq, gptq_v2"))?,
            ignore: Vec::new(),
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    const W4: Config = Config {
        bits: 4,
        group_size: Some(128),
        symmetric: true,
        ordered: false,
        version: Version::V1,
        ignore: Vec::new(),
    };

    #[test]
    fn any_config_reads_back() {
        for bits in BITS {
            for (group_size, version) in [(None, Version::V1), (Some(32), Version::V2)] {
                let config = Config { bits, group_size, version, symmetric: version == Version::V1, ..W4 };
                assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
            }
        }
    }

    #[test]
    fn what_early_writers_left_out_has_its_meaning() {
        let json = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
        assert_eq!(Config::from_json(&json).unwrap(), W4);
        let json =
            json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": false});
        assert_eq!(Config::from_json(&json).unwrap(), Config { ordered: true, symmetric: false, ..W4 });
    }

    #[test]
    fn modules_left_as_they_are_have_a_rule_each() {
        let json = Config { ignore: vec!["model.layers.0.mlp.gate".to_owned()], ..W4 }.to_json();
        assert_eq!(json["dynamic"], json!({r"-:^model\.layers\.0\.mlp\.gate$": {}}));
    }

    #[test]
    fn what_is_not_read_is_named_by_its_key() {
        for (key, value) in [
            ("bits", json!(5)),
            ("bits", json!(0)),
            ("group_size", json!(0)),
            ("group_size", json!(-2)),
            ("checkpoint_format", json!("marlin")),
            ("checkpoint_format", json!("gptq_p")),
            ("pack_dtype", json!("int8")),
        ] {
            let mut json = W4.to_json();
            json[key] = value.clone();
            match Config::from_json(&json) {
                Err(Flaw::Unsupported { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{key} {value}: {other:?}"),
            }
        }
    }

    #[test]
    fn json_of_another_form_is_refused() {
        for (key, value) in [
            ("bits", json!("4")),
            ("bits", json!(300)),
            ("bits", json!(null)),
            ("group_size", json!(1.5)),
            ("desc_act", json!("no")),
        ] {
            let mut json = W4.to_json();
            json[key] = value;
            assert!(matches!(Config::from_json(&json), Err(Flaw::Json { .. })), "{key}");
        }
    }
}
