//! The tensors of a layer's experts, and where files keep them.
//!
//! Checkpoints have three matrices for each expert. GGUF files and transformers 5, if it is told to keep its own
//! layout, stack those of all experts; an expert's matrix is then some rows of a larger tensor.

use super::{GgufAdds, Role, RowOrder, Tap, TensorSpec};
use crate::ModelConfig;

/// Which of a layer's experts a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExpertIndex {
    /// The expert.
    pub index: usize,
    /// Experts of the layer.
    pub count: usize,
}

/// Where a tensor lies in a file: all of a stored tensor, or some of its rows, those of all outer dimensions counted
/// through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePlace {
    /// The stored tensor.
    pub name: String,
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
    /// The first of the rows.
    pub first_row: usize,
}

/// The matrices of an expert, in the order of a forward pass, with their GGUF names and the activations they read.
const PARTS: [(Role, &str, Tap); 3] = [
    (Role::Gate, "ffn_gate_exps", Tap::MlpIn),
    (Role::Up, "ffn_up_exps", Tap::MlpIn),
    (Role::Down, "ffn_down_exps", Tap::MlpMid),
];

impl TensorSpec {
    /// Where it lies in a GGUF file.
    pub fn gguf_place(&self) -> FilePlace {
        let whole = |shape| FilePlace { name: self.gguf_name.clone(), shape, first_row: 0 };
        match (self.expert, &self.shape[..]) {
            (Some(ExpertIndex { index, count }), &[rows, cols]) => {
                FilePlace { first_row: index * rows, ..whole(vec![count, rows, cols]) }
            }
            _ => whole(self.shape.clone()),
        }
    }

    /// Where it may lie in a Hugging Face checkpoint: first under its own name, then as transformers 5 holds the experts
    /// of every family in memory, which is how it saves them with `save_original_format=False`.
    pub fn hf_places(&self) -> Vec<FilePlace> {
        let own = FilePlace { name: self.name.clone(), shape: self.shape.clone(), first_row: 0 };
        let Some(layer) = self.layer else { return vec![own] };
        let stacked = |name: &str, shape, first_row| FilePlace {
            name: format!("model.layers.{layer}.mlp.{name}"),
            shape,
            first_row,
        };
        match (self.role, self.expert, &self.shape[..]) {
            (Role::Router, ..) => vec![own, stacked("gate.weight", self.shape.clone(), 0)],
            (role, Some(ExpertIndex { index, count }), &[rows, cols]) => {
                let both = |half| {
                    stacked("experts.gate_up_proj", vec![count, 2 * rows, cols], (2 * index + half) * rows)
                };
                let place = match role {
                    Role::Gate => both(0),
                    Role::Up => both(1),
                    _ => stacked("experts.down_proj", vec![count, rows, cols], index * rows),
                };
                vec![own, place]
            }
            _ => vec![own],
        }
    }
}

impl ModelConfig {
    /// The matrix of one role, gate, up or down, of one expert of a layer, if the model has it.
    pub fn expert_tensor(&self, role: Role, layer: usize, index: usize) -> Option<TensorSpec> {
        let (experts, family) = (self.experts_of(layer)?, self.family.experts?);
        let part = PARTS.iter().position(|part| part.0 == role)?;
        let (count, width) = (experts.num_experts, experts.moe_intermediate_size);
        let (_, gguf, tap) = PARTS[part];
        let shape =
            if role == Role::Down { vec![self.hidden_size, width] } else { vec![width, self.hidden_size] };
        (index < count).then(|| TensorSpec {
            name: format!(
                "model.layers.{layer}.{}.experts.{index}.{}.weight",
                family.module, family.parts[part]
            ),
            role,
            layer: Some(layer),
            expert: Some(ExpertIndex { index, count }),
            shape,
            tap: Some(tap),
            gguf_name: format!("blk.{layer}.{gguf}.weight"),
            row_order: RowOrder::AsIs,
            gguf_adds: GgufAdds::Nothing,
        })
    }
}

/// The matrix that makes a token's scores for all experts, `[num_experts, hidden_size]`.
pub(super) fn router(config: &ModelConfig, layer: usize) -> Option<TensorSpec> {
    let (experts, family) = (config.experts_of(layer)?, config.family.experts?);
    Some(TensorSpec {
        name: format!("model.layers.{layer}.{}.gate.weight", family.module),
        role: Role::Router,
        layer: Some(layer),
        expert: None,
        shape: vec![experts.num_experts, config.hidden_size],
        tap: Some(Tap::MlpIn),
        gguf_name: format!("blk.{layer}.ffn_gate_inp.weight"),
        row_order: RowOrder::AsIs,
        gguf_adds: GgufAdds::Nothing,
    })
}

/// The router and all experts of a layer, nothing where it has none.
pub(super) fn specs(config: &ModelConfig, layer: usize) -> impl Iterator<Item = TensorSpec> {
    let count = config.experts_of(layer).map_or(0, |experts| experts.num_experts);
    let of_expert =
        move |index| PARTS.iter().filter_map(move |part| config.expert_tensor(part.0, layer, index));
    router(config, layer).into_iter().chain((0..count).flat_map(of_expert))
}
