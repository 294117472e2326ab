//! The kinds of decoder that are known, one file each, as data.
//!
//! To add one: describe it in a file here and name it in [`FAMILIES`]. What the description cannot say yet needs a
//! field, and the forward pass or the configuration's reader a line that obeys it.

mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;

pub(crate) use llama::LLAMA;

/// Which biases the attention's projections have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionBias {
    /// None at all.
    Never,
    /// Always on q, k and v, never on o.
    Qkv,
    /// On q, k, v and o where the configuration's `attention_bias` is true.
    Configured,
}

/// Which layers see only the latest tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sliding {
    /// None; a `sliding_window` in the configuration means nothing.
    Never,
    /// All, unless `sliding_window` is null; its value where the configuration lacks it.
    All(Option<usize>),
    /// Where `use_sliding_window` is true: the layers that `layer_types` calls so, else those from
    /// `max_window_layers` on.
    Configured,
    /// All where `use_sliding_window` is true.
    AllIfUsed,
    /// Where `use_sliding_window` is true: the layers that `layer_types` calls so, else those without rotary embedding.
    WithoutRope,
    /// The layers that `layer_types` calls so, else all but every `period`-th; none if `sliding_window` is null.
    AllButEvery {
        /// Layers from one that sees all to the next, where `sliding_window_pattern` does not say.
        period: usize,
        /// Tokens a token sees, where `sliding_window` does not say.
        width: usize,
    },
}

/// How GGUF files of an architecture say which layers see only the latest tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufWindow {
    /// Not at all: llama.cpp lets every layer see all tokens.
    Unsaid,
    /// By one width for all layers, 0 for none.
    Width,
    /// By a width and a list of layers.
    Layers {
        /// The width where none is said; then no layer slides if `None`.
        width: Option<usize>,
    },
}

/// Which factors for the rotary frequencies GGUF files of an architecture may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufRope {
    /// None.
    Plain,
    /// One set for all windows.
    Factors,
    /// One set for short windows, another for long ones.
    LongShort,
}

/// Where a block normalises the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and MLP.
    Before,
    /// What attention and MLP give, before it is added.
    After,
    /// Both.
    Both,
}

impl Norms {
    /// Whether attention and MLP read a normed stream.
    pub fn before(self) -> bool {
        self != Self::After
    }

    /// Whether what attention and MLP give is normed.
    pub fn after(self) -> bool {
        self != Self::Before
    }
}

/// How q and k are normalised before they are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Not at all.
    Never,
    /// Every head on its own, with one weight for all.
    Heads,
    /// All heads of a token together.
    Whole,
}

/// The activation of the MLP's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// The normal distribution's x, by its approximation with a tanh.
    GeluTanh,
}

/// Constants that multiply what flows through the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// None but `1 / sqrt(head_dim)` on the products of q and k.
    Plain,
    /// Embeddings are multiplied by `sqrt(hidden_size)`, products of q and k by `1 / sqrt(query_pre_attn_scalar)`.
    RootOfHiddenSize {
        /// In GGUF files, which lack the scalar, models of so many layers have `hidden_size / num_attention_heads` for
        /// it, all others `head_dim`.
        gguf_wide_layers: usize,
    },
    /// `embedding_multiplier`, `attention_multiplier`, `residual_multiplier` and `logits_scaling`.
    Configured,
}

/// A soft bound on logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SoftCap {
    /// None, whatever the configuration says.
    Never,
    /// The configuration's; this one where the key is missing.
    Configured(Option<f32>),
}

impl SoftCap {
    /// Whether there is one even where the key is missing.
    pub fn is_given(self) -> bool {
        matches!(self, Self::Configured(Some(_)))
    }
}

/// What a family whose MLPs are experts calls their parts, and what its configuration means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertFamily {
    /// The module that holds the router `gate` and the `experts`, after `model.layers.N.`.
    pub module: &'static str,
    /// An expert's gate, up and down.
    pub parts: [&'static str; 3],
    /// The key with the number of experts; `num_local_experts`, as transformers 5 writes it, is read too.
    pub count_key: &'static str,
    /// The key with the features inside an expert.
    pub width_key: &'static str,
    /// Whether what an expert's output counts for adds up to 1 over a token's experts.
    pub weights: ExpertWeights,
    /// Whether layers without experts may stand between the others: `mlp_only_layers` and `decoder_sparse_step`.
    pub mixes_dense: bool,
    /// Experts of a token where `num_experts_per_tok` is missing.
    pub experts_per_token: usize,
}

/// Whether the shares of a token's experts add up to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertWeights {
    /// They always do.
    Normalised,
    /// They do where `norm_topk_prob` is true; otherwise they stay as the softmax over all experts left them.
    Configured,
}

/// What a configuration means that leaves a key out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    /// Key and value heads; as many as query heads if `None`.
    pub num_key_value_heads: Option<usize>,
    /// Features of a head; `hidden_size / num_attention_heads` if `None`.
    pub head_dim: Option<usize>,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// What every norm adds to the mean square.
    pub rms_norm_eps: f64,
    /// Whether the head's weight is the embedding.
    pub tie_word_embeddings: bool,
}

/// A kind of decoder.
#[derive(Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each says yes or no to one part")]
pub struct Family {
    /// What we call it.
    pub name: &'static str,
    /// Values of `architectures` in config.json.
    pub architectures: &'static [&'static str],
    /// Values of `model_type` in config.json, asked where `architectures` is missing.
    pub model_types: &'static [&'static str],
    /// `general.architecture` of its GGUF files. Of families that share it the first is read back that has experts where
    /// the file has, and none where it has none.
    pub gguf_arch: &'static str,
    /// Whether the rows of q and k are stored in another order in GGUF, for llama.cpp turns neighbouring features of
    /// a head where transformers turns halves.
    pub permutes_qk: bool,
    /// Which factors for the rotary frequencies its GGUF files may carry.
    pub gguf_rope: GgufRope,
    /// Whether its GGUF files must have `num_attention_heads * head_dim` equal to `hidden_size`.
    pub gguf_plain_heads: bool,
    /// Whether llama.cpp computes biases of o and the MLP for this architecture.
    pub gguf_biases: bool,
    /// Whether GGUF files of this architecture may have the embedding for a head.
    pub gguf_tied: bool,
    /// How its GGUF files speak of sliding windows.
    pub gguf_window: GgufWindow,
    /// Where a block normalises.
    pub norms: Norms,
    /// Whether norms multiply by one more than their weight. In GGUF the one has been added.
    pub norms_add_one: bool,
    /// How q and k are normalised.
    pub qk_norm: QkNorm,
    /// Whether files hold q, k and v as one matrix, and gate and up as another.
    pub fused: bool,
    /// The activation of the gate.
    pub activation: Activation,
    /// Which biases the attention has.
    pub attention_bias: AttentionBias,
    /// Whether `mlp_bias` in the configuration counts.
    pub mlp_bias: bool,
    /// Which layers see only the latest tokens.
    pub sliding: Sliding,
    /// Whether `partial_rotary_factor` may leave features of a head unturned.
    pub partial_rotary: bool,
    /// Base of the rotary frequencies of sliding layers, where they have one of their own and `rope_local_base_freq`
    /// does not say.
    pub local_rope_theta: Option<f64>,
    /// Every how many layers there is one without rotary embedding, where `no_rope_layer_interval` and
    /// `no_rope_layers` do not say; `None` where all layers have it.
    pub no_rope_layer_interval: Option<usize>,
    /// Constants that multiply what flows through the model.
    pub scales: Scales,
    /// `attn_logit_softcapping`: the bound on products of q and k.
    pub attention_cap: SoftCap,
    /// `final_logit_softcapping`: the bound on the head's logits.
    pub logit_cap: SoftCap,
    /// How its MLPs are experts, if they are.
    pub experts: Option<ExpertFamily>,
    /// What a missing key means.
    pub defaults: Defaults,
}

/// What most families have in common, to be filled in: Llama's parts without its biases.
const PLAIN: Family = Family {
    name: "",
    architectures: &[],
    model_types: &[],
    gguf_arch: "",
    permutes_qk: false,
    gguf_rope: GgufRope::Plain,
    gguf_plain_heads: false,
    gguf_biases: false,
    gguf_tied: true,
    gguf_window: GgufWindow::Unsaid,
    norms: Norms::Before,
    norms_add_one: false,
    qk_norm: QkNorm::Never,
    fused: false,
    activation: Activation::Silu,
    attention_bias: AttentionBias::Never,
    mlp_bias: false,
    sliding: Sliding::Never,
    partial_rotary: false,
    local_rope_theta: None,
    no_rope_layer_interval: None,
    scales: Scales::Plain,
    attention_cap: SoftCap::Never,
    logit_cap: SoftCap::Never,
    experts: None,
    defaults: Defaults {
        num_key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
    },
};

/// Every family that is known. In GGUF the first is taken that has the file's architecture, and experts where the file
/// has.
pub const FAMILIES: &[&Family] = &[
    &LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &phi3::PHI3,
    &olmo2::OLMO2,
    &smollm3::SMOLLM3,
    &granite::GRANITE,
    &mixtral::MIXTRAL,
    &qwen3_moe::QWEN3_MOE,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_families_claim_one_configuration() {
        for (i, a) in FAMILIES.iter().enumerate() {
            for b in &FAMILIES[i + 1..] {
                assert_ne!(a.name, b.name);
                assert!(
                    a.architectures.iter().all(|x| !b.architectures.contains(x)),
                    "{} and {}",
                    a.name,
                    b.name
                );
                assert!(
                    a.model_types.iter().all(|x| !b.model_types.contains(x)),
                    "{} and {}",
                    a.name,
                    b.name
                );
            }
        }
    }

    #[test]
    fn families_of_one_gguf_architecture_agree_on_the_order_of_rows() {
        for a in FAMILIES {
            for b in FAMILIES.iter().filter(|b| b.gguf_arch == a.gguf_arch) {
                assert_eq!(a.permutes_qk, b.permutes_qk, "{} and {}", a.name, b.name);
            }
        }
    }

    #[test]
    fn every_family_says_what_it_is_called() {
        for family in FAMILIES {
            assert!(!family.name.is_empty() && !family.gguf_arch.is_empty());
            assert!(!family.architectures.is_empty() && !family.model_types.is_empty(), "{}", family.name);
        }
    }
}
