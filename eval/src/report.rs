//! The report: every figure, and what is needed to get it again. One versioned JSON; all other
//! forms are rendered from it.
//!
//! Keys are a contract: adding one is free, renaming or removing one needs a new schema.

mod allocation;
mod check;
mod detail;
mod difference;
mod pruning;
mod read;
mod tasks;

use std::borrow::Cow;

use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Convention, Divergence, Perplexity};
pub use allocation::{Allocated, Allocation, SizePoint};
pub use check::{Check, Limit, Verdict};
pub use detail::{Breakdown, ByWindow, Group, Histogram, Mean, Prediction, WorstToken};
pub(crate) use difference::has_other_tokens;
pub use difference::{
    Changed, Difference, EvaluationDifference, Pair, Paired, TaskDifference, TensorDifference,
};
pub use pruning::{AcrossLayers, Candidate, DroppedLayer, Lost, PrunedLayer, Pruning, Search, Shape};
pub use read::{Error, read};
pub use tasks::{Share, TaskComparison, TaskResult};

/// The schema this version reads and writes.
pub const SCHEMA: &str = "attar-report/1";

/// What the schemas of all reports and of their differences, of whatever version, begin with.
pub const SCHEMA_FAMILY: &str = "attar-report";

/// One model, and where it was compressed, one output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Names the meaning of all other keys.
    pub schema: Schema,
    /// What was read.
    pub model: Model,
    /// The model that this began with and is compared with, where what was read was made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Model>,
    /// What was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    /// What was cut away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruning: Option<Pruning>,
    /// What it scores; of the written file where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// The same on further texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_evaluations: Vec<Evaluation>,
    /// What it answers, task by task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskResult>,
    /// What it was held to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// One entry per weight tensor, in the order of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<Tensor>,
    /// How types were chosen for a file of a given size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation: Option<Allocation>,
    /// The text statistics were collected on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// How it was taught.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillation: Option<Distillation>,
    /// How it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
}

impl Report {
    /// A report about `model` alone; the parts are filled in as they become known.
    pub fn new(model: Model) -> Self {
        Self {
            schema: Schema,
            model,
            original: None,
            output: None,
            pruning: None,
            evaluation: None,
            further_evaluations: Vec::new(),
            tasks: Vec::new(),
            check: None,
            tensors: Vec::new(),
            allocation: None,
            calibration: None,
            distillation: None,
            run: None,
        }
    }

    /// The model that all began with.
    pub fn beginning(&self) -> &Model {
        self.original.as_ref().unwrap_or(&self.model)
    }

    /// What it scores, text by text.
    pub fn evaluations(&self) -> impl Iterator<Item = &Evaluation> {
        self.evaluation.iter().chain(&self.further_evaluations)
    }

    /// Elements of all weight tensors of what was written, or of the model alone.
    pub fn parameters(&self) -> u64 {
        self.output.as_ref().and_then(|output| output.parameters).unwrap_or(self.model.parameters)
    }

    /// What it is about: the output, or the model alone.
    pub fn subject(&self) -> &str {
        self.output.as_ref().map_or(&self.model.source, |output| &output.path)
    }

    /// Bytes of all weight tensors of what was written, or of the model alone.
    pub fn weight_bytes(&self) -> u64 {
        let written =
            |output: &Output| (output.bits_per_weight * self.parameters() as f64 / 8.0).round() as u64;
        self.output.as_ref().map_or(self.model.bytes, written)
    }

    /// Bits per weight of what was written, or of the model alone; none where there are no weights.
    pub fn bits_per_weight(&self) -> Option<f64> {
        let Model { bytes, parameters, .. } = self.model;
        let alone = (parameters > 0).then(|| 8.0 * bytes as f64 / parameters as f64);
        self.output.as_ref().map_or(alone, |output| Some(output.bits_per_weight))
    }

    /// Reads a report from JSON.
    ///
    /// # Errors
    /// Where `json` is malformed, lacks a key or has another schema.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        Ok(serde_json::from_str(json)?)
    }

    /// The JSON Schema of reports, which describes every key.
    pub fn json_schema() -> schemars::Schema {
        let mut schema = schemars::schema_for!(Self);
        schema.insert("title".to_owned(), SCHEMA.into());
        schema
    }
}

/// The constant [`SCHEMA`]; reading any other name is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema;

impl Serialize for Schema {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(SCHEMA)
    }
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = String::deserialize(deserializer)?;
        if found == SCHEMA {
            return Ok(Self);
        }
        Err(serde::de::Error::custom(format!("the schema is `{found}`, only `{SCHEMA}` is known")))
    }
}

impl JsonSchema for Schema {
    fn schema_name() -> Cow<'static, str> {
        "Schema".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> schemars::Schema {
        json_schema!({ "type": "string", "const": SCHEMA })
    }
}

/// The full-precision model that was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// Path or `hf:` name as given.
    pub source: String,
    /// Model family, as in the registry of families.
    pub family: String,
    /// Elements of all weight tensors.
    pub parameters: u64,
    /// Bytes of all weight tensors.
    pub bytes: u64,
    /// The number format of most of its weights, where they had been quantized before and were quantized again: what that cost is
    /// in none of the figures, which compare with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized_as: Option<String>,
}

/// The compressed model that was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// Where it lies.
    pub path: String,
    /// Container: `gguf`, `compressed-tensors`...
    pub format: String,
    /// Scheme, by the field's name: `q4_k_m`, `w4a16-g64`...
    pub scheme: String,
    /// How the codes were chosen: `rtn`, `gptq`...; of floats how they were made: `prune`, `distill`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Elements of all weight tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// Bytes of all files of the output.
    pub bytes: u64,
    /// 8 times the bytes of all weight tensors over their element count, embeddings and head included.
    pub bits_per_weight: f64,
    /// SHA-256 of the file, of a folder's weight files or of a GGUF's parts in order of name; lower-case hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// What a model scores on a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evaluation {
    /// The text, as given.
    pub text: String,
    /// Scored tokens.
    pub tokens: u64,
    /// Windows they were scored in.
    pub chunks: u64,
    /// Tokens per window.
    pub ctx: u64,
    /// Which tokens were scored, in which windows.
    pub convention: Convention,
    /// What inputs of matrices were rounded to, where programs that serve the model round them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<String>,
    /// Perplexity of the model.
    pub perplexity: Perplexity,
    /// Where what the reference says was kept, where it was not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
    /// Perplexity of the reference on the same tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_perplexity: Option<Perplexity>,
    /// The first over the second, its error that of the tokens' differences: what the text itself varies by
    /// cancels, so this tells models apart that `perplexity` alone does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity_ratio: Option<Perplexity>,
    /// KL(reference || model); over buckets, and then a lower bound, where `reference` has `kl_buckets`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_divergence: Option<Divergence>,
    /// Share of tokens, 0 to 1, where both put the same token first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_agreement: Option<f64>,
    /// How many tokens diverge how far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_histogram: Option<Histogram>,
    /// The tokens in groups: where does it hurt?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breakdown: Option<Breakdown>,
    /// Tokens whose predictions moved farthest, the worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worst_tokens: Vec<WorstToken>,
    /// What each window scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_window: Option<ByWindow>,
}

impl Evaluation {
    /// SHA-256 of the tokens of all windows, where it is told.
    pub fn tokens_sha256(&self) -> Option<&str> {
        let sha256 = &self.by_window.as_ref()?.tokens_sha256;
        (!sha256.is_empty()).then_some(sha256)
    }
}

/// What stood for a reference that was not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reference {
    /// `teacher cache`, `llama.cpp's logits`.
    pub kind: String,
    /// Where it lies.
    pub path: String,
    /// The model it was made of, as given then; missing where that is not told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// SHA-256 of that model's weights; lower-case hex; missing where that is not told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model_sha256: String,
    /// What it keeps of the model: `hidden-f32`, `hidden-bf16`, `top-k=64`, `16-bit log-probabilities`.
    pub signal: String,
    /// Buckets a divergence from it is taken over, the kept tokens and one for all others: a lower bound of that over
    /// the whole vocabulary. Missing where the whole vocabulary counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_buckets: Option<u64>,
    /// Scored tokens whose likelihood it does not know, since all below a limit look alike; its perplexity is then missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_targets: Option<u64>,
}

/// What became of one weight tensor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tensor {
    /// Hugging Face name.
    pub name: String,
    /// Its name in the file, where it was written under another; packed integers have one for each part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_name: Option<String>,
    /// Its part in a block: `q_proj`, `down_proj`, `embed_tokens`...
    pub role: String,
    /// Which of its layer's experts it belongs to; `stored_name` is then often the same for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<u64>,
    /// Number format it was stored in.
    pub encoding: String,
    /// Bits per element in the file.
    pub bits_per_weight: f64,
    /// tr(E H E') / tr(W H W') of the error E left by the solver. Where it reads no more of its inputs than their squares, as
    /// `rtn` does, H is the diagonal matrix of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_error: Option<f64>,
    /// The same for plain round-to-nearest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtn_relative_error: Option<f64>,
    /// Calibration tokens per input column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_column: Option<f64>,
    /// Damping that was needed, relative to the mean of the Hessian's diagonal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// Share of the Hessian that was replaced by its own diagonal, 0 to 1: the more, the fewer the tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrinkage: Option<f64>,
    /// What was done instead of what was asked, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// SHA-256 of its numbers as a reader of the file decodes them: little-endian f32, rows in the file's order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoded_sha256: Option<String>,
}

impl Tensor {
    /// The layer it belongs to, by its Hugging Face name: the number after `layers`.
    pub fn layer(&self) -> Option<u64> {
        let mut parts = self.name.split('.').skip_while(|part| *part != "layers");
        parts.nth(1)?.parse().ok()
    }
}

/// The text statistics were collected on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Calibration {
    /// Its files, as given.
    pub files: Vec<String>,
    /// SHA-256 of their bytes, one after the other; lower-case hex.
    pub sha256: String,
    /// Tokens seen.
    pub tokens: u64,
    /// Tokens per window.
    pub ctx: u64,
    /// What decided which windows of the files were taken; the first of each where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Whether what was collected is of the model's layers as they are, and served several outputs, in place of this output's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
    /// Where the tokens went in layers whose MLP is made of experts, layer by layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routing: Vec<Routing>,
    /// Of an importance matrix, which then is the one file: no text was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<Imatrix>,
    /// Whether the unquantized model ran beside, so that each matrix made up for what those before it had lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub corrected: bool,
    /// What tuning the whole model has brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Tuned>,
}

/// Steps that a whole quantized model took toward what the unquantized one predicts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tuned {
    /// Tokens seen, some more than once.
    pub tokens: u64,
    /// The mean divergence of windows that were not learned from, before.
    pub held_out_before: f64,
    /// The same of what was kept, the best there was on the way; where it is no less, nothing was changed.
    pub held_out_after: f64,
}

/// What an importance matrix says of itself. The tokens are the most that stand behind one of its sums.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Imatrix {
    /// The texts it was collected on.
    pub datasets: Vec<String>,
    /// Weights it tells of.
    pub entries: u64,
}

/// How many of the calibration tokens each expert of a layer got. They add up to all tokens times the experts of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Routing {
    /// The layer.
    pub layer: u64,
    /// Tokens of each expert.
    pub expert_tokens: Vec<u64>,
}

/// What each layer of a student minimised alone: the error of the residual stream after it, relative to that after its teacher's.
pub const BLOCK_OUTPUT: &str = "block-output";

/// How a student was taught.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Distillation {
    /// The teacher, or what was kept of it, as given.
    pub teacher: String,
    /// What was learned from, as given; of a teacher cache the text it was made of.
    pub data: Vec<String>,
    /// SHA-256 of the tokens of all windows, little-endian u32; lower-case hex.
    pub data_sha256: String,
    /// What was minimised: `forward-kl`, `reverse-kl`, `jsd`; or, layer after layer, [`BLOCK_OUTPUT`].
    pub loss: String,
    /// What logits were divided by.
    pub temperature: f64,
    /// The share of cross-entropy with the text, 0 to 1.
    pub cross_entropy: f64,
    /// What the mean error of the residual stream after the layers of `layer_map`, relative to the teacher's, was multiplied by before
    /// it was added to the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_loss: Option<f64>,
    /// Layers of the student, and with each that of the teacher it was compared with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layer_map: Vec<[u64; 2]>,
    /// Steps.
    pub steps: u64,
    /// Steps that changed nothing, since loss or gradient was not finite.
    pub skipped_steps: u64,
    /// Tokens of a step.
    pub step_tokens: u64,
    /// Tokens of all different windows that were learned from.
    pub data_tokens: u64,
    /// Tokens that were only scored.
    pub held_out_tokens: u64,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// What decided the order of windows.
    pub seed: u64,
    /// Seconds of training, those before interruptions among them.
    pub seconds: f64,
    /// Losses on the way; the first point stands before the first step.
    pub curve: Vec<CurvePoint>,
}

/// How far a student was after some steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CurvePoint {
    /// Steps done.
    pub step: u64,
    /// The layer that learned, and whose losses these are, where layers learned one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u64>,
    /// Tokens learned from.
    pub tokens: u64,
    /// Seconds of training until then.
    pub seconds: f64,
    /// Mean loss of the steps since the point before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Learning rate of the last of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Loss of the held-out windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_loss: Option<f64>,
    /// Perplexity of every predicted token of the held-out windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_perplexity: Option<f64>,
}

/// How the output was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// The command line.
    pub command: String,
    /// Version of attar.
    pub version: String,
    /// Where it computed: `cpu`, `cuda:0`.
    pub device: String,
    /// Worker threads.
    pub threads: u64,
    /// The processor's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Cores that this process may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u64>,
    /// Memory of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The operating system, as it calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// What the factors of matrix products were rounded to, `f32` or `bf16`; sums are f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident set of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
    /// Where the time went.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<RunStage>,
}

/// One stage of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunStage {
    /// Its name: `calibrate`, `write`...
    pub name: String,
    /// Wall time.
    pub seconds: f64,
}

#[cfg(test)]
pub(crate) mod example;

#[cfg(test)]
mod tests;
