use super::{AttentionBias, Family, GgufRope, PLAIN, Scales};

/// Granite 3 and the dense 4s without state spaces: Llama with four multipliers.
pub const GRANITE: Family = Family {
    name: "granite",
    architectures: &["GraniteForCausalLM"],
    model_types: &["granite"],
    gguf_arch: "granite",
    permutes_qk: true,
    gguf_rope: GgufRope::Factors,
    gguf_biases: true,
    attention_bias: AttentionBias::Configured,
    mlp_bias: true,
    scales: Scales::Configured,
    ..PLAIN
};
