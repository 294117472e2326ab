//! Layers that differ in size.

use super::{AttentionScale, MOST, ModelConfig, value};
use crate::Error;
use crate::family::{Activation, LLAMA, Norms, QkNorm};
use std::borrow::Cow;

/// The architecture of GGUF files whose layers have sizes of their own. In all else it is Llama's.
pub(super) const DECI: &str = "deci";

/// The numbers in which a layer may differ from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSizes {
    /// Features inside the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
}

impl ModelConfig {
    /// The sizes of a layer.
    pub fn sizes(&self, layer: usize) -> LayerSizes {
        self.layer_sizes.get(layer).copied().unwrap_or(LayerSizes {
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
        })
    }

    /// The configuration in which all layers have the sizes of this one.
    pub fn of_layer(&self, layer: usize) -> Cow<'_, Self> {
        if self.layer_sizes.is_empty() {
            return Cow::Borrowed(self);
        }
        let LayerSizes { intermediate_size, num_attention_heads, num_key_value_heads } = self.sizes(layer);
        Cow::Owned(Self {
            layer_sizes: Vec::new(),
            intermediate_size,
            num_attention_heads,
            num_key_value_heads,
            ..self.clone()
        })
    }

    /// This model with layers of these sizes, one for each: the numbers that stand for all are the largest.
    ///
    /// # Panics
    /// If they are not as many as the layers.
    #[must_use]
    pub fn with_layer_sizes(self, sizes: Vec<LayerSizes>) -> Self {
        assert_eq!(sizes.len(), self.num_hidden_layers, "one size for each layer");
        let most = |of: fn(&LayerSizes) -> usize, none| sizes.iter().map(of).max().unwrap_or(none);
        Self {
            intermediate_size: most(|sizes| sizes.intermediate_size, self.intermediate_size),
            num_attention_heads: most(|sizes| sizes.num_attention_heads, self.num_attention_heads),
            num_key_value_heads: most(|sizes| sizes.num_key_value_heads, self.num_key_value_heads),
            layer_sizes: sizes,
            ..self
        }
    }

    /// The model in which every layer is as large as the largest.
    #[must_use]
    pub fn filled_up(self) -> Self {
        Self { layer_sizes: Vec::new(), ..self }
    }

    /// The same model as one whose GGUF file says every layer's sizes: of llama.cpp's architecture `deci`, whose family is Llama.
    ///
    /// # Errors
    /// A model that computes otherwise than Llama does.
    pub fn as_deci(&self) -> Result<Self, Error> {
        if let Some((key, found)) = self.unlike_llama() {
            let known = format!("what Llama has in GGUF files of architecture `{DECI}`");
            return Err(Error::Unsupported { key: key.into(), found, known });
        }
        let layers = 0..self.num_hidden_layers;
        let sizes = layers.map(|layer| self.sizes(layer)).collect();
        let llama = Self { family: &LLAMA, ..self.clone() }.with_layer_sizes(sizes);
        llama.gguf_metadata().map(|_| llama)
    }

    /// The first part of the model that Llama has not, or not so.
    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    fn unlike_llama(&self) -> Option<(&'static str, String)> {
        let family = self.family;
        let multipliers = [self.embedding_multiplier, self.residual_multiplier, self.logits_scaling];
        let bounded = self.attention_cap.is_some() || self.logit_cap.is_some();
        let is_llama = family.norms == Norms::Before
            && !family.norms_add_one
            && !family.fused
            && family.activation == Activation::Silu
            && self.attention_scale == AttentionScale::InverseRoot(self.head_dim)
            && multipliers == [1.0; 3]
            && !bounded;
        let unlike = [
            (self.experts.is_some(), "num_experts", "not 0".to_owned()),
            (
                family.qk_norm != QkNorm::Never,
                "model_type",
                format!("`{}`, which norms q and k", family.name),
            ),
            (!is_llama, "model_type", format!("`{}`", family.name)),
            (self.sliding_windows.iter().any(Option::is_some), "sliding_window", "a number".into()),
            (self.rope_layers.contains(&false), "no_rope_layers", "not empty".into()),
            (self.rotary_dim != self.head_dim, "partial_rotary_factor", "not 1".into()),
        ];
        unlike.into_iter().find(|(differs, ..)| *differs).map(|(_, key, found)| (key, found))
    }

    /// Refuses sizes of layers that contradict one another or could not be allocated.
    pub(super) fn check_sizes(&self) -> Result<(), Error> {
        let all = [self.sizes(self.num_hidden_layers)];
        let layers = if self.layer_sizes.is_empty() { &all[..] } else { &self.layer_sizes };
        for &LayerSizes { intermediate_size, num_attention_heads: heads, num_key_value_heads } in layers {
            let sizes = [
                ("intermediate_size", intermediate_size),
                ("num_attention_heads", heads),
                ("num_key_value_heads", num_key_value_heads),
            ];
            if let Some((key, found)) = sizes.into_iter().find(|(_, x)| !(1..=MOST).contains(x)) {
                return Err(value(key, found, format!("a number from 1 to {MOST}")));
            }
            if heads.saturating_mul(self.head_dim) > MOST {
                let expected = format!("at most {} for {heads} heads", MOST / heads);
                return Err(value("head_dim", self.head_dim, expected));
            }
            if !heads.is_multiple_of(num_key_value_heads) {
                let expected = format!("a divisor of num_attention_heads {heads}");
                return Err(value("num_key_value_heads", num_key_value_heads, expected));
            }
        }
        Ok(())
    }
}
