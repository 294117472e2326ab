//! What a model answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Perplexity;

/// A share of items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Share {
    /// 0 to 1.
    pub value: f64,
    /// Its standard error, as of a mean of ones and zeros.
    pub stderr: f64,
}

impl Share {
    /// `part` of `all` items.
    pub fn of(part: u64, all: u64) -> Self {
        let value = part as f64 / all as f64;
        let stderr = if all > 1 { (value * (1.0 - value) / (all - 1) as f64).sqrt() } else { 0.0 };
        Self { value, stderr }
    }
}

/// What a model scores on one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskResult {
    /// The task's file, without folder and ending.
    pub name: String,
    /// The file, as given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// SHA-256 of the lines of all items asked; lower-case hex. Two results compare item by item where it is the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub items_sha256: String,
    /// Items asked.
    pub items: u64,
    /// Items answered rightly: by the likeliest choice, or a last word found by the likeliest tokens.
    pub accuracy: Share,
    /// The same where the choice of the largest likelihood per character is taken; where choices are texts of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalised_accuracy: Option<Share>,
    /// e to the mean negative log-likelihood of a last word, not of a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Perplexity>,
    /// What was answered, item by item: a choice, counted from 0; of a last word 1 where it was found, else 0.
    pub picked: Vec<u64>,
    /// The same by likelihood per character.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub normalised: Vec<u64>,
    /// The reference on the same items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<TaskComparison>,
}

/// What the reference scores on a task, and where the model answers otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskComparison {
    /// As of the model.
    pub accuracy: Share,
    /// As of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalised_accuracy: Option<Share>,
    /// As of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Perplexity>,
    /// Items that the two answer differently.
    pub changed: u64,
    /// Items that only the reference answers rightly.
    pub lost: u64,
    /// Items that only the model answers rightly.
    pub won: u64,
    /// How likely `lost` and `won` would lie as far apart if neither model were the better one: the exact two-sided sign test.
    pub p_value: f64,
}
