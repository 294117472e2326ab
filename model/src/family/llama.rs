use super::{AttentionBias, Family, GgufRope, PLAIN};

/// Llama 1 to 3.x, and the many models that took its architecture.
pub const LLAMA: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM"],
    model_types: &["llama"],
    gguf_arch: "llama",
    permutes_qk: true,
    gguf_rope: GgufRope::Factors,
    gguf_biases: true,
    attention_bias: AttentionBias::Configured,
    mlp_bias: true,
    ..PLAIN
};
