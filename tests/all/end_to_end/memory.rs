//! What a memory budget changes: where activations are kept, and not one byte of the output.

use std::fs;

use assert_cmd::Command;

use super::experts::{Layout, mixtral};
use crate::place::{ATTAR, Place, Run};

const QUANTIZE: &str = "--scheme q4_k_m --calib calibration.txt --calib-tokens 16384 --ctx 256 --no-eval";

/// Runs `attar` with temporary files in `tmp` of the place.
fn run(place: &Place, line: &str) -> Run {
    place.run_with(Command::new(ATTAR).args(line.split_whitespace()).env("TMPDIR", place.at("tmp")))
}

/// The least `--max-memory` that is not refused, from the words of a refusal.
fn least(place: &Place, line: &str) -> String {
    let refusal = run(place, &format!("{line} --max-memory 1MB")).stderr;
    let needed = refusal.split_once("about ").and_then(|(_, rest)| rest.split_once(" MB")).map(|(mb, _)| mb);
    let mb: f64 = needed.and_then(|mb| mb.parse().ok()).unwrap_or_else(|| panic!("{refusal}"));
    format!("{}kB", (mb * 1000.0).ceil() + 10.0) // it was rounded to two digits
}

/// Quantizes `model` with hidden states in memory and in a file, and compares what came out.
fn a_budget_changes_no_byte(place: &Place, model: &str) {
    fs::create_dir(place.at("tmp")).unwrap();
    let least = least(place, &format!("quantize {model} {QUANTIZE} -o out.gguf"));
    for (limit, plan) in [("", "in memory"), (&*format!("--max-memory {least}"), "in a temporary file in")] {
        let line = format!("quantize {model} {QUANTIZE} -o out-{}.gguf {limit}", limit.len());
        let told = run(place, &format!("{line} --dry-run"));
        assert!(told.stdout.contains(plan), "{}{}", told.stdout, told.stderr);
        let done = run(place, &line);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }
    let outputs: Vec<_> = fs::read_dir(place.at("."))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "gguf"))
        .map(|path| fs::read(path).unwrap())
        .collect();
    assert_eq!(outputs.len(), 2);
    assert!(outputs[0] == outputs[1], "a budget changed the output");
    assert_eq!(fs::read_dir(place.at("tmp")).unwrap().count(), 0);
}

#[test]
fn scores_within_a_memory_budget_are_the_same_and_leave_nothing() {
    let place = Place::new();
    fs::create_dir(place.at("tmp")).unwrap();
    let line = "eval books-2m --reference books-2m --text heldout.txt --ctx 256";
    let least = least(&place, line);
    let told = run(&place, &format!("{line} --max-memory {least} --dry-run")).stdout;
    assert!(told.contains("in a temporary file in"), "{told}");
    let [roomy, lean] = ["1GB", &*least].map(|limit| {
        let done = run(&place, &format!("{line} --max-memory {limit} --json {limit}.json"));
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let report: serde_json::Value =
            serde_json::from_slice(&fs::read(place.at(&format!("{limit}.json"))).unwrap()).unwrap();
        report["evaluation"].clone()
    });
    assert!(roomy["perplexity"]["value"].is_number());
    assert_eq!(roomy, lean);
    assert_eq!(fs::read_dir(place.at("tmp")).unwrap().count(), 0);
}

#[test]
fn hidden_states_in_a_file_give_the_same_bytes_as_in_memory_and_leave_nothing() {
    let place = Place::new();
    a_budget_changes_no_byte(&place, "books-2m");
}

#[test]
fn experts_that_read_from_a_file_give_the_same_bytes_as_from_memory() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Separate);
    a_budget_changes_no_byte(&place, "mixtral");
}

#[test]
fn a_folder_for_temporary_files_that_is_not_there_is_named() {
    let place = Place::new();
    let line = format!("quantize books-2m {QUANTIZE} -o out.gguf");
    let line = format!("{line} --max-memory {}", least(&place, &line));
    let missing = place.at("tmp");
    let mut command = Command::new(ATTAR);
    let stderr = place.fails_with(
        command.args(line.split_whitespace()).env("TMPDIR", &missing),
        &["temporary file", "tmp"],
    );
    assert!(stderr.contains(&missing.display().to_string()), "{stderr}");
}

/// The peak that a plan expects, in bytes.
fn expected_peak(plan: &str) -> f64 {
    let line = plan
        .lines()
        .find(|line| line.starts_with("expected peak memory"))
        .unwrap_or_else(|| panic!("{plan}"));
    let mb = line.rsplit_once(": ").and_then(|(_, size)| size.strip_suffix(" MB"));
    mb.and_then(|mb| mb.parse::<f64>().ok()).unwrap_or_else(|| panic!("{line}")) * 1e6
}

const TEACH: &str = "distill --teacher books-2m --student books-2m --data calibration.txt --ctx 64 --held-out 0.1 --tokens 2048 \
                     --no-eval --quiet";

#[test]
fn a_student_taught_within_a_memory_budget_has_the_same_weights() {
    let place = Place::new();
    let line = format!("{TEACH} --batch 32");
    let least = least(&place, &format!("{line} -o out"));
    for (output, limit, twice) in [("roomy", "4GB", false), ("lean", &*least, true)] {
        let line = format!("{line} -o {output} --max-memory {limit}");
        let plan = place.done(&format!("{line} --dry-run"));
        assert_eq!(plan.contains("blocks are computed twice to save memory"), twice, "{plan}");
        place.done(&format!("{line} --json {output}.json"));
        let peak = place.json(&format!("{output}.json"))["run"]["peak_rss_bytes"].as_f64();
        let expected = expected_peak(&plan);
        assert!(peak.is_none_or(|peak| peak < expected), "{peak:?} of {expected}");
    }
    let weights = |output: &str| fs::read(place.at(output).join("model.safetensors")).unwrap();
    assert!(weights("roomy") == weights("lean"));
}

#[test]
fn a_memory_too_small_to_teach_in_is_refused_with_what_would_fit() {
    let place = Place::new();
    let line = |batch: usize| format!("{TEACH} -o out --batch {batch}");
    let (one, all) = (least(&place, &line(1)), least(&place, &line(32)));
    let stderr = place.fails(
        &format!("{} --max-memory {one}", line(32)),
        &["teaching this student", "--batch 1 fits", "--local"],
    );
    assert!(stderr.starts_with("error:"), "{stderr}");
    let none = ["teaching this student", "the student with its optimizer"];
    place.refuses(&format!("{} --max-memory 70MB", line(32)), &none);
    let cut = line(32).replace("--student books-2m", "--init-from-teacher --layers 1");
    place.refuses(&format!("{cut} --max-memory 70MB"), &["--max-memory"]);
    let quantized = format!("{} --scheme w4a16-g64", line(32));
    let more = least(&place, &quantized);
    let bytes = |limit: &str| limit.trim_end_matches("kB").parse::<f64>().unwrap() * 1e3;
    assert!(bytes(&more) > bytes(&all) + 4.0 * 2e6, "the weights stand aside once more: {more}, {all}");
}

#[test]
fn a_search_counts_the_head_it_measures_by() {
    let place = Place::new();
    let plan = |shape: &str| {
        place
            .done(&format!("prune books-2m -o out {shape} --calib-tokens 1024 --ctx 128 --no-eval --dry-run"))
    };
    // A head of 4096 tokens and 256 features, and logits of 512 tokens twice.
    let beside = 4.0 * (4096.0 * 256.0 + 2.0 * 512.0 * 4096.0);
    let (search, shape) = (plan("--target-params 0.75"), plan("--ffn 0.5"));
    assert!(expected_peak(&search) > expected_peak(&shape) + beside, "{search}\n{shape}");
    let words = "prune books-2m -o out --calib-tokens 1024 --ctx 128 --no-eval --target-params 0.75";
    let limit = format!("{}kB", (expected_peak(&shape) / 1e3) as u64);
    place.refuses(&format!("{words} --max-memory {limit}"), &["--max-memory", "Gram matrix"]);
}
