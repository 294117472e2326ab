use super::{AttentionBias, Defaults, Family, PLAIN, Sliding};

/// `SmolLM3`: Llama with every fourth layer left without rotary embedding.
pub const SMOLLM3: Family = Family {
    name: "smollm3",
    architectures: &["SmolLM3ForCausalLM"],
    model_types: &["smollm3"],
    gguf_arch: "smollm3",
    permutes_qk: true,
    attention_bias: AttentionBias::Configured,
    mlp_bias: true,
    sliding: Sliding::WithoutRope,
    no_rope_layer_interval: Some(4),
    defaults: Defaults {
        num_key_value_heads: Some(4),
        max_position_embeddings: 32_768,
        rope_theta: 2_000_000.0,
        tie_word_embeddings: true,
        ..PLAIN.defaults
    },
    ..PLAIN
};
