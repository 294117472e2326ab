use super::{Defaults, Family, GgufRope, PLAIN, Sliding};

/// Mistral 7B and its dense successors: Llama with a sliding window. llama.cpp knows it as Llama and attends to all.
pub const MISTRAL: Family = Family {
    name: "mistral",
    architectures: &["MistralForCausalLM"],
    model_types: &["mistral"],
    gguf_arch: "llama",
    permutes_qk: true,
    gguf_rope: GgufRope::Factors,
    sliding: Sliding::All(Some(4096)),
    defaults: Defaults { num_key_value_heads: Some(8), max_position_embeddings: 131_072, ..PLAIN.defaults },
    ..PLAIN
};
