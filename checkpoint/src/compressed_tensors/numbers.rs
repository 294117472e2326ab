//! The formats of the layout besides packed integers: numbers of eight and four bits, each kind with one way to scale them.

use std::fmt;

use serde::Deserialize;
use serde_json::{Value, json};

use super::refuse_unless;
use crate::fp8::BLOCK;
use crate::quantization::Flaw;

/// A kind of numbers, what scales them, and how what they multiply is rounded.
#[derive(Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Its name as a scheme.
    pub name: &'static str,
    /// Its name in `format`.
    pub format: &'static str,
    num_bits: u8,
    kind: &'static str,
    strategy: &'static str,
    group_size: Option<i64>,
    block_structure: Option<[usize; 2]>,
    scale_dtype: Option<&'static str>,
    /// How programs that multiply in eight bits round a matrix's input, if they do.
    pub inputs: Option<Inputs>,
}

/// How the input of a matrix is rounded while it is read: to numbers of eight bits, scaled as the input itself suggests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    kind: &'static str,
    strategy: &'static str,
    group_size: Option<i64>,
}

const FP8: Numbers = Numbers {
    name: "fp8",
    format: "float-quantized",
    num_bits: 8,
    kind: "float",
    strategy: "channel",
    group_size: None,
    block_structure: None,
    scale_dtype: None,
    inputs: Some(Inputs::FP8),
};

const MXFP8: Numbers = Numbers {
    name: "mxfp8",
    format: "mxfp8-quantized",
    strategy: "group",
    group_size: Some(32),
    scale_dtype: Some("torch.uint8"),
    inputs: None,
    ..FP8
};

/// Every kind, as the package's preset schemes `W8A8`, `FP8_DYNAMIC`, `FP8_BLOCK`, `MXFP8A16`, `MXFP4A16` and `NVFP4A16` have them, and
/// `FP8_DYNAMIC` with one scale for each matrix.
pub static NUMBERS: [Numbers; 7] = [
    Numbers { name: "w8a8", format: "int-quantized", kind: "int", inputs: Some(Inputs::INT8), ..FP8 },
    FP8,
    Numbers { name: "fp8-tensor", strategy: "tensor", ..FP8 },
    Numbers {
        name: "fp8-block",
        strategy: "block",
        block_structure: Some(BLOCK),
        inputs: Some(Inputs::FP8_RUNS),
        ..FP8
    },
    MXFP8,
    Numbers { name: "mxfp4", format: "mxfp4-pack-quantized", num_bits: 4, ..MXFP8 },
    Numbers {
        name: "nvfp4",
        format: "nvfp4-pack-quantized",
        num_bits: 4,
        strategy: "tensor_group",
        group_size: Some(16),
        scale_dtype: Some("torch.float8_e4m3fn"),
        ..MXFP8
    },
];

/// Formats as they may stand in `format`; `naive-quantized` is how older versions call those whose numbers have a type of their own.
pub(super) const FORMATS: [&str; 6] = [
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mxfp8-quantized",
    "mxfp4-pack-quantized",
    "nvfp4-pack-quantized",
];

#[derive(Deserialize)]
struct RawNumbers {
    num_bits: u8,
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    symmetric: Option<bool>,
    strategy: Option<String>,
    group_size: Option<i64>,
    block_structure: Option<Value>,
}

impl Numbers {
    /// Whether blocks of rows and columns share a scale.
    pub fn is_tiled(&self) -> bool {
        self.block_structure.is_some()
    }

    /// The kind of a scheme's name.
    pub fn named(name: &str) -> Option<&'static Self> {
        NUMBERS.iter().find(|numbers| numbers.name == name)
    }

    /// The kind that `weights` of a group describe, in this `format`.
    ///
    /// # Errors
    /// What is not of the form, and what is no kind that is read.
    pub(super) fn from_json(format: &str, weights: &Value) -> Result<&'static Self, Flaw> {
        let raw = RawNumbers::deserialize(weights).map_err(super::misformed)?;
        let kind = raw.r#type.as_deref().unwrap_or("int");
        if raw.symmetric == Some(false) {
            return Err(Flaw::unsupported("symmetric", &false, "symmetric numbers"));
        }
        let mut fitting = NUMBERS.iter().filter(|numbers| {
            (numbers.format == format || format == "naive-quantized" && numbers.scale_dtype.is_none())
                && (numbers.num_bits, numbers.kind) == (raw.num_bits, kind)
        });
        let strategies: Vec<_> = fitting.clone().map(|numbers| numbers.strategy).collect();
        if strategies.is_empty() {
            return Err(Flaw::unsupported(
                "num_bits",
                &format!("{} ({kind}) in {format}", raw.num_bits),
                "8, and 4 in FP4",
            ));
        }
        let strategy = raw.strategy.as_deref().unwrap_or(match raw.group_size {
            None => "tensor",
            Some(-1) => "channel",
            Some(_) => "group",
        });
        refuse_unless("strategy", strategy, &strategies, &strategies.join(", "))?;
        let tile = |structure: &Value| *structure == json!([128, 128]) || *structure == json!("128x128");
        fitting
            .find(|numbers| {
                let sized = raw.group_size.filter(|&size| size > 0) == numbers.group_size;
                let tiled = raw.block_structure.as_ref().filter(|structure| !structure.is_null());
                numbers.strategy == strategy
                    && sized
                    && tiled.is_some_and(tile) == numbers.block_structure.is_some()
            })
            .ok_or_else(|| {
                let value = format!("{:?}, block_structure {:?}", raw.group_size, raw.block_structure);
                Flaw::unsupported("group_size", &value, "32, with FP4 16, and blocks of 128 x 128")
            })
    }

    /// What a group says of the weights.
    pub(super) fn to_json(&self) -> Value {
        let mut json = json!({
            "num_bits": self.num_bits,
            "type": self.kind,
            "symmetric": true,
            "strategy": self.strategy,
            "group_size": self.group_size,
            "dynamic": false,
        });
        if let Some(structure) = self.block_structure {
            json["block_structure"] = json!(structure);
        }
        if let Some(dtype) = self.scale_dtype {
            json["scale_dtype"] = json!(dtype);
        }
        json
    }
}

impl Inputs {
    /// Eight-bit floats, one scale for a token.
    pub const FP8: Self = Self { kind: "float", strategy: "token", group_size: None };
    /// Integers, one scale for a token.
    pub const INT8: Self = Self { kind: "int", ..Self::FP8 };
    /// Eight-bit floats, one scale for 128 of them.
    pub const FP8_RUNS: Self = Self { strategy: "group", group_size: Some(128), ..Self::FP8 };

    /// The way a group describes; `None` where it is none of those that are followed.
    pub(super) fn from_json(json: &Value) -> Option<Self> {
        let same = |inputs: &&Self| {
            inputs.to_json().as_object().is_some_and(|own| {
                own.iter().all(|(key, value)| {
                    let said = json.get(key).unwrap_or(&Value::Null);
                    said == value || key == "symmetric" && said.is_null()
                })
            })
        };
        [Self::INT8, Self::FP8, Self::FP8_RUNS].iter().find(same).copied()
    }

    /// Whether the numbers are floats rather than integers.
    pub fn is_float(self) -> bool {
        self.kind == "float"
    }

    /// Consecutive features of a token that share a scale; `None` where all do.
    pub fn run(self) -> Option<usize> {
        self.group_size.and_then(|size| usize::try_from(size).ok())
    }

    pub(super) fn to_json(self) -> Value {
        json!({
            "num_bits": 8,
            "type": self.kind,
            "symmetric": true,
            "strategy": self.strategy,
            "group_size": self.group_size,
            "dynamic": true,
        })
    }
}

/// For people.
impl fmt::Display for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = if self.is_float() { "fp8" } else { "int8" };
        match self.group_size {
            Some(run) => write!(f, "as {numbers} with a scale for each {run} of a token"),
            None => write!(f, "as {numbers} with a scale for each token"),
        }
    }
}
