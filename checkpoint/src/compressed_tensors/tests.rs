#![expect(clippy::unwrap_used, reason = "a test may")]

use proptest::prelude::*;

use super::*;

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
    let groups = schemes.iter().map(|&scheme| Group::of_linear(Weights::Integers(scheme)));
    Packed { groups: groups.collect(), ignore: vec!["lm_head".to_owned()] }
}

#[test]
fn the_package_s_own_json_is_understood() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(Packed::from_json(&golden).unwrap(), config(&[W3]));
    assert!(matches!(Packed::from_json(&json!({})), Err(Flaw::Json { .. })));
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
        ("/format", json!("marlin-24"), "format"),
        ("/config_groups/group_0/format", json!("marlin-24"), "format"),
        ("/config_groups/group_0/format", json!("float-quantized"), "num_bits"),
        ("/config_groups/group_0/weights/type", json!("float"), "type"),
        ("/config_groups/group_0/weights/num_bits", json!(1), "num_bits"),
        ("/config_groups/group_0/weights/num_bits", json!(9), "num_bits"),
        ("/config_groups/group_0/weights/strategy", json!("tensor"), "strategy"),
        ("/config_groups/group_0/weights/group_size", json!(0), "strategy"),
        ("/config_groups/group_0/weights/group_size", json!(-7), "strategy"),
    ] {
        match with(pointer, value) {
            Flaw::Unsupported { key, .. } => assert_eq!(key, expected, "{pointer}"),
            other @ Flaw::Json { .. } => panic!("{pointer}: {other}"),
        }
    }
    for (pointer, value) in [
        ("/config_groups", json!([])),
        ("/config_groups/group_0", json!({})),
        ("/config_groups/group_0/targets", json!("Linear")),
        ("/config_groups/group_0/weights", json!(null)),
        ("/config_groups/group_0/weights/num_bits", json!(-1)),
    ] {
        assert!(matches!(with(pointer, value), Flaw::Json { .. }), "{pointer}");
    }
    let mut ordered = config(&[W4]).to_json();
    ordered["config_groups"]["group_0"]["weights"]["actorder"] = json!("group");
    assert!(matches!(Packed::from_json(&ordered), Err(Flaw::Unsupported { key: "actorder", .. })));
    ordered["config_groups"]["group_0"]["weights"]["actorder"] = json!("weight");
    assert!(Packed::from_json(&ordered).is_ok());
}

proptest! {
    #[test]
    fn any_config_reads_back(
        schemes in prop::collection::vec((2u8..=8, prop::option::of(1usize..1000), any::<bool>()), 0..4),
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

/// The groups that the package 0.20.0 makes of its preset schemes.
#[test]
fn kinds_of_numbers_are_said_and_understood_as_the_package_s_presets() {
    let token = r#"{"num_bits": 8, "type": "TYPE", "symmetric": true, "group_size": null, "strategy": "token", "dynamic": true}"#;
    for (name, format, weights, inputs) in [
        (
            "w8a8",
            "int-quantized",
            r#"{"num_bits": 8, "type": "int", "symmetric": true, "group_size": null, "strategy": "channel", "dynamic": false}"#,
            token.replace("TYPE", "int"),
        ),
        (
            "fp8",
            "float-quantized",
            r#"{"num_bits": 8, "type": "float", "symmetric": true, "group_size": null, "strategy": "channel", "dynamic": false}"#,
            token.replace("TYPE", "float"),
        ),
        (
            "fp8-block",
            "float-quantized",
            r#"{"num_bits": 8, "type": "float", "symmetric": true, "group_size": null, "strategy": "block",
                "block_structure": [128, 128], "dynamic": false}"#,
            r#"{"num_bits": 8, "type": "float", "symmetric": true, "group_size": 128, "strategy": "group", "dynamic": true}"#
                .to_owned(),
        ),
        (
            "mxfp8",
            "mxfp8-quantized",
            r#"{"num_bits": 8, "type": "float", "symmetric": true, "group_size": 32, "strategy": "group", "dynamic": false,
                "scale_dtype": "torch.uint8"}"#,
            "null".to_owned(),
        ),
        (
            "mxfp4",
            "mxfp4-pack-quantized",
            r#"{"num_bits": 4, "type": "float", "symmetric": true, "group_size": 32, "strategy": "group", "dynamic": false,
                "scale_dtype": "torch.uint8"}"#,
            "null".to_owned(),
        ),
        (
            "nvfp4",
            "nvfp4-pack-quantized",
            r#"{"num_bits": 4, "type": "float", "symmetric": true, "group_size": 16, "strategy": "tensor_group", "dynamic": false,
                "scale_dtype": "torch.float8_e4m3fn"}"#,
            "null".to_owned(),
        ),
    ] {
        let weights_of = Weights::Numbers(Numbers::named(name).unwrap());
        let group = Group::of_linear(weights_of);
        let packed = Packed { groups: vec![group], ignore: vec!["lm_head".to_owned()] };
        let json = packed.to_json();
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(json["format"], format, "{name}");
        let group = &json["config_groups"]["group_0"];
        assert_eq!((&group["weights"], &group["input_activations"]), (&read(weights), &read(&inputs)), "{name}");
        assert_eq!(Packed::from_json(&json).unwrap(), packed, "{name}");
    }
}

#[test]
fn numbers_of_no_kind_are_refused_by_the_key_that_says_so() {
    let group = |name| Group::of_linear(Weights::Numbers(Numbers::named(name).unwrap()));
    for (name, key, value, expected) in [
        ("fp8", "num_bits", json!(6), "num_bits"),
        ("fp8", "type", json!("int"), "num_bits"),
        ("fp8", "symmetric", json!(false), "symmetric"),
        ("fp8", "strategy", json!("group"), "strategy"),
        ("fp8-block", "block_structure", json!([64, 128]), "group_size"),
        ("nvfp4", "group_size", json!(32), "group_size"),
        ("mxfp4", "group_size", json!(null), "group_size"),
        ("mxfp8", "strategy", json!("channel"), "strategy"),
    ] {
        let mut json = Packed { groups: vec![group(name)], ignore: Vec::new() }.to_json();
        json["config_groups"]["group_0"]["weights"][key] = value;
        match Packed::from_json(&json) {
            Err(Flaw::Unsupported { key: found, .. }) => assert_eq!(found, expected, "{name} {key}"),
            other => panic!("{name} {key}: {other:?}"),
        }
    }
    let mixed = Packed { groups: vec![group("fp8"), group("nvfp4")], ignore: Vec::new() };
    assert_eq!(mixed.to_json()["format"], MIXED);
    assert_eq!(Packed::from_json(&mixed.to_json()).unwrap(), mixed);
}

/// A scheme may leave what is read alone, or round it in a way that nothing here follows.
#[test]
fn what_is_said_of_inputs_is_understood_apart_from_the_weights() {
    let fp8 = Packed {
        groups: vec![Group::of_linear(Weights::Numbers(Numbers::named("fp8").unwrap()))],
        ignore: Vec::new(),
    };
    assert_eq!(fp8.groups[0].inputs, Rounds::As(Inputs::FP8));
    let read = |inputs: Value| {
        let mut json = fp8.to_json();
        json["config_groups"]["group_0"]["input_activations"] = inputs;
        Packed::from_json(&json).unwrap().groups[0].inputs
    };
    let token =
        json!({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true, "observer": "minmax"});
    assert_eq!(read(token), Rounds::As(Inputs::FP8));
    assert_eq!(read(json!(null)), Rounds::No);
    for (key, value) in [("dynamic", json!(false)), ("num_bits", json!(4)), ("strategy", json!("tensor"))] {
        let mut other = Inputs::FP8.to_json();
        other[key] = value;
        assert_eq!(read(other), Rounds::Otherwise, "{key}");
    }
}
