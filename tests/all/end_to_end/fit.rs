//! Files of a given size, types chosen tensor by tensor.

use std::collections::{BTreeMap, BTreeSet};

use super::QUICK;
use super::experts::{Layout, mixtral};
use crate::place::Place;
use serde_json::Value;

fn quantize(place: &Place, words: &str) -> (u64, Value) {
    let command = format!("quantize books-2m -o out.gguf --force {words} --json out.json {QUICK}");
    place.done(&command);
    (place.at("out.gguf").metadata().expect("it was written").len(), place.json("out.json"))
}

#[test]
fn a_file_is_no_larger_than_its_target_and_nearly_as_large() {
    let place = Place::new();
    let (_, report) = quantize(&place, "--target-bpw 4.5");
    let bits = report["output"]["bits_per_weight"].as_f64().expect("a number");
    assert!(bits <= 4.5 && bits > 4.4, "{bits}");
    assert_eq!(report["output"]["scheme"], "4.5bpw");
    let (bytes, report) = quantize(&place, "--target-size 1.5MB");
    let chosen = &report["allocation"]["chosen"];
    assert!(bytes <= 1_500_000 && bytes > 1_450_000, "{bytes}");
    assert_eq!(chosen["bytes"].as_u64(), Some(bytes), "the plan knows the file to the byte");
    let measured = report["evaluation"]["kl_divergence"]["mean"].as_f64().expect("a number");
    let expected = chosen["predicted_kl"].as_f64().expect("a number");
    assert!(
        measured < 4.0 * expected && expected < 4.0 * measured,
        "{expected} expected, {measured} measured"
    );
    let curve = report["allocation"]["curve"].as_array().expect("a list");
    assert!((8..=16).contains(&curve.len()), "{} sizes", curve.len());
    let damages: Vec<_> = curve.iter().filter_map(|point| point["predicted_kl"].as_f64()).collect();
    assert!(damages.windows(2).all(|pair| pair[0] >= pair[1]), "{damages:?}");
}

/// All experts of a layer share a tensor for each role, and with it a type.
#[test]
fn experts_are_fitted_too_and_those_of_a_layer_alike() {
    let place = Place::new();
    mixtral(&place, "experts", Layout::Separate);
    place.done(&format!("quantize experts -o out.gguf --target-bpw 3.5 --json out.json {QUICK}"));
    let report = place.json("out.json");
    let bits = report["output"]["bits_per_weight"].as_f64().expect("a number");
    assert!(bits <= 3.5 && bits > 3.4, "{bits}");
    let mut types: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for tensor in report["tensors"].as_array().expect("a list") {
        let (Some(stored), Some(_)) = (tensor["stored_name"].as_str(), tensor["expert"].as_u64()) else {
            continue;
        };
        let text = |key: &str| tensor[key].as_str().expect("text").to_owned();
        types.entry(stored.to_owned()).or_default().insert(text("encoding"));
    }
    assert_eq!(types.len(), 6, "two layers of gate, up and down: {types:?}");
    assert!(types.values().all(|types| types.len() == 1), "{types:?}");
}

#[test]
fn only_what_is_allowed_is_chosen_and_rules_stand() {
    let place = Place::new();
    let words = "--target-bpw 6.2 --allow q4_0,q8_0 --tensor ffn_down=q5_0 --output-type q6_k";
    let (_, report) = quantize(&place, words);
    let tensors = report["allocation"]["tensors"].as_array().expect("a list");
    for tensor in tensors {
        let (name, encoding) = (tensor["name"].as_str().expect("text"), tensor["encoding"].as_str());
        if name.contains("ffn_down") {
            assert_eq!(encoding, Some("q5_0"), "{name}");
        } else if name.contains("token_embd") {
            assert_eq!(encoding, Some("q6_k"), "{name}");
        } else {
            assert!(matches!(encoding, Some("q4_0" | "q8_0")), "{name} is {encoding:?}");
        }
    }
    assert!(tensors.iter().any(|tensor| tensor["encoding"] == "q4_0"));
}

#[test]
fn a_dry_run_shows_what_was_chosen_and_what_is_impossible_is_told_before_any_work() {
    let place = Place::new();
    let plan = place.done(&format!("quantize books-2m -o out.gguf --target-bpw 4 --dry-run {QUICK}"));
    assert!(plan.contains("bits per weight") && !place.at("out.gguf").exists(), "{plan}");
    for (words, parts) in [
        ("-o out.gguf --target-bpw 1.2", &["with the smallest types", "--target-bpw 2.", "iq1_s"][..]),
        ("-o out.gguf --target-size 100kB --allow q8_0", &["--target-size", "allow smaller types"]),
        ("-o out --target-bpw 4", &["no types to choose among", ".gguf"]),
    ] {
        place.refuses(&format!("quantize books-2m {words}"), parts);
    }
    // What the command line itself refuses has its own form.
    for (words, part) in [
        ("-o out.gguf --target-bpw 4 --scheme q4_0", "cannot be used with"),
        ("-o out.gguf --target-bpw 4 --allow q4_q", "q4_q"),
        ("-o out.gguf --scheme q4_0 --allow q4_k", "cannot be used with"),
        ("-o out.gguf", "--scheme"),
    ] {
        let run = place.run(&format!("quantize books-2m {words}"));
        assert!(run.code == Some(2) && run.stderr.contains(part), "{words}:\n{}", run.stderr);
    }
}

#[test]
fn a_recipe_has_the_same_keys() {
    let place = Place::new();
    let recipe = |keys: &str| {
        let calibration = "[calibration]\ntokens = 1024\nctx = 128\n[evaluation]\nchunks = 2\n";
        place.write(
            "r.toml",
            &format!("model = \"books-2m\"\n{calibration}[[quantize]]\noutput = \"a.gguf\"\n{keys}\n"),
        );
    };
    recipe("target_bpw = 5.0\nallow = [\"q4_k\", \"q6_k\"]");
    let plan = place.done("run r.toml --dry-run");
    assert!(plan.contains("5bpw") && plan.contains("chosen by measured damage"), "{plan}");
    place.done("run r.toml --json r.json");
    let reports = place.json("r.json");
    let report = reports.get(0).unwrap_or(&reports);
    assert!(report["allocation"]["chosen"]["bits_per_weight"].as_f64().is_some_and(|bits| bits <= 5.0));
    for (keys, parts) in [
        ("target_bpw = 5.0\nscheme = \"q4_0\"", &["`scheme` and `target_bpw` do not go together"][..]),
        ("target_size = \"big\"", &["a size is a number and a unit"]),
        ("allow = [\"q4_k\"]\nscheme = \"q4_0\"", &["there is none", "target_bpw"]),
        ("allow = [\"q4_q\"]\ntarget_bpw = 4.0", &["q4_q"]),
        ("method = \"gptq\"", &["no `scheme`", "target_size"]),
        ("target_bpw = 1.0", &["with the smallest types"]),
    ] {
        recipe(keys);
        place.refuses("run r.toml", parts);
    }
}
