//! Which features are one thing in several tensors, and go together or not at all.

use attar_model::family::QkNorm;
use attar_model::{Family, Role};

/// Features that are one thing wherever they stand. A list of what is kept of a group cuts every tensor that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Features of the residual stream.
    Hidden,
    /// Channels of a layer's MLP.
    Ffn,
    /// Features of a layer's query heads, head by head.
    QueryHeads,
    /// Features of a layer's key and value heads, head by head.
    KvHeads,
    /// A layer's experts.
    Experts,
    /// What never goes: tokens of the vocabulary, features within a head.
    Whole,
}

/// What cuts the rows and the columns of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coupling {
    /// The groups that the rows of each of its [parts](Role::parts) are, one below the other; of a vector, its elements.
    pub rows: &'static [Group],
    /// The group that the columns are, of a matrix.
    pub cols: Option<Group>,
}

/// What cuts the tensor of a role. An expert's matrices are described as those of an MLP of its own.
pub fn coupling(role: Role, family: &Family) -> Coupling {
    use Group::{Experts, Ffn, Hidden, KvHeads, QueryHeads, Whole};
    let (rows, cols): (&'static [Group], _) = match role {
        Role::Embedding | Role::Head => (&[Whole], Some(Hidden)),
        Role::Qkv => (&[QueryHeads, KvHeads, KvHeads], Some(Hidden)),
        Role::Q => (&[QueryHeads], Some(Hidden)),
        Role::K | Role::V => (&[KvHeads], Some(Hidden)),
        Role::O => (&[Hidden], Some(QueryHeads)),
        Role::QBias => (&[QueryHeads], None),
        Role::KBias | Role::VBias => (&[KvHeads], None),
        Role::QNorm => (if family.qk_norm == QkNorm::Whole { &[QueryHeads] } else { &[Whole] }, None),
        Role::KNorm => (if family.qk_norm == QkNorm::Whole { &[KvHeads] } else { &[Whole] }, None),
        Role::Router => (&[Experts], Some(Hidden)),
        Role::GateUp => (&[Ffn, Ffn], Some(Hidden)),
        Role::Gate | Role::Up => (&[Ffn], Some(Hidden)),
        Role::GateBias | Role::UpBias => (&[Ffn], None),
        Role::Down => (&[Hidden], Some(Ffn)),
        Role::OBias
        | Role::DownBias
        | Role::AttnNorm
        | Role::PostAttnNorm
        | Role::MlpNorm
        | Role::PostMlpNorm
        | Role::FinalNorm => (&[Hidden], None),
    };
    Coupling { rows, cols }
}
