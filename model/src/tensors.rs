//! Every tensor of a model: what it does, what it reads, what it is called.

mod experts;

pub use experts::{ExpertIndex, FilePlace};

use crate::ModelConfig;
use crate::family::QkNorm;
use std::borrow::Cow;

/// What a tensor does. Every expert has a gate, an up and a down of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each variant is the module or parameter of its name")]
pub enum Role {
    Embedding,
    AttnNorm,
    /// q, k and v in one matrix.
    Qkv,
    Q,
    K,
    V,
    O,
    QBias,
    KBias,
    VBias,
    OBias,
    QNorm,
    KNorm,
    PostAttnNorm,
    MlpNorm,
    Router,
    /// gate and up in one matrix.
    GateUp,
    Gate,
    Up,
    Down,
    GateBias,
    UpBias,
    DownBias,
    PostMlpNorm,
    FinalNorm,
    Head,
}

impl Role {
    /// The matrices that a stored one is made of, one below the other: itself, unless it is of several.
    pub fn parts(&self) -> &[Self] {
        match self {
            Self::Qkv => &[Self::Q, Self::K, Self::V],
            Self::GateUp => &[Self::Gate, Self::Up],
            other => std::slice::from_ref(other),
        }
    }

    fn is_norm(self) -> bool {
        matches!(
            self,
            Self::AttnNorm
                | Self::QNorm
                | Self::KNorm
                | Self::PostAttnNorm
                | Self::MlpNorm
                | Self::PostMlpNorm
                | Self::FinalNorm
        )
    }
}

/// A place in the forward pass whose activation matrices read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tap {
    /// The normed residual stream that q, k and v read.
    AttnIn,
    /// The heads' outputs that o reads.
    AttnOut,
    /// The normed residual stream that gate and up read.
    MlpIn,
    /// The gated activation that down reads.
    MlpMid,
    /// The normed residual stream that the head reads.
    HeadIn,
}

impl Tap {
    /// Its name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AttnIn => "attn_in",
            Self::AttnOut => "attn_out",
            Self::MlpIn => "mlp_in",
            Self::MlpMid => "mlp_mid",
            Self::HeadIn => "head_in",
        }
    }
}

/// The order of a tensor's rows in GGUF, as against Hugging Face.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// The same.
    AsIs,
    /// Features that are turned together stand side by side in GGUF, half a head apart in Hugging Face.
    RopeInterleaved {
        /// Heads that share the rows evenly.
        heads: usize,
    },
}

impl RowOrder {
    /// For each row of the GGUF tensor, the Hugging Face row that stands there.
    ///
    /// # Panics
    /// If the rows are not whole heads of an even number of features.
    pub fn to_gguf(self, rows: usize) -> Vec<usize> {
        self.order(rows, |head_dim, row| row % 2 * (head_dim / 2) + row / 2)
    }

    /// For each row of the Hugging Face tensor, the GGUF row that stands there.
    ///
    /// # Panics
    /// As [`to_gguf`](Self::to_gguf).
    pub fn from_gguf(self, rows: usize) -> Vec<usize> {
        self.order(rows, |head_dim, row| row % (head_dim / 2) * 2 + row / (head_dim / 2))
    }

    fn order(self, rows: usize, within_head: impl Fn(usize, usize) -> usize) -> Vec<usize> {
        match self {
            Self::AsIs => (0..rows).collect(),
            Self::RopeInterleaved { heads } => {
                assert!(
                    heads > 0 && rows.is_multiple_of(2 * heads),
                    "{rows} rows are not {heads} even heads"
                );
                let head_dim = rows / heads;
                (0..rows)
                    .map(|row| row / head_dim * head_dim + within_head(head_dim, row % head_dim))
                    .collect()
            }
        }
    }
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in Hugging Face checkpoints.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// The decoder block it belongs to, if any.
    pub layer: Option<usize>,
    /// The expert it belongs to, if any.
    pub expert: Option<ExpertIndex>,
    /// Its shape, outermost first: a matrix is `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// The activation it reads: matrices that multiply one have it, the embedding, norms and biases have not.
    pub tap: Option<Tap>,
    /// Its name in GGUF files; there all experts of a layer stand in one tensor.
    pub gguf_name: String,
    /// The order of its rows in GGUF files.
    pub row_order: RowOrder,
    /// What GGUF files add to its values.
    pub gguf_adds: GgufAdds,
}

/// What GGUF files add to the values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufAdds {
    /// Nothing.
    Nothing,
    /// One: llama.cpp's norms multiply by their weight, where some families' multiply by one more.
    One,
}

impl GgufAdds {
    /// Turns values of Hugging Face files into those of GGUF files.
    pub fn to_gguf(self, values: &mut [f32]) {
        if self == Self::One {
            for x in values {
                *x += 1.0;
            }
        }
    }

    /// Turns values of GGUF files into those of Hugging Face files.
    pub fn from_gguf(self, values: &mut [f32]) {
        if self == Self::One {
            for x in values {
                *x -= 1.0;
            }
        }
    }
}

impl TensorSpec {
    /// Its number of elements.
    #[expect(clippy::len_without_is_empty, reason = "no tensor is empty")]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has two dimensions: all tensors but norms and biases do.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }
}

/// What is known of a role before any model is.
struct Row {
    role: Role,
    /// Its name in reports and after `model.layers.N.` or at the top, without the ending.
    hf: &'static str,
    gguf: &'static str,
    ending: &'static str,
    tap: Option<Tap>,
    shape: fn(&ModelConfig) -> Vec<usize>,
    exists: fn(&ModelConfig) -> bool,
}

const WEIGHT: &str = "weight";
const BIAS: &str = "bias";

/// The tensors before, in and after the blocks, in the order in which a forward pass meets them.
const BEFORE: &[Row] = &[row(Role::Embedding, "model.embed_tokens", "token_embd", WEIGHT, None, |c| {
    vec![c.vocab_size, c.hidden_size]
})];

const BLOCK: &[Row] = &[
    row(Role::AttnNorm, "input_layernorm", "attn_norm", WEIGHT, None, |c| vec![c.hidden_size])
        .only(|c| c.family.norms.before()),
    row(Role::Qkv, "self_attn.qkv_proj", "attn_qkv", WEIGHT, Some(Tap::AttnIn), |c| {
        vec![c.query_size() + 2 * c.key_value_size(), c.hidden_size]
    })
    .only(|c| c.family.fused),
    row(Role::Q, "self_attn.q_proj", "attn_q", WEIGHT, Some(Tap::AttnIn), |c| {
        vec![c.query_size(), c.hidden_size]
    })
    .only(|c| !c.family.fused),
    row(Role::QBias, "self_attn.q_proj", "attn_q", BIAS, None, |c| vec![c.query_size()])
        .only(|c| c.attention_bias),
    row(Role::K, "self_attn.k_proj", "attn_k", WEIGHT, Some(Tap::AttnIn), |c| {
        vec![c.key_value_size(), c.hidden_size]
    })
    .only(|c| !c.family.fused),
    row(Role::KBias, "self_attn.k_proj", "attn_k", BIAS, None, |c| vec![c.key_value_size()])
        .only(|c| c.attention_bias),
    row(Role::V, "self_attn.v_proj", "attn_v", WEIGHT, Some(Tap::AttnIn), |c| {
        vec![c.key_value_size(), c.hidden_size]
    })
    .only(|c| !c.family.fused),
    row(Role::VBias, "self_attn.v_proj", "attn_v", BIAS, None, |c| vec![c.key_value_size()])
        .only(|c| c.attention_bias),
    row(Role::QNorm, "self_attn.q_norm", "attn_q_norm", WEIGHT, None, |c| match c.family.qk_norm {
        QkNorm::Whole => vec![c.query_size()],
        QkNorm::Heads | QkNorm::Never => vec![c.head_dim],
    })
    .only(|c| c.family.qk_norm != QkNorm::Never),
    row(Role::KNorm, "self_attn.k_norm", "attn_k_norm", WEIGHT, None, |c| match c.family.qk_norm {
        QkNorm::Whole => vec![c.key_value_size()],
        QkNorm::Heads | QkNorm::Never => vec![c.head_dim],
    })
    .only(|c| c.family.qk_norm != QkNorm::Never),
    row(Role::O, "self_attn.o_proj", "attn_output", WEIGHT, Some(Tap::AttnOut), |c| {
        vec![c.hidden_size, c.query_size()]
    }),
    row(Role::OBias, "self_attn.o_proj", "attn_output", BIAS, None, |c| vec![c.hidden_size])
        .only(|c| c.output_bias),
    row(Role::PostAttnNorm, "post_attention_layernorm", "post_attention_norm", WEIGHT, None, |c| {
        vec![c.hidden_size]
    })
    .only(|c| c.family.norms.after()),
    row(Role::MlpNorm, "post_attention_layernorm", "ffn_norm", WEIGHT, None, |c| vec![c.hidden_size])
        .only(|c| !c.family.norms.after()),
    row(Role::MlpNorm, "pre_feedforward_layernorm", "ffn_norm", WEIGHT, None, |c| vec![c.hidden_size])
        .only(|c| c.family.norms.before() && c.family.norms.after()),
    row(Role::GateUp, "mlp.gate_up_proj", "ffn_up", WEIGHT, Some(Tap::MlpIn), |c| {
        vec![2 * c.intermediate_size, c.hidden_size]
    })
    .only(|c| c.family.fused),
    row(Role::Gate, "mlp.gate_proj", "ffn_gate", WEIGHT, Some(Tap::MlpIn), |c| {
        vec![c.intermediate_size, c.hidden_size]
    })
    .only(|c| !c.family.fused),
    row(Role::GateBias, "mlp.gate_proj", "ffn_gate", BIAS, None, |c| vec![c.intermediate_size])
        .only(|c| c.mlp_bias),
    row(Role::Up, "mlp.up_proj", "ffn_up", WEIGHT, Some(Tap::MlpIn), |c| {
        vec![c.intermediate_size, c.hidden_size]
    })
    .only(|c| !c.family.fused),
    row(Role::UpBias, "mlp.up_proj", "ffn_up", BIAS, None, |c| vec![c.intermediate_size])
        .only(|c| c.mlp_bias),
    row(Role::Down, "mlp.down_proj", "ffn_down", WEIGHT, Some(Tap::MlpMid), |c| {
        vec![c.hidden_size, c.intermediate_size]
    }),
    row(Role::DownBias, "mlp.down_proj", "ffn_down", BIAS, None, |c| vec![c.hidden_size])
        .only(|c| c.mlp_bias),
    row(Role::PostMlpNorm, "post_feedforward_layernorm", "post_ffw_norm", WEIGHT, None, |c| {
        vec![c.hidden_size]
    })
    .only(|c| c.family.norms.after()),
];

const AFTER: &[Row] = &[
    row(Role::FinalNorm, "model.norm", "output_norm", WEIGHT, None, |c| vec![c.hidden_size]),
    row(Role::Head, "lm_head", "output", WEIGHT, Some(Tap::HeadIn), |c| vec![c.vocab_size, c.hidden_size])
        .only(|c| !c.tie_word_embeddings),
];

const fn row(
    role: Role,
    hf: &'static str,
    gguf: &'static str,
    ending: &'static str,
    tap: Option<Tap>,
    shape: fn(&ModelConfig) -> Vec<usize>,
) -> Row {
    Row { role, hf, gguf, ending, tap, shape, exists: |_| true }
}

impl Row {
    const fn only(self, exists: fn(&ModelConfig) -> bool) -> Self {
        Self { exists, ..self }
    }

    /// `config` is the configuration of the layer.
    fn spec(&self, config: &ModelConfig, layer: Option<usize>) -> TensorSpec {
        let (hf, gguf, ending) = (self.hf, self.gguf, self.ending);
        let (name, gguf_name) = match layer {
            Some(n) => (format!("model.layers.{n}.{hf}.{ending}"), format!("blk.{n}.{gguf}.{ending}")),
            None => (format!("{hf}.{ending}"), format!("{gguf}.{ending}")),
        };
        let row_order = match self.role {
            Role::Q | Role::QBias if config.family.permutes_qk => {
                RowOrder::RopeInterleaved { heads: config.num_attention_heads }
            }
            Role::K | Role::KBias if config.family.permutes_qk => {
                RowOrder::RopeInterleaved { heads: config.num_key_value_heads }
            }
            _ => RowOrder::AsIs,
        };
        TensorSpec {
            name,
            role: self.role,
            layer,
            expert: None,
            shape: (self.shape)(config),
            tap: self.tap,
            gguf_name,
            row_order,
            gguf_adds: if config.family.norms_add_one && self.role.is_norm() {
                GgufAdds::One
            } else {
                GgufAdds::Nothing
            },
        }
    }
}

impl Role {
    /// The matrix whose bias this is, if it is one.
    pub(crate) fn biased(self) -> Option<Self> {
        match self {
            Self::QBias => Some(Self::Q),
            Self::KBias => Some(Self::K),
            Self::VBias => Some(Self::V),
            Self::OBias => Some(Self::O),
            Self::GateBias => Some(Self::Gate),
            Self::UpBias => Some(Self::Up),
            Self::DownBias => Some(Self::Down),
            _ => None,
        }
    }

    /// Whether it is of an MLP that is not made of experts.
    fn is_of_dense_mlp(self) -> bool {
        use Role::{Down, DownBias, Gate, GateBias, GateUp, Up, UpBias};
        matches!(self, GateUp | Gate | GateBias | Up | UpBias | Down | DownBias)
    }

    /// Its name in reports: the module's name in Hugging Face models, with `.bias` for biases.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embedding => "embed_tokens",
            Self::AttnNorm => "input_layernorm",
            Self::Qkv => "qkv_proj",
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::QBias => "q_proj.bias",
            Self::KBias => "k_proj.bias",
            Self::VBias => "v_proj.bias",
            Self::OBias => "o_proj.bias",
            Self::QNorm => "q_norm",
            Self::KNorm => "k_norm",
            Self::PostAttnNorm => "post_attention_norm",
            Self::MlpNorm => "post_attention_layernorm",
            Self::Router => "router",
            Self::GateUp => "gate_up_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
            Self::GateBias => "gate_proj.bias",
            Self::UpBias => "up_proj.bias",
            Self::DownBias => "down_proj.bias",
            Self::PostMlpNorm => "post_feedforward_norm",
            Self::FinalNorm => "norm",
            Self::Head => "lm_head",
        }
    }
}

impl ModelConfig {
    /// Every tensor of the model, in the order in which a forward pass meets them, expert by expert. A tied head is not
    /// among them.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let blocks = (0..self.num_hidden_layers).flat_map(|layer| self.layer_tensors(layer));
        let outside = |rows: &'static [Row]| {
            rows.iter().filter(|row| (row.exists)(self)).map(|row| row.spec(self, None))
        };
        outside(BEFORE).chain(blocks).chain(outside(AFTER)).collect()
    }

    fn layer_tensors(&self, layer: usize) -> impl Iterator<Item = TensorSpec> {
        let config = self.of_layer(layer);
        let rows = BLOCK.iter().filter(move |row| self.has(row, Some(layer)));
        let experts = experts::specs(self, layer);
        rows.map(move |row| row.spec(&config, Some(layer))).chain(experts)
    }

    /// The tensor of one role in one layer, or outside of all layers, if the model has it; the experts' are had from
    /// [`expert_tensor`](Self::expert_tensor).
    pub fn tensor(&self, role: Role, layer: Option<usize>) -> Option<TensorSpec> {
        if role == Role::Router {
            return experts::router(self, layer?);
        }
        let mut rows = if layer.is_some() { BLOCK.iter().chain(&[]) } else { BEFORE.iter().chain(AFTER) };
        let config = layer.map_or(Cow::Borrowed(self), |layer| self.of_layer(layer));
        rows.find(|row| row.role == role && self.has(row, layer)).map(|row| row.spec(&config, layer))
    }

    fn has(&self, row: &Row, layer: Option<usize>) -> bool {
        let replaced =
            layer.is_some_and(|layer| self.experts_of(layer).is_some()) && row.role.is_of_dense_mlp();
        (row.exists)(self) && !replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_row_orders_undo_one_another(heads in 1usize..9, half in 1usize..40) {
            let rows = heads * 2 * half;
            for order in [RowOrder::AsIs, RowOrder::RopeInterleaved { heads }] {
                let (there, back) = (order.to_gguf(rows), order.from_gguf(rows));
                for row in 0..rows {
                    prop_assert_eq!(there[back[row]], row);
                    prop_assert_eq!(back[there[row]], row);
                }
            }
        }
    }

    #[test]
    fn features_that_turn_together_stand_side_by_side_in_gguf() {
        assert_eq!(
            RowOrder::RopeInterleaved { heads: 2 }.to_gguf(12),
            [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
        );
    }
}
