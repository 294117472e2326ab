use super::{AttentionBias, Defaults, ExpertFamily, ExpertWeights, Family, PLAIN, QkNorm, Sliding};

/// Qwen3 with experts: many, small, several for each token.
pub const QWEN3_MOE: Family = Family {
    name: "qwen3_moe",
    architectures: &["Qwen3MoeForCausalLM"],
    model_types: &["qwen3_moe"],
    gguf_arch: "qwen3moe",
    qk_norm: QkNorm::Heads,
    attention_bias: AttentionBias::Configured,
    sliding: Sliding::AllIfUsed,
    experts: Some(ExpertFamily {
        module: "mlp",
        parts: ["gate_proj", "up_proj", "down_proj"],
        count_key: "num_experts",
        width_key: "moe_intermediate_size",
        weights: ExpertWeights::Configured,
        mixes_dense: true,
        experts_per_token: 8,
    }),
    defaults: Defaults { num_key_value_heads: Some(4), max_position_embeddings: 32_768, ..PLAIN.defaults },
    ..PLAIN
};
