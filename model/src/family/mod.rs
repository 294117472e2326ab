//! The kinds of decoder that are known, one file each, as data.
//!
//! To add one: describe it in a file here and name it in [`FAMILIES`]. What the description cannot say yet needs a
//! field, and the forward pass or the configuration's reader a line that obeys it.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

/// Which biases the attention's projections have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionBias {
    /// None at all.
    Never,
    /// Always on q, k and v, never on o.
    Qkv,
    /// On q, k, v and o where the configuration's `attention_bias` is true.
    Configured,
}

/// Which layers see only the latest tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sliding {
    /// None; a `sliding_window` in the configuration means nothing.
    Never,
    /// All, unless `sliding_window` is null; its value where the configuration lacks it.
    All(usize),
    /// Where `use_sliding_window` is true: the layers that `layer_types` calls so, else those from
    /// `max_window_layers` on.
    Configured,
}

/// What a configuration means that leaves a key out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Key and value heads; as many as query heads if `None`.
    pub num_key_value_heads: Option<usize>,
    /// Features of a head; `hidden_size / num_attention_heads` if `None`.
    pub head_dim: Option<usize>,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
}

/// A kind of decoder.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each says yes or no to one part")]
pub struct Family {
    /// What we call it.
    pub name: &'static str,
    /// Values of `architectures` in config.json.
    pub architectures: &'static [&'static str],
    /// Values of `model_type` in config.json, asked where `architectures` is missing.
    pub model_types: &'static [&'static str],
    /// `general.architecture` of its GGUF files. A family that shares it with one before it is never read back from GGUF.
    pub gguf_arch: &'static str,
    /// Whether the rows of q and k are stored in another order in GGUF, for llama.cpp turns neighbouring features of
    /// a head where transformers turns halves.
    pub permutes_qk: bool,
    /// Whether GGUF files of this architecture may carry factors for the rotary frequencies.
    pub gguf_rope_freqs: bool,
    /// Whether every head of q and k is normalised.
    pub qk_norm: bool,
    /// Which biases the attention has.
    pub attention_bias: AttentionBias,
    /// Whether `mlp_bias` in the configuration counts.
    pub mlp_bias: bool,
    /// Which layers see only the latest tokens.
    pub sliding: Sliding,
    /// What a missing key means.
    pub defaults: Defaults,
}

/// Every family that is known. In GGUF the first with the file's architecture is taken.
pub const FAMILIES: &[&Family] = &[&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_families_claim_one_configuration() {
        for (i, a) in FAMILIES.iter().enumerate() {
            for b in &FAMILIES[i + 1..] {
                assert_ne!(a.name, b.name);
                assert!(
                    a.architectures.iter().all(|x| !b.architectures.contains(x)),
                    "{} and {}",
                    a.name,
                    b.name
                );
                assert!(
                    a.model_types.iter().all(|x| !b.model_types.contains(x)),
                    "{} and {}",
                    a.name,
                    b.name
                );
            }
        }
    }

    #[test]
    fn families_of_one_gguf_architecture_agree_on_the_order_of_rows() {
        for a in FAMILIES {
            for b in FAMILIES.iter().filter(|b| b.gguf_arch == a.gguf_arch) {
                assert_eq!(a.permutes_qk, b.permutes_qk, "{} and {}", a.name, b.name);
            }
        }
    }
}
