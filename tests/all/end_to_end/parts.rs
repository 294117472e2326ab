//! GGUF files in parts, and quantized ones that are copied, decoded or quantized again.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use attar::mix::FILE_TYPES;
use attar_checkpoint::{Container, gguf};

use crate::place::Place;

const RTN: &str = "--method rtn --no-eval --quiet";

/// The files of the folder `name`, in their order.
fn files(place: &Place, name: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(place.at(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn names(files: &[PathBuf]) -> Vec<String> {
    files.iter().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_model_in_parts_is_the_model_in_one_file_whichever_part_is_named() {
    let place = Place::new();
    place.done(&format!("quantize books-2m -o whole.gguf --scheme q4_k_m {RTN} --json whole.json"));
    let line = "quantize books-2m -o parts/m.gguf --scheme q4_k_m --split-max-size 500kB";
    place.done(&format!("{line} {RTN} --json parts.json"));
    let parts = files(&place, "parts");
    assert!(parts.len() > 2, "{parts:?}");
    let count = parts.len();
    let expected: Vec<_> = (1..=count).map(|no| format!("m-{no:05}-of-{count:05}.gguf")).collect();
    assert_eq!(names(&parts), expected);
    let report = place.json("parts.json");
    assert_eq!(report["output"]["path"], format!("parts/{}", expected[0]));
    assert_eq!(
        report["output"]["bytes"],
        parts.iter().map(|part| fs::metadata(part).unwrap().len()).sum::<u64>()
    );
    assert_eq!(report["tensors"], place.json("whole.json")["tensors"]);

    let whole = gguf::File::open(&place.at("whole.gguf")).unwrap();
    for part in &parts {
        let opened = gguf::File::open(part).unwrap();
        assert_eq!(opened.parts(), parts);
        assert_eq!(opened.tensors(), whole.tensors(), "the order, too");
        for info in whole.tensors() {
            assert!(opened.bytes(&info.name).unwrap() == whole.bytes(&info.name).unwrap(), "{}", info.name);
        }
    }
    let score = |model: &str| {
        let eval = "--text heldout.txt --ctx 128 --chunks 2 --quiet --json eval.json";
        place.done(&format!("eval {model} {eval}"));
        place.json("eval.json")["evaluation"].clone()
    };
    let last = format!("parts/{}", expected[count - 1]);
    assert_eq!(score(&last), score("whole.gguf"));
    assert!(place.done(&format!("inspect {last}")).contains(&format!("{count} files")));
    let plan = place.done(&format!("{line} --method rtn --dry-run"));
    assert!(
        plan.contains(&format!("in {count} files: {} to {}", expected[0], expected[count - 1])),
        "{plan}"
    );
}

/// What llama-gguf-split does both ways, and llama-quantize's COPY.
#[test]
fn parts_are_put_together_to_the_file_they_were_cut_from_to_the_byte() {
    let place = Place::new();
    place.done(&format!("quantize books-2m -o whole.gguf --scheme q2_k {RTN}"));
    place.done("convert whole.gguf -o parts/m.gguf --split-max-size 300kB --quiet --json copy.json");
    let parts = files(&place, "parts");
    assert!(parts.len() > 2);
    let copy = place.json("copy.json");
    assert_eq!(copy["tensors"].as_array().unwrap().len(), 20);
    assert!(copy["tensors"].as_array().unwrap().iter().any(|tensor| tensor["encoding"] == "q2_k"));
    place.done(&format!("convert parts/{} -o again.gguf --quiet", names(&parts)[1]));
    assert!(fs::read(place.at("again.gguf")).unwrap() == fs::read(place.at("whole.gguf")).unwrap());
    // A size that is never reached makes a file like any other.
    place.done("convert whole.gguf -o one/m.gguf --split-max-size 2GB --quiet");
    assert_eq!(names(&files(&place, "one")), ["m.gguf"]);
    assert!(fs::read(place.at("one/m.gguf")).unwrap() == fs::read(place.at("whole.gguf")).unwrap());
}

#[test]
fn no_part_appears_unless_all_do_and_none_is_replaced_unasked() {
    let place = Place::new();
    place.done(&format!("quantize books-2m -o whole.gguf --scheme q8_0 {RTN}"));
    let cut = "convert whole.gguf -o parts/m.gguf --split-max-size 500kB";
    place.done(&format!("{cut} --quiet"));
    let parts = names(&files(&place, "parts"));
    place.refuses(cut, &[&parts[0], "exists already", "--force"]);
    fs::remove_file(place.at("parts").join(&parts[0])).unwrap();
    place.refuses(cut, &[&parts[1], "exists already"]);
    place.done(&format!("{cut} --force --quiet"));
    assert_eq!(names(&files(&place, "parts")), parts);
    place.refuses(
        &format!("convert parts/{} -o parts/m.gguf --split-max-size 500kB --force", parts[1]),
        &["the output is the model itself"],
    );
    place.refuses("convert books-2m -o folder --split-max-size 1MB", &["--split-max-size", "`folder`"]);
    #[cfg(unix)]
    {
        let line = "convert whole.gguf -o full/m.gguf --split-max-size 500kB";
        place.fails_with(&mut crate::place::on_a_full_disk(line, 400), &["full/m-00001-of-"]);
    }
}

/// The type of each matrix of the fixture, a line for every file type.
#[test]
fn every_file_type_has_a_type_for_every_tensor() {
    let place = Place::new();
    place.done("imatrix books-2m --text calibration.txt --ctx 128 --chunks 2 -o imatrix.gguf --quiet");
    let mut table = String::new();
    for file_type in FILE_TYPES {
        let by = if file_type.has_codes() { "--imatrix imatrix.gguf" } else { "" };
        let line =
            format!("quantize books-2m -o out.gguf --scheme {} --method rtn --dry-run {by}", file_type.name);
        let plan = place.done(&line);
        let matrices = plan.lines().filter(|line| line.contains(" x "));
        let types: Vec<_> = matrices.map(|line| line.split_whitespace().nth(4).unwrap()).collect();
        let runs = types.chunk_by(|a, b| a == b);
        let types: Vec<_> = runs.map(|run| format!("{} x {}", run.len(), run[0])).collect();
        let bits =
            plan.lines().find_map(|line| line.strip_suffix(" bits per weight")?.rsplit(' ').next()).unwrap();
        writeln!(table, "{:<10} {bits:>7}  {}", file_type.name, types.join(", ")).unwrap();
    }
    insta::assert_snapshot!(table);
}

#[test]
fn what_is_quantized_is_quantized_again_where_that_is_asked_for_and_the_report_says_so() {
    let place = Place::new();
    place.done(&format!("quantize books-2m -o q8.gguf --scheme q8_0 {RTN}"));
    let line = "quantize q8.gguf -o q4.gguf --scheme q4_0 --method rtn --ctx 128 --chunks 2";
    place.refuses(line, &["`q8.gguf` is quantized already", "--allow-requantize"]);
    let plan = place.done(&format!("{line} --allow-requantize --dry-run"));
    assert!(plan.contains("quantized already, most of it as q8_0"), "{plan}");
    let run = place.run(&format!("{line} --allow-requantize --json report.json"));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("quantized already, most of it as q8_0"), "{}", run.stderr);
    let words = run.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("quantized already, most of it as q8_0"), "{words}");
    let report = place.json("report.json");
    assert_eq!(report["model"]["quantized_as"], "q8_0");
    assert!(report["evaluation"]["kl_divergence"]["mean"].as_f64().unwrap() > 0.0);
    // It is what quantizing the decoded floats gives.
    place.done("convert q8.gguf -o floats --quiet");
    place.done(&format!("quantize floats -o twice.gguf --scheme q4_0 {RTN} --json twice.json"));
    let hashes = |report: &serde_json::Value| -> Vec<_> {
        report["tensors"].as_array().unwrap().iter().map(|t| t["decoded_sha256"].clone()).collect()
    };
    assert_eq!(hashes(&report), hashes(&place.json("twice.json")));
}

/// Decoded exactly to f32, or rounded to what is asked for.
#[test]
fn a_quantized_file_becomes_a_folder_of_floats_of_the_type_asked_for() {
    let place = Place::new();
    place.done(&format!("quantize books-2m -o q6.gguf --scheme q6_k {RTN}"));
    place.done("convert q6.gguf -o parts/m.gguf --split-max-size 500kB --quiet");
    let part = format!("parts/{}", names(&files(&place, "parts"))[1]);
    let score = |model: &str| {
        place.done(&format!("eval {model} --text heldout.txt --ctx 128 --chunks 2 --quiet --json eval.json"));
        place.json("eval.json")["evaluation"]["perplexity"]["value"].as_f64().unwrap()
    };
    let expected = score("q6.gguf");
    for (dtype, name, within) in [("", "float32", 0.0), ("bf16", "bfloat16", 1e-2), ("f16", "float16", 1e-3)]
    {
        let asked = if dtype.is_empty() { String::new() } else { format!("--dtype {dtype}") };
        place.done(&format!("convert {part} -o back --force --quiet {asked}"));
        assert_eq!(place.json("back/config.json")["torch_dtype"], name);
        let found = score("back");
        assert!((found / expected - 1.0).abs() <= within, "{dtype}: {expected} became {found}");
    }
    place.done("convert q6.gguf -o f16.gguf --dtype f16 --quiet --json report.json");
    assert_eq!(place.json("report.json")["output"]["scheme"], "f16");
}
