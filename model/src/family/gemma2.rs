use super::{
    Activation, AttentionBias, Defaults, Family, GgufWindow, Norms, PLAIN, Scales, Sliding, SoftCap,
};

/// Gemma 2: four norms to a block, a gate of GELU, soft bounds on logits, a sliding window on every other layer.
///
/// transformers rounds the embeddings' factor to the type it runs in; here it is an f32, as in llama.cpp.
pub const GEMMA2: Family = Family {
    name: "gemma2",
    architectures: &["Gemma2ForCausalLM"],
    model_types: &["gemma2"],
    gguf_arch: "gemma2",
    gguf_window: GgufWindow::Layers { width: Some(4096) },
    norms: Norms::Both,
    norms_add_one: true,
    activation: Activation::GeluTanh,
    attention_bias: AttentionBias::Configured,
    sliding: Sliding::AllButEvery { period: 2, width: 4096 },
    scales: Scales::RootOfHiddenSize { gguf_wide_layers: 46 },
    attention_cap: SoftCap::Configured(Some(50.0)),
    logit_cap: SoftCap::Configured(Some(30.0)),
    defaults: Defaults {
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        ..PLAIN.defaults
    },
    ..PLAIN
};
