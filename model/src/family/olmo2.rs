use super::{AttentionBias, Defaults, Family, Norms, PLAIN, QkNorm};

/// `OLMo` 2: norms after attention and MLP instead of before, and on q and k as wholes.
pub const OLMO2: Family = Family {
    name: "olmo2",
    architectures: &["Olmo2ForCausalLM"],
    model_types: &["olmo2"],
    gguf_arch: "olmo2",
    gguf_plain_heads: true,
    gguf_tied: false,
    norms: Norms::After,
    qk_norm: QkNorm::Whole,
    attention_bias: AttentionBias::Configured,
    defaults: Defaults { rms_norm_eps: 1e-5, ..PLAIN.defaults },
    ..PLAIN
};
