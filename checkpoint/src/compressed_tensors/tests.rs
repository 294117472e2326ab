#![expect(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::atomic::Overwrite;
use crate::safetensors::{Folder, Writer};

const W3: Scheme = Scheme { num_bits: 3, group_size: Some(64), symmetric: false };
const W4: Scheme = Scheme { num_bits: 4, group_size: Some(32), symmetric: true };

/// As the package 0.20.0 wrote it for a model quantized to 3 bits in groups of 64 with zero points.
const GOLDEN: &str = r#"{
    "config_groups": {"group_0": {"format": "pack-quantized", "input_activations": null, "output_activations": null,
        "targets": ["Linear"], "weights": {"dynamic": false, "group_size": 64, "num_bits": 3, "strategy": "group",
        "symmetric": false, "type": "int"}}},
    "format": "pack-quantized", "global_compression_ratio": null, "ignore": ["lm_head"], "kv_cache_scheme": null,
    "moe_sparsity_config": null, "quant_method": "compressed-tensors", "quantization_status": "compressed",
    "sparsity_config": {}, "transform_config": {}, "version": "0.20.0"}"#;

fn config(schemes: &[Scheme]) -> Packed {
    let groups = schemes.iter().map(|&scheme| Group { targets: vec!["Linear".to_owned()], scheme });
    Packed { groups: groups.collect(), ignore: vec!["lm_head".to_owned()] }
}

/// A model whose one weight is stored by `scheme`, after `change`.
fn model(scheme: Scheme, shape: [usize; 2], change: fn(&mut Vec<TensorInfo>)) -> (TempDir, Folder) {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = scheme.tensors("l.weight", shape, Dtype::F16).unwrap();
    change(&mut tensors);
    let mut writer =
        Writer::create(folder.path(), Overwrite::No, &BTreeMap::new(), &tensors, u64::MAX).unwrap();
    for info in &tensors {
        let mut bytes = vec![0; info.bytes as usize];
        if info.name.ends_with("_shape") {
            bytes.copy_from_slice(&shape_bytes(shape));
        }
        writer.write(&info.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    let model = Folder::open(folder.path()).unwrap();
    (folder, model)
}

#[test]
fn names_types_and_shapes_are_those_of_the_package() {
    let found: Vec<_> = W3
        .tensors("model.layers.0.mlp.down_proj.weight", [256, 512], Dtype::Bf16)
        .unwrap()
        .into_iter()
        .map(|info| (info.name, info.dtype, info.shape))
        .collect();
    let name = |ending: &str| format!("model.layers.0.mlp.down_proj.weight_{ending}");
    // as read from the file that goes with GOLDEN
    let golden = [
        (name("packed"), Dtype::I32, vec![256, 48]),
        (name("scale"), Dtype::Bf16, vec![256, 8]),
        (name("zero_point"), Dtype::I32, vec![24, 8]),
        (name("shape"), Dtype::I64, vec![2]),
    ];
    assert_eq!(found, golden);
    assert_eq!(W4.tensors("a.weight", [5, 32], Dtype::F16).unwrap().len(), 3, "no zero points");
}

#[test]
fn codes_that_fill_no_whole_words_round_up() {
    assert_eq!((words(32, 3), words(33, 3), words(1, 8), words(0, 5), words(172, 4)), (3, 4, 1, 0, 22));
}

#[test]
fn a_group_size_that_does_not_divide_the_rows_and_a_name_without_weight_have_no_layout() {
    assert_eq!(W4.tensors("a.weight", [8, 48], Dtype::F16), None);
    assert_eq!(W4.tensors("a.bias", [8, 32], Dtype::F16), None);
    assert_eq!(Scheme { group_size: Some(0), ..W4 }.groups(32), None);
    assert_eq!(Scheme { group_size: None, ..W4 }.groups(33), Some(1));
}

#[test]
fn the_package_s_own_json_is_understood() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(Packed::from_json(&golden).unwrap(), config(&[W3]));
    assert_eq!(parse(&json!({"quantization_config": golden})).unwrap(), Some(config(&[W3])));
    assert_eq!(parse(&json!({"model_type": "llama"})).unwrap(), None);
    assert_eq!(parse(&json!({"quantization_config": null})).unwrap(), None);
    assert!(matches!(parse(&json!({"quantization_config": {}})), Err(Flaw::Json(_))));
}

#[test]
fn the_json_written_has_the_package_s_keys_and_values() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let written = config(&[W3]).to_json();
    for (key, value) in written.as_object().unwrap() {
        assert_eq!(Some(value), golden.get(key), "{key}");
    }
}

#[test]
fn json_of_other_layouts_is_refused_by_the_key_that_says_so() {
    let with = |pointer: &str, value: Value| {
        let mut json = config(&[W4]).to_json();
        *json.pointer_mut(pointer).unwrap() = value;
        Packed::from_json(&json).unwrap_err()
    };
    for (pointer, value, expected) in [
        ("/quant_method", json!("gptq"), "quant_method"),
        ("/format", json!("marlin-24"), "format"),
        ("/config_groups/group_0/format", json!("float-quantized"), "format"),
        ("/config_groups/group_0/input_activations", json!({"num_bits": 8}), "input_activations"),
        ("/config_groups/group_0/weights/type", json!("float"), "type"),
        ("/config_groups/group_0/weights/num_bits", json!(0), "num_bits"),
        ("/config_groups/group_0/weights/num_bits", json!(9), "num_bits"),
        ("/config_groups/group_0/weights/strategy", json!("tensor"), "strategy"),
        ("/config_groups/group_0/weights/group_size", json!(0), "strategy"),
        ("/config_groups/group_0/weights/group_size", json!(-7), "strategy"),
    ] {
        match with(pointer, value) {
            Flaw::Unsupported { key, .. } => assert_eq!(key, expected, "{pointer}"),
            other => panic!("{pointer}: {other}"),
        }
    }
    for (pointer, value) in [
        ("/config_groups", json!([])),
        ("/config_groups/group_0", json!({})),
        ("/config_groups/group_0/targets", json!("Linear")),
        ("/config_groups/group_0/weights", json!(null)),
        ("/config_groups/group_0/weights/num_bits", json!(-1)),
    ] {
        assert!(matches!(with(pointer, value), Flaw::Json(_)), "{pointer}");
    }
    let mut ordered = config(&[W4]).to_json();
    ordered["config_groups"]["group_0"]["weights"]["actorder"] = json!("group");
    assert!(matches!(Packed::from_json(&ordered), Err(Flaw::Unsupported { key: "actorder", .. })));
    ordered["config_groups"]["group_0"]["weights"]["actorder"] = json!("weight");
    assert!(Packed::from_json(&ordered).is_ok());
}

#[test]
fn the_tensors_tell_which_group_a_weight_belongs_to() {
    for scheme in [W3, W4, Scheme { group_size: None, ..W4 }, Scheme { num_bits: 8, ..W3 }] {
        let (_folder, model) = model(scheme, [16, 192], |_| ());
        let config = config(&[W4, W3, Scheme { group_size: None, ..W4 }, Scheme { num_bits: 8, ..W3 }]);
        assert_eq!(config.find(&model, "l.weight").unwrap(), Some((scheme, [16, 192])));
        assert_eq!(config.find(&model, "other.weight").unwrap(), None);
    }
    assert_eq!(packed_name("l.weight"), Names::of("l.weight").unwrap().packed);
    assert_eq!(weight_of("l.weight_packed").as_deref(), Some("l.weight"));
    assert_eq!(weight_of("l.packed"), None);
}

#[test]
fn tensors_that_contradict_the_config_or_each_other_are_refused() {
    let find = |change, schemes: &[Scheme]| {
        let (_folder, model) = model(W3, [16, 192], change);
        config(schemes).find(&model, "l.weight").unwrap_err()
    };
    let no_group = |flaw| matches!(flaw, Flaw::FitsNoGroup { weight } if weight == "l.weight");
    assert!(no_group(find(|_| (), &[W4])));
    assert!(no_group(find(|_| (), &[])));
    assert!(no_group(find(|_| (), &[Scheme { symmetric: true, ..W3 }])), "zero points nobody asked for");
    assert!(no_group(find(|tensors| drop(tensors.remove(2)), &[W3])), "zero points missing");
    assert!(no_group(find(|tensors| drop(tensors.remove(1)), &[W3])), "scales missing");
    assert!(no_group(find(
        |tensors| tensors[0] = TensorInfo::new("l.weight_packed", Dtype::I32, &[16, 17]),
        &[W3]
    )));
    assert!(no_group(find(
        |tensors| tensors[0] = TensorInfo::new("l.weight_packed", Dtype::I64, &[16, 18]),
        &[W3]
    )));
    assert!(matches!(
        find(|tensors| drop(tensors.pop()), &[W3]),
        Flaw::Tensor(Error::NoTensor { name, .. }) if name == "l.weight_shape"
    ));
}

#[test]
fn a_weight_shape_that_lies_is_refused() {
    for bytes in [
        vec![],
        shape_bytes([1, 2])[..8].to_vec(),
        shape_bytes([usize::MAX, 2]).to_vec(),
        shape_bytes([1 << 40, 2]).to_vec(),
    ] {
        assert_eq!(read_shape(&bytes), None, "{bytes:?}");
    }
    assert_eq!(read_shape(&shape_bytes([3, 4])), Some([3, 4]));
}

proptest! {
    #[test]
    fn any_config_reads_back(
        schemes in prop::collection::vec((1u8..=8, prop::option::of(1usize..1000), any::<bool>()), 0..4),
        ignore in prop::collection::vec("[a-z.:]{0,8}", 0..3),
    ) {
        let schemes: Vec<Scheme> = schemes
            .into_iter()
            .map(|(num_bits, group_size, symmetric)| Scheme { num_bits, group_size, symmetric })
            .collect();
        let config = Packed { ignore, ..config(&schemes) };
        prop_assert_eq!(Packed::from_json(&config.to_json()).unwrap(), config);
    }
}
