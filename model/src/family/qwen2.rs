use super::{AttentionBias, Defaults, Family, PLAIN, Sliding};

/// Qwen2 and Qwen2.5: biases on q, k and v.
pub const QWEN2: Family = Family {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM"],
    model_types: &["qwen2"],
    gguf_arch: "qwen2",
    gguf_plain_heads: true,
    attention_bias: AttentionBias::Qkv,
    sliding: Sliding::Configured,
    defaults: Defaults { num_key_value_heads: Some(32), max_position_embeddings: 32_768, ..PLAIN.defaults },
    ..PLAIN
};
