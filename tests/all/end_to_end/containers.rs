//! Files that other programs and other runs open.

use std::collections::BTreeMap;
use std::fs;

use attar::mix::FILE_TYPES;
use attar_checkpoint::{Container, GgmlType, decode_floats, safetensors};
use serde_json::Value;

use super::QUICK;
use crate::forge;
use crate::place::{Place, fixture};

#[test]
fn inspect_names_the_family_and_what_each_scheme_would_make_of_it() {
    let place = Place::new();
    let text = place.done("inspect books-2m");
    let facts: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once("  ")).collect();
    for (label, value) in
        [("family", "llama"), ("parameters", "2,229,504"), ("layers", "2"), ("tokenizer", "4,096 tokens")]
    {
        assert_eq!(facts[label].trim(), value, "{text}");
    }
    let listed = |name: &str| text.lines().any(|line| line.split_whitespace().next() == Some(name));
    for scheme in
        FILE_TYPES.iter().map(|file_type| file_type.name).chain(["w4a16-g128", "w4a16-g64", "w8a16-g128"])
    {
        assert!(listed(scheme), "no {scheme} in:\n{text}");
    }

    let text = place.done("inspect books-2m --verbose");
    for tensor in [
        "model.layers.1.self_attn.k_proj.weight",
        "blk.1.attn_k.weight",
        "model.embed_tokens.weight",
        "token_embd.weight",
    ] {
        assert!(text.contains(tensor), "no {tensor} in:\n{text}");
    }
}

/// The last type whose number the `gguf` crate has as llama.cpp has it.
const LAST_KNOWN: u32 = 15;

/// The `gguf` crate knows nothing of attar. It reads headers, of the types up to 15.
#[test]
fn an_independent_reader_finds_every_tensor_of_every_file_type() {
    let place = Place::new();
    for file_type in FILE_TYPES {
        let scheme = file_type.name;
        place.done(&format!(
            "quantize books-2m -o {scheme}.gguf --scheme {scheme} --calib-tokens 256 --no-eval --quiet --json report.json"
        ));
        let ours = place.json("report.json");
        let known = |tensor: &serde_json::Value| {
            let encoding = GgmlType::from_name(tensor["encoding"].as_str().unwrap()).unwrap();
            encoding.id() <= LAST_KNOWN
        };
        if !ours["tensors"].as_array().unwrap().iter().all(known) {
            continue;
        }
        let file = fs::read(place.at(&format!("{scheme}.gguf"))).unwrap();
        let theirs = gguf::GGUFFile::read(&file).unwrap().unwrap();
        let metadata: BTreeMap<&str, String> = theirs
            .header
            .metadata
            .iter()
            .map(|entry| (entry.key.as_str(), format!("{:?}", entry.value)))
            .collect();
        assert_eq!(metadata["general.architecture"], "llama");
        assert_eq!(metadata["general.file_type"], file_type.id.to_string(), "{scheme}");

        let report = place.json("report.json");
        let ours = report["tensors"].as_array().unwrap();
        assert_eq!(theirs.tensors.len(), ours.len(), "{scheme}");
        for tensor in ours {
            let name = tensor["stored_name"].as_str().unwrap();
            let their =
                theirs.tensors.iter().find(|their| their.name == name).unwrap_or_else(|| panic!("{name}"));
            let encoding = tensor["encoding"].as_str().unwrap().replace("_k", "k");
            assert_eq!(format!("{:?}", their.tensor_type).to_lowercase(), encoding, "{scheme}: {name}");
        }
    }
}

#[test]
fn what_was_written_scores_what_the_report_said() {
    let place = Place::new();
    for (output, scheme) in [("q4_k_m.gguf", "q4_k_m"), ("w4a16-g64", "w4a16-g64")] {
        place.done(&format!(
            "quantize books-2m -o {output} --scheme {scheme} --text heldout.txt {QUICK} --quiet --json quantize.json"
        ));
        place.done(&format!(
            "eval {output} --reference books-2m --text heldout.txt --ctx 128 --chunks 4 --quiet --json eval.json"
        ));
        let (said, found) = (place.json("quantize.json"), place.json("eval.json"));
        assert_eq!(said["evaluation"]["text"], "heldout.txt");
        assert!(said["evaluation"]["kl_divergence"]["mean"].as_f64().is_some_and(|kl| kl > 0.0));
        assert_eq!(said["evaluation"], found["evaluation"], "{output}");
        assert_eq!(found["model"]["source"], output);
    }
}

#[test]
fn nothing_is_lost_from_a_folder_through_a_gguf_file_to_a_folder() {
    let place = Place::new();
    let score = |model: &str| {
        place.done(&format!("eval {model} --text heldout.txt --ctx 128 --chunks 4 --quiet --json eval.json"));
        place.json("eval.json")["evaluation"]["perplexity"].clone()
    };
    place.done("convert books-2m -o kept.gguf --quiet --json report.json");
    assert_eq!(place.json("report.json")["output"]["scheme"], "bf16");
    place.done("quantize books-2m -o f32.gguf --scheme f32 --no-eval --quiet");
    let original = score("books-2m");
    assert!(original["value"].as_f64().is_some_and(|value| value > 1.0));
    for gguf in ["kept.gguf", "f32.gguf"] {
        place.done(&format!("convert {gguf} -o back --force --quiet"));
        let [before, after] =
            [fixture("books-2m"), place.at("back")].map(|path| safetensors::open(&path).unwrap());
        assert_eq!(before.tensors().len(), after.tensors().len());
        for info in before.tensors() {
            let floats = |model: &safetensors::Folder| {
                let info = model.info(&info.name).unwrap();
                let values = decode_floats(info.dtype, model.bytes(&info.name).unwrap()).unwrap();
                (info.shape.clone(), values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            assert!(floats(&before) == floats(&after), "{gguf}: {}", info.name);
        }
        assert_eq!(score(gguf), original, "{gguf}");
        assert_eq!(score("back"), original, "the folder made from {gguf}");
    }
}

/// A folder keeps them as constants, a GGUF file as a tensor.
#[test]
fn stretched_frequencies_survive_a_gguf_file() {
    let place = Place::new();
    forge::llama_3_1(&place, "llama-3.1");
    place.done("convert llama-3.1 -o out.gguf --quiet");
    let score = |model: &str| {
        place.done(&format!("eval {model} --text heldout.txt --ctx 256 --chunks 2 --quiet --json eval.json"));
        place.json("eval.json")["evaluation"]["perplexity"]["value"].as_f64().unwrap()
    };
    let (plain, folder, gguf) = (score("books-2m"), score("llama-3.1"), score("out.gguf"));
    assert!((folder / plain - 1.0).abs() > 0.01, "they do change the model: {plain} and {folder}");
    assert!((gguf / folder - 1.0).abs() < 1e-6, "{folder} became {gguf}");
}

/// A GGUF file of floats is as good a source as the folder it was made from.
#[test]
fn a_gguf_file_of_floats_is_quantized_to_the_same_numbers() {
    let place = Place::new();
    place.done("convert books-2m -o floats.gguf --quiet");
    for (output, scheme) in [("out.gguf", "q4_k_m"), ("out", "w4a16-g64")] {
        let made_from = |model: &str| {
            place.done(&format!(
                "quantize {model} -o {output} --scheme {scheme} {QUICK} --force --quiet --json report.json"
            ));
            let report = place.json("report.json");
            let matrices =
                report["tensors"].as_array().unwrap().iter().filter(|t| t["relative_error"].is_number());
            let decoded: Vec<_> =
                matrices.map(|t| (t["name"].clone(), t["decoded_sha256"].clone())).collect();
            (decoded, report["evaluation"].clone())
        };
        let folder = made_from("books-2m");
        assert_eq!(folder.0.len(), if scheme == "q4_k_m" { 15 } else { 14 }, "{scheme}");
        assert!(folder.0.iter().all(|(_, hash)| hash.as_str().is_some_and(|hash| hash.len() == 64)));
        assert_eq!(made_from("floats.gguf"), folder, "{scheme}");
    }
}

/// However the same model is laid out, the same file comes of it.
#[test]
fn shards_and_the_configuration_of_transformers_5_make_no_difference() {
    let place = Place::new();
    forge::sharded(&place, "sharded/books-2m");
    forge::transformers_5(&place, "newer/books-2m");
    for (output, scheme) in [("out.gguf", "q4_k_m"), ("out", "w4a16-g64")] {
        let made_from = |model: &str| {
            place.done(&format!(
                "quantize {model} -o {output} --scheme {scheme} --method rtn --ctx 128 --chunks 4 --force --quiet --json report.json"
            ));
            let report = place.json("report.json");
            (report["output"]["sha256"].as_str().unwrap().to_owned(), report["evaluation"].clone())
        };
        let plain = made_from("books-2m");
        assert_eq!(made_from("sharded/books-2m"), plain, "{scheme} of shards");
        assert_eq!(made_from("newer/books-2m"), plain, "{scheme} of transformers 5");
    }
    let config = place.json("out/config.json");
    assert_eq!(config["dtype"], "bfloat16", "what was read in new words is written in them");
    assert_eq!(config.get("torch_dtype"), None);
    assert_eq!(config["rope_parameters"]["rope_type"], "default");
    assert_eq!(config["quantization_config"]["quant_method"], "compressed-tensors");
}

/// Tiny random models of every family, without a tokenizer: what needs none works on them all.
#[test]
fn every_family_goes_through_a_folder_of_integers() {
    let place = Place::new();
    for entry in fs::read_dir(fixture("golden/model")).unwrap() {
        let model = entry.unwrap().path();
        let name = model.file_name().unwrap().to_str().unwrap().to_owned();
        if !model.join("config.json").is_file() {
            continue;
        }
        place.link_folder(&model, &name);
        let family = place.done(&format!("inspect {name}"));
        let called = name.replace('-', "_");
        let families = attar_model::FAMILIES.iter().map(|family| family.name);
        let expected = families.filter(|family| called.starts_with(family)).max_by_key(|family| family.len());
        let expected = expected.unwrap();
        assert!(family.contains(expected), "{name}: {family}");
        place.done(&format!(
            "quantize {name} -o out --scheme w8a16-g8 --method rtn --no-eval --force --quiet --json report.json"
        ));
        let report = place.json("report.json");
        assert_eq!(report["model"]["family"], expected, "{name}");
        let errors: Vec<f64> = report["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|t| t["relative_error"].as_f64())
            .collect();
        assert!(!errors.is_empty() && errors.iter().all(|error| *error < 1e-3), "{name}: {errors:?}");
        place.done(&format!("convert {name} -o plain --force --quiet --json report.json"));
        assert_eq!(place.json("report.json")["output"]["format"], "plain");
    }
}

#[test]
fn an_evaluation_of_the_model_against_itself_finds_no_difference() {
    let place = Place::new();
    for convention in ["llama.cpp", "hf"] {
        place.done(&format!(
            "eval books-2m --reference books-2m --text heldout.txt --ctx 128 --chunks 2 --convention {convention} --quiet \
             --json eval.json"
        ));
        let evaluation = place.json("eval.json")["evaluation"].clone();
        assert_eq!(evaluation["convention"], convention);
        assert_eq!(evaluation["perplexity"], evaluation["reference_perplexity"]);
        assert_eq!(evaluation["kl_divergence"]["max"], Value::from(0.0));
        assert_eq!(evaluation["top1_agreement"], Value::from(1.0));
    }
}
