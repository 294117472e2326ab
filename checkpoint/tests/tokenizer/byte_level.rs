//! Byte-level BPE: `tokenizer.json` and GGUF's `gpt2`.

use std::fs;
use std::sync::LazyLock;

use attar_checkpoint::gguf::Value;
use attar_checkpoint::tokenizer::{TokenKind, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::forge::{books, fixture, of_json, of_metadata, read, through_folder, through_gguf, value};

const TEXT: &str = "Don't   panic:\n\n 1234567 naïve 🦙s\t…";

fn books_2m() -> Tokenizer {
    Tokenizer::from_folder(&fixture("books-2m")).unwrap()
}

/// The first 8 bytes of the sha256 of ids as little-endian u32, in hex.
pub fn digest(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    format!("{:016x}", u64::from_be_bytes(*Sha256::digest(bytes).first_chunk().unwrap()))
}

/// Computed with transformers 5.24.0.
#[test]
fn ids_are_those_of_transformers() {
    let tokenizer = books_2m();
    let ids = [
        35, 275, 506, 220, 220, 3627, 303, 1634, 220, 2846, 18, 19, 20, 21, 22, 295, 64, 127, 107, 309, 220,
        172, 253, 99, 247, 82, 197, 381, 99,
    ];
    assert_eq!(tokenizer.encode(TEXT).unwrap(), ids);
    for (file, count, expected) in
        [("heldout.txt", 5342, "0129efa7375857c8"), ("calibration.txt", 10451, "a216bd12f7ddd75b")]
    {
        let text = fs::read_to_string(fixture(file)).unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!((ids.len(), digest(&ids).as_str()), (count, expected), "{file}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

#[test]
fn the_files_say_which_tokens_are_special() {
    let tokenizer = books_2m();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(4094), Some(4095), true));
    assert_eq!(tokenizer.vocab_size(), 4096);
    assert_eq!(tokenizer.tokens()[4095].kind, TokenKind::Control);
    let config = |text: &str| {
        read(&[("tokenizer.json", books().to_string()), ("tokenizer_config.json", text.to_owned())])
    };
    let without =
        config(r#"{"bos_token": {"content": "<|begin_of_text|>"}, "add_bos_token": false}"#).unwrap();
    assert_eq!((without.bos(), without.eos(), without.add_bos()), (Some(4094), None, false));
}

#[test]
fn a_special_token_in_a_text_is_plain_text() {
    let ids = books_2m().encode("a<|end_of_text|>b").unwrap();
    assert!(ids.iter().all(|&id| id < 4094), "{ids:?}");
    assert_eq!(books_2m().decode(&[64, 4095]).unwrap(), "a<|end_of_text|>");
}

/// Models list such tokens as plain ones; in GGUF they steer, so they do here.
#[test]
fn a_token_that_looks_like_control_is_control() {
    let mut json = books();
    json["added_tokens"][1]["special"] = json!(false);
    let tokenizer = of_json(&json).unwrap();
    assert_eq!(tokenizer.tokens()[4095].kind, TokenKind::Control);
    assert!(!tokenizer.encode("<|end_of_text|>").unwrap().contains(&4095));
}

#[test]
fn gguf_metadata_name_the_rule_and_pad_the_rows_without_a_token() {
    let metadata = books_2m().gguf_metadata(4100, None).unwrap();
    assert_eq!(value(&metadata, "model"), Some(&Value::from("gpt2")));
    assert_eq!(value(&metadata, "pre"), Some(&Value::from("llama-bpe")));
    assert_eq!(value(&metadata, "bos_token_id"), Some(&Value::U32(4094)));
    assert_eq!(value(&metadata, "add_bos_token"), Some(&Value::Bool(true)));
    let tokens = value(&metadata, "tokens").and_then(Value::as_strings).unwrap();
    assert_eq!(
        (tokens.len(), tokens[4095].as_str(), tokens[4099].as_str()),
        (4100, "<|end_of_text|>", "[PAD4099]")
    );
    let kinds = value(&metadata, "token_type").and_then(Value::as_array).unwrap();
    assert_eq!([0, 4094, 4096].map(|id| kinds.get(id).unwrap()), [1, 3, 5].map(Value::I32));
    assert_eq!(value(&metadata, "merges").and_then(Value::as_strings).unwrap()[0], "Ġ t");
}

#[test]
fn a_chat_template_is_taken_from_its_file_then_from_the_config_and_goes_with_the_tokenizer() {
    let jinja = ("chat_template.jinja", "A".to_owned());
    let text = ("tokenizer_config.json", json!({"chat_template": "B"}).to_string());
    let list =
        json!({"chat_template": [{"name": "tool", "template": "X"}, {"name": "default", "template": "C"}]});
    let list = ("tokenizer_config.json", list.to_string());
    for (files, expected) in [(vec![jinja, text.clone()], "A"), (vec![text], "B"), (vec![list], "C")] {
        let files: Vec<_> = files.into_iter().chain([("tokenizer.json", books().to_string())]).collect();
        let there_and_back = through_folder(&through_gguf(&read(&files).unwrap()));
        let metadata = there_and_back.gguf_metadata(5000, None).unwrap();
        assert_eq!(there_and_back.chat_template(), Some(expected));
        assert!(metadata.contains(&("tokenizer.chat_template".to_owned(), expected.into())), "{expected}");
    }
}

#[test]
fn control_tokens_that_a_chat_template_spells_out_are_found_and_in_a_text_they_are_text() {
    let tokenizer = books_2m();
    let [first, second] = ["Ho", " the end"].map(|text| tokenizer.encode(text).unwrap());
    let (text, expected) =
        ("<|begin_of_text|>Ho<|end_of_text|> the end", [&[4094], &first[..], &[4095], &second].concat());
    for tokenizer in [&tokenizer, &through_gguf(&tokenizer)] {
        assert_eq!(tokenizer.encode_with_controls(text).unwrap(), expected);
        assert!(!tokenizer.encode(text).unwrap().contains(&4094));
        let specials: Vec<_> = tokenizer.special_tokens().collect();
        for (name, text) in [("bos_token", "<|begin_of_text|>"), ("eos_token", "<|end_of_text|>")] {
            assert!(specials.contains(&(name.to_owned(), text)), "{specials:?}");
        }
    }
}

#[test]
fn a_rule_llama_cpp_has_no_name_for_needs_one_from_the_user() {
    let mut json = books();
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("[a-z]+");
    let tokenizer = of_json(&json).unwrap();
    let error = tokenizer.gguf_metadata(4096, None).unwrap_err();
    assert!(matches!(error, TokenizerError::UnknownPreTokenizer { .. }), "{error}");
    let named = tokenizer.gguf_metadata(4096, Some("qwen2")).unwrap();
    assert_eq!(value(&named, "pre"), Some(&Value::from("qwen2")));
    let error = tokenizer.gguf_metadata(4096, Some("qwen1")).unwrap_err();
    assert!(matches!(error, TokenizerError::NoSuchPreTokenizer { .. }), "{error}");
}

#[test]
fn a_name_is_kept_where_llama_cpp_has_several_for_the_rule() {
    let mut metadata = books_2m().gguf_metadata(4096, Some("falcon3")).unwrap();
    metadata.retain(|(key, _)| key != "tokenizer.ggml.add_bos_token");
    let tokenizer = of_metadata(&metadata).unwrap();
    assert!(tokenizer.add_bos(), "llama.cpp's default for this name");
    let again = tokenizer.gguf_metadata(4096, None).unwrap();
    assert_eq!(value(&again, "pre"), Some(&Value::from("falcon3")));
}

#[test]
fn tokens_without_a_row_are_left_out_where_no_text_leads_to_them() {
    let limited = books_2m().limited_to(4095); // the last is the one that ends a text
    assert_eq!((limited.vocab_size(), limited.bos(), limited.eos()), (4095, Some(4094), None));
    assert_eq!(limited.encode(TEXT).unwrap(), books_2m().encode(TEXT).unwrap());
    assert!(limited.gguf_metadata(4095, None).is_ok());
    for rows in [4093, 100] {
        assert_eq!(books_2m().limited_to(rows).vocab_size(), 4096, "{rows}");
    }
    assert_eq!(books_2m().limited_to(5000).vocab_size(), 4096);
}

#[test]
fn too_few_rows_and_a_text_with_two_ids_are_refused() {
    let error = books_2m().gguf_metadata(4095, None).unwrap_err();
    assert!(matches!(error, TokenizerError::TooLarge { tokens: 4096, vocab_size: 4095 }), "{error}");
    let mut json = books();
    json["added_tokens"][1]["content"] = json!("[PAD4097]");
    let error = of_json(&json).unwrap().gguf_metadata(4098, None).unwrap_err();
    assert!(matches!(error, TokenizerError::Duplicate { first: 4095, second: 4097, .. }), "{error}");
}

#[test]
fn an_id_beyond_the_vocabulary_has_no_text() {
    let error = books_2m().decode(&[0, 4096]).unwrap_err();
    assert!(matches!(error, TokenizerError::UnknownId { id: 4096, vocab_size: 4096 }), "{error}");
}

/// One tokenizer in each kind of file.
static STORED: LazyLock<[Tokenizer; 3]> = LazyLock::new(|| {
    let from_gguf = through_gguf(&books_2m());
    let from_folder = through_folder(&from_gguf);
    [books_2m(), from_gguf, from_folder]
});
static WHOLE: LazyLock<tokenizers::Tokenizer> =
    LazyLock::new(|| tokenizers::Tokenizer::from_file(fixture("books-2m/tokenizer.json")).unwrap());

proptest! {
    #[test]
    fn every_way_of_storing_it_gives_the_ids_of_the_whole_text(
        text in "[a-c' 0-9.\n\r\t]{0,40}|(the| of| it's|  |é|🦙|中|\n){0,20}",
    ) {
        let expected = WHOLE.encode(text.as_str(), false).unwrap().get_ids().to_vec();
        for tokenizer in STORED.iter() {
            prop_assert_eq!(&tokenizer.encode(&text).unwrap(), &expected);
            prop_assert_eq!(&tokenizer.decode(&expected).unwrap(), &text);
        }
    }
}
