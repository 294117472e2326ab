//! Encodes by a `tokenizer.json`, with the `tokenizers` crate.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::{AddedToken, Model as _, ModelWrapper};

use super::TokenizerError;
use super::check::check;
use super::cut::{self, Position};
use super::pre::{self, Evidence};
use super::sentencepiece::SPACE;
use super::vocabulary::{ADDED_SCORE, Token, TokenKind, by_id, byte_of, looks_like_control, unescaped};

/// A ready encoder.
#[derive(Debug)]
pub(super) struct Json {
    inner: tokenizers::Tokenizer,
    with_controls: OnceLock<Box<tokenizers::Tokenizer>>, // the same, finding control tokens in texts
    style: Style,
    cut: Option<Cut>,
}

/// What the file's parts come to, as far as GGUF has a word for it.
#[derive(Debug)]
pub(super) enum Style {
    /// Byte-level BPE: GGUF's `gpt2`.
    ByteLevel(ByteLevel),
    /// A `SentencePiece` BPE in the shape of merges: GGUF's `llama`.
    SentencePiece {
        /// Whether texts get a space in front.
        adds_space_prefix: bool,
    },
    /// Anything else, in words.
    Other(String),
}

/// What a GGUF file states of a byte-level BPE beside its tokens.
#[derive(Debug)]
pub(super) struct ByteLevel {
    /// Pairs as GGUF spells them: `Ġ t`.
    pub merges: Vec<String>,
    /// Whether a part that is a token stays whole even where no merges lead to it.
    pub ignore_merges: bool,
    /// The splitting rule, as `tokenizer.json` states it.
    pub pre_tokenizer: Value,
    /// llama.cpp's name for the rule, where a GGUF file gave it.
    pub name: Option<String>,
}

/// How parts that begin with a space are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// As they are.
    WithSpace,
    /// Without it, since encoding puts one in front.
    WithoutSpace,
}

impl Json {
    /// An encoder from the file's value, and its tokens by id.
    ///
    /// # Errors
    /// Says what is wrong with the file.
    pub fn new(mut file: Value) -> Result<(Self, Vec<Token>), String> {
        if !file["model"].is_object() {
            return Err("it has no `model`".to_owned());
        }
        check(&file)?;
        // Neither padding, nor cutting at a length, nor chance is part of what a text's ids are.
        file["truncation"] = Value::Null;
        file["padding"] = Value::Null;
        file["model"]["dropout"] = Value::Null;
        for token in file["added_tokens"].as_array_mut().into_iter().flatten() {
            if token["content"].as_str().is_some_and(looks_like_control) {
                token["special"] = Value::Bool(true);
            }
        }
        let style = style(&file);
        let added_ids: Vec<(String, u64)> =
            file["added_tokens"].as_array().into_iter().flatten().filter_map(id_of).collect();
        let parts = Parts::of(&file);
        let mut inner: tokenizers::Tokenizer =
            serde_json::from_value(file).map_err(|error| error.to_string())?;
        inner.set_encode_special_tokens(true);
        for (text, id) in added_ids {
            let used = inner.token_to_id(&text);
            if !text.is_empty() && used.map(u64::from) != Some(id) {
                return Err(format!("added token `{text}` says id {id}, but its place is {used:?}"));
            }
        }
        let tokens = tokens(&inner, &style, &parts)?;
        let cut = cut_of(&inner, &style, &parts, &tokens);
        Ok((Self { inner, with_controls: OnceLock::new(), style, cut }, tokens))
    }

    pub fn style(&self) -> &Style {
        &self.style
    }

    /// Ids of a text; nothing in it counts as a special token.
    ///
    /// # Errors
    /// The vocabulary cannot express it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let Some(cut) = self.cut else { return self.encode_whole(text, Surrounding::None) };
        cut::encode_parts(text, " ", |part, position| {
            let part = match (cut, position) {
                (Cut::WithoutSpace, Position::Later) => part.strip_prefix(' ').unwrap_or(part),
                _ => part,
            };
            self.encode_whole(part, Surrounding::None)
        })
    }

    /// Ids of a text in which control tokens are spelled out.
    ///
    /// # Errors
    /// The vocabulary cannot express it.
    pub fn encode_with_controls(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let inner = self.with_controls.get_or_init(|| {
            let mut inner = self.inner.clone();
            inner.set_encode_special_tokens(false);
            Box::new(inner)
        });
        ids(inner, text, Surrounding::None)
    }

    /// # Errors
    /// The decoder refuses.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, false).map_err(|error| TokenizerError::Encode { cause: error.to_string() })
    }

    /// The ids that the file puts before and behind every text.
    ///
    /// # Errors
    /// Not even one letter can be encoded.
    pub fn surrounding(&self) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
        let alone = self.encode_whole("a", Surrounding::None)?;
        let surrounded = self.encode_whole("a", Surrounding::Special)?;
        let at = surrounded.windows(alone.len().max(1)).position(|window| window == alone);
        Ok(match at {
            Some(at) => (surrounded[..at].to_vec(), surrounded[at + alone.len()..].to_vec()),
            None => (Vec::new(), Vec::new()),
        })
    }

    /// An encoder of this byte-level BPE from the `tokenizer.json` made of it.
    ///
    /// # Errors
    /// Says what does not fit together.
    pub fn rebuilt(file: Value, parts: ByteLevel) -> Result<Self, String> {
        let (json, _) = Self::new(file)?;
        Ok(Self { style: Style::ByteLevel(parts), ..json })
    }

    /// llama.cpp's name for the splitting rule of a byte-level BPE.
    ///
    /// # Errors
    /// It has none.
    pub fn pre_tokenizer_name<'a>(&self, parts: &'a ByteLevel) -> Result<&'a str, TokenizerError> {
        if let Some(name) = &parts.name {
            return Ok(name);
        }
        pre::recognise(&Evidence {
            pre_tokenizer: &parts.pre_tokenizer,
            ignore_merges: parts.ignore_merges,
            merges_reach_every_token: &|| self.unreached().is_empty(),
            encode: &|text| self.encode_whole(text, Surrounding::Special),
        })
    }

    /// The tokens that merges alone do not lead to, added ones aside.
    pub fn unreached(&self) -> HashSet<String> {
        let ModelWrapper::BPE(model) = self.inner.get_model() else { return HashSet::new() };
        let mut model = model.clone();
        model.ignore_merges = false;
        let added = self.inner.get_added_vocabulary().get_vocab();
        let is_one = |text: &str| model.tokenize(text).is_ok_and(|tokens| tokens.len() == 1);
        model.get_vocab().into_keys().filter(|text| !added.contains_key(text) && !is_one(text)).collect()
    }

    fn encode_whole(&self, text: &str, surrounding: Surrounding) -> Result<Vec<u32>, TokenizerError> {
        ids(&self.inner, text, surrounding)
    }
}

fn ids(
    inner: &tokenizers::Tokenizer,
    text: &str,
    surrounding: Surrounding,
) -> Result<Vec<u32>, TokenizerError> {
    let encoding = inner.encode_fast(text, surrounding == Surrounding::Special);
    let encoding = encoding.map_err(|error| TokenizerError::Encode { cause: error.to_string() })?;
    Ok(encoding.get_ids().to_vec())
}

/// What is put around a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Surrounding {
    None,
    Special,
}

/// Parts of the file that the crate keeps to itself.
struct Parts {
    merges: HashMap<String, usize>, // merged text -> rank of its first merge
    unknown: Option<String>,
    normalizer_only_composes: bool,
}

impl Parts {
    fn of(file: &Value) -> Self {
        let model = &file["model"];
        let mut merges = HashMap::new();
        for (rank, (left, right)) in merge_pairs(model).enumerate() {
            merges.entry(format!("{left}{right}")).or_insert(rank);
        }
        let normalizers = steps(&file["normalizer"], "normalizers");
        Self {
            merges,
            unknown: model["unk_token"].as_str().map(str::to_owned),
            normalizer_only_composes: normalizers.iter().all(|step| step["type"] == "NFC"),
        }
    }
}

/// The merges of a model, best first.
pub(super) fn merge_pairs(model: &Value) -> impl Iterator<Item = (&str, &str)> {
    model["merges"].as_array().into_iter().flatten().filter_map(|merge| match merge {
        Value::String(pair) => pair.split_once(' '),
        pair => Some((pair[0].as_str()?, pair[1].as_str()?)),
    })
}

/// The steps of a normalizer, pre-tokenizer or post-processor; none for `null`.
pub(super) fn steps<'a>(value: &'a Value, inside: &str) -> Vec<&'a Value> {
    match value {
        Value::Null => Vec::new(),
        value => match value[inside].as_array() {
            Some(list) => list.iter().flat_map(|step| steps(step, inside)).collect(),
            None => vec![value],
        },
    }
}

fn style(file: &Value) -> Style {
    let model = &file["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" {
        return Style::Other(format!("a tokenizer.json of type {kind}"));
    }
    let normalizers = steps(&file["normalizer"], "normalizers");
    let pre_tokenizers = steps(&file["pre_tokenizer"], "pretokenizers");
    if pre_tokenizers.iter().any(|step| step["type"] == "ByteLevel") {
        if let Some(other) = normalizers.iter().find(|step| step["type"] != "NFC") {
            return Style::Other(format!("byte-level BPE behind a normalizer {}", other["type"]));
        }
        // GGUF parts a pair at its space; llama.cpp's converter has a space inside a token written as `Ġ` too.
        let spelled = |text: &str| text.replace(' ', "Ġ");
        return Style::ByteLevel(ByteLevel {
            merges: merge_pairs(model)
                .map(|(left, right)| format!("{} {}", spelled(left), spelled(right)))
                .collect(),
            ignore_merges: model["ignore_merges"] == true,
            pre_tokenizer: file["pre_tokenizer"].clone(),
            name: None,
        });
    }
    match space_prefix(&normalizers, &pre_tokenizers) {
        Some(adds_space_prefix) if model["byte_fallback"] == true => {
            Style::SentencePiece { adds_space_prefix }
        }
        _ => Style::Other("a BPE that is neither byte-level nor SentencePiece's".to_owned()),
    }
}

/// Whether texts get a space in front, where spaces are all that these steps change.
fn space_prefix(normalizers: &[&Value], pre_tokenizers: &[&Value]) -> Option<bool> {
    let (mut escapes, mut prefix) = (false, false);
    for step in normalizers.iter().chain(pre_tokenizers) {
        match step["type"].as_str()? {
            "Prepend" if step["prepend"] == SPACE => prefix = true,
            "Replace" if step["pattern"]["String"] == " " && step["content"] == SPACE => escapes = true,
            "Metaspace" if step["replacement"] == SPACE => {
                escapes = true;
                prefix = step["prepend_scheme"] != "never" && step["add_prefix_space"] != false;
            }
            // Nothing is left to split at once spaces are escaped: Gemma.
            "Split" if escapes && step["pattern"]["String"] == " " => {}
            _ => return None,
        }
    }
    escapes.then_some(prefix)
}

fn id_of(added: &Value) -> Option<(String, u64)> {
    Some((added["content"].as_str()?.to_owned(), added["id"].as_u64()?))
}

fn tokens(inner: &tokenizers::Tokenizer, style: &Style, parts: &Parts) -> Result<Vec<Token>, String> {
    let is_pieces = matches!(style, Style::SentencePiece { .. });
    let is_unknown = |text: &str| is_pieces && parts.unknown.as_deref() == Some(text);
    let own = inner.get_vocab(false).into_iter().map(|(text, id)| {
        let kind = match byte_of(&text) {
            Some(_) if is_pieces => TokenKind::Byte,
            _ if is_unknown(&text) => TokenKind::Unknown,
            _ => TokenKind::Normal,
        };
        let score = match parts.merges.get(&text) {
            _ if !is_pieces => 0.0,
            Some(&rank) => -(rank as f32),
            None => ADDED_SCORE,
        };
        (id, Token { text, score, kind })
    });
    let added = inner.get_added_tokens_decoder().into_iter().map(|(id, token)| {
        let kind = match token.special {
            _ if is_unknown(&token.content) => TokenKind::Unknown,
            true => TokenKind::Control,
            false => TokenKind::UserDefined,
        };
        (id, Token { text: unescaped(&token.content, kind), score: ADDED_SCORE, kind })
    });
    by_id(own.chain(added).collect())
}

/// How long texts may be cut, if the file's rules are known not to reach across.
fn cut_of(inner: &tokenizers::Tokenizer, style: &Style, parts: &Parts, tokens: &[Token]) -> Option<Cut> {
    if !inner.get_added_tokens_decoder().values().all(is_blind_to_cuts) {
        return None;
    }
    match style {
        Style::ByteLevel(byte_level) if parts.normalizer_only_composes => {
            let ends = pre::parts_end_at_spaces(&byte_level.pre_tokenizer);
            ends.then_some(Cut::WithSpace)
        }
        Style::SentencePiece { adds_space_prefix } => {
            let ends = tokens.iter().all(|token| !cut::reaches_over_space(&token.text));
            let known = inner.token_to_id(SPACE).is_some();
            let cut = if *adds_space_prefix { Cut::WithoutSpace } else { Cut::WithSpace };
            (ends && known).then_some(cut)
        }
        _ => None,
    }
}

/// Whether the token is found alike in a text and in the text's parts.
fn is_blind_to_cuts(token: &AddedToken) -> bool {
    let plain = !token.lstrip && !token.rstrip && !token.single_word;
    token.special
        || plain && !token.content.starts_with([' ', '▁']) && !cut::reaches_over_space(&token.content)
}
