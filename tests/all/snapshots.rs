//! What users read, word for word. `cargo insta review` shows what has changed.

use assert_cmd::Command;

use crate::place::{ATTAR, Place, Run};

/// A run on a terminal of 100 columns, whatever the tests run on.
fn run(line: &str) -> Run {
    Place::new().run_with(Command::new(ATTAR).args(line.split_whitespace()).env("COLUMNS", "100"))
}

#[test]
fn help() {
    insta::assert_snapshot!(run("--help").stdout);
}

#[test]
fn help_of_quantize() {
    insta::assert_snapshot!(run("quantize --help").stdout);
}

#[test]
fn help_of_prune() {
    insta::assert_snapshot!(run("prune --help").stdout);
}

#[test]
fn help_of_distill() {
    insta::assert_snapshot!(run("distill --help").stdout);
}

#[test]
fn help_of_eval() {
    insta::assert_snapshot!(run("eval --help").stdout);
}

#[test]
fn help_of_check() {
    insta::assert_snapshot!(run("check --help").stdout);
}

#[test]
fn help_of_compare() {
    insta::assert_snapshot!(run("compare --help").stdout);
}

#[test]
fn the_plan_of_q4_k_m() {
    insta::assert_snapshot!(run("quantize books-2m -o out.gguf --scheme q4_k_m --dry-run").stdout);
}

#[test]
fn the_plan_of_half_the_fixture() {
    let line = "prune books-2m -o out.gguf --layers 1 --ffn 0.375 --heads 4 --hidden 0.75 --dry-run";
    insta::assert_snapshot!(run(line).stdout);
}

#[test]
fn inspecting_the_fixture() {
    insta::assert_snapshot!(run("inspect books-2m").stdout);
}

#[test]
fn an_error_with_its_place_cause_and_hint() {
    insta::assert_snapshot!(run("quantize books-2m -o out --scheme w4a16-g96").stderr);
}

#[test]
fn an_error_of_a_shape_that_cannot_be() {
    insta::assert_snapshot!(run("prune books-2m -o out --heads 6").stderr);
}

#[test]
fn an_error_of_the_command_line() {
    insta::assert_snapshot!(run("quantize books-2m -o out --scheme q4").stderr);
}

#[test]
fn an_error_of_a_limit_without_a_reference() {
    insta::assert_snapshot!(run("check books-2m --text heldout.txt --max-kl 0.02").stderr);
}

/// What is said of a baseline that was changed, to a check of other windows.
fn baseline_with(from: &str, to: &str) -> String {
    let place = Place::new();
    place.done(
        "check books-2m --text heldout.txt --ctx 128 --chunks 2 --baseline b.json --update-baseline --quiet",
    );
    let baseline = std::fs::read_to_string(place.at("b.json")).unwrap();
    place.write("b.json", &baseline.replacen(from, to, 1));
    place.run("check books-2m --baseline b.json --ctx 64").stderr
}

#[test]
fn an_error_of_a_baseline_of_other_windows() {
    insta::assert_snapshot!(baseline_with("", ""));
}

#[test]
fn an_error_of_a_baseline_of_a_newer_attar() {
    insta::assert_snapshot!(baseline_with("attar-report/1", "attar-report/2"));
}

/// A recipe with one mistake.
fn mistaken(lines: &str) -> String {
    let place = Place::new();
    place.write("recipe.toml", &format!("model = \"books-2m\"\n\n{lines}"));
    place.run("run recipe.toml").stderr
}

#[test]
fn a_recipe_with_an_unknown_key() {
    insta::assert_snapshot!(mistaken("[[quantize]]\noutput = \"a.gguf\"\nschme = \"q4_k_m\"\n"));
}

#[test]
fn a_recipe_with_an_unknown_word() {
    let lines = "[[quantize]]\noutput = \"a.gguf\"\nscheme = \"q4_k_m\"\nmethod = \"gtpq\"\n";
    insta::assert_snapshot!(mistaken(lines));
}

#[test]
fn a_recipe_with_a_value_of_another_type() {
    insta::assert_snapshot!(mistaken("[calibration]\ntokens = \"many\"\n"));
}

#[test]
fn a_recipe_that_is_no_toml() {
    insta::assert_snapshot!(mistaken("[calibration\ntokens = 1\n"));
}

#[test]
fn a_recipe_that_lacks_a_key() {
    insta::assert_snapshot!(mistaken("[[quantize]]\nscheme = \"q4_k_m\"\n"));
}

#[test]
fn a_recipe_with_an_unknown_option_of_a_stage() {
    insta::assert_snapshot!(mistaken("[prune]\noutput = \"a\"\nlayrs = 1\n"));
}

#[test]
fn a_recipe_with_an_option_of_a_stage_that_takes_no_such_value() {
    insta::assert_snapshot!(mistaken(
        "[distill]\noutput = \"a\"\ndata = [\"x.txt\"]\nloss = \"foward-kl\"\n"
    ));
}

#[test]
fn a_recipe_with_an_unknown_scheme() {
    insta::assert_snapshot!(mistaken("[[quantize]]\noutput = \"a.gguf\"\nscheme = \"q4_k_n\"\n"));
}

#[test]
fn a_recipe_with_a_tensor_rule_of_an_unknown_type() {
    let lines = "[[quantize]]\noutput = \"a.gguf\"\nscheme = \"q4_k_m\"\ntensor = [\"attn_v=q6_k\", \"ffn_down=q6k\"]\n";
    insta::assert_snapshot!(mistaken(lines));
}

#[test]
fn a_recipe_with_a_size_that_is_none() {
    insta::assert_snapshot!(mistaken("[prune]\noutput = \"a\"\ntarget_params = \"lots\"\n"));
}

#[test]
fn the_plan_of_a_recipe_begins_with_all_that_it_leaves_unsaid() {
    let place = Place::new();
    place.write(
        "recipe.toml",
        "model = \"books-2m\"\n[prune]\noutput = \"out/cut\"\nffn = 0.5\n[[quantize]]\noutput = \"out/q8.gguf\"\nscheme = \"q8_0\"\n",
    );
    let plan = place.done("run recipe.toml --dry-run");
    insta::assert_snapshot!(plan.split("\n\n").next().unwrap());
}

#[test]
fn help_of_run() {
    insta::assert_snapshot!(run("run --help").stdout);
}

#[test]
fn inspecting_a_quantized_file() {
    let place = Place::new();
    place.done("quantize books-2m -o q4.gguf --scheme q4_k_m --method rtn --no-eval --quiet");
    insta::assert_snapshot!(place.done("inspect q4.gguf"));
}

#[test]
fn a_device_without_a_driver() {
    if !matches!(attar_tensor::cuda::Cuda::open(0, None), Err(attar_tensor::cuda::CudaError::NoDriver)) {
        return crate::place::skipped("there is a CUDA driver");
    }
    let line = "eval books-2m --text heldout.txt --device cuda";
    insta::assert_snapshot!(run(line).stderr);
}
