//! How types were chosen for a file of a given size.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What was asked for, what was chosen, and what another size would have brought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Allocation {
    /// Bytes that the file was to have at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bytes: Option<u64>,
    /// Bits per weight that it was to have at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_bits_per_weight: Option<f64>,
    /// The types that were allowed; none where nothing was said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<String>,
    /// The file as it was expected to be.
    pub chosen: SizePoint,
    /// What each tensor of the file became, that which costs most first.
    pub tensors: Vec<Allocated>,
    /// The best of other sizes, the smallest first.
    pub curve: Vec<SizePoint>,
}

/// A size, and what a file of it is expected to cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SizePoint {
    /// Bytes of the file.
    pub bytes: u64,
    /// Average bits per weight.
    pub bits_per_weight: f64,
    /// The sum of what each tensor alone does to the predictions, as a mean KL divergence.
    pub predicted_kl: f64,
}

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Allocated {
    /// Its name in the file.
    pub name: String,
    /// The type that was chosen.
    pub encoding: String,
    /// The mean KL divergence that is expected of it alone.
    pub predicted_kl: f64,
}
