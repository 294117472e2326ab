//! config.json, as transformers 4 and 5 write it.

use super::{Llama3Scaling, ModelConfig, RopeScaling, listed, value};
use crate::Error;
use crate::family::{AttentionBias, FAMILIES, Family, Sliding};
use serde_json::{Value, json};

/// Kinds of rotary scaling that are computed.
const ROPE_TYPES: [&str; 3] = ["default", "linear", "llama3"];

/// Activations of the MLP's gate that are computed: two names for one function.
const ACTIVATIONS: [&str; 2] = ["silu", "swish"];

impl ModelConfig {
    /// Reads a Hugging Face configuration.
    ///
    /// # Errors
    /// An architecture that is not known, a key that is missing or makes no sense, an option that is not computed.
    pub fn from_hf(config: &Value) -> Result<Self, Error> {
        let family = family(config)?;
        let keys = Keys(config);
        keys.one_of("hidden_act", "silu", &ACTIVATIONS)?;
        let hidden_size = keys.needed("hidden_size")?;
        let num_hidden_layers = keys.needed("num_hidden_layers")?;
        let num_attention_heads: usize = keys.needed("num_attention_heads")?;
        let kv_default = family.defaults.num_key_value_heads.unwrap_or(num_attention_heads);
        let head_dim = match keys.size("head_dim")?.or(family.defaults.head_dim) {
            Some(head_dim) => head_dim,
            None => whole_heads(hidden_size, num_attention_heads)?,
        };
        let attention_bias = match family.attention_bias {
            AttentionBias::Configured => keys.flag("attention_bias")?,
            AttentionBias::Qkv => true,
            AttentionBias::Never => false,
        };
        let (rope_theta, rope_scaling) = rope(keys)?;
        let max_position_embeddings = keys.size("max_position_embeddings")?;
        Self {
            family,
            hidden_size,
            intermediate_size: keys.needed("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: keys.size("num_key_value_heads")?.unwrap_or(kv_default),
            head_dim,
            vocab_size: keys.needed("vocab_size")?,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?,
            attention_bias,
            output_bias: attention_bias && family.attention_bias == AttentionBias::Configured,
            mlp_bias: family.mlp_bias && keys.flag("mlp_bias")?,
            sliding_windows: sliding_windows(keys, family, num_hidden_layers)?,
            max_position_embeddings: max_position_embeddings
                .unwrap_or(family.defaults.max_position_embeddings),
            bos_token_id: keys.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: keys.tokens("eos_token_id")?,
        }
        .checked()
    }

    /// The configuration as transformers reads it: the reverse of [`from_hf`](Self::from_hf).
    ///
    /// # Errors
    /// Factors of the rotary frequencies that came from a GGUF file: transformers knows them only by the constants they
    /// were computed from.
    pub fn to_hf(&self) -> Result<Value, Error> {
        let family = self.family;
        let rope_scaling = match &self.rope_scaling {
            None => Value::Null,
            Some(RopeScaling::Linear(factor)) => {
                json!({"rope_type": "linear", "type": "linear", "factor": factor})
            }
            Some(RopeScaling::Llama3(c)) => json!({
                "rope_type": "llama3",
                "factor": c.factor,
                "low_freq_factor": c.low_freq_factor,
                "high_freq_factor": c.high_freq_factor,
                "original_max_position_embeddings": c.original_max_position_embeddings,
            }),
            Some(RopeScaling::Factors(_)) => {
                return Err(unsupported("rope_freqs.weight", "a tensor", "constants in config.json".into()));
            }
        };
        let mut config = json!({
            "architectures": family.architectures.first(),
            "model_type": family.model_types.first(),
            "hidden_act": ACTIVATIONS[0],
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_theta": self.rope_theta,
            "rope_scaling": rope_scaling,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": match &self.eos_token_ids[..] {
                [] => Value::Null,
                [one] => json!(one),
                several => json!(several),
            },
        });
        if family.attention_bias == AttentionBias::Configured {
            config["attention_bias"] = json!(self.attention_bias);
        }
        if family.mlp_bias {
            config["mlp_bias"] = json!(self.mlp_bias);
        }
        match (family.sliding, self.sliding_windows.iter().flatten().next()) {
            (Sliding::Never, _) => {}
            (Sliding::All(_), width) => config["sliding_window"] = json!(width),
            (Sliding::Configured, width) => {
                let kind = |window: &Option<usize>| window.map_or("full_attention", |_| "sliding_attention");
                config["use_sliding_window"] = json!(width.is_some());
                config["sliding_window"] = json!(width);
                config["layer_types"] = self.sliding_windows.iter().map(kind).collect();
            }
        }
        Ok(config)
    }
}

/// A number with as many digits as tell it from its neighbours in f32.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| x.into())
}

fn family(config: &Value) -> Result<&'static Family, Error> {
    let architecture = config["architectures"][0].as_str();
    let model_type = config["model_type"].as_str();
    let claims = |family: &Family| match (architecture, model_type) {
        (Some(name), _) => family.architectures.contains(&name),
        (None, Some(name)) => family.model_types.contains(&name),
        (None, None) => false,
    };
    if architecture.or(model_type).is_none() {
        return Err(Error::Missing { key: "architectures".into() });
    }
    FAMILIES.iter().copied().find(|family| claims(family)).ok_or_else(|| Error::UnknownArchitecture {
        found: architecture.or(model_type).unwrap_or_default().into(),
        known: listed(FAMILIES.iter().flat_map(|family| family.architectures.iter().copied())),
    })
}

fn whole_heads(hidden_size: usize, heads: usize) -> Result<usize, Error> {
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        return Err(value("num_attention_heads", heads, format!("a divisor of hidden_size {hidden_size}")));
    }
    Ok(hidden_size / heads)
}

/// Base and scaling of the rotary frequencies: `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling`.
fn rope(keys: Keys<'_>) -> Result<(f64, Option<RopeScaling>), Error> {
    let parameters =
        ["rope_parameters", "rope_scaling"].map(|key| &keys.0[key]).into_iter().find(|x| !x.is_null());
    let rope = Keys(parameters.unwrap_or(&Value::Null));
    for keys in [keys, rope] {
        let share = keys.number("partial_rotary_factor")?.unwrap_or(1.0);
        #[expect(clippy::float_cmp, reason = "it is one or it is not")]
        if share != 1.0 {
            return Err(unsupported("partial_rotary_factor", share, "1".into()));
        }
    }
    let theta = rope.number("rope_theta")?.or(keys.number("rope_theta")?).unwrap_or(10_000.0);
    let key = if rope.0["rope_type"].is_null() { "type" } else { "rope_type" };
    let scaling = match rope.one_of(key, "default", &ROPE_TYPES)? {
        "linear" => Some(RopeScaling::Linear(rope.needed_number("factor")?)),
        "llama3" => Some(RopeScaling::Llama3(Llama3Scaling {
            factor: rope.needed_number("factor")?,
            low_freq_factor: rope.needed_number("low_freq_factor")?,
            high_freq_factor: rope.needed_number("high_freq_factor")?,
            original_max_position_embeddings: match rope.number("original_max_position_embeddings")? {
                Some(tokens) => tokens,
                None => keys.needed_number("max_position_embeddings")?,
            },
        })),
        _ if rope.0["full_attention"].is_object() || rope.0["sliding_attention"].is_object() => {
            return Err(unsupported(
                "rope_parameters",
                "one set for each type of layer",
                "one set for all".into(),
            ));
        }
        _ => None,
    };
    Ok((theta, scaling))
}

fn sliding_windows(keys: Keys<'_>, family: &Family, layers: usize) -> Result<Vec<Option<usize>>, Error> {
    let width = match (family.sliding, keys.0.get("sliding_window")) {
        (Sliding::All(width), None) => Some(width),
        (Sliding::All(_), Some(_)) => keys.size("sliding_window")?,
        (Sliding::Configured, _) if keys.flag("use_sliding_window")? => Some(keys.needed("sliding_window")?),
        (Sliding::Never | Sliding::Configured, _) => None,
    };
    let layers = layers.min(super::MOST_LAYERS);
    if width == Some(0) {
        return Err(value("sliding_window", 0, "a positive number or null".into()));
    }
    if width.is_none() || family.sliding != Sliding::Configured {
        return Ok(vec![width; layers]);
    }
    let Some(types) = keys.0["layer_types"].as_array() else {
        let full = keys.size("max_window_layers")?.unwrap_or(28);
        return Ok((0..layers).map(|layer| width.filter(|_| layer >= full)).collect());
    };
    if types.len() != layers {
        return Err(value(
            "layer_types",
            format!("a list of {}", types.len()),
            format!("one entry for each of {layers} layers"),
        ));
    }
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("sliding_attention") => Ok(width),
            Some("full_attention") => Ok(None),
            _ => Err(unsupported("layer_types", kind, listed(["full_attention", "sliding_attention"]))),
        })
        .collect()
}

fn unsupported(key: &str, found: impl ToString, known: String) -> Error {
    Error::Unsupported { key: key.into(), found: found.to_string(), known }
}

/// Typed access to the keys of a JSON object. A key whose value is null is a key that is not there.
#[derive(Clone, Copy)]
struct Keys<'a>(&'a Value);

impl<'a> Keys<'a> {
    fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(
        self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.get(key).map(|found| read(found).ok_or_else(|| value(key, found, expected.into()))).transpose()
    }

    fn size(self, key: &str) -> Result<Option<usize>, Error> {
        self.read(key, "a whole number", |x| x.as_u64().and_then(|x| x.try_into().ok()))
    }

    fn needed(self, key: &str) -> Result<usize, Error> {
        self.size(key)?.ok_or_else(|| Error::Missing { key: key.into() })
    }

    fn number(self, key: &str) -> Result<Option<f64>, Error> {
        self.read(key, "a number", Value::as_f64)
    }

    fn needed_number(self, key: &str) -> Result<f64, Error> {
        self.number(key)?.ok_or_else(|| Error::Missing { key: key.into() })
    }

    fn flag(self, key: &str) -> Result<bool, Error> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn one_of(self, key: &str, default: &'a str, known: &[&str]) -> Result<&'a str, Error> {
        let found = self.read(key, "a name", Value::as_str)?.unwrap_or(default);
        if known.contains(&found) {
            Ok(found)
        } else {
            Err(unsupported(key, format!("`{found}`"), listed(known.iter().copied())))
        }
    }

    /// A token, or a list of them.
    fn tokens(self, key: &str) -> Result<Vec<u32>, Error> {
        let token = |x: &Value| x.as_u64().and_then(|x| u32::try_from(x).ok());
        let tokens = self.read(key, "a token or a list of tokens", |x| match x {
            Value::Array(tokens) => tokens.iter().map(token).collect(),
            one => token(one).map(|token| vec![token]),
        })?;
        Ok(tokens.unwrap_or_default())
    }
}
