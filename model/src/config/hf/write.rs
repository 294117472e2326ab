//! The way back: a configuration that transformers reads.

use super::{AttentionScale, ModelConfig, RopeScaling, activation, unsupported};
use crate::Error;
use crate::family::{AttentionBias, Scales, Sliding, SoftCap};
use serde_json::{Value, json};

impl ModelConfig {
    /// The configuration as transformers reads it: the reverse of [`from_hf`](Self::from_hf).
    ///
    /// # Errors
    /// Factors of the rotary frequencies that came from a GGUF file: transformers knows them only by the constants they
    /// were computed from. Layers with sizes of their own.
    pub fn to_hf(&self) -> Result<Value, Error> {
        if !self.layer_sizes.is_empty() {
            let (found, known) =
                ("another number for each layer", "one number for all layers in config.json");
            return Err(unsupported("intermediate_size", found, known.into()));
        }
        let family = self.family;
        let (key, names) = activation(family);
        let mut config = json!({
            "architectures": family.architectures.iter().take(1).collect::<Vec<_>>(),
            "model_type": family.model_types.first(),
            key: names[0],
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
            "rope_scaling": self.rope_scaling_hf()?,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": match &self.eos_token_ids[..] {
                [] => Value::Null,
                [one] => json!(one),
                several => json!(several),
            },
            // The default of some families lies outside a small vocabulary.
            "pad_token_id": null,
        });
        if family.attention_bias == AttentionBias::Configured {
            config["attention_bias"] = json!(self.attention_bias);
        }
        if family.mlp_bias {
            config["mlp_bias"] = json!(self.mlp_bias);
        }
        if let (Some(experts), Some(family)) = (&self.experts, &family.experts) {
            experts.write_hf(family, &mut config);
        }
        self.add_rotary(&mut config);
        self.add_windows(&mut config);
        self.add_scales(&mut config);
        Ok(config)
    }

    fn add_rotary(&self, config: &mut Value) {
        if self.rotary_dim != self.head_dim {
            config["partial_rotary_factor"] = json!(self.rotary_dim as f64 / self.head_dim as f64);
        }
        if let Some(theta) = self.local_rope_theta {
            config["rope_local_base_freq"] = json!(theta);
        }
        if let Some(RopeScaling::LongRope(long)) = &self.rope_scaling {
            config["original_max_position_embeddings"] = json!(long.original_max_position_embeddings);
        }
        if self.family.no_rope_layer_interval.is_some() {
            config["no_rope_layers"] = self.rope_layers.iter().map(|&has| u8::from(has)).collect();
        }
    }

    fn add_windows(&self, config: &mut Value) {
        let width = self.sliding_windows.iter().flatten().next();
        let kind = |window: &Option<usize>| window.map_or("full_attention", |_| "sliding_attention");
        match self.family.sliding {
            Sliding::Never => return,
            Sliding::All(_) | Sliding::AllButEvery { .. } => {}
            Sliding::Configured | Sliding::AllIfUsed | Sliding::WithoutRope => {
                config["use_sliding_window"] = json!(width.is_some());
            }
        }
        config["sliding_window"] = json!(width);
        if !matches!(self.family.sliding, Sliding::All(_) | Sliding::AllIfUsed) {
            config["layer_types"] = self.sliding_windows.iter().map(kind).collect();
        }
    }

    fn add_scales(&self, config: &mut Value) {
        for (key, cap, found) in [
            ("attn_logit_softcapping", self.family.attention_cap, self.attention_cap),
            ("final_logit_softcapping", self.family.logit_cap, self.logit_cap),
        ] {
            if cap != SoftCap::Never {
                config[key] = json!(found.map(shortest));
            }
        }
        match (self.family.scales, self.attention_scale) {
            (Scales::Configured, AttentionScale::Times(scale)) => {
                config["attention_multiplier"] = json!(shortest(scale));
                config["embedding_multiplier"] = json!(shortest(self.embedding_multiplier));
                config["residual_multiplier"] = json!(shortest(self.residual_multiplier));
                config["logits_scaling"] = json!(shortest(self.logits_scaling));
            }
            (Scales::RootOfHiddenSize { .. }, AttentionScale::InverseRoot(scalar)) => {
                config["query_pre_attn_scalar"] = json!(scalar);
            }
            _ => {}
        }
    }

    fn rope_scaling_hf(&self) -> Result<Value, Error> {
        Ok(match &self.rope_scaling {
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
            Some(RopeScaling::LongRope(long)) => json!({
                "rope_type": "longrope",
                "type": "longrope",
                "short_factor": long.short_factor.iter().copied().map(shortest).collect::<Vec<_>>(),
                "long_factor": long.long_factor.iter().copied().map(shortest).collect::<Vec<_>>(),
                "original_max_position_embeddings": long.original_max_position_embeddings,
                "attention_factor": shortest(long.attention_factor),
            }),
            Some(RopeScaling::Factors(_)) => {
                return Err(unsupported("rope_freqs.weight", "a tensor", "constants in config.json".into()));
            }
        })
    }
}

/// A number with as many digits as tell it from its neighbours in f32.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| x.into())
}
