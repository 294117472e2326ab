//! The compressed-tensors layout for packed integers: the JSON in `config.json`.
//!
//! Which tensors stand for a weight is the business of whoever packs them.
//!
//! # Source
//! The `compressed-tensors` package 0.20: `compressors/pack_quantized`, `quantization/quant_args.py`, `quant_config.py`.

#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::quantization::Flaw;

/// The layout's name in `quant_method`.
pub const QUANT_METHOD: &str = "compressed-tensors";
/// The one format of the layout that is written and read here.
pub const PACK_QUANTIZED: &str = "pack-quantized";
/// The version of the `compressed-tensors` package whose layout this is.
pub const VERSION: &str = "0.20.0";

/// How integers stand for a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    /// Bits of one code, 2 to 8.
    pub num_bits: u8,
    /// Weights of a row that share a scale; `None` where the whole row does.
    pub group_size: Option<usize>,
    /// Whether codes lie symmetrically about zero, so that no zero point is stored.
    pub symmetric: bool,
}

impl Scheme {
    fn to_json(self) -> Value {
        json!({
            "num_bits": self.num_bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": if self.group_size.is_some() { "group" } else { "channel" },
            "group_size": self.group_size,
            "dynamic": false,
        })
    }
}

/// Modules that share a scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Module names, class names (`Linear`), or patterns after `re:`.
    pub targets: Vec<String>,
    /// Their scheme.
    pub scheme: Scheme,
}

/// What `config.json` says about the layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The groups; where two match a module, the first counts.
    pub groups: Vec<Group>,
    /// Modules left as they are, named like targets.
    pub ignore: Vec<String>,
}

impl Packed {
    /// The value of [`CONFIG_KEY`](crate::quantization::CONFIG_KEY).
    pub fn to_json(&self) -> Value {
        let groups = self.groups.iter().enumerate().map(|(no, group)| {
            let group = json!({
                "targets": group.targets,
                "weights": group.scheme.to_json(),
                "input_activations": null,
                "output_activations": null,
                "format": PACK_QUANTIZED,
            });
            (format!("group_{no}"), group)
        });
        json!({
            "quant_method": QUANT_METHOD,
            "format": PACK_QUANTIZED,
            "quantization_status": "compressed",
            "config_groups": groups.collect::<serde_json::Map<_, _>>(),
            "ignore": self.ignore,
            "kv_cache_scheme": null,
            "global_compression_ratio": null,
            "version": VERSION,
        })
    }

    /// Reads the value of [`CONFIG_KEY`](crate::quantization::CONFIG_KEY).
    ///
    /// # Errors
    /// [`Flaw::Json`] where it is not of the layout's form, [`Flaw::Unsupported`] where it asks for something else
    /// than packed integer weights.
    pub fn from_json(json: &Value) -> Result<Self, Flaw> {
        let raw = RawPacked::deserialize(json).map_err(misformed)?;
        refuse_unless("format", raw.format.as_str(), &[PACK_QUANTIZED], PACK_QUANTIZED)?;
        let groups = raw.config_groups.values().map(Group::from_json).collect::<Result<_, _>>()?;
        Ok(Self { groups, ignore: raw.ignore.unwrap_or_default() })
    }
}

#[derive(Deserialize)]
struct RawPacked {
    format: String,
    config_groups: serde_json::Map<String, Value>,
    ignore: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawGroup {
    targets: Vec<String>,
    weights: RawScheme,
    input_activations: Option<Value>,
    format: Option<String>,
}

#[derive(Deserialize)]
struct RawScheme {
    num_bits: u8,
    #[serde(default = "int")]
    r#type: String,
    #[serde(default = "yes")]
    symmetric: bool,
    strategy: Option<String>,
    group_size: Option<i64>,
    actorder: Option<Value>,
}

fn int() -> String {
    "int".to_owned()
}

fn yes() -> bool {
    true
}

impl Group {
    fn from_json(json: &Value) -> Result<Self, Flaw> {
        let raw = RawGroup::deserialize(json).map_err(misformed)?;
        let format = raw.format.as_deref().unwrap_or(PACK_QUANTIZED);
        refuse_unless("format", format, &[PACK_QUANTIZED], PACK_QUANTIZED)?;
        if let Some(activations) = raw.input_activations {
            return Err(Flaw::unsupported("input_activations", &activations, "groups without"));
        }
        let weights = raw.weights;
        refuse_unless("type", &weights.r#type, &["int"], "int")?;
        if !(2..=8).contains(&weights.num_bits) {
            return Err(Flaw::unsupported("num_bits", &weights.num_bits, "2 to 8"));
        }
        let actorder = weights.actorder.unwrap_or_default();
        if !matches!(&actorder, Value::Null | Value::Bool(false)) {
            let actorder = actorder.as_str().unwrap_or("true");
            refuse_unless("actorder", actorder, &["weight", "static"], "`weight` and none")?;
        }
        let group_size = match (weights.strategy.as_deref(), weights.group_size) {
            (Some("group") | None, Some(size @ 1..)) => Some(size as usize),
            (Some("channel"), None | Some(-1)) | (None, Some(-1)) => None,
            (strategy, size) => {
                let value = format!("{} of {size:?}", strategy.unwrap_or("none"));
                return Err(Flaw::unsupported(
                    "strategy",
                    &value,
                    "`group` with a group_size, and `channel`",
                ));
            }
        };
        let scheme = Scheme { num_bits: weights.num_bits, group_size, symmetric: weights.symmetric };
        Ok(Self { targets: raw.targets, scheme })
    }
}

fn misformed(source: serde_json::Error) -> Flaw {
    Flaw::Json { layout: QUANT_METHOD, source }
}

fn refuse_unless(key: &'static str, value: &str, readable: &[&str], known: &str) -> Result<(), Flaw> {
    if readable.contains(&value) { Ok(()) } else { Err(Flaw::unsupported(key, &value, known)) }
}
