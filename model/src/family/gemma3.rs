use super::{
    Activation, AttentionBias, Defaults, Family, GgufWindow, Norms, PLAIN, QkNorm, Scales, Sliding, SoftCap,
};

/// Gemma 3, the models of text: Gemma 2 with every head of q and k normalised in place of the bounds on logits, and five
/// sliding layers, which turn faster, to one that sees all.
pub const GEMMA3: Family = Family {
    name: "gemma3",
    architectures: &["Gemma3ForCausalLM"],
    model_types: &["gemma3_text"],
    gguf_arch: "gemma3",
    gguf_window: GgufWindow::Layers { width: None },
    norms: Norms::Both,
    norms_add_one: true,
    qk_norm: QkNorm::Heads,
    activation: Activation::GeluTanh,
    attention_bias: AttentionBias::Configured,
    sliding: Sliding::AllButEvery { period: 6, width: 4096 },
    local_rope_theta: Some(10_000.0),
    scales: Scales::RootOfHiddenSize { gguf_wide_layers: 62 },
    logit_cap: SoftCap::Configured(None),
    defaults: Defaults {
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        max_position_embeddings: 131_072,
        rope_theta: 1_000_000.0,
        tie_word_embeddings: true,
        ..PLAIN.defaults
    },
    ..PLAIN
};
