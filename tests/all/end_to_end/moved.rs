//! Codes that change their container and nothing else.

use serde_json::{Value, json};

use crate::forge::edit_json;
use crate::place::Place;

/// What each matrix of the blocks decodes to, by name, as a report has it.
fn decoded(report: &Value) -> Vec<(String, String)> {
    let tensors = report["tensors"].as_array().unwrap().iter();
    let of = |tensor: &Value, key: &str| tensor[key].as_str().unwrap().to_owned();
    tensors
        .map(|tensor| (of(tensor, "name"), of(tensor, "decoded_sha256")))
        .filter(|(name, _)| name.contains("_proj"))
        .collect()
}

/// `attar convert`, and its report.
fn convert(place: &Place, from: &str, to: &str, options: &str) -> Value {
    place.done(&format!("convert {from} -o {to} {options} --force --quiet --json moved.json"));
    place.json("moved.json")
}

fn quantize(place: &Place, output: &str, options: &str) {
    place.done(&format!("quantize books-2m -o {output} {options} --method rtn --no-eval --quiet"));
}

/// The values of a model, in a folder of floats.
fn values(place: &Place, model: &str) -> Vec<(String, String)> {
    decoded(&convert(place, model, "values", "--dtype f32"))
}

/// The type of most matrices of the blocks, and the report's word for the whole.
fn types(report: &Value) -> (&str, &str) {
    let tensors = report["tensors"].as_array().unwrap();
    let matrix = tensors.iter().find(|t| t["name"].as_str().unwrap().contains("down_proj")).unwrap();
    (matrix["encoding"].as_str().unwrap(), report["output"]["scheme"].as_str().unwrap())
}

#[test]
fn a_file_becomes_a_folder_and_a_file_again_with_the_same_codes() {
    let place = Place::new();
    for (scheme, layout, named) in [
        ("q4_0", "gptq", "w4a16-g32"),
        ("q4_0", "awq", "w4a16-g32"),
        ("q4_0", "compressed-tensors", "w4a16-g32"),
        ("q5_0", "compressed-tensors", "w5a16-g32"),
        ("q8_0", "gptq", "w8a16-g32"),
        ("mxfp4", "compressed-tensors", "mxfp4"),
    ] {
        quantize(&place, "a.gguf", &format!("--scheme {scheme} --pure --force"));
        let folder = convert(&place, "a.gguf", "folder", &format!("--format {layout}"));
        let said = &folder["output"];
        assert_eq!((&said["scheme"], &said["format"]), (&json!(named), &json!(layout)));
        assert_eq!(said.get("method"), None, "nothing was chosen");
        if scheme != "mxfp4" {
            // In a folder, one of the two zeros is negative.
            assert_eq!(decoded(&folder), values(&place, "a.gguf"), "{scheme} in {layout}");
        }
        let file = convert(&place, "folder", "b.gguf", "");
        assert_eq!(types(&file), (scheme, scheme));
        assert_eq!(values(&place, "b.gguf"), values(&place, "a.gguf"), "{scheme} by way of {layout}");
    }
}

#[test]
fn a_folder_becomes_a_file_of_the_smallest_type_that_has_its_values() {
    let place = Place::new();
    for (options, encoding) in [
        ("--scheme w4a16-g128 --format gptq", "q4_0"),
        ("--scheme w4a16-g64", "q4_0"),
        ("--scheme w4a16-channel", "q4_0"),
        ("--scheme w4a16-g128-asym --format awq", "q5_0"),
        ("--scheme w3a16-g64-asym --format gptq", "q4_0"),
        ("--scheme w2a16-g32", "q4_0"),
        ("--scheme w8a16-g64", "q8_0"),
        ("--scheme w8a8", "q8_0"),
        ("--scheme mxfp4", "mxfp4"),
    ] {
        quantize(&place, "folder", &format!("{options} --force"));
        let file = convert(&place, "folder", "a.gguf", "");
        assert_eq!(types(&file).0, encoding, "{options}");
        if encoding != "mxfp4" {
            assert_eq!(values(&place, "a.gguf"), values(&place, "folder"), "{options}");
        }
    }
}

#[test]
fn folders_move_between_layouts() {
    let place = Place::new();
    for (from, to) in [
        ("--scheme w4a16-g128 --format gptq", "compressed-tensors"),
        ("--scheme w4a16-g128 --format gptq", "awq"),
        ("--scheme w4a16-g64-asym --format awq", "gptq"),
        ("--scheme w3a16-g64-asym", "gptq"),
        ("--scheme w4a16-channel", "gptq"),
        ("--scheme fp8-block", "fp8"),
        ("--scheme fp8-block --format fp8", "compressed-tensors"),
    ] {
        quantize(&place, "a", &format!("{from} --force"));
        let moved = convert(&place, "a", "b", &format!("--format {to}"));
        assert_eq!(moved["output"]["format"], to);
        assert_eq!(decoded(&moved), values(&place, "a"), "{from} to {to}");
    }
}

/// As llama-quantize makes them, with other types in places: those become floats, and the folder says so.
#[test]
fn matrices_of_another_type_than_most_become_floats() {
    let place = Place::new();
    quantize(&place, "a.gguf", "--scheme q4_0 --tensor attn_v=q6_k");
    let folder = convert(&place, "a.gguf", "folder", "--format compressed-tensors");
    assert_eq!(decoded(&folder), values(&place, "a.gguf"));
    let ignored = &place.json("folder/config.json")["quantization_config"]["ignore"];
    assert_eq!(
        ignored,
        &json!(["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj", "lm_head"])
    );
}

#[test]
fn codes_without_a_place_are_refused_with_the_reason() {
    let place = Place::new();
    quantize(&place, "k.gguf", "--scheme q4_k_m");
    quantize(&place, "w6", "--scheme w6a16-g64");
    quantize(&place, "w8", "--scheme w8a16-g64-asym");
    quantize(&place, "w4", "--scheme w4a16-g64 --format gptq");
    quantize(&place, "fp8", "--scheme fp8");
    for (command, says) in [
        ("convert k.gguf -o out --format gptq", &["no codes such as", "q4_k", "--format"][..]),
        ("convert w6 -o out --format gptq", &["gptq cannot hold `w6a16-g64`", "compressed-tensors"]),
        ("convert w4 -o out.gguf --format gptq", &["--format is about folders"]),
        ("convert books-2m -o out --format gptq", &["the model is floats", "attar quantize"]),
        ("convert w8 -o out.gguf", &["q_proj", "w8-g64-asym", "codes reach further", "--dtype bf16"]),
        ("convert fp8 -o out.gguf", &["q_proj", "fp8", "levels", "--dtype bf16"]),
    ] {
        place.refuses(command, says);
    }
    // Columns of groups in another order have no place in blocks.
    crate::forge::edit_weights(&place.at("w4"), |header, data| {
        let at = &header["model.layers.0.mlp.up_proj.g_idx"]["data_offsets"];
        let start = at[0].as_u64().unwrap() as usize;
        data[start..start + 4].copy_from_slice(&1i32.to_le_bytes());
    });
    edit_json(&place.at("w4/config.json"), |config| config["quantization_config"]["desc_act"] = json!(true));
    place.refuses("convert w4 -o out.gguf", &["up_proj", "scales change"]);
}
