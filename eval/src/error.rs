use crate::Convention;

/// Why a model could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text holds fewer tokens than the convention asks for.
    #[error(
        "the text has {tokens} tokens, but convention `{convention}` needs at least {needed_tokens} at ctx {ctx}"
    )]
    TextTooShort {
        /// Tokens in the text, with the leading BOS where the convention counts it.
        tokens: usize,
        /// The least number of tokens, counted in the same way.
        needed_tokens: usize,
        /// Tokens per window.
        ctx: usize,
        /// The convention asked for.
        convention: Convention,
    },
    /// A window this small scores no token.
    #[error("ctx {ctx} scores no token in convention `{convention}`: the smallest is {smallest}")]
    CtxTooSmall {
        /// Tokens per window.
        ctx: usize,
        /// The smallest ctx with a scored token.
        smallest: usize,
        /// The convention asked for.
        convention: Convention,
    },
    /// The caller allowed no window at all.
    #[error("at least one chunk must be evaluated, 0 were asked for")]
    NoChunks,
    /// The name is no convention's.
    #[error("unknown convention `{name}`: `llama.cpp` and `hf` are known")]
    UnknownConvention {
        /// What was given.
        name: String,
    },
    /// Distributions over different vocabularies cannot be compared.
    #[error(
        "the reference has {reference} tokens in its vocabulary, the model {model}: they cannot be compared"
    )]
    VocabularyDiffers {
        /// `vocab_size` of the reference.
        reference: usize,
        /// `vocab_size` of the model under test.
        model: usize,
    },
    /// What was kept of a reference is of other tokens.
    #[error(
        "the reference was run over another text, or over windows cut otherwise; its own have {ctx} tokens"
    )]
    OtherText {
        /// Tokens of its windows.
        ctx: usize,
    },
    /// The windows hold a token that the model's vocabulary lacks.
    #[error("the text holds token {token}, but the model's vocabulary has {vocab_size} tokens")]
    TokenOutsideVocabulary {
        /// The largest offending token.
        token: u32,
        /// The model's `vocab_size`.
        vocab_size: usize,
    },
    /// A logit is NaN or infinite.
    #[error("the {which} gives a NaN or infinite logit at position {position} of window {window}")]
    NotFinite {
        /// "model" or "reference".
        which: &'static str,
        /// Index of the window.
        window: usize,
        /// Token position in the window.
        position: usize,
    },
    /// The mean loss is too large for a perplexity.
    #[error("the mean loss is {mean_nll:.1} nats per token: its perplexity exceeds every f64")]
    PerplexityOverflows {
        /// Mean negative log-likelihood, nats per token.
        mean_nll: f64,
    },
    /// A line of a task's file cannot be used.
    #[error("line {line} of task `{task}` {what}")]
    Task {
        /// The task.
        task: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A task's file has no line.
    #[error("task `{task}` has no items")]
    NoItems {
        /// The task.
        task: String,
    },
    /// An item cannot be asked of this model.
    #[error("item {item} of task `{task}` {what}")]
    Item {
        /// The task.
        task: String,
        /// The item, counted from 0.
        item: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A logit is NaN or infinite.
    #[error("the model gives a NaN or infinite logit while answering")]
    AnswerNotFinite,
    /// A teacher cache cannot be written, read, or used here.
    #[error("the teacher cache cannot be used")]
    Teacher(#[from] attar_model::teacher::Error),
    /// The forward pass failed.
    #[error("the forward pass failed")]
    Forward(#[source] attar_model::Error),
}
