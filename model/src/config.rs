//! The numbers of one model, from a Hugging Face configuration or GGUF metadata.

mod gguf;
mod hf;
mod rope;

pub use rope::{Llama3Scaling, RopeScaling};

use crate::{Error, Family, Tap};

/// The numbers of one model. Names are those of Hugging Face configurations.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each says yes or no to one part")]
pub struct ModelConfig {
    /// What kind of decoder it is.
    pub family: &'static Family,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features inside the MLP.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// What every norm adds to the mean square.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How those frequencies are changed, if they are.
    pub rope_scaling: Option<RopeScaling>,
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

    /// Features of the activation at a tap.
    pub fn tap_features(&self, tap: Tap) -> usize {
        match tap {
            Tap::AttnIn | Tap::MlpIn | Tap::HeadIn => self.hidden_size,
            Tap::AttnOut => self.query_size(),
            Tap::MlpMid => self.intermediate_size,
        }
    }

    /// Radians per position for each of the `head_dim / 2` pairs of features, scaling applied.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let frequencies = attar_tensor::op::rope_frequencies(self.rope_theta, self.head_dim);
        match &self.rope_scaling {
            None => frequencies,
            Some(scaling) => {
                let factors = scaling.factors(&frequencies);
                frequencies.iter().zip(factors).map(|(frequency, factor)| frequency / factor).collect()
            }
        }
    }

    /// Refuses numbers that contradict one another or could not be allocated.
    fn checked(self) -> Result<Self, Error> {
        let sizes = [
            ("hidden_size", self.hidden_size, MOST),
            ("intermediate_size", self.intermediate_size, MOST),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MOST),
            ("num_key_value_heads", self.num_key_value_heads, MOST),
            ("head_dim", self.head_dim, MOST),
            ("vocab_size", self.vocab_size, MOST),
        ];
        for (key, found, most) in sizes {
            if found == 0 || found > most {
                return Err(value(key, found, format!("a number from 1 to {most}")));
            }
        }
        if self.num_attention_heads.saturating_mul(self.head_dim) > MOST {
            let expected =
                format!("at most {} for {} heads", MOST / self.num_attention_heads, self.num_attention_heads);
            return Err(value("head_dim", self.head_dim, expected));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads {}", self.num_attention_heads);
            return Err(value("num_key_value_heads", self.num_key_value_heads, expected));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(value("head_dim", self.head_dim, "an even number".into()));
        }
        if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps.is_finite()) {
            return Err(value("rms_norm_eps", self.rms_norm_eps, "a small positive number".into()));
        }
        if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            return Err(value("rope_theta", self.rope_theta, "a positive number".into()));
        }
        if let Some(scaling) = &self.rope_scaling {
            scaling.check(self.head_dim)?;
        }
        Ok(self)
    }
}

fn value(key: &str, found: impl ToString, expected: String) -> Error {
    Error::Value { key: key.into(), found: found.to_string(), expected }
}

/// A list of names for a message.
fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
