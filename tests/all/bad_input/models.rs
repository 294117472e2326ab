//! Models that are incomplete, damaged, lying or strange.

use std::fs;

use serde_json::json;

use crate::forge::{self, MATRIX, SHARDS, WEIGHTS};
use crate::place::Place;

/// A command that reads every part of `model`.
const QUANTIZE: &str = "quantize model -o out.gguf --scheme q4_k_m";

#[test]
fn a_path_that_leads_nowhere() {
    let place = Place::new();
    for command in ["inspect model", QUANTIZE, "convert model -o out", "eval model --text heldout.txt"] {
        place.refuses(command, &["`model`", "no such file"]);
    }
}

#[test]
fn a_folder_without_weights() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    fs::remove_file(model.join(WEIGHTS)).unwrap();
    place.refuses(QUANTIZE, &["model", "safetensors"]);
}

#[test]
fn a_folder_of_pickles() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    fs::rename(model.join(WEIGHTS), model.join("pytorch_model.bin")).unwrap();
    place.refuses(QUANTIZE, &["model", "pickled", "save_pretrained"]);
}

#[test]
fn a_folder_without_a_configuration() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    fs::remove_file(model.join("config.json")).unwrap();
    place.refuses(QUANTIZE, &["config.json"]);
}

#[test]
fn a_configuration_that_is_no_json() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    fs::write(model.join("config.json"), "{\"architectures\": [").unwrap();
    place.refuses(QUANTIZE, &["config.json", "JSON"]);
}

#[test]
fn a_missing_shard() {
    let place = Place::new();
    let model = forge::sharded(&place, "model");
    fs::remove_file(model.join(SHARDS[1])).unwrap();
    place.refuses(QUANTIZE, &[SHARDS[1], "not there", "download"]);
}

#[test]
fn a_shard_that_lacks_what_the_index_puts_into_it() {
    let place = Place::new();
    let model = forge::sharded(&place, "model");
    forge::edit_json(&model.join("model.safetensors.index.json"), |index| {
        index["weight_map"][MATRIX] = json!(SHARDS[0]);
    });
    place.refuses(QUANTIZE, &[SHARDS[0], MATRIX]);
}

#[test]
fn an_index_that_leads_out_of_the_folder() {
    let place = Place::new();
    let model = forge::sharded(&place, "model");
    forge::edit_json(&model.join("model.safetensors.index.json"), |index| {
        index["weight_map"][MATRIX] = json!("../books-2m/model.safetensors");
    });
    place.refuses(QUANTIZE, &[MATRIX, "../books-2m/model.safetensors"]);
}

#[test]
fn a_truncated_safetensors_file() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::cut_in_half(&model.join(WEIGHTS));
    place.refuses(QUANTIZE, &[WEIGHTS, "cut short"]);
}

#[test]
fn an_empty_safetensors_file() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    fs::write(model.join(WEIGHTS), "").unwrap();
    place.refuses(QUANTIZE, &[WEIGHTS, "0 bytes", "cut short"]);
}

#[test]
fn a_git_lfs_pointer_instead_of_the_weights() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4461168\n";
    fs::write(model.join(WEIGHTS), pointer).unwrap();
    place.refuses(QUANTIZE, &[WEIGHTS, "Git LFS"]);
}

#[test]
fn a_tensor_that_ends_past_the_end_of_the_file() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::edit_weights(&model, |header, data| {
        let last = header.values_mut().max_by_key(|entry| entry["data_offsets"][1].as_u64()).unwrap();
        assert_eq!(last["data_offsets"][1], data.len());
        // Twice the rows, and the bytes for them: only the file's end gives the lie away.
        let [start, end] = [0, 1].map(|i| last["data_offsets"][i].as_u64().unwrap());
        last["shape"][0] = json!(2 * last["shape"][0].as_u64().unwrap());
        last["data_offsets"][1] = json!(2 * end - start);
    });
    place.refuses(QUANTIZE, &[WEIGHTS, "bytes of data", "cut short"]);
}

#[test]
fn tensors_that_overlap() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::edit_entry(&model, MATRIX, |entry| {
        let [start, end] = [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap());
        entry["data_offsets"] = json!([start - 64, end - 64]);
    });
    place.refuses(QUANTIZE, &[WEIGHTS, MATRIX, "inside the tensor before it"]);
}

#[test]
fn a_size_that_contradicts_the_shape() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::edit_entry(&model, MATRIX, |entry| entry["shape"] = json!([256, 255]));
    place.refuses(QUANTIZE, &[WEIGHTS, MATRIX, "[256, 255]", "131072"]);
}

#[test]
fn a_shape_whose_product_overflows() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::edit_entry(&model, MATRIX, |entry| entry["shape"] = json!([1u64 << 40, 1u64 << 40]));
    place.refuses(QUANTIZE, &[WEIGHTS, MATRIX, "more than can be addressed"]);
}

#[test]
fn a_header_said_to_be_2_to_the_60_bytes_long() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::overwrite(&model.join(WEIGHTS), 0, &(1u64 << 60).to_le_bytes());
    place.refuses(QUANTIZE, &[WEIGHTS, "1152921504606846976 bytes long"]);
}

#[test]
fn a_header_longer_than_its_file() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::overwrite(&model.join(WEIGHTS), 0, &90_000_000u64.to_le_bytes());
    place.refuses(QUANTIZE, &[WEIGHTS, "90000000 bytes long", "cut short"]);
}

#[test]
fn a_gguf_file_with_huge_counts() {
    let place = Place::new();
    for (tensors, metadata, what) in
        [(1 << 60, 0, "1152921504606846976 tensors"), (0, u64::MAX, "18446744073709551615 metadata values")]
    {
        fs::write(place.at("model.gguf"), forge::gguf_announcing(tensors, metadata)).unwrap();
        for command in ["inspect model.gguf", "eval model.gguf --text heldout.txt"] {
            place.refuses(command, &["model.gguf", what]);
        }
    }
}

#[test]
fn a_truncated_gguf_file() {
    let place = Place::new();
    place.done("convert books-2m -o model.gguf --quiet");
    forge::cut_in_half(&place.at("model.gguf"));
    for command in ["inspect model.gguf", "eval model.gguf --text heldout.txt"] {
        place.refuses(command, &["model.gguf", "cut short"]);
    }
    fs::write(place.at("model.gguf"), &fs::read(place.at("model.gguf")).unwrap()[..1000]).unwrap();
    place.refuses("inspect model.gguf", &["model.gguf", "4096 array elements", "cut short"]);
}

#[test]
fn a_file_that_is_no_model() {
    let place = Place::new();
    for command in ["inspect heldout.txt", "eval heldout.txt --text heldout.txt"] {
        place.refuses(command, &["heldout.txt", "GGUF"]);
    }
}

/// Looked for before anything is quantized or a file is begun.
#[test]
fn a_weight_that_is_nan() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::set_value(&model, MATRIX, 12_345, 0x7fc0);
    for command in
        [QUANTIZE, "quantize model -o out --scheme w4a16-g64 --method rtn --no-eval", "convert model -o out"]
    {
        place.refuses(command, &[MATRIX, "1 of the 65536 values", "NaN or infinite"]);
    }
}

#[test]
fn a_weight_that_is_infinite() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::set_value(&model, "model.norm.weight", 255, 0xff80);
    place.refuses(QUANTIZE, &["model.norm.weight", "1 of the 256 values", "NaN or infinite"]);
    place.write("recipe.toml", "model = \"model\"\n[[quantize]]\nscheme = \"q8_0\"\noutput = \"out.gguf\"\n");
    place.refuses("run recipe.toml", &["model.norm.weight", "NaN or infinite"]);
}

/// Rounding to f16 must not make infinity out of a large number in silence.
#[test]
fn a_weight_too_large_for_f16() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::set_value(&model, MATRIX, 0, 0x4980); // 2^20
    let stderr = place
        .fails("quantize model -o out.gguf --scheme f16 --no-eval", &[MATRIX, "too large for f16", "bf16"]);
    assert!(stderr.contains("1.048576e6") || stderr.contains("1048576"), "the number is named: {stderr}");
}

/// The scales of blocks are f16: infinite ones would make a file of NaN.
#[test]
fn a_weight_too_large_for_the_scales_of_its_format() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::set_value(&model, MATRIX, 0, 0x7f00); // 1.7e38
    for scheme in ["q4_k_m", "q8_0", "q4_0"] {
        for method in ["rtn", "gptq"] {
            let line = format!(
                "quantize model -o out.gguf --scheme {scheme} --method {method} --no-eval --calib-tokens 256"
            );
            place.fails(&line, &[MATRIX, "too large for the scales", "--tensor"]);
        }
    }
    place.done("quantize model -o out.gguf --scheme q8_0 --method rtn --no-eval --quiet --tensor layers.0.self_attn.q_proj=bf16");
}

#[test]
fn an_unknown_architecture() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::edit_json(&model.join("config.json"), |config| {
        config["architectures"] = json!(["MambaForCausalLM"]);
        config["model_type"] = json!("mamba");
    });
    place.refuses(QUANTIZE, &["MambaForCausalLM", "LlamaForCausalLM"]);
    let text = place.done("inspect model");
    assert!(text.contains("shown, not run") && text.contains("MambaForCausalLM"), "{text}");
}

#[test]
fn an_option_that_would_change_the_numbers() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::edit_json(&model.join("config.json"), |config| config["hidden_act"] = json!("gelu"));
    place.refuses(QUANTIZE, &["hidden_act", "gelu", "silu"]);
}

#[test]
fn the_configuration_of_another_model() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::edit_json(&model.join("config.json"), |config| config["intermediate_size"] = json!(768));
    place.refuses(QUANTIZE, &["mlp", "[512, 256]", "[768, 256]"]);
}

#[test]
fn a_configuration_with_more_layers_than_the_file() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::edit_json(&model.join("config.json"), |config| config["num_hidden_layers"] = json!(3));
    place.refuses(QUANTIZE, &["model.layers.2.", "missing"]);
}

#[test]
fn a_configuration_with_absurd_numbers() {
    let place = Place::new();
    for key in ["num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads", "intermediate_size"]
    {
        for number in [0, 1u64 << 50, u64::MAX] {
            let model = forge::copy(&place, "model");
            forge::edit_json(&model.join("config.json"), |config| config[key] = json!(number));
            place.refuses(QUANTIZE, &["model", &number.to_string()]);
            let text = place.done("inspect model");
            assert!(text.contains("shown, not run") && text.contains(&number.to_string()), "{text}");
        }
    }
}

#[test]
fn a_tokenizer_larger_than_the_embedding() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::edit_json(&model.join("tokenizer.json"), |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        let mut extra = added[0].clone();
        extra["id"] = json!(4096);
        extra["content"] = json!("one too many");
        extra["special"] = json!(false); // a text may lead to it
        added.push(extra);
    });
    for command in [QUANTIZE, "eval model --text heldout.txt", "convert model -o out.gguf"] {
        place.refuses(command, &["4097 tokens", "4096 rows", "another model"]);
    }
}

#[test]
fn no_tokenizer() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    for command in [QUANTIZE, "eval model --text heldout.txt", "convert model -o out.gguf"] {
        place.refuses(command, &["tokenizer.json", "copy"]);
    }
}

#[test]
fn a_damaged_tokenizer() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::cut_in_half(&model.join("tokenizer.json"));
    for command in [QUANTIZE, "eval model --text heldout.txt", "convert model -o out.gguf"] {
        place.refuses(command, &["tokenizer.json", "damaged"]);
    }
}

#[test]
fn a_reference_with_another_tokenizer() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::edit_json(&model.join("tokenizer.json"), |tokenizer| {
        tokenizer["model"]["merges"].as_array_mut().unwrap().clear();
        tokenizer["model"]["ignore_merges"] = json!(false);
    });
    place.refuses(
        "eval books-2m --reference model --text heldout.txt --ctx 64",
        &["different tokens", "same tokenizer"],
    );
}

/// The factors alone do not tell the constants that a Hugging Face configuration needs.
#[test]
fn a_gguf_file_whose_configuration_has_no_words_in_a_folder() {
    let place = Place::new();
    forge::llama_3_1(&place, "llama-3.1");
    place.done("convert llama-3.1 -o model.gguf --quiet");
    for line in [
        "convert model.gguf -o out",
        "quantize model.gguf -o out --scheme w4a16-g64 --calib-tokens 256 --no-eval",
    ] {
        let stderr = place.fails(line, &["rope_freqs.weight", "Hugging Face folder"]);
        assert!(!stderr.contains("quantizing"), "{line}\nwork was begun:\n{stderr}");
    }
}

#[test]
fn a_model_that_is_quantized_already() {
    let place = Place::new();
    place.done("quantize books-2m -o q8_0.gguf --scheme q8_0 --method rtn --no-eval --quiet");
    place.done("quantize books-2m -o w4 --scheme w4a16-g64 --method rtn --no-eval --quiet");
    for model in ["q8_0.gguf", "w4"] {
        let line = format!("quantize {model} -o out.gguf --scheme q4_k_m");
        place.refuses(&line, &[model, "quantized already", "full-precision"]);
        let recipe =
            format!("model = \"{model}\"\n[[quantize]]\nscheme = \"q4_k_m\"\noutput = \"out.gguf\"\n");
        place.write("recipe.toml", &recipe);
        place.refuses("run recipe.toml", &[model, "quantized already"]);
    }
}
