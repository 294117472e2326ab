//! Files that are damaged or lie: an error that says so, and never a panic.

use attar_checkpoint::gguf::{Array, Value};
use attar_checkpoint::tokenizer::{Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::forge::{books, fixture, folder_of, llama_json, model_file, of_json, of_metadata, pieces, read};

fn is_damaged(result: &Result<Tokenizer, TokenizerError>) -> bool {
    matches!(result, Err(TokenizerError::Damaged { .. }))
}

#[test]
fn a_folder_without_a_tokenizer_says_so() {
    let error = read::<&str>(&[]).unwrap_err();
    assert!(matches!(error, TokenizerError::Missing { .. }) && error.hint().is_some(), "{error}");
    let folder = folder_of::<&str>(&[]);
    std::fs::create_dir(folder.path().join("tokenizer.json")).unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::Read { .. }), "{error}");
}

#[test]
fn a_tokenizer_json_cut_short_is_damaged() {
    let whole = llama_json(&pieces()).to_string();
    for len in (0..whole.len()).step_by(7).filter(|&len| whole.is_char_boundary(len)) {
        assert!(is_damaged(&read(&[("tokenizer.json", &whole[..len])])), "{len}");
    }
}

#[test]
fn a_tokenizer_model_cut_short_is_damaged_or_a_smaller_one() {
    let whole = model_file(&pieces(), 2);
    assert!(is_damaged(&read(&[("tokenizer.model", [])])));
    for len in 1..whole.len() {
        match read(&[("tokenizer.model", &whole[..len])]) {
            Ok(tokenizer) => drop(tokenizer.encode("the in é").unwrap()),
            Err(error) => assert!(matches!(error, TokenizerError::Damaged { .. }), "{len}: {error}"),
        }
    }
}

#[test]
fn the_files_beside_it_must_be_json_objects() {
    for file in ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"] {
        for content in ["", "[]", "{\"a\":"] {
            assert!(
                is_damaged(&read(&[("tokenizer.json", &*books().to_string()), (file, content)])),
                "{file}"
            );
        }
    }
}

/// Each breaks one value of a sound file.
#[test]
fn a_tokenizer_json_that_lies_is_refused() {
    let damages: [(&str, Json); 16] = [
        ("/model", Json::Null),
        ("/model/vocab", json!({"a": -1})),
        ("/model/vocab", json!({"a": 4_000_000_000_u32})),
        ("/model/vocab", json!([])),
        ("/model/merges", json!([["he", "nowhere"]])),
        ("/model/merges", json!(["one"])),
        ("/model/merges", json!([["▁▁▁▁", "ther"]])),
        ("/model/merges", json!([["", ""]])),
        ("/post_processor/single", json!([{"Sequence": {"id": "B", "type_id": 0}}])),
        ("/model/type", json!("Other")),
        ("/added_tokens/0/id", json!(7)),
        ("/added_tokens/0/id", json!(u64::MAX)),
        ("/normalizer", json!({"type": "Nothing"})),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
        ),
        ("/post_processor/special_tokens", json!({})),
        ("/post_processor/special_tokens/<s>/ids", json!([1000])),
    ];
    for (place, lie) in damages {
        let mut json = llama_json(&pieces());
        json["pre_tokenizer"] = Json::Null;
        *json.pointer_mut(place).unwrap() = lie.clone();
        assert!(is_damaged(&of_json(&json)), "{place}: {lie}");
    }
}

#[test]
fn other_kinds_of_tokenizer_json_encode_but_have_no_place_in_gguf() {
    let word_level = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"}});
    let tokenizer = of_json(&word_level).unwrap();
    assert_eq!(tokenizer.encode("a c b").unwrap(), [0, 2, 1]);
    let error = tokenizer.gguf_metadata(3, None).unwrap_err();
    assert!(matches!(error, TokenizerError::Unsupported { .. }), "{error}");
}

fn with(metadata: &[(String, Value)], key: &str, value: Option<Value>) -> Vec<(String, Value)> {
    let full = format!("tokenizer.ggml.{key}");
    let mut metadata: Vec<_> = metadata.iter().filter(|(name, _)| *name != full).cloned().collect();
    metadata.extend(value.map(|value| (full, value)));
    metadata
}

#[test]
fn gguf_keys_that_are_missing_or_lie_are_named() {
    let byte_level = Tokenizer::from_folder(&fixture("books-2m")).unwrap().gguf_metadata(4096, None).unwrap();
    let scored =
        read(&[("tokenizer.model", model_file(&pieces(), 2))]).unwrap().gguf_metadata(300, None).unwrap();
    let texts = |texts: &[&str]| Value::from(texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
    for (sound, key, lie) in [
        (&byte_level, "model", None),
        (&byte_level, "model", Some(Value::U32(2))),
        (&byte_level, "tokens", None),
        (&byte_level, "tokens", Some(Value::from("a"))),
        (&byte_level, "tokens", Some(texts(&[]))),
        (&byte_level, "token_type", Some(Value::Array(Array::I32(vec![1])))),
        (&byte_level, "token_type", Some(Value::Array(Array::I32(vec![7; 4096])))),
        (&byte_level, "merges", None),
        (&byte_level, "merges", Some(texts(&["Ġ nowhere"]))),
        (&byte_level, "merges", Some(texts(&["nospace"]))),
        (&byte_level, "merges", Some(texts(&["", " ", "a b c"]))),
        (&byte_level, "bos_token_id", Some(Value::U32(4096))),
        (&byte_level, "eos_token_id", Some(Value::I32(-1))),
        (&byte_level, "add_bos_token", Some(Value::U8(1))),
        (&scored, "scores", None),
        (&scored, "scores", Some(Value::Array(Array::F32(vec![0.0])))),
        (&scored, "scores", Some(Value::Array(Array::F32(vec![f32::NAN; 300])))),
        (&scored, "token_type", None),
        (&scored, "eot_token_id", Some(Value::U64(u64::MAX))),
    ] {
        match of_metadata(&with(sound, key, lie)) {
            Err(TokenizerError::Key { key: named, .. }) => assert_eq!(named, format!("tokenizer.ggml.{key}")),
            other => panic!("{key}: {other:?}"),
        }
    }
    // Bytes and the unknown token gone, and kinds that do not fit the texts.
    for kind in [1, 6] {
        let kinds = Value::Array(Array::I32(vec![kind; 300]));
        assert!(matches!(
            of_metadata(&with(&scored, "token_type", Some(kinds))),
            Err(TokenizerError::Key { .. })
        ));
    }
    let twice = with(&scored, "tokens", Some(texts(&["a"; 300])));
    assert!(matches!(of_metadata(&twice), Err(TokenizerError::Duplicate { first: 0, second: 1, .. })));
    for (key, other) in [("model", "bert"), ("pre", "nobody's"), ("pre", "default")] {
        let other = of_metadata(&with(&byte_level, key, Some(other.into())));
        assert!(matches!(other, Err(TokenizerError::Unsupported { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_change_of_a_few_bytes_makes_reading_or_encoding_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), which in 0..2_usize,
    ) {
        let (name, mut bytes) = match which {
            0 => ("tokenizer.model", model_file(&pieces(), 2)),
            _ => ("tokenizer.json", llama_json(&pieces()).to_string().into_bytes()),
        };
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(tokenizer) = read(&[(name, bytes)]) {
            let _ = tokenizer.encode("the in é🦙 a");
            let _ = tokenizer.gguf_metadata(400, None);
        }
    }
}
