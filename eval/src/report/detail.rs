//! Where it hurts: the figures of an evaluation taken apart.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Perplexity;

/// What each window scores, in the order of the text: enough to compare two evaluations of one text window by window.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ByWindow {
    /// SHA-256 of the tokens of all windows, little-endian u32; lower-case hex. Two evaluations compare where it is the same.
    pub tokens_sha256: String,
    /// Mean negative log-likelihood per scored token, in nats.
    pub nll: Vec<f64>,
    /// The same of the reference, where there was one that knows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reference_nll: Vec<f64>,
    /// Mean KL divergence, where there was a reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kl_divergence: Vec<f64>,
    /// Scored tokens where both put the same token first, where there was a reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub same_top: Vec<u64>,
}

/// The scored tokens in groups, three times over; each token is in one group of each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Breakdown {
    /// By how many tokens of the window stand before the one that is predicted.
    pub position: Vec<Group>,
    /// By what the predicted token is made of: words, digits, punctuation, code...
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kind: Vec<Group>,
    /// By how often the predicted token stands in the text.
    pub frequency: Vec<Group>,
}

/// What some of the scored tokens score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// What they have in common.
    pub name: String,
    /// How many they are; groups of none are left out.
    pub tokens: u64,
    /// Their perplexity.
    pub perplexity: Perplexity,
    /// That over the reference's, its error that of the tokens' differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_ratio: Option<Perplexity>,
    /// Their mean KL divergence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_divergence: Option<Mean>,
    /// Share of them, 0 to 1, where both put the same token first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
}

/// A mean of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub stderr: f64,
}

/// How many tokens diverge how far, on a logarithmic scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Histogram {
    /// Where each bin begins, in nats; it ends where the next begins. The first begins at 0, the last has no end.
    pub from: Vec<f64>,
    /// Tokens in each bin.
    pub tokens: Vec<u64>,
}

/// A token whose prediction moved far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorstToken {
    /// The window, counted from 0.
    pub window: u64,
    /// Its position in the window, counted from 0.
    pub position: u64,
    /// The text before it, some tokens of it.
    pub before: String,
    /// The token that stands there.
    pub token: String,
    /// KL(reference || model) of what was predicted there, in nats.
    pub kl_divergence: f64,
    /// What the reference predicted.
    pub reference: Prediction,
    /// What the model predicted.
    pub model: Prediction,
}

/// What a model says of one place in a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Prediction {
    /// The token it puts first.
    pub top: String,
    /// How likely it takes the token that stands there to be, 0 to 1; unknown of a reference that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
}
