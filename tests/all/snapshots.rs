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
fn a_device_without_a_driver() {
    if !matches!(attar_tensor::cuda::Cuda::open(0, None), Err(attar_tensor::cuda::CudaError::NoDriver)) {
        return crate::place::skipped("there is a CUDA driver");
    }
    let line = "eval books-2m --text heldout.txt --device cuda";
    insta::assert_snapshot!(run(line).stderr);
}
