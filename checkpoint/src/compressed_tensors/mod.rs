//! The compressed-tensors layout for packed integers: names, shapes and the JSON in `config.json`.
//!
//! A weight `X.weight`, `[out_features, in_features]`, stored by a [`Scheme`] becomes
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `X.weight_packed` | i32 | `[out_features, ceil(in_features * num_bits / 32)]` |
//! | `X.weight_scale` | float | `[out_features, groups]` |
//! | `X.weight_zero_point` (asymmetric only) | i32 | `[ceil(out_features * num_bits / 32), groups]` |
//! | `X.weight_shape` | i64 | `[2]`, holding `out_features, in_features` |
//!
//! The bits inside the words are the business of whoever packs them.
//!
//! # Source
//! The `compressed-tensors` package 0.20: `compressors/pack_quantized`, `quantization/quant_args.py`, `quant_config.py`.

#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Container, Dtype, Error, TensorInfo};

/// The key of `config.json` the layout is described under.
pub const CONFIG_KEY: &str = "quantization_config";
/// The layout's name in `quant_method`.
pub const QUANT_METHOD: &str = "compressed-tensors";
/// The one format of the layout that is written and read here.
pub const PACK_QUANTIZED: &str = "pack-quantized";
/// The version of the `compressed-tensors` package whose layout this is.
pub const VERSION: &str = "0.20.0";

/// How integers stand for a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    /// Bits of one code, 1 to 8.
    pub num_bits: u8,
    /// Weights of a row that share a scale; `None` where the whole row does.
    pub group_size: Option<usize>,
    /// Whether codes lie symmetrically about zero, so that no zero point is stored.
    pub symmetric: bool,
}

/// The names of the tensors that stand for one weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The codes.
    pub packed: String,
    /// The scales.
    pub scale: String,
    /// The zero points; absent from symmetric schemes.
    pub zero_point: String,
    /// The weight's own shape.
    pub shape: String,
}

impl Names {
    /// The names for the weight `X.weight`; `None` for a name that does not end so.
    pub fn of(weight: &str) -> Option<Self> {
        let stem = weight.strip_suffix(".weight")?;
        Some(Self {
            packed: format!("{stem}.weight_packed"),
            scale: format!("{stem}.weight_scale"),
            zero_point: format!("{stem}.weight_zero_point"),
            shape: format!("{stem}.weight_shape"),
        })
    }
}

/// The name of the tensor that holds the codes of `weight`, which is there exactly where the weight is packed.
pub fn packed_name(weight: &str) -> String {
    format!("{weight}_packed")
}

/// The weight a packed tensor stands for: `X.weight` for `X.weight_packed`.
pub fn weight_of(packed: &str) -> Option<String> {
    packed.strip_suffix("_packed").filter(|weight| weight.ends_with(".weight")).map(str::to_owned)
}

/// Words that `values` codes of `num_bits` bits fill.
pub fn words(values: usize, num_bits: u8) -> usize {
    (values * usize::from(num_bits)).div_ceil(32)
}

impl Scheme {
    /// Groups of a row of `in_features`; `None` where the group size does not divide it, which no reader accepts.
    pub fn groups(&self, in_features: usize) -> Option<usize> {
        match self.group_size {
            None => Some(1),
            Some(0) => None,
            Some(size) => in_features.is_multiple_of(size).then(|| in_features / size),
        }
    }

    /// The tensors that stand for `weight` of `shape`, in the order packed, scale, zero point if any, shape.
    ///
    /// Transformers casts scales to the type it loads the model in: `scale_dtype` should be the one `config.json`
    /// names.
    ///
    /// `None` where the name does not end in `.weight` or the group size does not divide the rows.
    pub fn tensors(&self, weight: &str, shape: [usize; 2], scale_dtype: Dtype) -> Option<Vec<TensorInfo>> {
        let [out_features, in_features] = shape;
        let names = Names::of(weight)?;
        let groups = self.groups(in_features)?;
        let packed = [out_features, words(in_features, self.num_bits)];
        let mut tensors = vec![
            TensorInfo::new(names.packed, Dtype::I32, &packed),
            TensorInfo::new(names.scale, scale_dtype, &[out_features, groups]),
        ];
        if !self.symmetric {
            let zero_point = [words(out_features, self.num_bits), groups];
            tensors.push(TensorInfo::new(names.zero_point, Dtype::I32, &zero_point));
        }
        tensors.push(TensorInfo::new(names.shape, Dtype::I64, &[2]));
        Some(tensors)
    }

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

/// What a whole `config.json` says about the layout; `None` where it names no quantization at all.
///
/// # Errors
/// As [`Packed::from_json`].
pub fn parse(config: &Value) -> Result<Option<Packed>, Flaw> {
    config.get(CONFIG_KEY).filter(|json| !json.is_null()).map(Packed::from_json).transpose()
}

/// The bytes of a `weight_shape`.
pub fn shape_bytes(shape: [usize; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(shape[0] as i64).to_le_bytes());
    bytes[8..].copy_from_slice(&(shape[1] as i64).to_le_bytes());
    bytes
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

/// Why a checkpoint in this layout cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// The JSON lacks something or has it in another type.
    #[error("its {CONFIG_KEY} is not of the form compressed-tensors writes")]
    Json(#[from] serde_json::Error),
    /// Another layout, or a part of this one that is not read here.
    #[error("its {CONFIG_KEY} has {key} = {value}; read are {known}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What it holds.
        value: String,
        /// What could be read.
        known: &'static str,
    },
    /// The tensors of a weight and every group of the config contradict each other.
    #[error("the tensors that stand for `{weight}` fit no group of the {CONFIG_KEY}")]
    FitsNoGroup {
        /// The weight.
        weight: String,
    },
    /// A tensor that the others need is absent or broken.
    #[error(transparent)]
    Tensor(#[from] Error),
}

impl Packed {
    /// The value of [`CONFIG_KEY`].
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

    /// Reads the value of [`CONFIG_KEY`].
    ///
    /// # Errors
    /// [`Flaw::Json`] where it is not of the layout's form, [`Flaw::Unsupported`] where it asks for something else
    /// than packed integer weights.
    pub fn from_json(json: &Value) -> Result<Self, Flaw> {
        // Other methods have other keys: theirs is said before any of them is missed.
        if let Some(method) = json["quant_method"].as_str() {
            refuse_unless("quant_method", method, &[QUANT_METHOD], QUANT_METHOD)?;
        }
        let raw = RawPacked::deserialize(json)?;
        refuse_unless("quant_method", raw.quant_method.as_str(), &[QUANT_METHOD], QUANT_METHOD)?;
        refuse_unless("format", raw.format.as_str(), &[PACK_QUANTIZED], PACK_QUANTIZED)?;
        let groups = raw.config_groups.values().map(Group::from_json).collect::<Result<_, _>>()?;
        Ok(Self { groups, ignore: raw.ignore.unwrap_or_default() })
    }

    /// The scheme and shape of `weight`, told by the tensors that stand for it; `None` where it is not packed.
    ///
    /// The first group whose scheme gives exactly the tensors found is the one: no pattern has to be matched.
    ///
    /// # Errors
    /// [`Flaw::FitsNoGroup`] where types or shapes belong to none of the groups, [`Flaw::Tensor`] where
    /// `weight_shape` is absent.
    pub fn find(
        &self,
        container: &dyn Container,
        weight: &str,
    ) -> Result<Option<(Scheme, [usize; 2])>, Flaw> {
        let Some(names) = Names::of(weight).filter(|names| container.info(&names.packed).is_some()) else {
            return Ok(None);
        };
        let misfit = || Flaw::FitsNoGroup { weight: weight.to_owned() };
        let shape = read_shape(container.bytes(&names.shape)?).ok_or_else(misfit)?;
        let scale_dtype = container.info(&names.scale).ok_or_else(misfit)?.dtype;
        let zero_point = container.info(&names.zero_point);
        let fits = |scheme: &Scheme| {
            let wanted = scheme.tensors(weight, shape, scale_dtype).unwrap_or_default();
            !wanted.is_empty()
                && scheme.symmetric == zero_point.is_none()
                && wanted.iter().all(|info| container.info(&info.name) == Some(info))
        };
        let group = self.groups.iter().find(|group| fits(&group.scheme)).ok_or_else(misfit)?;
        Ok(Some((group.scheme, shape)))
    }
}

/// The two numbers of a `weight_shape`, small enough that no count of words or bytes overflows.
fn read_shape(bytes: &[u8]) -> Option<[usize; 2]> {
    let ([out_features, in_features], []) = bytes.as_chunks::<8>() else { return None };
    let dim = |bytes: &[u8; 8]| u32::try_from(i64::from_le_bytes(*bytes)).ok().filter(|&dim| dim < 1 << 28);
    Some([dim(out_features)? as usize, dim(in_features)? as usize])
}

#[derive(Deserialize)]
struct RawPacked {
    quant_method: String,
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
        let raw = RawGroup::deserialize(json)?;
        let format = raw.format.as_deref().unwrap_or(PACK_QUANTIZED);
        refuse_unless("format", format, &[PACK_QUANTIZED], PACK_QUANTIZED)?;
        if let Some(activations) = raw.input_activations {
            return Err(unsupported("input_activations", &activations, "groups without"));
        }
        let weights = raw.weights;
        refuse_unless("type", &weights.r#type, &["int"], "int")?;
        if !(1..=8).contains(&weights.num_bits) {
            return Err(unsupported("num_bits", &weights.num_bits, "1 to 8"));
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
                return Err(unsupported("strategy", &value, "`group` with a group_size, and `channel`"));
            }
        };
        let scheme = Scheme { num_bits: weights.num_bits, group_size, symmetric: weights.symmetric };
        Ok(Self { targets: raw.targets, scheme })
    }
}

fn unsupported(key: &'static str, value: &dyn ToString, known: &'static str) -> Flaw {
    Flaw::Unsupported { key, value: value.to_string(), known }
}

fn refuse_unless(key: &'static str, value: &str, readable: &[&str], known: &'static str) -> Result<(), Flaw> {
    if readable.contains(&value) { Ok(()) } else { Err(unsupported(key, &value, known)) }
}
