//! Weights set to 0: as many as were asked for, where they were asked for, alone and with codes.

use attar::source::Source;
use attar_model::{TensorSpec, Weights as _};

use super::QUICK;
use crate::place::Place;

fn in_a_block(spec: &TensorSpec) -> bool {
    spec.layer.is_some() && spec.is_matrix()
}

/// Asserts that of every four weights in a row of the blocks' matrices at least two are 0.
fn assert_two_of_four(source: &Source) {
    for spec in source.specs.iter().filter(|spec| in_a_block(spec)) {
        let weight = source.load(&spec.name).unwrap();
        for group in weight.as_slice().unwrap().chunks(4) {
            assert!(group.iter().filter(|w| **w != 0.0).count() <= 2, "{}: {group:?}", spec.name);
        }
    }
}

#[test]
fn two_of_four_are_zeros_in_floats_and_in_codes_and_feedback_costs_less_than_none() {
    let place = Place::new();
    let mut costs = Vec::new();
    for (command, output) in [
        ("prune books-2m -o floats --sparsity 2:4", "floats"),
        ("prune books-2m -o plain --sparsity 2:4 --sparsity-criterion wanda", "plain"),
        ("quantize books-2m -o codes --scheme w4a16-g64 --sparsity 2:4", "codes"),
        ("quantize books-2m -o codes.gguf --scheme q4_0 --sparsity 2:4", "codes.gguf"),
    ] {
        place.done(&format!("{command} {QUICK} --quiet --json report.json"));
        assert_two_of_four(&Source::open(&place.at(output)).unwrap());
        let report = place.json("report.json");
        let by = if output == "plain" { "wanda" } else { "sparsegpt" };
        assert_eq!(report["output"]["method"], by);
        assert!(
            report["output"]["scheme"].as_str().unwrap().ends_with("-2:4"),
            "{}",
            report["output"]["scheme"]
        );
        costs.push(report["evaluation"]["kl_divergence"]["mean"].as_f64().unwrap());
    }
    let [floats, plain, codes, _] = costs[..] else { panic!("{costs:?}") };
    assert!(floats < 0.8 * plain, "{costs:?}");
    assert!(floats < codes && codes < 1.5 * floats, "{costs:?}");
    // What is outside the blocks stays as it was.
    let [before, after] = ["books-2m", "floats"].map(|folder| Source::open(&place.at(folder)).unwrap());
    for spec in before.specs.iter().filter(|spec| !in_a_block(spec)) {
        assert_eq!(before.load(&spec.name).unwrap(), after.load(&spec.name).unwrap(), "{}", spec.name);
    }
}

#[test]
fn a_share_is_zeros_anywhere_and_a_rule_leaves_a_matrix_whole() {
    let place = Place::new();
    let rule = "--tensor q_proj=float";
    place
        .done(&format!("quantize books-2m -o out --scheme w4a16-g64 --sparsity 0.75 {rule} {QUICK} --quiet"));
    let source = Source::open(&place.at("out")).unwrap();
    for spec in source.specs.iter().filter(|spec| in_a_block(spec)) {
        let weight = source.load(&spec.name).unwrap();
        let zeros = weight.iter().filter(|w| **w == 0.0).count() as f64 / weight.len() as f64;
        let whole = spec.name.contains("q_proj");
        assert!(if whole { zeros < 0.01 } else { (0.745..0.95).contains(&zeros) }, "{}: {zeros}", spec.name);
    }
}
