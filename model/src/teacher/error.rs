//! Why a cache could not be written, read or used.

use std::path::PathBuf;

use super::{Facts, SCHEMA, Signal};

/// Why a teacher cache could not be written, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The files themselves.
    #[error(transparent)]
    Files(#[from] attar_checkpoint::Error),
    /// The facts cannot be read.
    #[error("cannot read the facts of a teacher cache, {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The facts are not the JSON they should be.
    #[error("{} is not the facts of a teacher cache", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// Another version's, or nobody's.
    #[error("the schema of the teacher cache is `{found}`, only `{SCHEMA}` is known")]
    Schema {
        /// What it says.
        found: String,
    },
    /// A name that stands for no signal.
    #[error("`{name}` is nothing that can be kept; hidden-f32, hidden-bf16 and top-k=N are")]
    UnknownSignal {
        /// What was given.
        name: String,
    },
    /// All tokens of the vocabulary leave none for the rest.
    #[error("{signal} keeps as many tokens as the vocabulary of {vocab_size} has, or more")]
    TooManyKept {
        /// What was to be kept.
        signal: Signal,
        /// Tokens there are.
        vocab_size: usize,
    },
    /// The facts contradict themselves.
    #[error("the facts of the teacher cache cannot be: `{key}` is {found}")]
    Absurd {
        /// The key.
        key: &'static str,
        /// What it comes to.
        found: String,
    },
    /// A tensor the facts call for.
    #[error("the teacher cache has no tensor `{name}`, which its facts call for")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor of another type or shape than the facts call for.
    #[error("tensor `{name}` of the teacher cache is {found}, its facts call for {expected}")]
    Tensor {
        /// Its name.
        name: String,
        /// Type and shape in the file.
        found: String,
        /// Type and shape that follow from the facts.
        expected: String,
    },
    /// The tokens are not those the facts name.
    #[error("the tokens of the teacher cache have SHA-256 {found}, its facts say {expected}")]
    Tokens {
        /// Of the tokens that are there.
        found: String,
        /// Of those that were written.
        expected: String,
    },
    /// A token that the teacher cannot have known.
    #[error("tensor `{name}` of the teacher cache holds token {token}, the vocabulary has {vocab_size}")]
    Token {
        /// The tensor.
        name: String,
        /// The token.
        token: u32,
        /// Tokens there are.
        vocab_size: usize,
    },
    /// A number that no model says.
    #[error("tensor `{name}` of the teacher cache holds {found} in row {row}")]
    Number {
        /// The tensor.
        name: String,
        /// Row of the tensor.
        row: usize,
        /// What is wrong there.
        found: String,
    },
    /// The cache is of another text, or of this one cut otherwise.
    #[error(
        "the teacher cache is of other tokens: made on `{}`, {} windows of {} in convention {}, of `{}`; this is {asked}",
        facts.text, facts.windows, facts.ctx, facts.convention, facts.model.source
    )]
    OtherTokens {
        /// What the cache was made on.
        facts: Box<Facts>,
        /// What was asked for.
        asked: String,
    },
    /// The cache is of a teacher that knows another number of tokens.
    #[error(
        "the teacher cache is of `{}`, which has {} tokens in its vocabulary, the model {model}: they cannot be compared",
        facts.model.source, facts.vocab_size
    )]
    OtherVocabulary {
        /// What the cache was made on.
        facts: Box<Facts>,
        /// `vocab_size` of the model under test.
        model: usize,
    },
    /// The cache is of a teacher whose tokens stand for other text.
    #[error(
        "the teacher cache is of `{}`, whose tokens stand for other text than the model's: they cannot be compared",
        facts.model.source
    )]
    OtherTexts {
        /// What the cache was made on.
        facts: Box<Facts>,
    },
}

impl Error {
    /// What the user could do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Files(error) => error.hint(),
            Self::OtherTokens { .. } => Some(
                "give the text, --ctx, --chunks and --convention it was made with, or make it anew with --save-reference",
            ),
            Self::OtherVocabulary { .. } | Self::OtherTexts { .. } => {
                Some("only models with the same tokenizer can be compared token by token")
            }
            Self::UnknownSignal { .. } => None,
            Self::TooManyKept { .. } => Some("keep fewer, or the hidden states, which hold all of it"),
            Self::Schema { .. } => {
                Some("use the version of attar that wrote it, or make it anew with --save-reference")
            }
            _ => Some("the teacher cache is damaged: copy it again, or make it anew with --save-reference"),
        }
    }
}
