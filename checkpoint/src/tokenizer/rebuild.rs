//! Hugging Face files for a tokenizer that has none.

use serde_json::{Map, Value, json};

use super::folder::{ROLES, TOKENIZER, TOKENIZER_CONFIG};
use super::json::{ByteLevel, Style};
use super::sentencepiece::SPACE;
use super::vocabulary::{Specials, Token, TokenKind, ids_by_text};
use super::{Encoder, Tokenizer, TokenizerError};

/// `tokenizer.json` and `tokenizer_config.json` of a tokenizer read from a GGUF file.
pub(super) fn files(tokenizer: &Tokenizer) -> Result<Vec<(String, Vec<u8>)>, TokenizerError> {
    let (tokens, specials) = (&tokenizer.tokens, &tokenizer.specials);
    let json = match &tokenizer.encoder {
        Encoder::SentencePiece(encoder) => pieces(tokens, encoder.adds_space_prefix(), specials),
        Encoder::Json(encoder) => match encoder.style() {
            Style::ByteLevel(parts) => byte_level(tokens, parts, specials),
            Style::SentencePiece { adds_space_prefix } => pieces(tokens, *adds_space_prefix, specials),
            Style::Other(what) => return Err(TokenizerError::Unsupported { what: what.clone() }),
        },
    };
    let pretty = |name: &str, value: &Value| (name.to_owned(), format!("{value:#}\n").into_bytes());
    Ok(vec![pretty(TOKENIZER, &json), pretty(TOKENIZER_CONFIG, &config(tokenizer))])
}

/// The `tokenizer.json` of a byte-level BPE.
pub(super) fn byte_level(tokens: &[Token], parts: &ByteLevel, specials: &Specials) -> Value {
    // What is no pair stays as it is, for the reader to refuse.
    let pair = |merge: &String| {
        merge.split_once(' ').map_or_else(|| json!(merge), |(left, right)| json!([left, right]))
    };
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(tokens),
        "normalizer": null,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor(tokens, specials).unwrap_or_else(|| bytes.clone()),
        "decoder": bytes,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": parts.ignore_merges,
            "vocab": vocabulary(tokens),
            "merges": parts.merges.iter().map(pair).collect::<Vec<_>>(),
        },
    })
}

/// The `tokenizer.json` of a `SentencePiece` BPE, its scores turned into an order of merges.
fn pieces(tokens: &[Token], adds_space_prefix: bool, specials: &Specials) -> Value {
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", SPACE)];
    let mut decoders = vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if adds_space_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(tokens),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": post_processor(tokens, specials),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": specials.id("unknown").map(|id| &tokens[id as usize].text),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary(tokens),
            "merges": merges(tokens),
        },
    })
}

/// Every way to put a piece together from two others, best scored piece first.
fn merges(tokens: &[Token]) -> Vec<[&str; 2]> {
    let mergeable = |token: &Token| matches!(token.kind, TokenKind::Normal | TokenKind::Unused);
    let ids = ids_by_text(tokens);
    let part = |text: &str| ids.get(text).copied().filter(|&id| mergeable(&tokens[id as usize]));
    let mut merges = Vec::new();
    for token in tokens.iter().filter(|token| mergeable(token)) {
        let text = token.text.as_str();
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut ways: Vec<_> =
            splits.filter_map(|(left, right)| Some(((part(left)?, part(right)?), [left, right]))).collect();
        ways.sort_unstable_by_key(|(ids, _)| *ids);
        merges.extend(ways.into_iter().map(|(_, way)| (token.score, way)));
    }
    merges.sort_by(|(a, _), (b, _)| b.total_cmp(a)); // stable: equal scores keep the order of ids
    merges.into_iter().map(|(_, way)| way).collect()
}

fn vocabulary(tokens: &[Token]) -> Map<String, Value> {
    (0_u32..).zip(tokens).map(|(id, token)| (token.text.clone(), id.into())).collect()
}

/// The tokens that are found in a text before anything else: all but the ordinary.
fn added_tokens(tokens: &[Token]) -> Vec<Value> {
    let is_added = |kind| matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown);
    let added = (0_u32..).zip(tokens).filter(|(_, token)| is_added(token.kind) && !token.text.is_empty());
    let entry = |(id, token): (u32, &Token)| {
        json!({
            "id": id,
            "content": token.text,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": token.kind != TokenKind::UserDefined,
        })
    };
    added.map(entry).collect()
}

/// Puts BOS and EOS around every text; `None` where neither belongs there.
fn post_processor(tokens: &[Token], specials: &Specials) -> Option<Value> {
    if specials.prefix.is_empty() && specials.suffix.is_empty() {
        return None;
    }
    let text = |id: u32| &tokens[id as usize].text;
    let around = |sequence: &str, type_id: u32| {
        let special = |&id: &u32| json!({"SpecialToken": {"id": text(id), "type_id": type_id}});
        let mut template: Vec<Value> = specials.prefix.iter().map(special).collect();
        template.push(json!({"Sequence": {"id": sequence, "type_id": type_id}}));
        template.extend(specials.suffix.iter().map(special));
        template
    };
    let named = specials.prefix.iter().chain(&specials.suffix);
    let named: Map<String, Value> = named
        .map(|&id| (text(id).clone(), json!({"id": text(id), "ids": [id], "tokens": [text(id)]})))
        .collect();
    let (single, pair) = (around("A", 0), [around("A", 0), around("B", 1)].concat());
    Some(json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": named,
    }))
}

/// A `tokenizer_config.json` that leaves everything to `tokenizer.json`, whatever the model.
fn config(tokenizer: &Tokenizer) -> Value {
    let specials = &tokenizer.specials;
    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    config.insert("add_bos_token".to_owned(), specials.adds_bos().into());
    config.insert("add_eos_token".to_owned(), specials.adds_eos().into());
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    for (role, name) in ROLES {
        if let Some(id) = specials.id(role) {
            config.insert(format!("{name}_token"), tokenizer.tokens[id as usize].text.as_str().into());
        }
    }
    if let Some(template) = &tokenizer.chat_template {
        config.insert("chat_template".to_owned(), template.as_str().into());
    }
    Value::Object(config)
}
