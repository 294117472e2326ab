//! What is said: reports, plans, talk, and silence.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::QUICK;
use crate::place::{ATTAR, Place, fixture};

/// The keys of DESIGN 6 that others build on. Adding one is free, losing one is not.
const KEYS: &[(&str, &[&str])] = &[
    ("", &["schema", "model", "output", "evaluation", "tensors", "calibration", "run"]),
    ("/model", &["source", "family", "parameters", "bytes"]),
    ("/output", &["path", "format", "scheme", "method", "bytes", "bits_per_weight", "sha256"]),
    (
        "/evaluation",
        &[
            "text",
            "tokens",
            "ctx",
            "convention",
            "perplexity",
            "reference_perplexity",
            "kl_divergence",
            "top1_agreement",
        ],
    ),
    ("/evaluation/perplexity", &["value", "stderr"]),
    ("/evaluation/reference_perplexity", &["value", "stderr"]),
    ("/evaluation/kl_divergence", &["mean", "stderr", "median", "p90", "p99", "p99_9", "max"]),
    ("/calibration", &["files", "sha256", "tokens", "ctx"]),
    (
        "/run",
        &["command", "version", "device", "threads", "precision", "seconds", "peak_rss_bytes", "stages"],
    ),
    ("/run/stages/0", &["name", "seconds"]),
];

/// The keys of a tensor that was quantized with statistics.
const TENSOR_KEYS: [&str; 8] = [
    "name",
    "role",
    "encoding",
    "bits_per_weight",
    "relative_error",
    "rtn_relative_error",
    "tokens_per_column",
    "damping",
];

#[test]
fn the_report_has_every_key_and_its_figures_are_those_of_the_file() {
    let place = Place::new();
    let line = format!(
        "quantize books-2m -o out.gguf --scheme q4_k_m --method gptq --calib calibration.txt --text heldout.txt {QUICK}"
    );
    place.done(&format!("{line} --json report.json"));
    let report = place.json("report.json");
    for (pointer, keys) in KEYS {
        let part = report.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}"));
        for key in *keys {
            assert!(part.get(key).is_some_and(|value| !value.is_null()), "no {pointer}/{key} in {part:#}");
        }
    }
    let tensors = report["tensors"].as_array().unwrap();
    for tensor in tensors.iter().filter(|tensor| tensor["role"].as_str().unwrap().ends_with("_proj")) {
        for key in TENSOR_KEYS {
            assert!(tensor.get(key).is_some_and(|value| !value.is_null()), "no {key} in {tensor:#}");
        }
        let error = |key: &str| tensor[key].as_f64().unwrap();
        assert!(error("relative_error") < error("rtn_relative_error"), "{tensor:#}");
    }

    let file = fs::read(place.at("out.gguf")).unwrap();
    assert_eq!(report["output"]["sha256"], attar::text::hex(&Sha256::digest(&file)));
    assert_eq!(report["output"]["bytes"], file.len());
    assert_eq!(report["schema"], "attar-report/1");
    assert_eq!(report["calibration"]["files"], serde_json::json!(["calibration.txt"]));
    assert_eq!(report["calibration"]["tokens"], 1024);
    // Of each window of 128 the second half but for its first token.
    assert_eq!(report["evaluation"]["tokens"], 4 * 63);
    let weights = report["model"]["parameters"].as_f64().unwrap();
    let bits = |tensor: &Value| tensor["bits_per_weight"].as_f64().unwrap();
    let average = report["output"]["bits_per_weight"].as_f64().unwrap();
    assert!(8.0 * file.len() as f64 / weights > average, "the file also holds its metadata");
    let all: Vec<f64> = tensors.iter().map(bits).collect();
    assert!(all.iter().any(|bits| *bits < average) && all.iter().any(|bits| *bits > average));
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).unwrap();
    let ratio = number("/evaluation/perplexity/value") / number("/evaluation/reference_perplexity/value");
    assert!((ratio - 1.0).abs() < 0.05, "perplexity times {ratio}");
    let command = report["run"]["command"].as_str().unwrap();
    assert!(command.ends_with(&format!("{line} --json report.json")), "{command}");
    let stages: Vec<&str> = report["run"]["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["name"].as_str().unwrap())
        .collect();
    assert_eq!(stages, ["check", "calibrate", "quantize", "write", "verify", "reference", "evaluate"]);
}

/// Without data there is nothing to be said of it.
#[test]
fn a_report_without_calibration_or_evaluation_leaves_them_out() {
    let place = Place::new();
    place.done(
        "quantize books-2m -o out.gguf --scheme q8_0 --method rtn --no-eval --quiet --json report.json",
    );
    let report = place.json("report.json");
    assert_eq!(report["output"]["method"], "rtn");
    assert_eq!((report.get("calibration"), report.get("evaluation")), (None, None));
    let tensors = report["tensors"].as_array().unwrap();
    assert!(tensors.iter().all(|tensor| tensor.get("tokens_per_column").is_none()));
}

#[test]
fn the_report_comes_in_every_form() {
    let place = Place::new();
    let stdout = place.done(&format!(
        "quantize books-2m -o out.gguf --scheme q4_0 {QUICK} --quiet --report new/reports --json new/report.json"
    ));
    let names: BTreeSet<String> = fs::read_dir(place.at("new/reports"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        names,
        ["plots", "report.html", "report.json", "report.md", "report.txt"].map(str::to_owned).into()
    );
    let read = |name: &str| fs::read_to_string(place.at(name)).unwrap();
    assert_eq!(read("new/reports/report.txt"), stdout);
    assert_eq!(read("new/reports/report.json"), read("new/report.json"));
    let figure = place.json("new/report.json")["evaluation"]["perplexity"]["value"].as_f64().unwrap();
    for form in ["new/reports/report.txt", "new/reports/report.md", "new/reports/report.html"] {
        assert!(read(form).contains(&format!("{figure:.4}")), "{}", read(form));
    }
    assert!(read("new/reports/report.md").starts_with("# out.gguf"));
}

#[test]
fn a_dry_run_prints_every_tensor_and_writes_nothing() {
    let place = Place::new();
    place.write(
        "recipe.toml",
        "model = \"books-2m\"\nreport = \"reports\"\n[[quantize]]\nscheme = \"q4_k_m\"\noutput = \"a.gguf\"\n\
         [[quantize]]\nscheme = \"w4a16-g64\"\noutput = \"b\"\n",
    );
    let weights = fs::read(fixture("books-2m/model.safetensors")).unwrap();
    let names = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let before = place.contents();
    for (line, parts) in [
        (
            "quantize books-2m -o out.gguf --scheme q4_k_m",
            &["q4_k", "q6_k", "calibration: 10,240 tokens"][..],
        ),
        ("quantize books-2m -o new/out --scheme w4a16-g64-asym", &["w4-g64-asym", "bf16"]),
        ("convert books-2m -o new/out.gguf", &["bf16"]),
        ("run recipe.toml", &["a.gguf", "q4_k", "b\n", "w4-g64"]),
    ] {
        let plan = place.done(&format!("{line} --dry-run --json report.json --report reports"));
        for name in names.names() {
            assert!(plan.contains(name), "{line}: no {name} in\n{plan}");
        }
        for part in [&["2,229,504 weights", "bits per weight", "expected peak memory"], parts].concat() {
            assert!(plan.contains(part), "{line}: no {part} in\n{plan}");
        }
        place.assert_contents(&before);
    }
    let plan = place.done("eval books-2m --text heldout.txt --ctx 128 --chunks 3 --dry-run");
    for part in
        ["384 tokens in 3 windows of 128\n", "hidden states: 393.22 kB, in memory\n", "expected peak memory"]
    {
        assert!(plan.contains(part), "no {part} in\n{plan}");
    }
    place.assert_contents(&before);
}

/// What the plan promises is what is written.
#[test]
fn the_plan_and_the_report_agree() {
    let place = Place::new();
    for (output, scheme) in [("out.gguf", "q5_k_m"), ("out", "w3a16-g64")] {
        let line = format!(
            "quantize books-2m -o {output} --scheme {scheme} --method rtn --no-eval --quiet --json report.json"
        );
        let plan = place.done(&format!("{line} --dry-run"));
        place.done(&line);
        let report = place.json("report.json");
        for tensor in report["tensors"].as_array().unwrap() {
            let [name, encoding] = ["name", "encoding"].map(|key| tensor[key].as_str().unwrap());
            let line = plan.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
            assert!(line.contains(encoding), "{encoding}: {line}");
        }
        let bits = report["output"]["bits_per_weight"].as_f64().unwrap();
        assert!(plan.contains(&format!("{bits:.3} bits per weight")), "{bits}: {plan}");
    }
}

/// `fixtures/demo.toml` as it stands, but for the place it writes to.
#[test]
fn the_demonstration_makes_both_outputs_and_compares_them() {
    let place = Place::new();
    let recipe = fs::read_to_string(fixture("demo.toml")).unwrap();
    assert_eq!(recipe.matches("\"../out/").count(), 3, "{recipe}");
    place.write("demo.toml", &recipe.replace("\"../out/", "\"out/"));
    let table = place.done("run demo.toml");
    for part in ["q4_k_m.gguf", "books-2m-w4a16-g64", "perplexity", "KL divergence", "gptq", "heldout.txt"] {
        assert!(table.contains(part), "no {part} in\n{table}");
    }
    assert!(place.at("out/demo/books-2m-q4_k_m.gguf").is_file());
    assert!(place.at("out/demo/books-2m-w4a16-g64/config.json").is_file());
    assert_eq!(fs::read_to_string(place.at("out/demo/report.txt")).unwrap(), table);
    let reports = place.json("out/demo/report.json");
    let schemes: Vec<_> =
        reports.as_array().unwrap().iter().map(|report| &report["output"]["scheme"]).collect();
    assert_eq!(schemes, ["q4_k_m", "w4a16-g64"]);
    for report in reports.as_array().unwrap() {
        assert!(
            report["evaluation"]["kl_divergence"]["mean"].as_f64().is_some_and(|kl| kl < 0.02),
            "{report:#}"
        );
    }
    // A second time it finds them there.
    place.refuses("run demo.toml", &["books-2m-q4_k_m.gguf", "exists already", "--force"]);
}

#[test]
fn quiet_says_nothing_on_stderr_and_verbose_a_line_per_tensor() {
    let place = Place::new();
    place.write("recipe.toml", "model = \"books-2m\"\n[evaluation]\nctx = 128\nchunks = 1\n[[quantize]]\nscheme = \"q8_0\"\nmethod = \"rtn\"\noutput = \"b.gguf\"\n");
    for line in [
        &format!("quantize books-2m -o a.gguf --scheme q4_0 {QUICK}"),
        "convert books-2m -o a",
        "eval a --reference a.gguf --text heldout.txt --ctx 128 --chunks 1",
        "run recipe.toml",
        "inspect a.gguf",
    ] {
        let run = place.run(&format!("{line} --quiet"));
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{line}");
        assert!(!run.stdout.is_empty(), "{line}");
    }
    let line = "quantize books-2m -o c.gguf --scheme q4_0 --method rtn --no-eval";
    let normal = place.run(line).stderr;
    let stages: Vec<&str> = normal.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(stages, ["checking", "quantizing", "verifying"], "{normal}");
    assert!(normal.contains("weights/s"), "{normal}");
    let verbose = place.run(&format!("{line} --force --verbose")).stderr;
    assert!(verbose.contains("model.layers.1.mlp.up_proj.weight: q4_0, relative error"), "{verbose}");
    assert!(!place.run(&format!("{line} --quiet --verbose")).stderr.is_empty(), "one or the other");
}

/// As `attar inspect books-2m | head -1` does.
#[cfg(unix)]
#[test]
fn a_reader_that_has_gone_away_is_no_error() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = std::process::Command::new(ATTAR)
        .args(["inspect", "books-2m"])
        .current_dir(place.at(""))
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}
