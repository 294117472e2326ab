use super::{AttentionBias, Defaults, Family, PLAIN, QkNorm, Sliding};

/// Qwen3: every head of q and k normalised, heads of a size of their own.
pub const QWEN3: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    gguf_arch: "qwen3",
    qk_norm: QkNorm::Heads,
    attention_bias: AttentionBias::Configured,
    sliding: Sliding::Configured,
    defaults: Defaults {
        num_key_value_heads: Some(32),
        head_dim: Some(128),
        max_position_embeddings: 32_768,
        ..PLAIN.defaults
    },
    ..PLAIN
};
