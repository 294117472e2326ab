//! Tokenizers in GGUF metadata.

use super::json::{ByteLevel, Json, Style};
use super::rebuild;
use super::sentencepiece::{Algorithm, SentencePiece, SpacePrefix, proto::NormalizerSpec};
use super::vocabulary::{Specials, Token, TokenKind, check_unique};
use super::{Encoder, Tokenizer, TokenizerError, pre};
use crate::gguf::{Array, File, Value};

/// The roles a token may have in GGUF, as the keys spell them.
const ROLES: [&str; 15] = [
    "bos",
    "eos",
    "eot",
    "eom",
    "unknown",
    "seperator",
    "padding",
    "cls",
    "mask",
    "fim_pre",
    "fim_suf",
    "fim_mid",
    "fim_pad",
    "fim_rep",
    "fim_sep",
];
/// The ids llama.cpp takes for a `llama` tokenizer that names none.
const LLAMA_ROLES: [(&str, u32); 3] = [("bos", 1), ("eos", 2), ("unknown", 0)];
/// Pre-tokenizers with which llama.cpp puts BOS first unless the file says otherwise.
const PUT_BOS_FIRST: [&str; 11] = [
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
];

const MODEL: &str = "model";
const PRE: &str = "pre";
const TOKENS: &str = "tokens";
const SCORES: &str = "scores";
const TOKEN_TYPE: &str = "token_type";
const MERGES: &str = "merges";
const ADD_BOS: &str = "add_bos_token";
const ADD_EOS: &str = "add_eos_token";
const ADD_SPACE_PREFIX: &str = "add_space_prefix";
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// Reads the tokenizer of `file`.
pub(super) fn read(file: &File) -> Result<Tokenizer, TokenizerError> {
    let keys = Keys(file);
    let model = keys.required(MODEL, Value::as_str)?;
    let is_pieces = match model {
        "gpt2" => false,
        "llama" => true,
        other => {
            return Err(TokenizerError::Unsupported { what: format!("a GGUF tokenizer of model `{other}`") });
        }
    };
    let tokens = keys.tokens(is_pieces)?;
    check_unique(&tokens)?;
    let pre = keys.optional(PRE, Value::as_str)?;
    let adds_bos_by_itself = is_pieces || pre.is_some_and(|name| PUT_BOS_FIRST.contains(&name));
    let mut specials = Specials { ids: keys.roles(is_pieces, tokens.len())?, ..Specials::default() };
    let add_bos = keys.optional(ADD_BOS, Value::as_bool)?.unwrap_or(adds_bos_by_itself);
    specials.surround(Some(add_bos), keys.optional(ADD_EOS, Value::as_bool)?);

    let encoder = if is_pieces {
        let prefix = keys.optional(ADD_SPACE_PREFIX, Value::as_bool)?.unwrap_or(true);
        let pieces =
            pieces(&tokens, prefix).map_err(|cause| flaw(TOKENS, format!("cannot be used: {cause}")))?;
        Encoder::SentencePiece(Box::new(pieces))
    } else {
        let rule = pre.and_then(pre::rule).ok_or_else(|| TokenizerError::Unsupported {
            what: format!("a byte-level BPE that splits by the rule `{}`", pre.unwrap_or("default")),
        })?;
        let parts = ByteLevel {
            merges: keys.required(MERGES, Value::as_strings)?.to_vec(),
            ignore_merges: rule.ignore_merges,
            pre_tokenizer: pre::pre_tokenizer(rule),
            name: pre.map(str::to_owned),
        };
        let json = Json::rebuilt(rebuild::byte_level(&tokens, &parts, &specials), parts)
            .map_err(|cause| flaw(MERGES, format!("does not fit the tokens: {cause}")))?;
        Encoder::Json(Box::new(json))
    };
    let chat_template = file.metadata(CHAT_TEMPLATE).and_then(Value::as_str).map(str::to_owned);
    Ok(Tokenizer { tokens, specials, chat_template, encoder, folder: None })
}

/// The metadata of `tokenizer` beside an embedding of `vocab_size` rows.
pub(super) fn write(
    tokenizer: &Tokenizer,
    vocab_size: usize,
    pre: Option<&str>,
) -> Result<Vec<(String, Value)>, TokenizerError> {
    let count = tokenizer.tokens.len();
    if count > vocab_size {
        return Err(TokenizerError::TooLarge { tokens: count, vocab_size });
    }
    let padding = (count..vocab_size).map(Token::padding);
    let tokens: Vec<Token> = tokenizer.tokens.iter().cloned().chain(padding).collect();
    check_unique(&tokens)?;
    let pre = pre.map(pre::checked).transpose()?;

    let mut keys = Vec::new();
    let mut put = |key: &str, value: Value| keys.push((full(key), value));
    let texts = tokens.iter().map(|token| token.text.clone()).collect::<Vec<_>>();
    let kinds = Value::Array(Array::I32(tokens.iter().map(|token| token.kind as i32).collect()));
    match Shape::of(tokenizer)? {
        Shape::ByteLevel { recognised, merges } => {
            let name = pre.map_or_else(recognised, Ok)?;
            put(MODEL, "gpt2".into());
            put(PRE, name.into());
            put(TOKENS, texts.into());
            put(TOKEN_TYPE, kinds);
            put(MERGES, merges.to_vec().into());
        }
        Shape::Pieces { adds_space_prefix } => {
            put(MODEL, "llama".into());
            put(PRE, "default".into());
            put(TOKENS, texts.into());
            put(SCORES, Value::Array(Array::F32(tokens.iter().map(|token| token.score).collect())));
            put(TOKEN_TYPE, kinds);
            put(ADD_SPACE_PREFIX, adds_space_prefix.into());
        }
    }
    let specials = &tokenizer.specials;
    for (role, id) in &specials.ids {
        put(&role_key(role), (*id).into());
    }
    put(ADD_BOS, specials.adds_bos().into());
    put(ADD_EOS, specials.adds_eos().into());
    if let Some(template) = &tokenizer.chat_template {
        keys.push((CHAT_TEMPLATE.to_owned(), template.as_str().into()));
    }
    Ok(keys)
}

/// Which of GGUF's two kinds a tokenizer is.
enum Shape<'a> {
    ByteLevel { recognised: Box<dyn FnOnce() -> Result<&'a str, TokenizerError> + 'a>, merges: &'a [String] },
    Pieces { adds_space_prefix: bool },
}

impl<'a> Shape<'a> {
    fn of(tokenizer: &'a Tokenizer) -> Result<Self, TokenizerError> {
        let unsupported = |what: &str| Err(TokenizerError::Unsupported { what: format!("{what} in GGUF") });
        match &tokenizer.encoder {
            Encoder::SentencePiece(pieces) => match pieces.algorithm() {
                Algorithm::Bpe => Ok(Self::Pieces { adds_space_prefix: pieces.adds_space_prefix() }),
                Algorithm::Unigram => unsupported("a SentencePiece unigram model"),
            },
            Encoder::Json(json) => match json.style() {
                Style::ByteLevel(parts) => Ok(Self::ByteLevel {
                    recognised: Box::new(|| json.pre_tokenizer_name(parts)),
                    merges: &parts.merges,
                }),
                Style::SentencePiece { adds_space_prefix } => {
                    check_scores(json, &tokenizer.tokens, *adds_space_prefix)?;
                    Ok(Self::Pieces { adds_space_prefix: *adds_space_prefix })
                }
                Style::Other(what) => unsupported(what),
            },
        }
    }
}

/// Holds scores made from merges to the merges' own ids: for every token that merges lead to, and for a text.
fn check_scores(json: &Json, tokens: &[Token], adds_space_prefix: bool) -> Result<(), TokenizerError> {
    let unsupported = |what: String| TokenizerError::Unsupported { what };
    let pieces = pieces(tokens, adds_space_prefix)
        .map_err(|cause| unsupported(format!("a vocabulary that cannot be pieces with scores ({cause})")))?;
    let unreached = json.unreached();
    let reached = |token: &&Token| token.kind == TokenKind::Normal && !unreached.contains(&token.text);
    let texts =
        tokens.iter().filter(reached).map(|token| token.text.trim_start_matches('▁').replace('▁', " "));
    for text in texts.chain([pre::CHECK_TEXT.to_owned()]) {
        if json.encode(&text)? != pieces.encode(&text) {
            let text = text.chars().take(40).collect::<String>();
            let what = format!("a vocabulary whose merges no scores can express (see {text:?}) in GGUF");
            return Err(unsupported(what));
        }
    }
    Ok(())
}

/// The encoder that llama.cpp makes of a `llama` vocabulary.
fn pieces(tokens: &[Token], adds_space_prefix: bool) -> Result<SentencePiece, String> {
    let normalizer = NormalizerSpec {
        add_dummy_prefix: adds_space_prefix,
        remove_extra_whitespaces: false,
        ..NormalizerSpec::default()
    };
    let prefix = if adds_space_prefix { SpacePrefix::EveryFragment } else { SpacePrefix::None };
    SentencePiece::new(Algorithm::Bpe, tokens, normalizer, prefix)
}

fn full(key: &str) -> String {
    format!("tokenizer.ggml.{key}")
}

fn flaw(key: &str, problem: impl Into<String>) -> TokenizerError {
    TokenizerError::Key { key: full(key), problem: problem.into() }
}

fn role_key(role: &str) -> String {
    format!("{role}_token_id")
}

/// The `tokenizer.ggml.` keys of a file.
struct Keys<'a>(&'a File);

impl<'a> Keys<'a> {
    fn optional<T>(
        &self,
        key: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, TokenizerError> {
        let Some(value) = self.0.metadata(&full(key)) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| flaw(key, "has a value of another type"))
    }

    fn required<T>(&self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<T, TokenizerError> {
        self.optional(key, read)?.ok_or_else(|| flaw(key, "is missing"))
    }

    fn tokens(&self, is_pieces: bool) -> Result<Vec<Token>, TokenizerError> {
        let texts = self.required(TOKENS, Value::as_strings)?;
        let scores = self.optional(SCORES, |value| match value {
            Value::Array(Array::F32(scores)) => Some(scores.as_slice()),
            _ => None,
        })?;
        let kinds = self.optional(TOKEN_TYPE, |value| match value {
            Value::Array(Array::I32(kinds)) => {
                Some(kinds.iter().map(|&kind| i64::from(kind)).collect::<Vec<_>>())
            }
            Value::Array(Array::U32(kinds)) => Some(kinds.iter().map(|&kind| i64::from(kind)).collect()),
            _ => None,
        })?;
        if texts.is_empty() {
            return Err(flaw(TOKENS, "is empty"));
        }
        for (key, len) in [(SCORES, scores.map(<[f32]>::len)), (TOKEN_TYPE, kinds.as_ref().map(Vec::len))] {
            match len {
                Some(len) if len != texts.len() => {
                    return Err(flaw(key, format!("has {len} values for {} tokens", texts.len())));
                }
                None if is_pieces => return Err(flaw(key, "is missing")),
                _ => {}
            }
        }
        let token = |(id, text): (usize, &String)| {
            let number = kinds.as_ref().map_or(TokenKind::Normal as i64, |kinds| kinds[id]);
            let kind = TokenKind::from_number(number)
                .ok_or_else(|| flaw(TOKEN_TYPE, format!("gives token {id} the kind {number}")))?;
            let score = scores.map_or(0.0, |scores| scores[id]);
            if score.is_nan() {
                return Err(flaw(SCORES, format!("is no number for token {id}")));
            }
            Ok(Token { text: text.clone(), score, kind })
        };
        texts.iter().enumerate().map(token).collect()
    }

    fn roles(&self, is_pieces: bool, count: usize) -> Result<Vec<(&'static str, u32)>, TokenizerError> {
        let mut ids = Vec::new();
        for role in ROLES {
            let key = role_key(role);
            let default =
                LLAMA_ROLES.iter().find(|(name, id)| is_pieces && *name == role && (*id as usize) < count);
            match self.optional(&key, Value::as_u64)? {
                Some(id) if id < count as u64 => ids.push((role, id as u32)),
                Some(id) => return Err(flaw(&key, format!("is {id}, beyond the {count} tokens"))),
                None => ids.extend(default.map(|&(_, id)| (role, id))),
            }
        }
        Ok(ids)
    }
}
