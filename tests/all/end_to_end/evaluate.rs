//! What `attar eval` tells of several texts, keeps for other programs, and takes apart.

use std::fs;

use serde_json::Value;

use crate::forge;
use crate::place::Place;

const CUT: &str = "--ctx 128 --chunks 4";

fn number(value: &Value, key: &str) -> f64 {
    value.pointer(key).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {key} in {value:#}"))
}

#[test]
fn several_texts_score_as_each_alone() {
    let place = Place::new();
    place.done(&format!(
        "eval books-2m --text heldout.txt --text calibration.txt {CUT} --quiet --json both.json --report both"
    ));
    let both = place.json("both.json");
    for (text, at) in [("heldout.txt", "/evaluation"), ("calibration.txt", "/further_evaluations/0")] {
        place.done(&format!("eval books-2m --text {text} {CUT} --quiet --json one.json"));
        assert_eq!(both.pointer(at), Some(&place.json("one.json")["evaluation"]), "{text}");
        assert!(fs::read_to_string(place.at("both/report.md")).unwrap().contains(text), "{text}");
    }
}

#[test]
fn the_parts_of_an_evaluation_add_up() {
    let place = Place::new();
    place.done("quantize books-2m -o q4.gguf --scheme q4_0 --method rtn --no-eval --quiet");
    place.done(&format!(
        "eval q4.gguf --reference books-2m --text heldout.txt {CUT} --quiet --json report.json"
    ));
    let evaluation = place.json("report.json")["evaluation"].clone();
    let tokens = number(&evaluation, "/tokens");
    for by in ["position", "kind", "frequency"] {
        let groups = evaluation["breakdown"][by].as_array().unwrap();
        assert!(groups.len() > 1, "{by}");
        let sum = |of: &dyn Fn(&Value) -> f64| {
            groups.iter().map(|group| number(group, "/tokens") * of(group)).sum::<f64>() / tokens
        };
        let close = |found: f64, key: &str| {
            let whole = number(&evaluation, key);
            assert!(
                (found - whole).abs() < 1e-9 * whole.abs().max(1.0),
                "{by}, {key}: {found} is not {whole}"
            );
        };
        assert!((sum(&|_| 1.0) - 1.0).abs() < 1e-12, "{by}: every token is in one group");
        close(sum(&|group| number(group, "/perplexity/value").ln()).exp(), "/perplexity/value");
        close(sum(&|group| number(group, "/kl_divergence/mean")), "/kl_divergence/mean");
        close(sum(&|group| number(group, "/top1_agreement")), "/top1_agreement");
    }
    let windows = &evaluation["by_window"];
    let mean = |key: &str| {
        let values = windows[key].as_array().unwrap();
        assert_eq!(values.len(), 4, "{key}");
        values.iter().map(|value| value.as_f64().unwrap()).sum::<f64>() / values.len() as f64
    };
    assert!((mean("nll").exp() / number(&evaluation, "/perplexity/value") - 1.0).abs() < 1e-9);
    assert!((mean("kl_divergence") - number(&evaluation, "/kl_divergence/mean")).abs() < 1e-12);
    let worst = evaluation["worst_tokens"].as_array().unwrap();
    assert_eq!(
        number(&worst[0], "/kl_divergence").to_bits(),
        number(&evaluation, "/kl_divergence/max").to_bits()
    );
}

#[test]
fn what_is_kept_for_llama_cpp_is_compared_with_as_the_model_is() {
    let place = Place::new();
    place.done(&format!(
        "eval books-2m --text heldout.txt {CUT} --save-reference kept.kld --save-as llama.cpp --quiet"
    ));
    place.done("quantize books-2m -o q4.gguf --scheme q4_0 --method rtn --no-eval --quiet");
    let score = |options: &str| {
        place.done(&format!("eval q4.gguf {options} --quiet --json report.json"));
        place.json("report.json")["evaluation"].clone()
    };
    let run = score(&format!("--reference books-2m --text heldout.txt {CUT}"));
    let beside_text = score("--reference kept.kld --text heldout.txt");
    let alone = score("--reference kept.kld");
    assert_eq!(beside_text["text"], "heldout.txt");
    for kept in [&beside_text, &alone] {
        assert_eq!(kept["perplexity"], run["perplexity"]);
        for key in ["/reference_perplexity/value", "/kl_divergence/mean"] {
            let (kept, run) = (number(kept, key), number(&run, key));
            assert!((kept / run - 1.0).abs() < 0.01, "{key}: {kept} is not {run}");
        }
    }
    // A gate may rest on it, and its baseline names it.
    place.done("check q4.gguf --reference kept.kld --baseline b.json --update-baseline --quiet");
    let said = place.done("check q4.gguf --baseline b.json --max-kl-increase 0 --quiet");
    assert!(said.contains("max-kl-increase"), "{said}");

    place.refuses(
        "eval q4.gguf --reference kept.kld --text calibration.txt",
        &["kept.kld", "another text", "leave --text"],
    );
    place.refuses("eval q4.gguf --reference kept.kld --text heldout.txt --ctx 64", &["windows"]);
    place.refuses(
        "eval q4.gguf --reference kept.kld --text heldout.txt --text calibration.txt",
        &["one text", "several"],
    );
    place.refuses(
        &format!("eval books-2m --text heldout.txt {CUT} --save-reference kept.kld --save-as llama.cpp"),
        &["kept.kld", "--force"],
    );
}

#[test]
fn a_damaged_file_of_kept_predictions() {
    let place = Place::new();
    let line = format!(
        "eval books-2m --text heldout.txt {CUT} --save-reference kept.kld --save-as llama.cpp --quiet"
    );
    place.done(&line);
    let sound = fs::read(place.at("kept.kld")).unwrap();
    fs::write(place.at("cut.kld"), &sound[..sound.len() - 10]).unwrap();
    place.refuses("eval books-2m --reference cut.kld", &["cut.kld", "the file has"]);
    fs::copy(place.at("kept.kld"), place.at("count.kld")).unwrap();
    forge::overwrite(&place.at("count.kld"), 8, &(-3_i32).to_le_bytes());
    place.refuses("eval books-2m --reference count.kld", &["count.kld", "context is -3"]);
    let first_row = 20 + 4 * 4 * 128;
    fs::copy(place.at("kept.kld"), place.at("row.kld")).unwrap();
    forge::overwrite(&place.at("row.kld"), first_row, &f32::NAN.to_le_bytes());
    place.fails("eval books-2m --reference row.kld", &["row.kld", "row 0 has scale NaN"]);
}
