//! The tokenizer files of a Hugging Face folder.

use std::path::Path;
use std::{fs, io};

use serde_json::Value;

use super::json::{Json, Style};
use super::sentencepiece::{SentencePiece, proto};
use super::vocabulary::{
    ADDED_SCORE, Specials, Token, TokenKind, by_id, ids_by_text, looks_like_control, unescaped,
};
use super::{Encoder, Tokenizer, TokenizerError};
use crate::hf::{CONFIG, GENERATION_CONFIG};

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const PIECES: &str = "tokenizer.model";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Every file that may belong to a tokenizer.
const FILES: [&str; 8] = [
    TOKENIZER,
    TOKENIZER_CONFIG,
    PIECES,
    SPECIAL_TOKENS,
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    "vocab.json",
    "merges.txt",
];

/// GGUF's words for the roles of tokens and Hugging Face's.
pub(super) const ROLES: [(&str, &str); 7] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unknown", "unk"),
    ("seperator", "sep"),
    ("padding", "pad"),
    ("cls", "cls"),
    ("mask", "mask"),
];

/// Reads the tokenizer of `folder`.
pub(super) fn read(folder: &Path) -> Result<Tokenizer, TokenizerError> {
    let sides = Sides::read(folder)?;
    if let Some(bytes) = read_optional(&folder.join(TOKENIZER))? {
        return read_json(folder, &sides, &bytes);
    }
    match read_optional(&folder.join(PIECES))? {
        Some(bytes) => read_pieces(folder, &sides, &bytes),
        None => Err(TokenizerError::Missing { folder: folder.to_path_buf() }),
    }
}

/// Name and content of every tokenizer file in `folder`.
pub(super) fn files(folder: &Path) -> Result<Vec<(String, Vec<u8>)>, TokenizerError> {
    let mut files = Vec::new();
    for name in FILES {
        if let Some(bytes) = read_optional(&folder.join(name))? {
            files.push((name.to_owned(), bytes));
        }
    }
    Ok(files)
}

fn read_json(folder: &Path, sides: &Sides, bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
    let damaged = damaged(&folder.join(TOKENIZER));
    let value = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    let (json, mut tokens) = Json::new(value).map_err(&damaged)?;
    let mut trained = Vec::new();
    if let Style::SentencePiece { .. } = json.style()
        && let Some(bytes) = read_optional(&folder.join(PIECES))?
    {
        let model = proto::parse(&bytes).map_err(self::damaged(&folder.join(PIECES)))?;
        if take_scores(&mut tokens, &model.pieces) {
            trained = model.trainer.roles().to_vec();
        }
    }
    let mut specials = Specials { ids: sides.ids(&tokens, &trained), ..Specials::default() };
    (specials.prefix, specials.suffix) = json.surrounding()?;
    if let Some(id) = specials.prefix.iter().chain(&specials.suffix).find(|&&id| id as usize >= tokens.len())
    {
        return Err(damaged(format!("its post_processor adds id {id}, its tokens are {}", tokens.len())));
    }
    if let (None, Some(&first)) = (specials.id("bos"), specials.prefix.first()) {
        specials.ids.push(("bos", first));
    }
    specials.surround(sides.flag("add_bos_token"), sides.flag("add_eos_token"));
    Ok(tokenizer(folder, sides, tokens, specials, Encoder::Json(Box::new(json))))
}

fn read_pieces(folder: &Path, sides: &Sides, bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
    let damaged = damaged(&folder.join(PIECES));
    let mut model = proto::parse(bytes).map_err(&damaged)?;
    let mut added = sides.added_tokens();
    added.retain(|(id, token)| {
        let own = model.pieces.get(*id as usize);
        own.is_none_or(|own| own.kind == TokenKind::Normal || own.text != token.text)
    });
    let own = (0..).zip(std::mem::take(&mut model.pieces));
    model.pieces = by_id(own.chain(added).collect()).map_err(&damaged)?;
    let pieces = SentencePiece::from_model(&model).map_err(&damaged)?;
    let tokens = std::mem::take(&mut model.pieces);

    let mut specials = Specials { ids: sides.ids(&tokens, &model.trainer.roles()), ..Specials::default() };
    specials.surround(sides.flag("add_bos_token").or(Some(true)), sides.flag("add_eos_token"));
    Ok(tokenizer(folder, sides, tokens, specials, Encoder::SentencePiece(Box::new(pieces))))
}

fn tokenizer(
    folder: &Path,
    sides: &Sides,
    tokens: Vec<Token>,
    specials: Specials,
    encoder: Encoder,
) -> Tokenizer {
    Tokenizer {
        tokens,
        specials,
        chat_template: sides.chat_template(),
        encoder,
        folder: Some(folder.to_path_buf()),
    }
}

/// Gives `tokens` the scores of `pieces`, if they are one vocabulary.
fn take_scores(tokens: &mut [Token], pieces: &[Token]) -> bool {
    let same = |(token, piece): (&Token, &Token)| token.kind != TokenKind::Normal || token.text == piece.text;
    let all_there = tokens.iter().skip(pieces.len()).all(|token| token.kind != TokenKind::Normal);
    let is_one = all_there && tokens.iter().zip(pieces).all(same);
    if is_one {
        for (token, piece) in tokens.iter_mut().zip(pieces) {
            token.score = piece.score;
        }
    }
    is_one
}

/// The JSON files beside the vocabulary; `Null` where one is absent.
struct Sides {
    tokenizer_config: Value,
    special_tokens: Value,
    added_tokens: Value,
    config: Value,
    generation_config: Value,
    template_file: Option<String>,
}

impl Sides {
    fn read(folder: &Path) -> Result<Self, TokenizerError> {
        let object = |name: &str| {
            let path = folder.join(name);
            let Some(bytes) = read_optional(&path)? else { return Ok(Value::Null) };
            match serde_json::from_slice(&bytes) {
                Ok(value @ Value::Object(_)) => Ok(value),
                Ok(_) => Err(damaged(&path)("it is not a JSON object".to_owned())),
                Err(error) => Err(damaged(&path)(error.to_string())),
            }
        };
        let template = folder.join(CHAT_TEMPLATE);
        let template_file = read_optional(&template)?
            .map(|bytes| String::from_utf8(bytes).map_err(|error| damaged(&template)(error.to_string())))
            .transpose()?;
        Ok(Self {
            tokenizer_config: object(TOKENIZER_CONFIG)?,
            special_tokens: object(SPECIAL_TOKENS)?,
            added_tokens: object(ADDED_TOKENS)?,
            config: object(CONFIG)?,
            generation_config: object(GENERATION_CONFIG)?,
            template_file,
        })
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.tokenizer_config[key].as_bool()
    }

    /// The template's own file first, as transformers and llama.cpp's converter do.
    fn chat_template(&self) -> Option<String> {
        let templates = &self.tokenizer_config["chat_template"];
        let default =
            || templates.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
        self.template_file.clone().or_else(|| templates.as_str().or_else(default).map(str::to_owned))
    }

    /// Roles and ids: by the texts the tokenizer's files name, then `trained`, then the ids the model's files name.
    ///
    /// The model's files speak of rows, so an id of theirs that is no token's says nothing.
    fn ids(&self, tokens: &[Token], trained: &[(&str, i64)]) -> Vec<(&'static str, u32)> {
        let by_text = ids_by_text(tokens);
        let valid = |id: i64| u32::try_from(id).ok().filter(|&id| (id as usize) < tokens.len());
        let find = |role: &str, name: &str| {
            let (token, token_id) = (format!("{name}_token"), format!("{name}_token_id"));
            let named = [&self.tokenizer_config, &self.special_tokens].into_iter().find_map(|file| {
                let text = file[&token].as_str().or_else(|| file[&token]["content"].as_str())?;
                by_text.get(text).copied()
            });
            let trained = || trained.iter().find(|(other, _)| *other == role).and_then(|&(_, id)| valid(id));
            let configured = || {
                [&self.config, &self.generation_config].into_iter().find_map(|file| {
                    let id = &file[&token_id];
                    id.as_i64().or_else(|| id[0].as_i64()).and_then(valid)
                })
            };
            let marked = || {
                let at = tokens.iter().position(|token| token.kind == TokenKind::Unknown);
                at.filter(|_| role == "unknown").map(|at| at as u32)
            };
            named.or_else(trained).or_else(configured).or_else(marked)
        };
        ROLES.iter().filter_map(|&(role, name)| find(role, name).map(|id| (role, id))).collect()
    }

    /// Tokens that a `tokenizer.model` does not have, or has in another role.
    fn added_tokens(&self) -> Vec<(u32, Token)> {
        let token = |text: &str, special: bool| {
            let kind =
                if special || looks_like_control(text) { TokenKind::Control } else { TokenKind::UserDefined };
            Token { text: unescaped(text, kind), score: ADDED_SCORE, kind }
        };
        let plain = self.added_tokens.as_object().into_iter().flatten().filter_map(|(text, id)| {
            let id = u32::try_from(id.as_u64()?).ok()?;
            Some((id, token(text, false)))
        });
        let decoder = self.tokenizer_config["added_tokens_decoder"].as_object();
        let described = decoder.into_iter().flatten().filter_map(|(id, entry)| {
            let id = id.parse().ok()?;
            Some((id, token(entry["content"].as_str()?, entry["special"] == true)))
        });
        plain.chain(described).filter(|(_, token)| !token.text.is_empty()).collect()
    }
}

/// The content of a file, if there is one.
fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read { path: path.to_path_buf(), source }),
    }
}

fn damaged(path: &Path) -> impl Fn(String) -> TokenizerError + use<> {
    let path = path.to_path_buf();
    move |cause| TokenizerError::Damaged { path: path.clone(), cause }
}
