//! `SentencePiece` BPE: `tokenizer.model`, the `tokenizer.json` made from it, and GGUF's `llama`.

use std::sync::LazyLock;

use attar_checkpoint::gguf::Value;
use attar_checkpoint::tokenizer::{Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::json;

use crate::forge::{
    llama_json, model_file, of_json, of_metadata, pieces, read, through_folder, through_gguf, value,
};

fn of_model() -> Tokenizer {
    read(&[("tokenizer.model", model_file(&pieces(), 2))]).unwrap()
}

/// One tokenizer in each kind of file.
static STORED: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let all = of_both();
    let alone = all.iter().map(|file| read(std::slice::from_ref(file)).unwrap());
    alone
        .chain([read(&all).unwrap()])
        .flat_map(|tokenizer| {
            let from_gguf = through_gguf(&tokenizer);
            let from_folder = through_folder(&from_gguf);
            [tokenizer, from_gguf, from_folder]
        })
        .collect()
});

fn of_both() -> [(&'static str, Vec<u8>); 2] {
    [
        ("tokenizer.model", model_file(&pieces(), 2)),
        ("tokenizer.json", llama_json(&pieces()).to_string().into_bytes()),
    ]
}

proptest! {
    #[test]
    fn all_kinds_of_files_give_one_list_of_ids(
        text in "[aehinrt 1.é🦙\n]{0,40}|( the| in|he|  |ther|\n|x){0,20}",
    ) {
        let expected = STORED[0].encode(&text).unwrap();
        for tokenizer in STORED.iter() {
            prop_assert_eq!(&tokenizer.encode(&text).unwrap(), &expected);
            prop_assert_eq!(&tokenizer.decode(&expected).unwrap(), &text);
        }
    }
}

#[test]
fn control_tokens_that_a_chat_template_spells_out_are_found_in_all_kinds_of_files() {
    for tokenizer in STORED.iter() {
        let [first, second] = ["the in", "ther"].map(|text| tokenizer.encode(text).unwrap());
        let expected = [&[1], &first[..], &[2], &second].concat();
        assert_eq!(tokenizer.encode_with_controls("<s>the in</s>ther").unwrap(), expected);
    }
}

#[test]
fn gguf_metadata_have_scores_and_kinds_whichever_file_they_come_from() {
    let expected = pieces();
    for tokenizer in [of_model(), read(&of_both()).unwrap()] {
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(1), Some(2), true));
        let metadata = tokenizer.gguf_metadata(expected.len(), None).unwrap();
        assert_eq!(value(&metadata, "model"), Some(&Value::from("llama")));
        assert_eq!(value(&metadata, "pre"), Some(&Value::from("default")));
        assert_eq!(value(&metadata, "add_space_prefix"), Some(&Value::Bool(true)));
        let (scores, kinds) = (value(&metadata, "scores").unwrap(), value(&metadata, "token_type").unwrap());
        for (id, (text, score, kind)) in expected.iter().enumerate() {
            assert_eq!(scores.as_array().unwrap().get(id), Some(Value::F32(*score)), "{text}");
            assert_eq!(kinds.as_array().unwrap().get(id), Some(Value::I32(*kind)), "{text}");
        }
    }
}

#[test]
fn merges_that_no_scores_can_express_are_refused() {
    let mut json = llama_json(&pieces());
    // `the` only by way of `t he`: pieces would also take `th e`.
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    merges.retain(|merge| merge[0] != "th" && merge != &json!(["t", "he"]) && merge != &json!(["▁t", "he"]));
    merges.insert(0, json!(["h", "e"]));
    merges.insert(0, json!(["e", "r"]));
    let tokenizer = of_json(&json).unwrap();
    let error = tokenizer.gguf_metadata(400, None).unwrap_err();
    assert!(matches!(error, TokenizerError::Unsupported { .. }), "{error}");
}

#[test]
fn tokens_added_beside_the_model_are_found_in_texts_or_steer() {
    let count = pieces().len();
    let config = json!({"added_tokens_decoder": {
        (count + 1).to_string(): {"content": "<|im_end|>", "special": false},
        (count + 2).to_string(): {"content": "▁▁the▁", "special": false},
    }, "eos_token": "<|im_end|>"});
    let tokenizer = read(&[
        ("tokenizer.model", model_file(&pieces(), 2)),
        ("added_tokens.json", json!({"<extra>": count}).to_string().into_bytes()),
        ("tokenizer_config.json", config.to_string().into_bytes()),
    ])
    .unwrap();
    let (extra, end, the) = (count as u32, count as u32 + 1, count as u32 + 2);
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos()), (count + 3, Some(end)));
    for tokenizer in [through_folder(&through_gguf(&tokenizer)), through_gguf(&tokenizer), tokenizer] {
        let ids = tokenizer.encode("a<extra>a  the a<|im_end|>").unwrap();
        assert!(ids.contains(&extra) && ids.contains(&the) && !ids.contains(&end), "{ids:?}");
    }
}

#[test]
fn what_a_gguf_file_leaves_out_is_what_llama_cpp_takes_for_granted() {
    let mut metadata = of_model().gguf_metadata(400, None).unwrap();
    let kept = ["model", "tokens", "scores", "token_type"].map(|key| format!("tokenizer.ggml.{key}"));
    metadata.retain(|(key, _)| kept.contains(key));
    let tokenizer = of_metadata(&metadata).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(1), Some(2), true));
    assert_eq!(tokenizer.encode("the in").unwrap(), of_model().encode("the in").unwrap());
}

#[test]
fn a_unigram_model_encodes_but_has_no_place_in_gguf() {
    let tokenizer = read(&[("tokenizer.model", model_file(&pieces(), 1))]).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode("the in").unwrap()).unwrap(), "the in");
    let error = tokenizer.gguf_metadata(400, None).unwrap_err();
    assert!(matches!(error, TokenizerError::Unsupported { .. }), "{error}");
}
