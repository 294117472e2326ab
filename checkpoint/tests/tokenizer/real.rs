//! Real models' tokenizers on real texts, where the machine has them.

use std::fs;
use std::path::{Path, PathBuf};

use attar_checkpoint::tokenizer::Tokenizer;

use crate::byte_level::digest;
use crate::forge::{folder_of, through_folder, through_gguf};

/// The folder of real models and texts, or a visible skip.
fn shared() -> Option<PathBuf> {
    let shared = std::env::var_os("ATTAR_SHARED").map(PathBuf::from);
    let shared = shared.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"));
    if shared.join("models").is_dir() && shared.join("text").is_dir() {
        return Some(shared);
    }
    #[expect(clippy::print_stderr, reason = "a skip must be seen")]
    {
        eprintln!("skipped: no real models and texts at {}", shared.display());
    }
    None
}

const TEXTS: [&str; 3] = ["books/valid.txt", "wikitext-2/wiki.test.raw", "tinystories/test.txt"];

/// Number and digest of the ids of each of [`TEXTS`], without special tokens.
///
/// # Source
/// llama-tokenize of llama.cpp 0c1e57098 on the GGUF files made here, and transformers 5.24.0 from `tokenizer.json`.
///
/// books-2m and llama2xs280K have the same tokenizers.
const EXPECTED: [(&str, [(usize, &str); 3]); 2] = [
    (
        "books-7m",
        [(152_886, "118edf6d1b90024e"), (409_180, "a5a6fff23a0b9efa"), (101_883, "b48fa68f318f4a7a")],
    ),
    (
        "stories260K",
        [(310_895, "0e9c6620096f1dd3"), (809_289, "361291d3bf24dbb4"), (178_629, "7f5ad163a0075cb2")],
    ),
];

#[test]
fn ids_are_those_of_llama_cpp_and_transformers_whichever_file_they_come_from() {
    let Some(shared) = shared() else { return };
    for (model, expected) in EXPECTED {
        let folder = shared.join("models").join(model);
        let mut tokenizers = vec![Tokenizer::from_folder(&folder).unwrap()];
        for name in ["tokenizer.json", "tokenizer.model"] {
            if let Ok(content) = fs::read(folder.join(name)) {
                let alone = folder_of(&[(name, content)]);
                tokenizers.push(Tokenizer::from_folder(alone.path()).unwrap());
            }
        }
        for tokenizer in tokenizers {
            let from_gguf = through_gguf(&tokenizer);
            let from_folder = through_folder(&from_gguf);
            assert!(tokenizer.add_bos() && from_gguf.add_bos() && from_folder.add_bos(), "{model}");
            for tokenizer in [tokenizer, from_gguf, from_folder] {
                for (text, (count, expected)) in TEXTS.iter().zip(expected) {
                    let content = fs::read_to_string(shared.join("text").join(text)).unwrap();
                    let ids = tokenizer.encode(&content).unwrap();
                    assert_eq!((ids.len(), digest(&ids).as_str()), (count, expected), "{model}: {text}");
                    assert_eq!(tokenizer.decode(&ids).unwrap(), content, "{model}: {text}");
                }
            }
        }
    }
}
