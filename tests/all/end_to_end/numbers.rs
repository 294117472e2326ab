//! Folders in the formats that models are served in: written, reopened and compared as every output is, and read by whoever asks.

use std::fs;

use attar_checkpoint::compressed_tensors::NUMBERS;
use attar_checkpoint::{Container as _, safetensors};

use serde_json::{Value, json};

use super::QUICK;
use crate::forge::{edit_json, edit_weights};
use crate::place::Place;

#[test]
fn every_kind_of_numbers_is_written_scored_and_decoded_again() {
    let place = Place::new();
    let formats = NUMBERS.iter().map(|numbers| (numbers.name, "compressed-tensors"));
    for (name, format) in formats.chain([("fp8-block", "fp8")]) {
        let out = format!("{name}-{format}");
        let text = place.done(&format!(
            "quantize books-2m -o {out} --scheme {name} --format {format} --text heldout.txt {QUICK} --quiet --json report.json"
        ));
        let report = place.json("report.json");
        assert_eq!(
            (&report["output"]["scheme"], &report["output"]["format"]),
            (&name.into(), &format.into()),
            "{text}"
        );
        let lost = report["evaluation"]["kl_divergence"]["mean"].as_f64().unwrap();
        assert!((1e-7..0.05).contains(&lost), "{name}: {lost}");
        let config = place.json(&format!("{out}/config.json"));
        assert_eq!(config["quantization_config"]["quant_method"], format);

        // What is decoded to floats predicts the same where no inputs are rounded, and about that where they are.
        place.done(&format!("convert {out} -o floats --quiet --force"));
        place.done("eval floats --text heldout.txt --ctx 128 --chunks 4 --quiet --json floats.json");
        let floats = place.json("floats.json");
        let perplexity =
            |report: &serde_json::Value| report["evaluation"]["perplexity"]["value"].as_f64().unwrap();
        let apart = (perplexity(&floats) / perplexity(&report) - 1.0).abs();
        let inputs = &report["evaluation"]["inputs"];
        match (name, inputs.as_str()) {
            ("w8a8", Some("as int8 with a scale for each token"))
            | ("fp8" | "fp8-tensor", Some("as fp8 with a scale for each token"))
            | ("fp8-block", Some("as fp8 with a scale for each 128 of a token")) => {
                assert!((1e-6..0.01).contains(&apart), "{name}: {apart}");
            }
            (_, None) => assert!(apart < 1e-6, "{name}: {apart}"),
            (_, Some(told)) => panic!("{name}: inputs {told}"),
        }
    }
}

#[test]
fn what_is_read_as_one_matrix_shares_its_scale() {
    let place = Place::new();
    for (scheme, ending) in [("nvfp4", "weight_global_scale"), ("fp8-tensor", "weight_scale")] {
        place
            .done(&format!("quantize books-2m -o {scheme} --scheme {scheme} --method rtn --no-eval --quiet"));
        let files = safetensors::open(&place.at(scheme)).unwrap();
        let scale = |module: &str| {
            let name = format!("model.layers.1.{module}_proj.{ending}");
            files.bytes(&name).unwrap().to_vec()
        };
        let [q, k, v, o] = ["q", "k", "v", "o"].map(|role| scale(&format!("self_attn.{role}")));
        let [gate, up, down] = ["gate", "up", "down"].map(|role| scale(&format!("mlp.{role}")));
        assert!(q == k && q == v && gate == up, "{scheme}");
        assert!(q != o && gate != down && q != gate, "{scheme}");
    }
}

#[test]
fn a_scheme_whose_inputs_are_rounded_by_others_says_so_beforehand() {
    let place = Place::new();
    for (scheme, said) in [("fp8", true), ("w8a8", true), ("nvfp4", false), ("w4a16-g64", false)] {
        let run = place.run(&format!("quantize books-2m -o out --scheme {scheme} --method rtn --dry-run"));
        let all = format!("{}{}", run.stdout, run.stderr);
        assert_eq!(all.contains("read the inputs of matrices"), said, "{scheme}:\n{all}");
    }
}

#[test]
fn bytes_that_stand_for_no_number_are_refused() {
    let place = Place::new();
    for (scheme, tensor, byte) in [
        ("fp8", "model.layers.0.mlp.up_proj.weight", 0x7f),
        ("mxfp4", "model.layers.0.mlp.up_proj.weight_scale", 0xff),
        ("nvfp4", "model.layers.0.mlp.up_proj.weight_scale", 0x7f),
    ] {
        place
            .done(&format!("quantize books-2m -o {scheme} --scheme {scheme} --method rtn --no-eval --quiet"));
        let path = place.at(&format!("{scheme}/model.safetensors"));
        let mut bytes = fs::read(&path).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[8 + header_len + start] = byte;
        fs::write(&path, bytes).unwrap();
        place.fails(
            &format!("eval {scheme} --text heldout.txt --ctx 128 --chunks 1 --quiet"),
            &["up_proj.weight", "a byte that stands for no number"],
        );
    }
}

/// The same numbers under the names that NVIDIA's Model Optimizer gives them, said in a file beside `config.json`.
#[test]
fn what_the_model_optimizer_wrote_is_read() {
    let place = Place::new();
    for (scheme, algo, names) in [
        ("nvfp4", "NVFP4", &[("weight_packed", "weight"), ("weight_global_scale", "weight_scale_2")][..]),
        ("fp8-tensor", "FP8", &[("weight_scale", "weight_scale")]),
    ] {
        place
            .done(&format!("quantize books-2m -o {scheme} --scheme {scheme} --method rtn --no-eval --quiet"));
        let perplexity = |options: &str| {
            let line =
                format!("eval {scheme} --text heldout.txt --ctx 128 --chunks 4 --quiet --json scored.json");
            place.done(&format!("{line} {options}"));
            place.json("scored.json")["evaluation"].clone()
        };
        let before = perplexity("");
        edit_weights(&place.at(scheme), |header, data| {
            for (was, now) in names {
                let all: Vec<_> =
                    header.keys().filter(|key| key.ends_with(&format!("_proj.{was}"))).cloned().collect();
                assert_eq!(all.len(), 14, "{was}");
                for name in all {
                    let mut entry = header.shift_remove(&name).unwrap();
                    if entry["shape"] == json!([1]) {
                        entry["shape"] = json!([]);
                        let at = entry["data_offsets"][0].as_u64().unwrap() as usize;
                        if scheme == "nvfp4" {
                            let divisor = f32::from_le_bytes(data[at..at + 4].try_into().unwrap());
                            data[at..at + 4].copy_from_slice(&(1.0 / divisor).to_le_bytes());
                        }
                    }
                    header.insert(name.replace(was, now), entry);
                }
            }
        });
        edit_json(&place.at(&format!("{scheme}/config.json")), |config| {
            config.shift_remove("quantization_config");
        });
        let said = json!({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algo, "exclude_modules": ["lm_head"]}});
        place.write(&format!("{scheme}/hf_quant_config.json"), &said.to_string());
        let after = perplexity("--force");
        let of = |scored: &Value| scored["perplexity"]["value"].as_f64().unwrap();
        let within = if scheme == "nvfp4" { 1e-5 } else { 0.01 }; // inputs are rounded before only
        assert!((of(&after) / of(&before) - 1.0).abs() < within, "{scheme}: {after} {before}");
        assert!(place.done(&format!("inspect {scheme}")).contains("modelopt"));
    }
}
