//! config.json, as transformers 4 and 5 write it.

mod keys;
mod layers;
mod write;

use super::{AttentionScale, Experts, ModelConfig, Multipliers, RopeScaling, listed, value};
use crate::Error;
use crate::family::{Activation, AttentionBias, FAMILIES, Family, Scales, SoftCap};
pub(super) use keys::Keys;
use serde_json::Value;

/// The key that names the gate's activation, and its names for the one that is computed.
fn activation(family: &Family) -> (&'static str, &'static [&'static str]) {
    match family.activation {
        Activation::Silu => ("hidden_act", &["silu", "swish"]),
        Activation::GeluTanh => ("hidden_activation", &["gelu_pytorch_tanh"]),
    }
}

impl ModelConfig {
    /// Reads a Hugging Face configuration.
    ///
    /// # Errors
    /// An architecture that is not known, a key that is missing or makes no sense, an option that is not computed.
    pub fn from_hf(config: &Value) -> Result<Self, Error> {
        let family = family(config)?;
        let (keys, defaults) = (Keys(config), family.defaults);
        let (key, names) = activation(family);
        keys.one_of(key, names[0], names)?;
        let hidden_size = keys.needed("hidden_size")?;
        let num_hidden_layers = keys.needed("num_hidden_layers")?;
        let num_attention_heads: usize = keys.needed("num_attention_heads")?;
        let kv_default = defaults.num_key_value_heads.unwrap_or(num_attention_heads);
        let head_dim = match keys.size("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None => whole_heads(hidden_size, num_attention_heads)?,
        };
        let attention_bias = match family.attention_bias {
            AttentionBias::Configured => keys.flag("attention_bias")?,
            AttentionBias::Qkv => true,
            AttentionBias::Never => false,
        };
        let rope = layers::rope(keys, family, head_dim)?;
        let scales = scales(keys, family, hidden_size, head_dim)?;
        let experts = family.experts.as_ref();
        let experts =
            experts.map(|experts| Experts::from_hf(keys, experts, num_hidden_layers)).transpose()?;
        let rope_layers = layers::rope_layers(keys, family, num_hidden_layers)?;
        Self {
            family,
            hidden_size,
            intermediate_size: keys.needed("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: keys.size("num_key_value_heads")?.unwrap_or(kv_default),
            layer_sizes: Vec::new(),
            head_dim,
            vocab_size: keys.needed("vocab_size")?,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps) as f32,
            rotary_dim: rope.dim,
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            local_rope_theta: rope.local_theta,
            attention_scale: scales.attention,
            attention_cap: soft_cap(keys, "attn_logit_softcapping", family.attention_cap)?,
            embedding_multiplier: scales.embedding,
            residual_multiplier: scales.residual,
            logits_scaling: scales.logits,
            logit_cap: soft_cap(keys, "final_logit_softcapping", family.logit_cap)?,
            tie_word_embeddings: keys.flag_or("tie_word_embeddings", defaults.tie_word_embeddings)?,
            attention_bias,
            output_bias: attention_bias && family.attention_bias == AttentionBias::Configured,
            mlp_bias: family.mlp_bias && keys.flag("mlp_bias")?,
            sliding_windows: layers::sliding_windows(keys, family, &rope_layers)?,
            rope_layers,
            experts,
            max_position_embeddings: keys
                .size("max_position_embeddings")?
                .unwrap_or(defaults.max_position_embeddings),
            bos_token_id: keys.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: keys.tokens("eos_token_id")?,
        }
        .checked()
    }
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

fn scales(
    keys: Keys<'_>,
    family: &Family,
    hidden_size: usize,
    head_dim: usize,
) -> Result<Multipliers, Error> {
    let multiplier = |key| Ok::<_, Error>(keys.number(key)?.unwrap_or(1.0) as f32);
    Ok(match family.scales {
        Scales::Plain => Multipliers::plain(head_dim),
        Scales::RootOfHiddenSize { .. } => Multipliers {
            embedding: (hidden_size as f64).sqrt() as f32,
            ..Multipliers::plain(keys.size("query_pre_attn_scalar")?.unwrap_or(256))
        },
        Scales::Configured => Multipliers {
            attention: AttentionScale::Times(multiplier("attention_multiplier")?),
            embedding: multiplier("embedding_multiplier")?,
            residual: multiplier("residual_multiplier")?,
            logits: multiplier("logits_scaling")?,
        },
    })
}

/// A key that is missing has its default, one that is null says that there is no bound.
fn soft_cap(keys: Keys<'_>, key: &str, cap: SoftCap) -> Result<Option<f32>, Error> {
    match (cap, keys.0.get(key)) {
        (SoftCap::Never, _) => Ok(None),
        (SoftCap::Configured(default), None) => Ok(default),
        (SoftCap::Configured(_), Some(_)) => Ok(keys.number(key)?.map(|cap| cap as f32)),
    }
}

fn unsupported(key: &str, found: impl ToString, known: String) -> Error {
    Error::Unsupported { key: key.into(), found: found.to_string(), known }
}
