use super::{AttentionBias, Defaults, Family, Sliding};

/// Qwen2 and Qwen2.5: biases on q, k and v.
pub const QWEN2: Family = Family {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM"],
    model_types: &["qwen2"],
    gguf_arch: "qwen2",
    permutes_qk: false,
    gguf_rope_freqs: false,
    qk_norm: false,
    attention_bias: AttentionBias::Qkv,
    mlp_bias: false,
    sliding: Sliding::Configured,
    defaults: Defaults { num_key_value_heads: Some(32), head_dim: None, max_position_embeddings: 32_768 },
};
