//! Students that are cut out of their teacher in the command that teaches them.

use std::fs;

use super::distill::{kill_once_kept, weights};
use crate::place::Place;

const RUN: &str = "distill --teacher books-2m --data calibration.txt --ctx 64 --batch 4 --quiet --learning-rate 1e-3 \
                   --held-out 0.1 --tokens 2560";
const EVAL: &str = "--text heldout.txt --chunks 4";
const CUT: &str = "--init-from-teacher --layers 1 --ffn 0.5 --heads 4";

#[test]
fn a_student_cut_in_the_same_command_is_what_prune_and_distill_make_one_after_the_other() {
    let place = Place::new();
    for (by, calib) in [("calibration.txt", ""), ("heldout.txt", "--calib heldout.txt")] {
        let output = format!("both-{by}");
        place.done(&format!("{RUN} {EVAL} {CUT} {calib} -o {output} --json both.json"));
        let shape = CUT.replace("--init-from-teacher", "");
        place.done(&format!(
            "prune books-2m -o cut {shape} --calib {by} --no-eval --quiet --force --json cut.json"
        ));
        place.done(&format!("{RUN} {EVAL} --student cut -o taught --force --json taught.json"));
        assert!(weights(&place, &output) == weights(&place, "taught"), "{by}");
        let config = |folder: &str| fs::read(place.at(folder).join("config.json")).unwrap();
        assert_eq!(config(&output), config("taught"), "{by}");

        let [both, cut, taught] = ["both.json", "cut.json", "taught.json"].map(|name| place.json(name));
        assert_eq!((&both["model"], &both["evaluation"]), (&cut["model"], &taught["evaluation"]));
        assert_eq!((&both["pruning"], &both["calibration"]), (&cut["pruning"], &cut["calibration"]));
        assert_eq!(
            (&both["distillation"]["steps"], &both["output"]["method"]),
            (&10.into(), &"distill".into())
        );
        for left in ["student", "training"] {
            assert!(!place.at(&format!("{output}.{left}")).exists(), "{left}");
        }
    }
}

#[test]
fn a_search_finds_the_student_that_prune_finds() {
    let place = Place::new();
    let searched = "--init-from-teacher --target-params 0.75";
    place.done(&format!("{RUN} --no-eval {searched} -o both --json both.json"));
    place.done("prune books-2m -o cut --target-params 0.75 --calib calibration.txt --no-eval --quiet");
    place.done(&format!("{RUN} --no-eval --student cut -o taught"));
    assert!(weights(&place, "both") == weights(&place, "taught"));
    assert!(place.json("both.json")["pruning"]["search"]["candidates"].as_array().unwrap().len() > 3);
}

#[test]
fn a_plan_says_what_is_cut_and_what_is_taught() {
    let place = Place::new();
    let before = place.contents();
    let plan = place.done(&format!("{RUN} {EVAL} {CUT} -o out --dry-run"));
    for part in [
        "512 ->            256",
        "layers are chosen by loss",
        "what stays is repaired by least squares",
        "student: out.student, ",
        "10 steps of 256 tokens",
    ] {
        assert!(plan.contains(part), "no `{part}` in:\n{plan}");
    }
    place.assert_contents(&before);
}

/// What was cut when the run was killed is not cut again, and what is reported of it is what was reported then.
#[test]
fn a_run_that_was_killed_goes_on_with_the_student_that_was_cut() {
    let place = Place::new();
    let run = format!("{RUN} --no-eval {CUT}").replace("2560", "10240");
    place.done(&format!("{run} -o whole --json whole.json"));
    let words = format!("{run} -o killed --save-every 0");
    kill_once_kept(&place, &words, "killed", 1);
    let cut = weights(&place, "killed.student");
    place.fails(&words, &["killed.training", "not finished", "--resume"]);
    place.fails(&format!("{} --resume", words.replace("0.5", "0.75")), &["killed.student", "another shape"]);
    place.fails(&format!("{words} --resume --calib heldout.txt"), &["killed.student", "other text"]);
    place.done(&format!("{words} --resume --json killed.json"));
    assert!(weights(&place, "killed") == weights(&place, "whole"));
    let [whole, killed] = ["whole.json", "killed.json"].map(|name| place.json(name));
    assert_eq!((&whole["pruning"], &whole["calibration"]), (&killed["pruning"], &killed["calibration"]));
    let stages = |report: &serde_json::Value| {
        let stages = report["run"]["stages"].as_array().unwrap().clone();
        stages.iter().map(|stage| stage["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(stages(&whole).contains(&"prune".to_owned()) && !stages(&killed).contains(&"prune".to_owned()));
    assert!(!place.at("killed.student").exists() && !place.at("killed.training").exists());

    // Killed before any step was kept.
    let words = words.replace("killed", "early");
    kill_once_kept(&place, &words, "early", 1);
    fs::remove_dir_all(place.at("early.training")).unwrap();
    assert!(weights(&place, "early.student") == cut);
    place.fails(&words, &["early.student", "not finished", "--resume"]);
    place.done(&format!("{words} --resume"));
    assert!(weights(&place, "early") == weights(&place, "whole"));
}

#[test]
fn what_cannot_be_cut_and_taught_is_refused_before_any_work() {
    let place = Place::new();
    for (options, parts) in [
        ("--student books-2m --init-from-teacher --layers 1", &["cannot be used with", "--student"][..]),
        ("--student books-2m --layers 1", &["cannot be used with", "--layers"]),
        ("--init-from-teacher", &["required", "--layers", "--target-params"]),
        ("--student books-2m --calib heldout.txt", &["required", "--init-from-teacher"]),
        ("--layers 1", &["required", "--student"]),
        ("", &["required", "--student"]),
    ] {
        let run = place.run(&format!("{RUN} {options} -o out"));
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{options}");
        for part in parts {
            assert!(run.stderr.contains(part), "{options}: no `{part}` in\n{}", run.stderr);
        }
    }
    let run = RUN.replace("--quiet", "");
    place.refuses(&format!("{run} --init-from-teacher --layers 3 -o out"), &["--layers 3", "2 layers"]);
    place.refuses(&format!("{run} {CUT} -o out --resume"), &["no run to go on with", "out.training"]);
    place.write("lines.jsonl", "{\"text\": \"a\"}\n");
    place.refuses(&format!("{run} {CUT} -o out --data lines.jsonl"), &["lines.jsonl", "--calib"]);
    place.done("quantize books-2m -o small.gguf --scheme q4_0 --method rtn --no-eval --quiet");
    place.refuses(&format!("{run} {CUT} -o out").replace("books-2m", "small.gguf"), &["quantized already"]);
    place.done("eval books-2m --text heldout.txt --ctx 64 --chunks 4 --quiet --save-reference kept");
    place.refuses(&format!("distill --teacher kept {CUT} -o out"), &["cache", "teacher itself"]);
    fs::create_dir(place.at("out.student")).unwrap();
    place.write("out.student/letter.txt", "Dear Ada,\n");
    place.refuses(&format!("{run} {CUT} -o out"), &["out.student", "exists already"]);
    place.refuses(&format!("{run} {CUT} -o out --resume"), &["out.student", "move it away", "--force"]);
}
