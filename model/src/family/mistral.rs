use super::{AttentionBias, Defaults, Family, Sliding};

/// Mistral 7B and its dense successors: Llama with a sliding window. llama.cpp knows it as Llama and attends to all.
pub const MISTRAL: Family = Family {
    name: "mistral",
    architectures: &["MistralForCausalLM"],
    model_types: &["mistral"],
    gguf_arch: "llama",
    permutes_qk: true,
    gguf_rope_freqs: true,
    qk_norm: false,
    attention_bias: AttentionBias::Never,
    mlp_bias: false,
    sliding: Sliding::All(4096),
    defaults: Defaults { num_key_value_heads: Some(8), head_dim: None, max_position_embeddings: 131_072 },
};
