//! References that were kept: CI compares without the original.

use std::fs;

use serde_json::Value;

use crate::place::Place;

/// Little text in short windows.
const EVAL: &str = "--text heldout.txt --ctx 128 --chunks 4 --quiet --json report.json";

/// Scores the rounded fixture against `reference`.
fn against(place: &Place, reference: &str) -> Value {
    place.done(&format!("eval small.gguf --reference {reference} {EVAL}"));
    place.json("report.json")["evaluation"].clone()
}

fn number(evaluation: &Value, pointer: &str) -> f64 {
    evaluation.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer}"))
}

#[test]
fn a_kept_reference_scores_as_the_model_it_was_made_of() {
    let place = Place::new();
    place.done("quantize books-2m -o small.gguf --scheme q4_0 --method rtn --no-eval --quiet");
    for form in ["hidden-f32", "hidden-bf16", "top-k=32"] {
        place.done(&format!("eval books-2m {EVAL} --save-reference caches/{form} --save-as {form}"));
    }
    let run = against(&place, "books-2m");
    assert!(run.get("reference").is_none());
    // The original need not be there.
    fs::rename(place.at("books-2m"), place.at("gone")).unwrap();

    let mut exact = against(&place, "caches/hidden-f32");
    let said = exact.as_object_mut().unwrap().shift_remove("reference").unwrap();
    assert_eq!(exact, run, "to the bit");
    assert_eq!((said["kind"].as_str(), said["signal"].as_str()), (Some("teacher cache"), Some("hidden-f32")));
    assert_eq!(
        (said["path"].as_str(), said["model"].as_str()),
        (Some("caches/hidden-f32"), Some("books-2m"))
    );
    assert_eq!(said["model_sha256"].as_str().map(str::len), Some(64));

    let rounded = against(&place, "caches/hidden-bf16");
    let kl = "/kl_divergence/mean";
    assert!((number(&rounded, kl) - number(&run, kl)).abs() < 0.01 * number(&run, kl), "{rounded:#}");
    assert_eq!(rounded["perplexity"], run["perplexity"]);

    let likeliest = against(&place, "caches/top-k=32");
    assert!(number(&likeliest, kl) < number(&run, kl) && number(&likeliest, kl) > 0.5 * number(&run, kl));
    assert_eq!(likeliest["reference"]["kl_buckets"], 33);
    assert_eq!(likeliest["top1_agreement"], run["top1_agreement"]);
    let printed = place.done(&format!("eval small.gguf --reference caches/top-k=32 {EVAL}"));
    for part in ["teacher cache caches/top-k=32", "top-k=32 of books-2m", "a lower bound: over 32 tokens"] {
        assert!(printed.contains(part), "no `{part}` in\n{printed}");
    }
}

/// Neither how the head is cut nor how many threads there are shows in a figure.
#[test]
fn memory_and_threads_change_no_bit_of_a_figure() {
    let place = Place::new();
    place.done("quantize books-2m -o small.gguf --scheme q4_0 --method rtn --no-eval --quiet");
    let roomy = against(&place, "books-2m");
    for flags in ["--max-memory 73MB --threads 1", "--max-memory 100MB --threads 2"] {
        assert_eq!(against(&place, &format!("books-2m {flags}")), roomy, "{flags}");
    }
}

#[test]
fn ctx_and_chunks_come_from_the_cache_where_none_are_asked_for() {
    let place = Place::new();
    place.done(&format!("eval books-2m {EVAL} --save-reference cache"));
    place.done("eval books-2m --text heldout.txt --reference cache --quiet --json report.json");
    let evaluation = &place.json("report.json")["evaluation"];
    assert_eq!((evaluation["ctx"].as_u64(), evaluation["chunks"].as_u64()), (Some(128), Some(4)));
    assert_eq!(number(evaluation, "/kl_divergence/max").to_bits(), 0.0_f64.to_bits());
    assert_eq!(number(evaluation, "/top1_agreement").to_bits(), 1.0_f64.to_bits());
}

#[test]
fn quantize_and_recipes_compare_with_a_kept_reference_as_with_the_model() {
    let place = Place::new();
    place.done(&format!("eval books-2m {EVAL} --save-reference cache"));
    let line = "quantize books-2m -o out.gguf --scheme q4_0 --method rtn --text heldout.txt --force";
    let mut seen: Vec<Value> = Vec::new();
    for flags in ["--ctx 128 --chunks 4", "--reference cache"] {
        place.done(&format!("{line} {flags} --quiet --json report.json"));
        let mut report = place.json("report.json");
        let stages = report["run"]["stages"].to_string();
        assert_eq!(stages.contains("reference"), !flags.contains("reference"), "{stages}");
        report["evaluation"].as_object_mut().unwrap().shift_remove("reference");
        seen.push(report["evaluation"].take());
    }
    place.write(
        "recipe.toml",
        "model = \"books-2m\"\n[evaluation]\ntext = \"heldout.txt\"\nreference = \"cache\"\n\
         [[quantize]]\nscheme = \"q4_0\"\nmethod = \"rtn\"\noutput = \"one.gguf\"\n",
    );
    place.done("run recipe.toml --quiet --json report.json");
    let mut report = place.json("report.json");
    let evaluation = &mut report[0]["evaluation"];
    assert_eq!(evaluation.as_object_mut().unwrap().shift_remove("reference").unwrap()["path"], "cache");
    seen.push(evaluation.take());
    for key in ["perplexity", "reference_perplexity", "kl_divergence", "top1_agreement", "ctx", "chunks"] {
        assert_eq!(seen[1][key], seen[0][key], "{key}");
        assert_eq!(seen[2][key], seen[0][key], "{key}");
    }
}
