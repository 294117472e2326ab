use super::{Defaults, ExpertFamily, ExpertWeights, Family, GgufRope, PLAIN, Sliding};

/// Mixtral: Mistral with experts. llama.cpp knows it as Llama and attends to all.
pub const MIXTRAL: Family = Family {
    name: "mixtral",
    architectures: &["MixtralForCausalLM"],
    model_types: &["mixtral"],
    gguf_arch: "llama",
    permutes_qk: true,
    gguf_rope: GgufRope::Factors,
    sliding: Sliding::All(None),
    experts: Some(ExpertFamily {
        module: "block_sparse_moe",
        parts: ["w1", "w3", "w2"],
        count_key: "num_local_experts",
        width_key: "intermediate_size",
        weights: ExpertWeights::Normalised,
        mixes_dense: false,
        experts_per_token: 2,
    }),
    defaults: Defaults {
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        rope_theta: 1_000_000.0,
        rms_norm_eps: 1e-5,
        ..PLAIN.defaults
    },
    ..PLAIN
};
