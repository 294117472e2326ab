//! Encodes as `SentencePiece` does, from the pieces themselves: `tokenizer.model` files and GGUF's `llama` and `t5`.

mod bpe;
mod charsmap;
pub(super) mod proto;
mod unigram;

use std::borrow::Cow;
use std::collections::HashMap;

use self::charsmap::CharsMap;
use self::proto::{ModelFile, NormalizerSpec};
use super::cut::{self, Position};
use super::vocabulary::{Token, TokenKind, byte_of};

/// How a space is spelled inside pieces.
pub(super) const SPACE: &str = "▁";

/// How pieces are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// Best scored merge first.
    Bpe,
    /// Most probable path.
    Unigram,
}

/// Where a text gets a space that it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpacePrefix {
    /// Nowhere.
    None,
    /// At its beginning: `SentencePiece`.
    Start,
    /// At its beginning and behind every user defined piece: llama.cpp.
    EveryFragment,
}

/// A ready encoder.
#[derive(Debug)]
pub(super) struct SentencePiece {
    algorithm: Algorithm,
    pieces: Pieces,
    user_defined: Vec<(String, u32)>, // longest first
    normalizer: NormalizerSpec,
    space_prefix: SpacePrefix,
    charsmap: Option<CharsMap>,
    cuttable: bool,
}

impl SentencePiece {
    /// An encoder from a vocabulary and what happens to a text before.
    ///
    /// # Errors
    /// Says what of it cannot be used.
    pub fn new(
        algorithm: Algorithm,
        tokens: &[Token],
        normalizer: NormalizerSpec,
        space_prefix: SpacePrefix,
    ) -> Result<Self, String> {
        let charsmap = CharsMap::parse(&normalizer.precompiled_charsmap)?;
        let mut user_defined: Vec<_> = (0..)
            .zip(tokens)
            .filter(|(_, token)| token.kind == TokenKind::UserDefined && !token.text.is_empty())
            .map(|(id, token)| {
                let text = &token.text;
                (if normalizer.escape_whitespaces { text.replace(SPACE, " ") } else { text.clone() }, id)
            })
            .collect();
        user_defined.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let pieces = Pieces::new(tokens)?;
        // Behind a letter, a known space ends every piece, and every run of unknown characters too.
        let cuttable =
            pieces.id(SPACE).is_some() && !pieces.by_text.keys().any(|text| cut::reaches_over_space(text));
        Ok(Self { algorithm, pieces, user_defined, normalizer, space_prefix, charsmap, cuttable })
    }

    /// An encoder from a `tokenizer.model` file.
    ///
    /// # Errors
    /// Says what of it cannot be used.
    pub fn from_model(model: &ModelFile) -> Result<Self, String> {
        let algorithm = match model.trainer.model_type {
            1 => Algorithm::Unigram,
            2 => Algorithm::Bpe,
            other => return Err(format!("its model type {other} is neither unigram (1) nor BPE (2)")),
        };
        if model.trainer.treat_whitespace_as_suffix {
            return Err("it writes spaces behind words (treat_whitespace_as_suffix)".to_owned());
        }
        let prefix = if model.normalizer.add_dummy_prefix { SpacePrefix::Start } else { SpacePrefix::None };
        Self::new(algorithm, &model.pieces, model.normalizer.clone(), prefix)
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn adds_space_prefix(&self) -> bool {
        self.space_prefix != SpacePrefix::None
    }

    /// Ids of a text; nothing in it counts as a control token.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for fragment in self.fragments(text) {
            match fragment {
                Fragment::Text(text) if self.cuttable => {
                    let encode =
                        |part: &str, _: Position| Ok::<_, std::convert::Infallible>(self.encode_part(part));
                    let Ok(part) = cut::encode_parts(&text, SPACE, encode);
                    ids.extend(part);
                }
                Fragment::Text(text) => ids.extend(self.encode_part(&text)),
                Fragment::Piece(id) => ids.push(id),
            }
        }
        ids
    }

    /// [`encode`](Self::encode) of the text between some tokens, which are found first, the longest where several begin at one place.
    pub fn encode_with<'a>(&self, tokens: impl Iterator<Item = (&'a str, u32)>, text: &str) -> Vec<u32> {
        let mut known: Vec<_> = tokens.filter(|(text, _)| !text.is_empty()).collect();
        known.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        let mut ids = Vec::new();
        for fragment in split(text, &known) {
            match fragment {
                Raw::Text(text) => ids.extend(self.encode(text)),
                Raw::Piece(id) => ids.push(id),
            }
        }
        ids
    }

    fn encode_part(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        match self.algorithm {
            Algorithm::Bpe => bpe::encode(text, &self.pieces, &mut ids),
            Algorithm::Unigram => unigram::encode(text, &self.pieces, &mut ids),
        }
        ids
    }

    /// The text of ids, spaces and bytes unescaped, without the space that encoding puts in front.
    pub fn decode(&self, ids: &[u32], tokens: &[Token]) -> String {
        let mut bytes = Vec::new();
        for token in ids.iter().filter_map(|&id| tokens.get(id as usize)) {
            match byte_of(&token.text) {
                Some(byte) if token.kind == TokenKind::Byte => bytes.push(byte),
                _ => bytes.extend(token.text.replace(SPACE, " ").bytes()),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = if self.adds_space_prefix() { text.strip_prefix(' ').unwrap_or(&text) } else { &text };
        text.to_owned()
    }

    /// `text` normalized, cut where user defined pieces stand.
    fn fragments(&self, text: &str) -> Vec<Fragment> {
        let raw = split(text, &self.user_defined);
        let last = raw.len().saturating_sub(1);
        let mut fragments = Vec::with_capacity(raw.len() + 1);
        let mut wants_prefix = self.space_prefix != SpacePrefix::None;
        for (i, fragment) in raw.into_iter().enumerate() {
            match fragment {
                Raw::Text(text) => {
                    let mut text = self.normalize(text, i == 0, i == last);
                    if wants_prefix && !text.is_empty() {
                        text.insert_str(0, self.escaped_space());
                    }
                    wants_prefix = false;
                    fragments.push(Fragment::Text(text));
                }
                Raw::Piece(id) => {
                    if wants_prefix && self.space_prefix == SpacePrefix::Start {
                        fragments.push(Fragment::Text(self.escaped_space().to_owned()));
                    }
                    wants_prefix = self.space_prefix == SpacePrefix::EveryFragment;
                    fragments.push(Fragment::Piece(id));
                }
            }
        }
        fragments
    }

    fn normalize(&self, text: &str, is_first: bool, is_last: bool) -> String {
        let mut text = self.charsmap.as_ref().map_or(Cow::Borrowed(text), |map| map.apply(text));
        if self.normalizer.remove_extra_whitespaces {
            text = Cow::Owned(single_spaces(&text, is_first, is_last));
        }
        if self.normalizer.escape_whitespaces { text.replace(' ', SPACE) } else { text.into_owned() }
    }

    fn escaped_space(&self) -> &'static str {
        if self.normalizer.escape_whitespaces { SPACE } else { " " }
    }
}

enum Raw<'a> {
    Text(&'a str),
    Piece(u32),
}

/// Cuts a text at known pieces, which are tried in their order.
fn split<'a>(text: &'a str, known: &[(impl AsRef<str>, u32)]) -> Vec<Raw<'a>> {
    if known.is_empty() {
        return vec![Raw::Text(text)];
    }
    let mut fragments = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some(c) = text[at..].chars().next() {
        match known.iter().find(|(piece, _)| text[at..].starts_with(piece.as_ref())) {
            Some((piece, id)) => {
                if start < at {
                    fragments.push(Raw::Text(&text[start..at]));
                }
                fragments.push(Raw::Piece(*id));
                at += piece.as_ref().len();
                start = at;
            }
            None => at += c.len_utf8(),
        }
    }
    if start < text.len() {
        fragments.push(Raw::Text(&text[start..]));
    }
    fragments
}

enum Fragment {
    Text(String),
    Piece(u32),
}

/// `text` with runs of spaces made one, and none at the ends of the whole text.
fn single_spaces(text: &str, trim_start: bool, trim_end: bool) -> String {
    let text = if trim_start { text.trim_start_matches(' ') } else { text };
    let text = if trim_end { text.trim_end_matches(' ') } else { text };
    let mut single = String::with_capacity(text.len());
    for c in text.chars() {
        if c != ' ' || !single.ends_with(' ') {
            single.push(c);
        }
    }
    single
}

/// The vocabulary as encoding looks at it: what text can become, and at what score.
#[derive(Debug)]
struct Pieces {
    by_text: HashMap<String, u32>,
    scores: Vec<f32>,
    unused: Vec<bool>,
    bytes: Option<Vec<u32>>, // 256 ids
    unknown: Option<u32>,
    longest: usize,
    min_score: f32,
}

impl Pieces {
    fn new(tokens: &[Token]) -> Result<Self, String> {
        let mut pieces = Self {
            by_text: HashMap::new(),
            scores: tokens.iter().map(|token| token.score).collect(),
            unused: tokens.iter().map(|token| token.kind == TokenKind::Unused).collect(),
            bytes: None,
            unknown: None,
            longest: 0,
            min_score: f32::INFINITY,
        };
        let mut bytes = [None; 256];
        for (id, token) in (0..).zip(tokens) {
            match token.kind {
                TokenKind::Normal => pieces.min_score = pieces.min_score.min(token.score),
                TokenKind::UserDefined | TokenKind::Unused | TokenKind::Control => {}
                TokenKind::Unknown => pieces.unknown = Some(id),
                TokenKind::Byte => {
                    let byte = byte_of(&token.text).ok_or_else(|| format!("`{}` is no byte", token.text))?;
                    bytes[usize::from(byte)] = Some(id);
                }
            }
            if matches!(token.kind, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused) {
                pieces.longest = pieces.longest.max(token.text.len());
                pieces.by_text.entry(token.text.clone()).or_insert(id);
            }
        }
        pieces.bytes = bytes.into_iter().collect();
        if pieces.bytes.is_none() && pieces.unknown.is_none() {
            return Err("it has neither byte tokens nor an unknown token".to_owned());
        }
        Ok(pieces)
    }

    fn id(&self, text: &str) -> Option<u32> {
        self.by_text.get(text).copied()
    }

    fn score(&self, id: u32) -> f32 {
        self.scores[id as usize]
    }

    fn is_unused(&self, id: u32) -> bool {
        self.unused[id as usize]
    }

    fn longest(&self) -> usize {
        self.longest
    }

    fn min_score(&self) -> f32 {
        self.min_score
    }

    /// Appends the id of `text`; without one, the ids of its bytes, or the unknown token once for a whole run.
    fn push(&self, text: &str, ids: &mut Vec<u32>) {
        match (self.id(text), &self.bytes, self.unknown) {
            (Some(id), ..) => ids.push(id),
            (None, Some(bytes), _) => ids.extend(text.bytes().map(|byte| bytes[usize::from(byte)])),
            (None, None, Some(unknown)) if ids.last() != Some(&unknown) => ids.push(unknown),
            (None, None, _) => {}
        }
    }
}
