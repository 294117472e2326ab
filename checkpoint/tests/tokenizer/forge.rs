//! Tokenizers and their files, made for a test.

use std::fs;
use std::path::{Path, PathBuf};

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::gguf::{self, Value};
use attar_checkpoint::tokenizer::{Tokenizer, TokenizerError};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

/// A file of the repository's own fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

/// The byte-level BPE that comes with the repository.
pub fn books() -> Json {
    serde_json::from_slice(&fs::read(fixture("books-2m/tokenizer.json")).unwrap()).unwrap()
}

/// A folder of these files.
pub fn folder_of<C: AsRef<[u8]>>(files: &[(&str, C)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

/// The tokenizer of a folder of these files.
pub fn read<C: AsRef<[u8]>>(files: &[(&str, C)]) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_folder(folder_of(files).path())
}

/// The tokenizer of a `tokenizer.json`.
pub fn of_json(json: &Json) -> Result<Tokenizer, TokenizerError> {
    read(&[("tokenizer.json", json.to_string())])
}

/// The tokenizer of a GGUF file with these metadata.
pub fn of_metadata(metadata: &[(String, Value)]) -> Result<Tokenizer, TokenizerError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.gguf");
    gguf::Writer::create(&path, Overwrite::No, metadata, &[]).unwrap().finish().unwrap();
    Tokenizer::from_gguf(&gguf::File::open(&path).unwrap())
}

/// The tokenizer as a GGUF file with three spare rows has it.
pub fn through_gguf(tokenizer: &Tokenizer) -> Tokenizer {
    of_metadata(&tokenizer.gguf_metadata(tokenizer.vocab_size() + 3, None).unwrap()).unwrap()
}

/// The tokenizer as its Hugging Face files have it.
pub fn through_folder(tokenizer: &Tokenizer) -> Tokenizer {
    let files = tokenizer.hf_files().unwrap();
    read(&files.iter().map(|(name, content)| (name.as_str(), content)).collect::<Vec<_>>()).unwrap()
}

/// The metadata value of `tokenizer.ggml.<key>`.
pub fn value<'a>(metadata: &'a [(String, Value)], key: &str) -> Option<&'a Value> {
    let full = format!("tokenizer.ggml.{key}");
    metadata.iter().find(|(name, _)| *name == full).map(|(_, value)| value)
}

/// Text, score and kind of the pieces of a small `SentencePiece` BPE: control tokens, bytes, merges, letters.
pub fn pieces() -> Vec<(String, f32, i32)> {
    let mut pieces =
        vec![("<unk>".to_owned(), 0.0, 2), ("<s>".to_owned(), 0.0, 3), ("</s>".to_owned(), 0.0, 3)];
    pieces.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    let merged = ["▁t", "he", "▁a", "in", "▁the", "▁▁", "er", "th", "the", "re", "▁▁▁▁", "▁in", "ther"];
    let letters = ["▁", "a", "e", "h", "i", "n", "r", "t", "é", ".", "1"];
    let words = merged.iter().chain(&letters);
    pieces.extend(words.zip(0..).map(|(text, rank)| ((*text).to_owned(), -(rank as f32), 1)));
    pieces
}

/// A `tokenizer.model` of these pieces.
pub fn model_file(pieces: &[(String, f32, i32)], model_type: u8) -> Vec<u8> {
    let field = |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8], content].concat();
    let mut file = Vec::new();
    for (text, score, kind) in pieces {
        let piece =
            [&field(1, text.as_bytes())[..], &[0x15], &score.to_le_bytes(), &[0x18, *kind as u8]].concat();
        file.extend(field(1, &piece));
    }
    file.extend(field(2, &[0x18, model_type]));
    file.extend(field(3, &[0x20, 0])); // extra spaces stay
    file
}

/// The `tokenizer.json` of these pieces, as transformers writes it for Llama 2.
pub fn llama_json(pieces: &[(String, f32, i32)]) -> Json {
    let ids = pieces.iter().enumerate().map(|(id, (text, ..))| (text.clone(), json!(id)));
    let id_of = |text: &str| pieces.iter().position(|(other, _, kind)| other == text && *kind == 1);
    let mut merges = Vec::new();
    for (text, score, _) in pieces.iter().filter(|(_, _, kind)| *kind == 1) {
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        merges.extend(
            splits.filter(|(a, b)| id_of(a).is_some() && id_of(b).is_some()).map(|way| (*score, way)),
        );
    }
    merges.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let added = pieces.iter().enumerate().filter(|(_, (_, _, kind))| [2, 3].contains(kind)).map(|(id, (text, ..))| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    });
    json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": ids.collect::<serde_json::Map<_, _>>(),
            "merges": merges.iter().map(|(_, (a, b))| json!([a, b])).collect::<Vec<_>>()},
    })
}
