//! Many outputs in one table: made once, measured alike, gone on with.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::Value;

use super::experts::{Layout, mixtral};
use crate::forge;
use crate::place::Place;

const MADE_BY: &str = "--calib calibration.txt --calib-tokens 1024";
const CUT: &str = "--text heldout.txt --ctx 128 --chunks 4";
const OUTPUTS: [&str; 3] = ["out/books-2m-q4_0.gguf", "out/books-2m-w4a16-g64", "out/books-2m-q8_0-rtn.gguf"];

/// The comparison that most tests begin with; with `theirs.gguf` beside.
fn line() -> String {
    format!("compare books-2m --schemes q4_0,w4a16-g64,q8_0:rtn {MADE_BY} {CUT} -o out --quiet")
}

/// The files of weights of an output.
fn weights(place: &Place, output: &str) -> PathBuf {
    let path = place.at(output);
    if path.is_dir() { path.join(forge::WEIGHTS) } else { path }
}

fn times(place: &Place) -> Vec<SystemTime> {
    let time = |output: &&str| fs::metadata(weights(place, output)).unwrap().modified().unwrap();
    OUTPUTS.iter().map(time).collect()
}

fn names_in(place: &Place, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(place.at(folder)).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_same_bytes(place: &Place, a: &str, b: &str) {
    assert!(fs::read(weights(place, a)).unwrap() == fs::read(weights(place, b)).unwrap(), "{a} is not {b}");
}

fn evaluation(place: &Place, file: &str) -> Value {
    place.done(&format!("eval {file} {CUT} --reference books-2m --quiet --json eval.json"));
    place.json("eval.json")["evaluation"].clone()
}

#[test]
fn schemes_and_a_file_of_another_program_stand_in_one_table_and_are_kept() {
    let place = Place::new();
    place.done("quantize books-2m -o theirs.gguf --scheme q4_k_m --method rtn --no-eval --quiet");
    let line = format!("{} --files theirs.gguf", line());
    let before = place.contents();
    let plan = place.done(&format!("{line} --dry-run"));
    place.assert_contents(&before);
    for part in ["out/books-2m-q4_0.gguf: ", "theirs.gguf: to be measured", "calibration: once for 3 outputs"]
    {
        assert!(plan.contains(part), "no `{part}` in\n{plan}");
    }

    let table = place.done(&line);
    let rows =
        ["books-2m ", "books-2m-q4_0.gguf", "books-2m-w4a16-g64", "books-2m-q8_0-rtn.gguf", "theirs.gguf"];
    for row in rows {
        assert_eq!(table.lines().filter(|line| line.starts_with(row)).count(), 1, "{row}:\n{table}");
    }
    assert_eq!(
        names_in(&place, "out"),
        [
            "books-2m-q4_0.gguf",
            "books-2m-q8_0-rtn.gguf",
            "books-2m-w4a16-g64",
            "plots",
            "report.html",
            "report.json",
            "report.md",
            "report.txt",
            "reports"
        ]
    );
    let reports = place.json("out/report.json");
    for (at, file) in OUTPUTS.into_iter().chain(["theirs.gguf"]).enumerate() {
        assert_eq!(reports[at]["evaluation"], evaluation(&place, file), "{file}");
    }
    assert_eq!(reports[0]["calibration"]["shared"], true);
    assert_eq!(reports[3]["output"]["scheme"], "q4_k_m");

    let made = times(&place);
    assert_eq!(place.done(&line), table);
    assert_eq!(
        place.done(&line.replace("books-2m ", "./books-2m/ ").replace("calib calib", "calib ./calib")),
        table
    );
    assert_eq!(times(&place), made, "nothing is made anew");
    // Nothing but the figures is of another text.
    let other = place.done(&line.replace("heldout.txt", "calibration.txt"));
    assert!(other.contains("calibration.txt") && other != table, "{other}");
    assert_eq!(place.done(&line.replace("128", "128 --precision f32")), table);
    assert_eq!(times(&place), made);
}

#[test]
fn what_was_interrupted_is_gone_on_with() {
    let place = Place::new();
    let table = place.done(&line());
    let made = times(&place);
    let first = fs::read(place.at(OUTPUTS[0])).unwrap();
    fs::remove_file(place.at(OUTPUTS[0])).unwrap();
    fs::create_dir(place.at("out/.learned-0123")).unwrap();
    assert_eq!(place.done(&line()), table);
    assert!(!place.at("out/.learned-0123").exists(), "what was learned for a comparison that was given up");
    assert_eq!(times(&place)[1..], made[1..], "the others are kept");
    assert!(fs::read(place.at(OUTPUTS[0])).unwrap() == first, "alone or beside others");

    fs::remove_file(place.at("out/reports/books-2m-q4_0.json")).unwrap();
    place.refuses(&line(), &["q4_0.gguf", "nothing tells how it was made", "delete it", "--force"]);
    fs::remove_file(place.at(OUTPUTS[0])).unwrap();
    assert_eq!(place.done(&line()), table);

    place.write("out/reports/books-2m-q4_0.json", "half a rep");
    place.refuses(&line(), &["q4_0.gguf", "made otherwise"]);
}

#[test]
fn what_would_be_made_otherwise_is_refused_without_force() {
    let place = Place::new();
    forge::copy(&place, "copy");
    let line = line().replace("books-2m", "copy").replace("q4_0,w4a16-g64,q8_0:rtn", "q4_0");
    let table = place.done(&line);
    let otherwise = ["out/copy-q4_0.gguf", "made otherwise", "--force"];
    for (from, to) in [
        ("1024", "2048"),
        ("calibration.txt", "heldout.txt"),
        ("-o out", "-o out --seed 7"),
        ("--ctx", "--precision bf16 --ctx"),
    ] {
        place.refuses(&line.replacen(from, to, 1), &otherwise);
    }
    place.done(&format!("{} --force", line.replace("1024", "2048")));
    place.refuses(&line, &otherwise);
    assert_eq!(place.done(&format!("{line} --force")), table);

    // Another output in its place, then the model changes.
    forge::overwrite(&place.at("out/copy-q4_0.gguf"), 1_000_000, &[1, 2, 3]);
    place.refuses(&line, &otherwise);
    place.done(&format!("{line} --force"));
    forge::set_value(&place.at("copy"), forge::MATRIX, 5, 0x3f80);
    place.refuses(&line, &otherwise);
    let changed = place.done(&format!("{line} --force"));
    assert_ne!(changed, table);
    assert_eq!(place.done(&line), changed);
}

#[test]
fn calibrating_each_output_makes_what_quantize_makes() {
    let place = Place::new();
    place.done(&format!(
        "compare books-2m --schemes q4_0,w4a16-g64 --calibrate each {MADE_BY} {CUT} -o out --quiet"
    ));
    for (output, scheme) in [("q.gguf", "q4_0"), ("q", "w4a16-g64")] {
        place.done(&format!(
            "quantize books-2m -o {output} --scheme {scheme} {MADE_BY} --ctx 128 --no-eval --quiet"
        ));
        let made = if scheme == "q4_0" { OUTPUTS[0] } else { OUTPUTS[1] };
        assert_same_bytes(&place, made, output);
    }
    assert_eq!(place.json("out/report.json")[0]["calibration"].get("shared"), None);
    place.refuses(&line(), &["made otherwise"]);
}

#[test]
fn experts_are_calibrated_output_by_output() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Separate);
    place.done(&format!("compare mixtral --schemes q4_0,q4_1 {MADE_BY} {CUT} -o out --quiet"));
    place.done(&format!("quantize mixtral -o q4_0.gguf --scheme q4_0 {MADE_BY} --ctx 128 --no-eval --quiet"));
    assert_same_bytes(&place, "out/mixtral-q4_0.gguf", "q4_0.gguf");
    let made = fs::metadata(place.at("out/mixtral-q4_0.gguf")).unwrap().modified().unwrap();
    place.done(&format!("compare mixtral --schemes q4_0,q4_1 {MADE_BY} {CUT} -o out --quiet"));
    assert_eq!(fs::metadata(place.at("out/mixtral-q4_0.gguf")).unwrap().modified().unwrap(), made);
}

#[test]
fn outputs_are_named_after_the_model() {
    let place = Place::new();
    forge::copy(&place, "Books-2.1-mini");
    let line = format!("compare Books-2.1-mini --schemes q8_0:rtn,q4_0:rtn {CUT} -o out --quiet");
    let table = place.done(&line);
    assert!(place.at("out/Books-2.1-mini-q8_0-rtn.gguf").is_file(), "{table}");
    for folder in ["Books-2.1-mini", "Books-2.1-mini/out/of/it"] {
        place.refuses(&line.replace("-o out", &format!("-o {folder}")), &[folder, "in the model's folder"]);
    }
    // Another model of that name.
    place.link_folder(&place.at("books-2m"), "other/Books-2.1-mini");
    let other = line.replace("compare Books", "compare other/Books");
    place.refuses(&other, &["Books-2.1-mini-q8_0-rtn.gguf", "another model"]);
    assert_eq!(place.done(&line), table);

    place.done("convert Books-2.1-mini -o Books-2.1.gguf --quiet");
    place.done(&format!("compare Books-2.1.gguf --schemes q8_0:rtn {CUT} -o of-gguf --quiet"));
    assert!(place.at("of-gguf/Books-2.1-q8_0-rtn.gguf").is_file());
}

#[test]
fn what_cannot_be_compared_is_refused_before_anything_is_made() {
    let place = Place::new();
    let line = format!("compare books-2m {CUT} -o out");
    place.refuses(&format!("{line} --schemes q4_0,q8_0:rtn,q4_0"), &["q4_0", "compared with itself", "once"]);
    place.refuses(&format!("{line} --schemes q4_0 --files absent.gguf"), &["absent.gguf"]);
    place.refuses(&format!("{line} --schemes q4_0 --files heldout.txt"), &["heldout.txt"]);
    forge::edit_json(&forge::copy(&place, "other").join("tokenizer.json"), |tokenizer| {
        tokenizer["model"]["merges"] = serde_json::json!([]);
    });
    place.refuses(
        &format!("{line} --schemes q4_0 --files other"),
        &["`other`", "different tokens", "same tokenizer"],
    );
    forge::with_more_rows(&place, "wider", 8);
    place.refuses(&format!("{line} --schemes q4_0 --files wider"), &["wider", "vocabularies"]);
    place.done("quantize books-2m -o q4.gguf --scheme q4_0 --method rtn --no-eval --quiet");
    place.refuses(&format!("compare q4.gguf --schemes q8_0 {CUT} -o out"), &["q4.gguf", "quantized"]);
    assert!(!place.at("out").exists());
}
