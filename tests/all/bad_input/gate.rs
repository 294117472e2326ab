//! Limits and baselines that a model cannot be held to.

use std::fs;

use crate::forge;
use crate::place::Place;

const CUT: &str = "--text heldout.txt --ctx 128 --chunks 2";

fn with_baseline() -> Place {
    let place = Place::new();
    place.done(&format!("check books-2m {CUT} --baseline b.json --update-baseline --quiet"));
    place
}

#[test]
fn no_limit() {
    let place = Place::new();
    place.refuses(&format!("check books-2m {CUT}"), &["no limit", "--max-kl", "--baseline"]);
    for limit in ["--max-kl=-1", "--min-top1=much", "--max-bytes=-5GB"] {
        assert_eq!(place.run(&format!("check books-2m {CUT} {limit}")).code, Some(2), "{limit}");
    }
}

#[test]
fn a_baseline_that_is_not_there() {
    let place = Place::new();
    place.refuses("check books-2m --baseline absent.json", &["absent.json", "--update-baseline"]);
}

#[test]
fn a_baseline_that_is_none() {
    let place = with_baseline();
    let report = fs::read_to_string(place.at("b.json")).unwrap();
    for (content, parts) in [
        ("words\n".to_owned(), &["not JSON", "--json"][..]),
        (String::new(), &["not JSON"]),
        (format!("[{report},{report}]"), &["holds 2 reports", "`reports`"]),
        (report.replace("attar-report/1", "other/1"), &["no report", "none of attar's"]),
        (
            report.replace("attar-report/1", "attar-report/2"),
            &["a newer attar", "attar-report/2", "update attar"],
        ),
    ] {
        place.write("bad.json", &content);
        place.refuses("check books-2m --baseline bad.json", &[&["bad.json"], parts].concat());
    }
}

#[test]
fn a_baseline_of_another_model() {
    let place = with_baseline();
    forge::edit_json(&place.at("b.json"), |baseline| baseline["model"]["parameters"] = 7.into());
    place.refuses(
        "check books-2m --baseline b.json",
        &["another model", "7 parameters", "2,229,504", "--update-baseline"],
    );
}

#[test]
fn a_baseline_of_another_text_or_cut() {
    let place = with_baseline();
    let line = "check books-2m --baseline b.json";
    place.refuses(
        &format!("{line} --ctx 64"),
        &["heldout.txt", "2 windows of 128", "2 of 64", "--update-baseline"],
    );
    place.refuses(&format!("{line} --chunks 3"), &["2 windows of 128", "3 of 128"]);
    place.refuses(&format!("{line} --convention hf"), &["convention llama.cpp", "hf"]);
    place.refuses(&format!("{line} --text calibration.txt"), &["no figures for the text `calibration.txt`"]);
    fs::remove_file(place.at("heldout.txt")).unwrap();
    place.refuses(line, &["heldout.txt"]);
    place.write("heldout.txt", &"Another text. ".repeat(200));
    place.refuses(line, &["heldout.txt", "the text has changed"]);
    place.write("heldout.txt", "");
    place.refuses(line, &["heldout.txt", "empty"]);
}

#[test]
fn limits_on_what_is_not_measured() {
    let place = with_baseline();
    let line = format!("check books-2m {CUT}");
    for limit in ["--max-kl 0.1", "--max-kl-p99 0.1", "--min-top1 90%", "--max-perplexity-increase 1%"] {
        place.refuses(&format!("{line} {limit}"), &[limit.split(' ').next().unwrap(), "--reference"]);
    }
    let before = format!("{line} --baseline b.json");
    place.refuses(&format!("{before} --max-kl-increase 1%"), &["--max-kl-increase", "--reference now"]);
    place.refuses(
        &format!("{before} --reference books-2m --max-kl-increase 1%"),
        &["--max-kl-increase", "when the --baseline was made"],
    );
    for limit in ["--max-accuracy-drop 1%", "--min-accuracy 50%"] {
        place.refuses(&format!("{before} {limit}"), &[limit.split(' ').next().unwrap(), "--task"]);
    }
    place.write("t.jsonl", "{\"query\": \"Q\", \"choices\": [\"a\", \"b\"], \"gold\": 0}\n");
    place.refuses(
        "check books-2m --task t.jsonl --max-accuracy-drop 1%",
        &["--max-accuracy-drop", "--baseline"],
    );
    place.write("t.jsonl", "{\"query\": \"Q\", \"choices\": [\"a\", \"b\"], \"gold\": 2}\n");
    place.refuses("check books-2m --task t.jsonl --min-accuracy 1%", &["t.jsonl", "line 1", "gold 2"]);
}

#[test]
fn tables_that_say_nothing_or_something_else() {
    let place = Place::new();
    for (table, parts) in [
        ("[other]\nmodel = \"books-2m\"\n", &["no [check] table", "--help"][..]),
        ("[check]\nmax_kl = 1\n", &["no model is named", "[check]"]),
        ("[check]\nmodel = 3\n", &["`model` is no text", "2:"]),
        ("[check]\nmodel = \"books-2m\"\nmax_lk = 1\n", &["unknown key `max_lk`", "max_kl"]),
        ("[check]\nmodel = \"books-2m\"\nmax_kl = \"much\"\n", &["max_kl", "nats"]),
        ("[check]\nmodel = \"absent\"\nmax_bytes = 1\n", &["absent"]),
        ("[check\n", &["attar.toml"]),
    ] {
        place.write("attar.toml", table);
        place.refuses("check --config attar.toml", parts);
    }
    place.refuses("check --config absent.toml", &["absent.toml"]);
    place.write("recipe.toml", "model = \"books-2m\"\n[[quantize]]\nscheme = \"q8_0\"\noutput = \"a.gguf\"\n[check]\nmax_kl_increase = 1\n");
    place.refuses("run recipe.toml", &["unknown key `max_kl_increase`", "max_kl"]);
}

#[test]
fn reports_that_cannot_be_written() {
    let place = with_baseline();
    for option in ["--junit books-2m", "--markdown books-2m", "--json books-2m"] {
        place.refuses(&format!("check books-2m --baseline b.json {option}"), &["books-2m", "folder"]);
    }
    place.refuses("check books-2m --baseline books-2m --update-baseline", &["books-2m"]);
}
