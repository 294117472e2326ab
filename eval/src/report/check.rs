//! Whether a model is good enough.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a model was held to, and whether it held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// Whether no limit was passed.
    pub passed: bool,
    /// What it was compared with: a report's path, or a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// Every limit, in the order of the command line.
    pub limits: Vec<Limit>,
}

/// One limit, and what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Limit {
    /// The option that sets it, without dashes before it: `max-kl`.
    pub name: String,
    /// The text or task it was measured on, or the file.
    pub subject: String,
    /// What was measured.
    pub value: f64,
    /// Standard error of `value`, of windows compared one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
    /// What `value` was not to pass.
    pub limit: f64,
    /// How likely so large a change for the worse would be if there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_value: Option<f64>,
    /// What became of it.
    pub verdict: Verdict,
    /// The same in a sentence.
    pub said: String,
}

/// What became of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Within it.
    Passed,
    /// Beyond it, but no farther than two texts differ by chance.
    Noise,
    /// Beyond it.
    Failed,
}
