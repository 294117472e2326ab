use std::path::PathBuf;

use super::pre;

/// Why a tokenizer could not be read, used or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The folder has neither of the two files a tokenizer comes in.
    #[error("no tokenizer.json and no tokenizer.model in {}", folder.display())]
    Missing {
        /// Where they were looked for.
        folder: PathBuf,
    },
    /// A file is there but cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's content is not what its name says.
    #[error("{} is damaged: {cause}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A GGUF key is absent or holds something else than it must.
    #[error("GGUF key `{key}` {problem}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The kind of tokenizer is one that attar does not encode with, or that GGUF has no place for.
    #[error("{what} is not supported")]
    Unsupported {
        /// What was met.
        what: String,
    },
    /// The text could not be encoded.
    #[error("the tokenizer cannot encode the text: {cause}")]
    Encode {
        /// What the tokenizer said.
        cause: String,
    },
    /// An id that no token has.
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Entries of the vocabulary.
        vocab_size: usize,
    },
    /// More tokens than rows of the embedding.
    #[error("the tokenizer has {tokens} tokens, the embedding only {vocab_size} rows")]
    TooLarge {
        /// Entries of the vocabulary.
        tokens: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// GGUF readers look tokens up by text, so no text may stand for two ids.
    #[error("tokens {first} and {second} have the same text `{text}`")]
    Duplicate {
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
        /// Their text.
        text: String,
    },
    /// Neither the splitting rule nor the hash of the check text is a known one.
    #[error(
        "llama.cpp has no name for this tokenizer's splitting rule (check text hashes to {hash}, rule is {rule})"
    )]
    UnknownPreTokenizer {
        /// sha256 of the ids of the check text.
        hash: String,
        /// The rule, as tokenizer.json states it.
        rule: String,
    },
    /// A pre-tokenizer name that llama.cpp does not have.
    #[error("llama.cpp knows no pre-tokenizer `{name}`")]
    NoSuchPreTokenizer {
        /// The name.
        name: String,
    },
}

impl TokenizerError {
    /// What the user might do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some(
                "copy tokenizer.json (or tokenizer.model) of the original model into the folder".to_owned(),
            ),
            Self::UnknownPreTokenizer { .. } => Some(format!(
                "if you know that it splits like one of llama.cpp's, name it with --pre-tokenizer NAME; known names: {}",
                pre::names().join(", ")
            )),
            Self::NoSuchPreTokenizer { .. } => Some(format!("known names: {}", pre::names().join(", "))),
            Self::TooLarge { .. } => {
                Some("the tokenizer's files belong to another model than the weights".to_owned())
            }
            _ => None,
        }
    }
}
