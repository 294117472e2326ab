//! The house: which crate may know which.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// What each crate of the workspace depends on, and nothing else of ours. Dependencies point down; siblings never meet.
const LAYERS: &[(&str, &[&str])] = &[
    ("attar-tensor", &[]),
    ("attar-checkpoint", &[]),
    ("attar-model", &["attar-checkpoint", "attar-tensor"]),
    ("attar-quant", &["attar-checkpoint", "attar-tensor"]),
    ("attar-prune", &["attar-model"]),
    ("attar-distill", &["attar-model"]),
    ("attar-eval", &["attar-model"]),
    // The pipeline may know them all.
    (
        "attar",
        &[
            "attar-checkpoint",
            "attar-distill",
            "attar-eval",
            "attar-model",
            "attar-prune",
            "attar-quant",
            "attar-tensor",
        ],
    ),
];

#[test]
fn dependencies_point_down_and_siblings_never_meet() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let members = metadata.workspace_packages();
    let ours: BTreeSet<String> = members.iter().map(|package| package.name.to_string()).collect();
    let allowed: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    assert_eq!(ours, allowed.keys().map(|name| (*name).to_owned()).collect(), "a crate has no layer");
    for package in members {
        let normal =
            package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        for dependency in normal.filter(|dependency| ours.contains(&dependency.name)) {
            assert!(
                allowed[package.name.as_str()].contains(&dependency.name.as_str()),
                "{} may not depend on {}",
                package.name,
                dependency.name
            );
        }
    }
}
