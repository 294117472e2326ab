use super::{Defaults, Family, GgufRope, GgufWindow, PLAIN, Sliding};

/// Phi-3, 3.5 and 4: q, k and v in one matrix, gate and up in another; long texts by factors of their own.
///
/// GGUF files keep the sliding window's width, but llama.cpp attends to all.
pub const PHI3: Family = Family {
    name: "phi3",
    architectures: &["Phi3ForCausalLM"],
    model_types: &["phi3"],
    gguf_arch: "phi3",
    gguf_plain_heads: true,
    gguf_rope: GgufRope::LongShort,
    gguf_window: GgufWindow::Width,
    fused: true,
    sliding: Sliding::All(None),
    partial_rotary: true,
    defaults: Defaults { max_position_embeddings: 4096, rms_norm_eps: 1e-5, ..PLAIN.defaults },
    ..PLAIN
};
