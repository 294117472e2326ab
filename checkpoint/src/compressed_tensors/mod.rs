//! The compressed-tensors layout: the JSON in `config.json`.
//!
//! Which tensors stand for a weight is the business of whoever packs them.
//!
//! # Source
//! The `compressed-tensors` package 0.20: `compressors/pack_quantized`, `quantization/quant_args.py`, `quant_config.py`.

mod numbers;
#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::{Value, json};

use self::numbers::FORMATS;
pub use self::numbers::{Inputs, NUMBERS, Numbers};
use crate::quantization::Flaw;

/// The layout's name in `quant_method`.
pub const QUANT_METHOD: &str = "compressed-tensors";
/// The format of packed integers; those of other numbers are in [`NUMBERS`].
pub const PACK_QUANTIZED: &str = "pack-quantized";
/// What stands for the format of a model whose groups have several.
const MIXED: &str = "mixed-precision";
/// What is told of formats.
const READ: &str = "pack-quantized, int-quantized, float-quantized, mxfp8-quantized, mxfp4-pack-quantized, nvfp4-pack-quantized";
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

/// What stands for the weights of some modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// Packed integers.
    Integers(Scheme),
    /// Numbers of a kind.
    Numbers(&'static Numbers),
}

impl Weights {
    fn format(self) -> &'static str {
        match self {
            Self::Integers(_) => PACK_QUANTIZED,
            Self::Numbers(numbers) => numbers.format,
        }
    }

    fn to_json(self) -> Value {
        match self {
            Self::Integers(scheme) => scheme.to_json(),
            Self::Numbers(numbers) => numbers.to_json(),
        }
    }
}

/// Modules that share a scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Module names, class names (`Linear`), or patterns after `re:`.
    pub targets: Vec<String>,
    /// What stands for their weights.
    pub weights: Weights,
    /// How what they multiply is rounded while it is read.
    pub inputs: Rounds,
}

/// How what a matrix multiplies is rounded while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounds {
    /// It is not.
    No,
    /// So.
    As(Inputs),
    /// In a way that is not followed here.
    Otherwise,
}

impl From<Option<Inputs>> for Rounds {
    fn from(inputs: Option<Inputs>) -> Self {
        inputs.map_or(Self::No, Self::As)
    }
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
                "weights": group.weights.to_json(),
                "input_activations": match group.inputs {
                    Rounds::As(inputs) => inputs.to_json(),
                    Rounds::No | Rounds::Otherwise => Value::Null,
                },
                "output_activations": null,
                "format": group.weights.format(),
            });
            (format!("group_{no}"), group)
        });
        let mut formats = self.groups.iter().map(|group| group.weights.format());
        let first = formats.next().unwrap_or(PACK_QUANTIZED);
        json!({
            "quant_method": QUANT_METHOD,
            "format": if formats.all(|format| format == first) { first } else { MIXED },
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
    /// [`Flaw::Json`] where it is not of the layout's form, [`Flaw::Unsupported`] where it asks for something that is not read here.
    pub fn from_json(json: &Value) -> Result<Self, Flaw> {
        let raw = RawPacked::deserialize(json).map_err(misformed)?;
        let format = raw.format.as_str();
        if format != MIXED {
            check_format(format)?;
        }
        let groups = raw.config_groups.values().map(|group| Group::from_json(group, format));
        let groups = groups.collect::<Result<_, _>>()?;
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
    weights: Value,
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
    /// All linear layers, their inputs as programs read them that multiply such weights.
    pub fn of_linear(weights: Weights) -> Self {
        let inputs = match weights {
            Weights::Integers(_) => None,
            Weights::Numbers(numbers) => numbers.inputs,
        };
        Self { targets: vec!["Linear".to_owned()], weights, inputs: inputs.into() }
    }

    /// Reads a group of a model in this format.
    fn from_json(json: &Value, format: &str) -> Result<Self, Flaw> {
        let raw = RawGroup::deserialize(json).map_err(misformed)?;
        let format = raw.format.as_deref().unwrap_or(format);
        check_format(format)?;
        let weights = if format == PACK_QUANTIZED {
            Weights::Integers(Scheme::from_json(&raw.weights)?)
        } else {
            Weights::Numbers(Numbers::from_json(format, &raw.weights)?)
        };
        let inputs = match &raw.input_activations {
            None | Some(Value::Null) => Rounds::No,
            Some(said) => Inputs::from_json(said).map_or(Rounds::Otherwise, Rounds::As),
        };
        Ok(Self { targets: raw.targets, weights, inputs })
    }
}

impl Scheme {
    fn from_json(json: &Value) -> Result<Self, Flaw> {
        let weights = RawScheme::deserialize(json).map_err(misformed)?;
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
        Ok(Self { num_bits: weights.num_bits, group_size, symmetric: weights.symmetric })
    }
}

fn check_format(format: &str) -> Result<(), Flaw> {
    if format == PACK_QUANTIZED { Ok(()) } else { refuse_unless("format", format, &FORMATS, READ) }
}

fn misformed(source: serde_json::Error) -> Flaw {
    Flaw::Json { layout: QUANT_METHOD, source }
}

fn refuse_unless(key: &'static str, value: &str, readable: &[&str], known: &str) -> Result<(), Flaw> {
    if readable.contains(&value) { Ok(()) } else { Err(Flaw::unsupported(key, &value, known)) }
}
