//! Tokenizers: text to ids and back, read from Hugging Face folders and GGUF files, written for both.
//!
//! A `tokenizer.json` is encoded by the `tokenizers` crate, pieces with scores (`tokenizer.model`, GGUF's `llama`) by code
//! of our own. A GGUF's `gpt2` holds no `tokenizer.json`, so one is built from what it does hold.

mod check;
mod cut;
mod error;
mod folder;
mod json;
mod metadata;
mod pre;
mod rebuild;
mod sentencepiece;
mod vocabulary;

use std::path::{Path, PathBuf};

use self::json::Json;
use self::sentencepiece::SentencePiece;
use self::vocabulary::Specials;
use crate::gguf;

pub use error::TokenizerError;
pub use vocabulary::{Token, TokenKind};

/// A tokenizer, ready to encode.
#[derive(Debug)]
pub struct Tokenizer {
    tokens: Vec<Token>, // by id
    specials: Specials,
    chat_template: Option<String>,
    encoder: Encoder,
    folder: Option<PathBuf>,
}

/// What turns a text into ids.
#[derive(Debug)]
enum Encoder {
    Json(Box<Json>),
    SentencePiece(Box<SentencePiece>),
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face folder: `tokenizer.json`, else `tokenizer.model`; and, where they are there,
    /// the JSON files that name special tokens and the chat template.
    ///
    /// # Errors
    /// Neither file is there, or one of the files is unreadable or damaged.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        folder::read(folder)
    }

    /// Reads the tokenizer in a GGUF file's metadata, of model `gpt2` (byte-level BPE) or `llama` (`SentencePiece` BPE).
    ///
    /// # Errors
    /// A key is missing or lies, two tokens have one text, or the kind of tokenizer or its splitting rule is another.
    pub fn from_gguf(file: &gguf::File) -> Result<Self, TokenizerError> {
        metadata::read(file)
    }

    /// The ids of `text`, without special tokens around it; what looks like a special token in it is plain text.
    ///
    /// # Errors
    /// The vocabulary cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.encoder {
            Encoder::Json(json) => json.encode(text),
            Encoder::SentencePiece(pieces) => Ok(pieces.encode(text)),
        }
    }

    /// The ids of a text in which control tokens are spelled out, as chat templates write conversations; they are found first.
    ///
    /// # Errors
    /// The vocabulary cannot express the text.
    pub fn encode_with_controls(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.encoder {
            Encoder::Json(json) => json.encode_with_controls(text),
            Encoder::SentencePiece(pieces) => {
                let controls = (0..).zip(&self.tokens).filter(|(_, token)| token.kind == TokenKind::Control);
                Ok(pieces.encode_with(controls.map(|(id, token)| (token.text.as_str(), id)), text))
            }
        }
    }

    /// The Jinja template that writes a conversation out, where one came with the tokenizer.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Hugging Face's names of the tokens with a part to play, `bos_token` and others, and their texts.
    pub fn special_tokens(&self) -> impl Iterator<Item = (String, &str)> {
        self.specials.ids.iter().filter_map(|&(role, id)| {
            let (_, name) = folder::ROLES.iter().find(|(other, _)| *other == role)?;
            Some((format!("{name}_token"), self.tokens.get(id as usize)?.text.as_str()))
        })
    }

    /// The text of `ids`, special tokens spelled out; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.tokens.len()) {
            return Err(TokenizerError::UnknownId { id, vocab_size: self.tokens.len() });
        }
        match &self.encoder {
            Encoder::Json(json) => json.decode(ids),
            Encoder::SentencePiece(pieces) => Ok(pieces.decode(ids, &self.tokens)),
        }
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.specials.id("bos")
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.specials.id("eos")
    }

    /// Whether the tokenizer itself puts [`Self::bos`] before every text.
    pub fn add_bos(&self) -> bool {
        self.specials.adds_bos()
    }

    /// How many ids there are, added tokens and gaps between ids included.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// All tokens, by id.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// The ids that stand for other text here than in `other`, tokens that never come from text left aside: none where two
    /// models can read each other's tokens.
    pub fn differing_from(&self, other: &Self) -> Vec<u32> {
        vocabulary::differing(&self.tokens, &other.tokens)
    }

    /// SHA-256 over the id and the text of every token that comes from text, lower-case hex: what [`differing_from`](Self::differing_from)
    /// compares, in short.
    pub fn vocabulary_sha256(&self) -> String {
        vocabulary::sha256(&self.tokens)
    }

    /// Leaves out the last tokens, those that an embedding of `rows` rows has none for, if no text leads to any of them:
    /// Gemma 3's models of text have the tokenizer of those that see images, with one token more than rows.
    #[must_use]
    pub fn limited_to(mut self, rows: usize) -> Self {
        let surplus = self.tokens.get(rows..).unwrap_or_default();
        if surplus.iter().all(|token| matches!(token.kind, TokenKind::Control | TokenKind::Unused)) {
            self.tokens.truncate(rows);
            self.specials.ids.retain(|&(_, id)| (id as usize) < rows);
        }
        self
    }

    /// The `tokenizer.*` metadata of a GGUF file whose embedding has `vocab_size` rows; rows without a token become
    /// `[PAD<id>]`. `pre` names the pre-tokenizer of a byte-level BPE whose splitting rule is not recognised.
    ///
    /// GGUF has no place for a `SentencePiece` model's character map or its trimming of spaces; they are left out.
    ///
    /// # Errors
    /// More tokens than rows, two tokens with one text, a splitting rule without a name, a name that llama.cpp does not
    /// know, or a kind of tokenizer that cannot be expressed.
    pub fn gguf_metadata(
        &self,
        vocab_size: usize,
        pre: Option<&str>,
    ) -> Result<Vec<(String, gguf::Value)>, TokenizerError> {
        metadata::write(self, vocab_size, pre)
    }

    /// The tokenizer's files for a Hugging Face folder, as name and content: those of the folder it was read from, or,
    /// read from a GGUF file, a `tokenizer.json` and a `tokenizer_config.json` that encode alike.
    ///
    /// # Errors
    /// A file of the folder can no longer be read.
    pub fn hf_files(&self) -> Result<Vec<(String, Vec<u8>)>, TokenizerError> {
        match &self.folder {
            Some(folder) => folder::files(folder),
            None => rebuild::files(self),
        }
    }
}
