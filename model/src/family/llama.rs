use super::{AttentionBias, Defaults, Family, Sliding};

/// Llama 1 to 3.x, and the many models that took its architecture.
pub const LLAMA: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM"],
    model_types: &["llama"],
    gguf_arch: "llama",
    permutes_qk: true,
    gguf_rope_freqs: true,
    qk_norm: false,
    attention_bias: AttentionBias::Configured,
    mlp_bias: true,
    sliding: Sliding::Never,
    defaults: Defaults { num_key_value_heads: None, head_dim: None, max_position_embeddings: 2048 },
};
