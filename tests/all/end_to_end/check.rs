//! The gate: what passes, what fails, and who is told.

use std::fs;

use serde_json::Value;

use crate::forge;
use crate::place::{Place, attar};

/// Something done to the bytes of a tensor.
type Damage<'a> = &'a dyn Fn(&mut [u8]);

const CUT: &str = "--text heldout.txt --ctx 128 --chunks 12";

/// A place with the fixture in four bits, and what that scores beside the original as `baseline.json`.
fn with_baseline() -> Place {
    let place = Place::new();
    place.done("quantize books-2m -o q4.gguf --scheme q4_0 --method rtn --no-eval --quiet");
    place.done(&format!(
        "check q4.gguf --reference books-2m {CUT} --baseline baseline.json --update-baseline --quiet"
    ));
    place
}

/// The verdict on each limit, by name.
fn verdicts(report: &Value) -> Vec<(String, String)> {
    let text = |limit: &Value, key: &str| limit[key].as_str().unwrap().to_owned();
    let limits = report["check"]["limits"].as_array().unwrap();
    limits.iter().map(|limit| (text(limit, "name"), text(limit, "verdict"))).collect()
}

#[track_caller]
fn assert_code(place: &Place, line: &str, code: i32) -> String {
    let run = place.run(line);
    assert_eq!(run.code, Some(code), "attar {line}\n{}{}", run.stdout, run.stderr);
    run.stdout
}

#[test]
fn what_is_as_it_was_passes_and_what_was_damaged_fails() {
    let place = with_baseline();
    let baseline = place.json("baseline.json");
    assert!(baseline.get("run").is_none() && baseline["evaluation"].get("breakdown").is_none());
    // Text, cut and reference are the baseline's.
    let said = assert_code(&place, "check q4.gguf --baseline baseline.json --quiet --json same.json", 0);
    assert!(said.contains("Check: passed"), "{said}");
    let passed = |name: &str| (name.to_owned(), "passed".to_owned());
    assert_eq!(
        verdicts(&place.json("same.json")),
        [passed("max-perplexity-increase"), passed("max-kl-increase")]
    );

    let halve_scales = |data: &mut [u8]| {
        for block in data.chunks_exact_mut(18) {
            let scale = u16::from_le_bytes([block[0], block[1]]);
            block[..2].copy_from_slice(&scale.saturating_sub(1 << 10).to_le_bytes());
        }
    };
    let zero = |data: &mut [u8]| data.fill(0);
    let damages = [("zeroed", &zero as Damage<'_>), ("halved", &halve_scales)];
    for (name, damage) in damages {
        fs::copy(place.at("q4.gguf"), place.at("bad.gguf")).unwrap();
        forge::edit_gguf(&place.at("bad.gguf"), "blk.1.ffn_down.weight", damage);
        let said = assert_code(&place, "check bad.gguf --baseline baseline.json --quiet --json bad.json", 1);
        assert!(said.contains("Check: FAILED") && said.contains("that is no chance"), "{name}\n{said}");
        let report = place.json("bad.json");
        assert_eq!(report["check"]["passed"], false);
        assert!(verdicts(&report).iter().all(|(_, verdict)| verdict == "failed"), "{name}: {report:#}");
    }
    // What is meant is made the baseline.
    assert_code(&place, "check bad.gguf --baseline baseline.json --update-baseline --quiet", 0);
    assert_eq!(place.json("baseline.json")["evaluation"]["ctx"], 128);
    assert_code(&place, "check bad.gguf --baseline baseline.json --quiet", 0);
}

#[test]
fn another_draw_of_the_calibration_text_passes() {
    let place = Place::new();
    for seed in [1, 2] {
        place.done(&format!(
            "quantize books-2m -o q{seed}.gguf --scheme q4_0 --method gptq --calib-tokens 2048 --ctx 128 --seed {seed} --no-eval --quiet"
        ));
    }
    assert!(fs::read(place.at("q1.gguf")).unwrap() != fs::read(place.at("q2.gguf")).unwrap());
    place.done(&format!(
        "check q1.gguf --reference books-2m {CUT} --baseline b.json --update-baseline --quiet"
    ));
    assert_code(&place, "check q2.gguf --baseline b.json --quiet", 0);
}

/// The texts that a baseline names need not be equally long.
#[test]
fn a_baseline_of_several_texts_is_compared_text_by_text() {
    let place = Place::new();
    let text = fs::read_to_string(place.at("heldout.txt")).unwrap();
    let end = text.char_indices().map(|(at, _)| at).take_while(|at| *at < 4000).last().unwrap();
    place.write("short.txt", &text[..end]);
    place.done("check books-2m --text short.txt --text heldout.txt --ctx 128 --baseline b.json --update-baseline --quiet");
    let windows = |at: &str| place.json("b.json").pointer(at).unwrap().as_u64().unwrap();
    assert!(windows("/evaluation/chunks") < windows("/further_evaluations/0/chunks"));
    let said = assert_code(&place, "check books-2m --baseline b.json --quiet", 0);
    assert!(said.contains("short.txt: perplexity") && said.contains("heldout.txt: perplexity"), "{said}");
}

#[test]
fn without_a_text_the_one_that_comes_with_attar_is_taken_then_and_later() {
    let place = Place::new();
    place.done("check books-2m --chunks 2 --baseline b.json --update-baseline --quiet");
    assert_eq!(place.json("b.json")["evaluation"]["text"], "built-in held-out text");
    assert_code(&place, "check books-2m --baseline b.json --quiet", 0);
    assert_code(&place, "check books-2m --reference books-2m --chunks 2 --max-kl 0 --quiet", 0);
}

#[test]
fn without_the_reference_of_a_baseline_perplexity_alone_is_compared_where_that_is_asked_for() {
    let place = with_baseline();
    fs::rename(place.at("books-2m"), place.at("gone")).unwrap();
    let line = "check q4.gguf --baseline baseline.json --quiet";
    place.refuses(line, &["--max-kl-increase", "`books-2m`, which is not here", "--reference"]);
    assert_code(&place, &format!("{line} --max-perplexity-increase 1%"), 0);
}

const TABLE: &str = "[check]\nmodel = \"../q4.gguf\"\ntext = [\"../heldout.txt\"]\nreference = \"../books-2m\"\nctx = 128\n\
                     chunks = 4\nmax_kl = 1e-6\nmin_top1 = \"50%\"\njunit = \"check.xml\"\nmarkdown = \"check.md\"\n";

#[test]
fn a_table_is_read_from_its_folder_and_what_is_typed_counts_instead() {
    let place = with_baseline();
    fs::create_dir(place.at("ci")).unwrap();
    place.write("ci/attar.toml", TABLE);
    assert_code(&place, "check --config ci/attar.toml --quiet", 1);
    let xml = fs::read_to_string(place.at("ci/check.xml")).unwrap();
    assert!(xml.contains("tests=\"2\"") && xml.contains("failures=\"1\""), "{xml}");
    let markdown = fs::read_to_string(place.at("ci/check.md")).unwrap();
    assert!(markdown.contains("max-kl") && markdown.contains("min-top1"), "{markdown}");
    assert!(!markdown.contains("blk.") && !markdown.contains("relative error"), "short:\n{markdown}");

    assert_code(
        &place,
        "check --config ci/attar.toml --max-kl 1 --precision bf16 --json typed.json --quiet",
        0,
    );
    let typed = place.json("typed.json");
    assert_eq!(typed["run"]["precision"], "bf16");
    assert_eq!(typed["evaluation"]["chunks"], 4);
    assert_code(&place, "check books-2m --config ci/attar.toml --junit typed.xml --quiet", 0);
    assert!(fs::read_to_string(place.at("typed.xml")).unwrap().contains("failures=\"0\""));
}

#[test]
fn github_is_told_by_annotations_and_in_the_summary() {
    let place = with_baseline();
    place.write("summary.md", "before\n");
    let on_github = |limits: &str| {
        let line = format!("check q4.gguf --reference books-2m {CUT} {limits} --quiet");
        let mut command = attar(&line);
        command.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", "summary.md");
        place.run_with(&mut command)
    };
    let failed = on_github("--max-kl 1e-6 --min-top1 10%");
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    let annotations: Vec<&str> = failed.stdout.lines().filter(|line| line.starts_with("::")).collect();
    assert_eq!(annotations.len(), 1, "{}", failed.stdout);
    assert!(
        annotations[0].starts_with("::error title=attar check%3A max-kl%2C heldout.txt::mean KL"),
        "{annotations:?}"
    );
    let passed = on_github("--max-kl 1");
    assert_eq!((passed.code, passed.stdout.contains("::error")), (Some(0), false));
    let summary = fs::read_to_string(place.at("summary.md")).unwrap();
    assert!(summary.starts_with("before\n") && summary.matches("max-kl").count() >= 2, "{summary}");
}

#[test]
fn a_recipe_holds_what_it_made_to_its_limits() {
    let place = Place::new();
    let recipe = "model = \"books-2m\"\n[evaluation]\ntext = \"heldout.txt\"\nctx = 128\nchunks = 4\n\
                  [[quantize]]\nscheme = \"q8_0\"\nmethod = \"rtn\"\noutput = \"out/q8.gguf\"\n\
                  [[quantize]]\nscheme = \"q4_0\"\nmethod = \"rtn\"\noutput = \"out/q4.gguf\"\n[check]\n";
    place.write("recipe.toml", &format!("{recipe}max_kl = 1e-3\n"));
    assert_code(&place, "run recipe.toml --quiet --json report.json", 1);
    let reports = place.json("report.json");
    for (at, output, passed) in [(0, "out/q8.gguf", true), (1, "out/q4.gguf", false)] {
        assert!(place.at(output).is_file());
        assert_eq!(reports[at]["check"]["passed"], passed, "{output}");
        assert_eq!(reports[at]["check"]["against"], "books-2m");
    }
    place.write("recipe.toml", &format!("{recipe}max_kl = 1\nmin_top1 = \"10%\"\n"));
    assert_code(&place, "run recipe.toml --force --quiet", 0);
}

#[test]
fn tasks_are_held_to_what_was_answered_before() {
    let place = Place::new();
    // One of the two is right, whatever is picked.
    let item = |gold: u32| {
        format!(
            "{{\"query\": \"Where does a ship sail?\", \"choices\": [\"on the sea\", \"in the oven\"], \"gold\": {gold}}}\n"
        )
    };
    place.write("which.jsonl", &[item(0), item(1)].concat());
    let line = "check books-2m --task which.jsonl --quiet";
    assert_code(&place, &format!("{line} --baseline b.json --update-baseline"), 0);
    assert_code(
        &place,
        &format!("{line} --baseline b.json --max-accuracy-drop 0 --min-accuracy 50% --json report.json"),
        0,
    );
    let report = place.json("report.json");
    assert_eq!(verdicts(&report).len(), 2);
    assert_eq!(report["tasks"][0]["reference"]["accuracy"]["value"], 0.5);
    let said = assert_code(&place, &format!("{line} --min-accuracy 60%"), 1);
    assert!(said.contains("50.00 % of the items are right; at least 60.00 % must be"), "{said}");
    // An item that fell is noise, beyond its limit or not.
    forge::edit_json(&place.at("b.json"), |baseline| {
        baseline["tasks"][0]["accuracy"]["value"] = 1.0.into();
        baseline["tasks"][0]["picked"] = serde_json::json!([0, 1]);
    });
    let said = assert_code(&place, &format!("{line} --baseline b.json --max-accuracy-drop 1%"), 0);
    assert!(said.contains("so much comes by chance"), "{said}");
}

#[test]
fn a_dry_run_measures_nothing_and_writes_nothing() {
    let place = with_baseline();
    let before = place.contents();
    let plan = place.done("check q4.gguf --baseline baseline.json --junit check.xml --dry-run");
    assert!(plan.contains("windows of 128"), "{plan}");
    place.done(&format!("check q4.gguf {CUT} --baseline new.json --update-baseline --dry-run"));
    place.assert_contents(&before);
}
