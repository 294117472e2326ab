//! Recipes whose stages follow one another: each does what its command does, and all of it is compared with the model.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::place::{ATTAR, Place, fixture};

const HEAD: &str = "model = \"books-2m\"\n[calibration]\nfiles = [\"calibration.txt\"]\ntokens = 1024\nctx = 128\n\
                    [evaluation]\ntext = \"heldout.txt\"\nctx = 128\nchunks = 4\n";
const PRUNE: &str = "[prune]\noutput = \"out/cut\"\nffn = 0.5\nno_repair = true\n";
const DISTILL: &str = "[distill]\noutput = \"out/taught\"\ndata = [\"calibration.txt\"]\ntokens = 5120\nctx = 64\nbatch = 4\n\
                       learning_rate = 1e-3\nheld_out = 0.1\n";
const QUANTIZE: &str = "[[quantize]]\nscheme = \"q8_0\"\noutput = \"out/q8_0.gguf\"\nmethod = \"rtn\"\n\
                        [[quantize]]\nscheme = \"w4a16-g64\"\noutput = \"out/w4\"\n";

fn kl(report: &Value) -> f64 {
    report["evaluation"]["kl_divergence"]["mean"].as_f64().unwrap_or_else(|| panic!("{report:#}"))
}

#[test]
fn what_is_cut_taught_and_quantized_is_what_the_commands_make_and_stands_in_one_table() {
    let place = Place::new();
    place.write("recipe.toml", &[HEAD, PRUNE, DISTILL, QUANTIZE].concat());
    let table = place.done("run recipe.toml --quiet --json report.json");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    for (name, method) in
        [("books-2m", "-"), ("cut", "prune"), ("taught", "distill"), ("q8_0.gguf", "rtn"), ("w4", "gptq")]
    {
        assert!(
            rows.iter().any(|row| row.first() == Some(&name) && row.get(2) == Some(&method)),
            "{name}:\n{table}"
        );
    }
    assert!(table.contains("2.23 M") && table.contains("1.84 M"), "parameters before and after:\n{table}");

    let reports = place.json("report.json");
    let reports = reports.as_array().unwrap();
    assert_eq!(reports.len(), 4);
    let [cut, taught, q8_0, w4] = [0, 1, 2, 3].map(|at| kl(&reports[at]));
    assert!(taught < 0.9 * cut, "{taught} of {cut}");
    assert!((q8_0 / taught - 1.0).abs() < 0.02 && w4 > taught, "{taught}, {q8_0}, {w4}");
    assert!(!place.at("out/taught.training").exists());
    assert_eq!(reports[0].get("original"), None);
    for (report, read) in reports[1..].iter().zip(["out/cut", "out/taught", "out/taught"]) {
        let sources = (&report["model"]["source"], &report["original"]["source"]);
        assert_eq!(sources, (&read.into(), &"books-2m".into()));
        assert_eq!(
            report["evaluation"]["reference_perplexity"],
            reports[0]["evaluation"]["reference_perplexity"]
        );
    }

    place.done("prune books-2m -o cut --ffn 0.5 --no-repair --calib calibration.txt --calib-tokens 1024 --ctx 128 --no-eval --quiet");
    place.done(
        "distill --teacher books-2m --student cut -o taught --data calibration.txt --tokens 5120 --ctx 64 --batch 4 \
         --learning-rate 1e-3 --held-out 0.1 --no-eval --quiet",
    );
    place.done("quantize taught -o w4 --scheme w4a16-g64 --calib calibration.txt --calib-tokens 1024 --ctx 128 --no-eval --quiet");
    for name in ["cut", "taught", "w4"] {
        let weights = |folder: &str| fs::read(place.at(folder).join(name).join("model.safetensors")).unwrap();
        assert!(weights("out") == weights(""), "{name}");
        let config = |folder: &str| fs::read(place.at(folder).join(name).join("config.json")).unwrap();
        assert_eq!(config("out"), config(""), "{name}");
    }
    place.done(
        "eval w4 --text heldout.txt --ctx 128 --chunks 4 --reference books-2m --quiet --json again.json",
    );
    assert_eq!(place.json("again.json")["evaluation"], reports[3]["evaluation"]);
}

/// How wide the widest layer is becomes known while it is made; what is made of it fits whatever it is.
#[test]
fn layers_compete_in_a_recipe_and_a_run_that_goes_on_knows_what_they_came_to() {
    let place = Place::new();
    let prune = "[prune]\noutput = \"out/cut\"\nffn = 0.5\nacross_layers = true\nalign = 64\n";
    place.write("recipe.toml", &[HEAD, prune, QUANTIZE].concat());
    place.done("run recipe.toml --quiet --json report.json");
    let reports = place.json("report.json");
    let widths: Vec<u64> = reports[0]["pruning"]["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["channels"].as_u64().unwrap())
        .collect();
    assert!(widths.iter().sum::<u64>() == 512 && widths[0] != widths[1], "{widths:?}");
    fs::remove_file(place.at("out/q8_0.gguf")).unwrap();
    place.done("run recipe.toml --resume --quiet --json again.json");
    let again = place.json("again.json");
    for at in 0..3 {
        assert_eq!(again[at]["output"]["sha256"], reports[at]["output"]["sha256"]);
        assert_eq!(again[at]["evaluation"], reports[at]["evaluation"]);
    }
}

/// What is found by a search goes on like any other shape.
#[test]
fn a_target_is_searched_for_and_what_is_found_is_quantized() {
    let place = Place::new();
    let prune = "[prune]\noutput = \"out/cut\"\ntarget_params = 0.75\nalign = 64\n";
    place.write("recipe.toml", &[HEAD, prune, DISTILL, QUANTIZE].concat());
    place.done("run recipe.toml --quiet --json report.json");
    let reports = place.json("report.json");
    // Each shape must be one that every output can be made of.
    place.write("odd.toml", &[HEAD, &prune.replace("align = 64", "align = 32"), DISTILL, QUANTIZE].concat());
    place.refuses("run odd.toml --force", &["224 channels", "groups of 64", "rows of 224"]);
    let after = &reports[0]["pruning"]["after"];
    assert!(after["parameters"].as_u64().unwrap() <= 1_672_128, "{after}");
    assert_eq!(reports[3]["model"]["parameters"], after["parameters"]);
    assert!(kl(&reports[1]) < kl(&reports[0]));
}

#[test]
fn one_stage_is_a_recipe_too() {
    let place = Place::new();
    for (stage, output) in
        [(PRUNE.replace("out/cut", "out/cut.gguf"), "out/cut.gguf"), (DISTILL.to_owned(), "out/taught")]
    {
        place.write("recipe.toml", &format!("{HEAD}{stage}"));
        place.done("run recipe.toml --quiet --json report.json");
        assert!(place.at(output).exists());
        let reports = place.json("report.json");
        assert_eq!((reports.as_array().unwrap().len(), reports[0].get("original")), (1, None));
    }
}

/// Zeros are a stage, or come with an output's codes; both as the commands make them.
#[test]
fn zeros_of_a_recipe_are_those_that_the_commands_make() {
    let place = Place::new();
    let stages = "[prune]\noutput = \"out/floats\"\nsparsity = \"2:4\"\n\
                  [[quantize]]\nscheme = \"f16\"\noutput = \"out/f16\"\n";
    place.write("stage.toml", &[HEAD, stages].concat());
    place.done("run stage.toml --quiet --json stage.json");
    let codes = "[[quantize]]\nscheme = \"w4a16-g64\"\nsparsity = 0.5\nsparsity_criterion = \"wanda\"\noutput = \"out/codes\"\n";
    place.write("codes.toml", &[HEAD, codes].concat());
    place.done("run codes.toml --quiet --json codes.json");
    let by = "--calib calibration.txt --calib-tokens 1024 --ctx 128 --no-eval --quiet";
    place.done(&format!("prune books-2m -o floats --sparsity 2:4 {by}"));
    place.done(&format!(
        "quantize books-2m -o codes --scheme w4a16-g64 --sparsity 0.5 --sparsity-criterion wanda {by}"
    ));
    for name in ["floats", "codes"] {
        let weights = |folder: &str| fs::read(place.at(folder).join(name).join("model.safetensors")).unwrap();
        assert!(weights("out") == weights(""), "{name}");
    }
    let (stage, codes) = (place.json("stage.json"), place.json("codes.json"));
    let names = |report: &Value| (report["output"]["scheme"].clone(), report["output"]["method"].clone());
    assert_eq!(names(&stage[0]), ("bf16-2:4".into(), "sparsegpt".into()));
    assert_eq!(names(&codes[0]), ("w4a16-g64-0.5".into(), "wanda".into()));
    // What is there is kept and named as before.
    place.done("run stage.toml --resume --quiet --json again.json");
    let again = place.json("again.json");
    for at in 0..2 {
        assert_eq!(names(&again[at]), names(&stage[at]));
        assert_eq!(again[at]["evaluation"], stage[at]["evaluation"]);
    }
}

#[test]
fn what_would_fill_zeros_again_is_refused() {
    let place = Place::new();
    let zeros = "[prune]\noutput = \"out/sparse\"\nsparsity = \"2:4\"\n";
    for (stages, parts) in [
        ([zeros, DISTILL].concat(), &["[distill]", "fills them again", "[[quantize]]"][..]),
        ([zeros, QUANTIZE].concat(), &["out/q8_0.gguf", "fill them again", "[[quantize]]"]),
        ([zeros, "ffn = 0.5\n"].concat(), &["zeros and a smaller shape"]),
        ([zeros, "sparsity_criterion = \"most\"\n"].concat(), &["most", "[prune]"]),
        (zeros.replace("2:4", "5:4"), &["5:4", "[prune]"]),
        (
            format!("{QUANTIZE}method = \"gptq\"\nsparsity = \"2:4\"\n"),
            &["out/w4", "leave `method` or `sparsity` out"],
        ),
        (format!("{QUANTIZE}sparsity_criterion = \"wanda\"\n"), &["out/w4", "and none do", "2:4"]),
        (format!("{QUANTIZE}sparsity = 2\n"), &["out/w4", "2"]),
    ] {
        place.write("recipe.toml", &[HEAD, &stages].concat());
        place.refuses("run recipe.toml", parts);
    }
}

/// A student of a recipe may see its weights as they will be stored, and be taught as the options of distill say.
#[test]
fn a_student_of_a_recipe_is_taught_by_every_option_of_the_command() {
    let place = Place::new();
    for (keys, options) in [
        ("scheme = \"w4a16-g64\"\n", "--scheme w4a16-g64"),
        ("hidden_loss = 0.5\nlayer_map = \"1:1\"\n", "--hidden-loss 0.5 --layer-map 1:1"),
        ("local = true\n", "--local"),
    ] {
        let recipe = [HEAD, &DISTILL.replace("5120", "1024"), keys].concat();
        place.write("recipe.toml", &recipe);
        place.done("run recipe.toml --quiet --force --json report.json");
        place.done(&format!(
            "distill --teacher books-2m --student books-2m -o taught --data calibration.txt --tokens 1024 --ctx 64 --batch 4 \
             --learning-rate 1e-3 --held-out 0.1 {options} --no-eval --quiet --force --json taught.json"
        ));
        let weights = |folder: &str| fs::read(place.at(folder).join("model.safetensors")).unwrap();
        assert!(weights("out/taught") == weights("taught"), "{options}");
        let (report, taught) = (place.json("report.json")[0].clone(), place.json("taught.json"));
        for key in ["scheme", "method", "format", "sha256"] {
            assert_eq!(report["output"][key], taught["output"][key], "{options}");
        }
        place.write("further.toml", &format!("{recipe}{QUANTIZE}"));
        if keys.contains("scheme") {
            let parts =
                ["out/taught", "what is quantized cannot be worked on further", "leave the scheme out"];
            place.refuses("run further.toml --force", &parts);
            place.done("run recipe.toml --resume --quiet --json again.json");
            assert_eq!(place.json("again.json")[0]["output"], report["output"]);
        }
    }
}

#[test]
fn a_dry_run_plans_every_stage_on_what_the_one_before_will_leave() {
    let place = Place::new();
    place.write("recipe.toml", &[HEAD, PRUNE, DISTILL, QUANTIZE].concat());
    let before = place.contents();
    let plan = place.done("run recipe.toml --dry-run");
    for part in [
        "out/cut\n",
        "512 ->            256",
        "what stays is left as it is",
        "out/taught\n",
        "student: out/cut, 1,836,288 parameters",
        "20 steps of 256 tokens",
        "out/q8_0.gguf\n",
        "256 x 256         q8_0",
        "1,836,288 weights",
        "w4-g64",
    ] {
        assert!(plan.contains(part), "no `{part}` in:\n{plan}");
    }
    place.assert_contents(&before);
}

#[test]
fn what_a_later_stage_cannot_do_is_refused_before_the_first_begins() {
    let place = Place::new();
    place.write("taken", "a file");
    let odd = PRUNE.replace("0.5", "192");
    for (stages, parts) in [
        ([PRUNE, "layrs = 1\n"].concat(), &["unknown key `layrs`", "[prune]", "kv_heads"][..]),
        (
            [PRUNE, DISTILL, "text = \"heldout.txt\"\n"].concat(),
            &["unknown key `text`", "[distill]", "[evaluation]"],
        ),
        ([DISTILL, "loss = \"least\"\n"].concat(), &["'least'", "--loss", "attar distill --help"]),
        ("[prune]\nffn = 0.5\n".to_owned(), &["[prune]", "no `output`"]),
        ([PRUNE, "heads = 6\n", QUANTIZE].concat(), &["6 query heads", "4, 8"]),
        (
            [PRUNE, "target_params = 0.2\nhidden = 256\n"].concat().replace("ffn = 0.5\n", ""),
            &["the smallest that is tried"],
        ),
        ([PRUNE, &DISTILL.replace("calibration", "absent")].concat(), &["absent.txt", "No such file"]),
        ([PRUNE, &DISTILL.replace("ctx = 64", "ctx = 100000")].concat(), &["too few", "--ctx"]),
        (
            [odd.as_str(), &QUANTIZE.replace("g64", "g128")].concat(),
            &["groups of 128", "rows of 192", "--tensor"],
        ),
        (
            [&PRUNE.replace("out/cut", "cut.gguf"), DISTILL].concat(),
            &["cut.gguf", "cannot be worked on further"],
        ),
        (
            [PRUNE, &DISTILL.replace("out/taught", "taught.gguf"), QUANTIZE].concat(),
            &["taught.gguf", "worked on further"],
        ),
        (
            [PRUNE, &DISTILL.replace("out/taught", "taken"), QUANTIZE].concat(),
            &["taken", "a file is in the way"],
        ),
        ([PRUNE, DISTILL, &QUANTIZE.replace("out/w4", "taken")].concat(), &["taken", "a file is in the way"]),
        ([PRUNE, &DISTILL.replace("out/taught", "out/cut")].concat(), &["out/cut", "twice"]),
        ([PRUNE, &QUANTIZE.replace("out/w4", "out")].concat(), &["out/cut", "would lie in"]),
        (["[prune]\noutput = \"cut\"\n", QUANTIZE].concat(), &["nothing would go", "--layers"]),
    ] {
        place.write("recipe.toml", &format!("{HEAD}{stages}"));
        place.refuses("run recipe.toml", parts);
    }
    // The model is read to the end.
    place.write("recipe.toml", &[HEAD, PRUNE, &QUANTIZE.replace("out/w4", "books-2m")].concat());
    place.refuses("run recipe.toml --force", &["books-2m", "take the place", "another output"]);
    place.done("prune books-2m -o out/cut --layers 1 --no-eval --quiet --calib-tokens 1024 --ctx 128");
    place.write("recipe.toml", &[HEAD, PRUNE, DISTILL, QUANTIZE].concat());
    place.refuses("run recipe.toml", &["out/cut", "exists already", "--force"]);
}

/// `fixtures/smaller.toml` as it stands, but for the place it writes to and how long is learned.
#[test]
fn the_example_makes_a_smaller_model_of_the_fixture() {
    let place = Place::new();
    let recipe = fs::read_to_string(fixture("smaller.toml")).unwrap();
    let here = recipe.replace("\"../out/", "\"out/").replace("tokens = 100_000", "tokens = 8_192");
    assert!(here.contains("tokens = 8_192"), "{recipe}");
    place.write("smaller.toml", &here);
    let table = place.done("run smaller.toml --quiet");
    assert_eq!(fs::read_to_string(place.at("out/smaller/report.txt")).unwrap(), table);
    for part in ["books-2m", "cut", "prune", "taught", "distill", "q4_k_m"] {
        assert!(table.contains(part), "no {part} in\n{table}");
    }
}

/// Killed while it learns, a recipe goes on to the same weights; what was there is kept, and compared like all else.
#[test]
fn a_recipe_that_is_killed_goes_on_where_it_was() {
    let place = Place::new();
    let recipe = [HEAD, PRUNE, DISTILL, "save_every = 0\n", QUANTIZE].concat();
    place.write("recipe.toml", &recipe);
    place.write("whole.toml", &recipe.replace("out/", "whole/"));
    place.done("run whole.toml --quiet --json whole.json");
    let mut child = Command::new(ATTAR)
        .args(["run", "recipe.toml"])
        .current_dir(place.at(""))
        .env("CUDA_VISIBLE_DEVICES", "")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !place.at("out/taught.training/training.json").exists() {
        assert!(started.elapsed() < Duration::from_mins(4), "nothing was kept");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.at("out/taught").exists(), "it was over before it was killed");
    place.fails("run recipe.toml", &["out/cut", "exists already"]);
    place.write("other.toml", &recipe.replace("ffn = 0.5", "ffn = 0.25"));
    place.refuses("run other.toml --resume", &["out/cut", "not what this recipe makes", "256 channels"]);
    let mut reports = Vec::new();
    for _again in 0..2 {
        let run = place.run("run recipe.toml --resume --json resumed.json");
        assert!(run.code == Some(0) && run.stderr.contains("kept as it is"), "{}", run.stderr);
        reports.push(place.json("resumed.json"));
    }
    reports.push(place.json("whole.json"));
    for at in 0..4 {
        let of = |report: &Value, key: &str| report[at][key].clone();
        for key in ["scheme", "method", "parameters", "bytes", "bits_per_weight", "sha256", "format"] {
            let [first, second, whole] = [0, 1, 2].map(|run: usize| of(&reports[run], "output")[key].clone());
            assert!(first == whole && second == whole, "{at}, {key}: {first} {second} {whole}");
        }
        assert_eq!(of(&reports[1], "evaluation"), of(&reports[2], "evaluation"));
    }
    assert!(!place.at("out/taught.training").exists());
}
