//! The numbers of one model, from a Hugging Face configuration or GGUF metadata.

mod experts;
mod gguf;
mod hf;
mod rope;
mod unequal;

pub use experts::Experts;
pub use rope::{Llama3Scaling, LongRope, RopeScaling};
pub use unequal::LayerSizes;

use crate::{Error, Family, Tap};
use attar_tensor::op::{Attention, Rope};

/// What the products of queries and keys are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AttentionScale {
    /// `1 / sqrt(x)` of this x: `head_dim` in most models.
    InverseRoot(usize),
    /// This.
    Times(f32),
}

/// The constants that multiply what flows through a model, as one of the two kinds of file has them.
struct Multipliers {
    attention: AttentionScale,
    embedding: f32,
    residual: f32,
    logits: f32,
}

impl Multipliers {
    /// None but `1 / sqrt(x)` on products of queries and keys.
    fn plain(x: usize) -> Self {
        Self { attention: AttentionScale::InverseRoot(x), embedding: 1.0, residual: 1.0, logits: 1.0 }
    }
}

/// The numbers of one model. Names are those of Hugging Face configurations.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each says yes or no to one part")]
pub struct ModelConfig {
    /// What kind of decoder it is.
    pub family: &'static Family,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Features inside the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// For each layer its own of the last three numbers, where layers may differ; those are then the largest. Where all layers
    /// have them, nothing.
    pub layer_sizes: Vec<LayerSizes>,
    /// Features of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// What every norm adds to the mean square.
    pub rms_norm_eps: f32,
    /// Features of a head that turn, from the first on; all of them in most models.
    pub rotary_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How those frequencies are changed, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// Base of the rotary frequencies in layers with a sliding window, which are not changed then; as everywhere else
    /// if `None`.
    pub local_rope_theta: Option<f64>,
    /// For each layer whether it has rotary embedding.
    pub rope_layers: Vec<bool>,
    /// What products of queries and keys are multiplied by.
    pub attention_scale: AttentionScale,
    /// The soft bound on those products, if there is one.
    pub attention_cap: Option<f32>,
    /// What embeddings are multiplied by.
    pub embedding_multiplier: f32,
    /// What attention and MLP give is multiplied by before it is added.
    pub residual_multiplier: f32,
    /// What logits are divided by.
    pub logits_scaling: f32,
    /// The soft bound on logits, if there is one.
    pub logit_cap: Option<f32>,
    /// Whether the head's weight is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub attention_bias: bool,
    /// Whether o has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// For each layer how many tokens a token sees, itself among them; all before it if `None`.
    pub sliding_windows: Vec<Option<usize>>,
    /// The experts of the layers whose MLP is made of them, if any is.
    pub experts: Option<Experts>,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// No dimension of a model that anyone could load is larger.
const MOST: usize = 1 << 31;

/// More layers than any model has, few enough to be listed.
const MOST_LAYERS: usize = 1 << 16;

impl ModelConfig {
    /// Features of the query heads together: the rows of q, the columns of o.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Features of the key heads together: the rows of k and of v.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The experts of a layer, where its MLP is made of them.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers.get(layer) == Some(&true))
    }

    /// Features of the activation at a tap; in layers with experts `MlpMid` is each expert's, see [`Experts`]. Where layers differ
    /// in size, the most that any has: [`of_layer`](Self::of_layer) is asked for its own.
    pub fn tap_features(&self, tap: Tap) -> usize {
        match tap {
            Tap::AttnIn | Tap::MlpIn | Tap::HeadIn => self.hidden_size,
            Tap::AttnOut => self.query_size(),
            Tap::MlpMid => self.intermediate_size,
        }
    }

    /// Radians per position for each of the `rotary_dim / 2` pairs of features in windows of `ctx` tokens, scaling
    /// applied; `None` for a layer without rotary embedding.
    pub fn rope_frequencies(&self, layer: usize, ctx: usize) -> Option<Vec<f32>> {
        if !self.rope_layers.get(layer).copied().unwrap_or(true) {
            return None;
        }
        let local = self.local_rope_theta.filter(|_| self.sliding_window(layer).is_some());
        if let Some(theta) = local {
            return Some(attar_tensor::op::rope_frequencies(theta, self.rotary_dim));
        }
        let frequencies = self.unscaled_frequencies();
        Some(match &self.rope_scaling {
            None => frequencies,
            Some(scaling) => {
                let factors = scaling.factors(&frequencies, ctx);
                frequencies.iter().zip(factors).map(|(frequency, factor)| frequency / factor).collect()
            }
        })
    }

    /// How a layer turns the heads of q and k in windows of `ctx` tokens, if it does.
    pub fn rope(&self, layer: usize, ctx: usize) -> Option<Rope> {
        let rope = Rope::new(&self.rope_frequencies(layer, ctx)?, ctx).within(self.head_dim);
        Some(match &self.rope_scaling {
            Some(RopeScaling::LongRope(long)) => rope.times(long.attention_factor),
            _ => rope,
        })
    }

    /// The attention of a layer in windows of `ctx` tokens.
    pub fn attention(&self, layer: usize, ctx: usize) -> Attention {
        let sizes = self.sizes(layer);
        Attention {
            heads: sizes.num_attention_heads,
            kv_heads: sizes.num_key_value_heads,
            head_dim: self.head_dim,
            ctx,
            sliding_window: self.sliding_window(layer),
            scale: match self.attention_scale {
                AttentionScale::InverseRoot(x) => Attention::per_head_dim(x),
                AttentionScale::Times(scale) => scale,
            },
            soft_cap: self.attention_cap,
        }
    }

    fn sliding_window(&self, layer: usize) -> Option<usize> {
        self.sliding_windows.get(layer).copied().flatten()
    }

    fn unscaled_frequencies(&self) -> Vec<f32> {
        attar_tensor::op::rope_frequencies(self.rope_theta, self.rotary_dim)
    }

    /// Refuses numbers that contradict one another or could not be allocated.
    fn checked(self) -> Result<Self, Error> {
        let sizes = [
            ("hidden_size", self.hidden_size, MOST),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("head_dim", self.head_dim, MOST),
            ("vocab_size", self.vocab_size, MOST),
        ];
        for (key, found, most) in sizes {
            if found == 0 || found > most {
                return Err(value(key, found, format!("a number from 1 to {most}")));
            }
        }
        self.check_sizes()?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(value("head_dim", self.head_dim, "an even number".into()));
        }
        if self.rotary_dim == 0 || self.rotary_dim > self.head_dim || !self.rotary_dim.is_multiple_of(2) {
            let expected = format!("an even number up to head_dim {}", self.head_dim);
            return Err(value("rotary_dim", self.rotary_dim, expected));
        }
        if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps.is_finite()) {
            return Err(value("rms_norm_eps", self.rms_norm_eps, "a small positive number".into()));
        }
        self.check_constants()?;
        if let Some(experts) = &self.experts {
            experts.check()?;
        }
        if let Some(scaling) = &self.rope_scaling {
            scaling.check(self.rotary_dim / 2)?;
        }
        Ok(self)
    }

    fn check_constants(&self) -> Result<(), Error> {
        let scale = match self.attention_scale {
            AttentionScale::InverseRoot(x) => ("query_pre_attn_scalar", x as f64),
            AttentionScale::Times(scale) => ("attention_multiplier", scale.into()),
        };
        let positive = [
            ("rope_theta", self.rope_theta),
            ("rope_local_base_freq", self.local_rope_theta.unwrap_or(1.0)),
            scale,
            ("embedding_multiplier", self.embedding_multiplier.into()),
            ("residual_multiplier", self.residual_multiplier.into()),
            ("logits_scaling", self.logits_scaling.into()),
            ("attn_logit_softcapping", self.attention_cap.unwrap_or(1.0).into()),
            ("final_logit_softcapping", self.logit_cap.unwrap_or(1.0).into()),
        ];
        match positive.into_iter().find(|(_, x)| !(*x > 0.0 && x.is_finite())) {
            Some((key, found)) => Err(value(key, found, "a positive number".into())),
            None => Ok(()),
        }
    }
}

fn value(key: &str, found: impl ToString, expected: String) -> Error {
    Error::Value { key: key.into(), found: found.to_string(), expected }
}

/// A list of names for a message.
fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
