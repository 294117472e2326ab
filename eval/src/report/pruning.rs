//! What was cut away.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What was cut away, why, and what was done about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pruning {
    /// The model that was read.
    pub before: Shape,
    /// The model that was written.
    pub after: Shape,
    /// How that shape was found, where not it but a number of parameters was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// That layers competed for heads and channels, where they did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub across_layers: Option<AcrossLayers>,
    /// How heads and channels were chosen, where any went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub criterion: Option<String>,
    /// How layers were chosen, where any went that were not named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth_criterion: Option<String>,
    /// How what stays took over the work of what goes: `least-squares`, or `none`.
    pub compensation: String,
    /// Number formats, files and programs that took the model's shape and do not take this one, in a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ruled_out: Vec<String>,
    /// Layers that went, in the order they were chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped_layers: Vec<DroppedLayer>,
    /// What is left of each layer that stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<PrunedLayer>,
}

/// Layers that keep different numbers of heads and channels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AcrossLayers {
    /// `filled-up`: with zeros to the largest; `deci`: every layer as large as it is.
    pub layout: String,
    /// Bytes of these zeros.
    pub zero_bytes: u64,
}

/// Shapes of about as many parameters, each cut, repaired and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Search {
    /// Parameters that were not to be passed.
    pub target_parameters: u64,
    /// Tokens of the calibration text that were measured on, and decided nothing else.
    pub tokens: u64,
    /// The shapes.
    pub candidates: Vec<Candidate>,
}

/// A shape that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// The shape.
    pub shape: Shape,
    /// Mean KL(model || what is left of it) over those tokens.
    pub kl_divergence: f64,
    /// Whether it was the best and is what was written.
    pub chosen: bool,
}

/// The numbers of a model that pruning changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shape {
    /// Layers.
    pub layers: u64,
    /// Features of the residual stream.
    pub hidden_size: u64,
    /// Channels of the MLP.
    pub intermediate_size: u64,
    /// Query heads.
    pub query_heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Experts of a layer, where MLPs are made of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<u64>,
    /// Elements of all weight tensors.
    pub parameters: u64,
}

/// A layer that went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DroppedLayer {
    /// Its number in the model that was read.
    pub layer: u64,
    /// What the criterion said of the model without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

/// What is left of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PrunedLayer {
    /// Its number in the model that was read.
    pub layer: u64,
    /// How many channels of its MLP are kept.
    pub channels: u64,
    /// The query heads that are kept.
    pub query_heads: Vec<u64>,
    /// The key and value heads that are kept.
    pub kv_heads: Vec<u64>,
    /// The experts that are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Vec<u64>>,
    /// What `o_proj` lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub o_proj: Option<Lost>,
    /// What `down_proj` lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_proj: Option<Lost>,
}

/// What a matrix lost with some of its columns: `tr(E H E') / tr(W H W')` of the error E.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lost {
    /// Columns simply dropped.
    pub error_dropped: f64,
    /// As it was written.
    pub error: f64,
    /// Why it was not repaired though it was to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}
