//! Folders in the layouts of GPTQ and AWQ: written, read, converted.

use attar_checkpoint::{Container, safetensors};
use serde_json::{Value, json};

use crate::forge::edit_json;
use crate::place::Place;

/// Layout, scheme, and what its configuration must say besides.
const LAYOUTS: [(&str, &str, &str, &str); 7] = [
    ("gptq", "w4a16-g64", "checkpoint_format", "gptq"),
    ("gptq", "w2a16-g32", "checkpoint_format", "gptq"),
    ("gptq", "w3a16-g64-asym", "checkpoint_format", "gptq_v2"),
    ("gptq", "w8a16-g128", "checkpoint_format", "gptq"),
    ("gptq", "w4a16-g128-asym", "checkpoint_format", "gptq_v2"),
    ("awq", "w4a16-g64", "version", "gemm"),
    ("awq", "w4a16-g128-asym", "version", "gemm"),
];

fn quantize(place: &Place, layout: &str, scheme: &str, output: &str) {
    let json = output.split(' ').next().unwrap_or_default();
    place.done(&format!(
        "quantize books-2m -o {output} --scheme {scheme} --format {layout} --method rtn --no-eval --quiet --json {json}.json"
    ));
}

/// What each tensor decodes to, by name, as a report has it.
fn decoded(report: &Value) -> Vec<(&str, &str)> {
    let tensors = report["tensors"].as_array().unwrap().iter();
    let mut decoded: Vec<_> = tensors
        .map(|tensor| (tensor["name"].as_str().unwrap(), tensor["decoded_sha256"].as_str().unwrap()))
        .collect();
    decoded.sort_unstable();
    decoded
}

#[test]
fn the_numbers_of_a_layout_are_those_of_its_plain_copy() {
    let place = Place::new();
    for (at, (layout, scheme, key, value)) in LAYOUTS.into_iter().enumerate() {
        let output = format!("out-{at}");
        quantize(&place, layout, scheme, &output);
        let config = &place.json(&format!("{output}/config.json"))["quantization_config"];
        assert_eq!(
            (&config["quant_method"], &config[key]),
            (&json!(layout), &json!(value)),
            "{layout} {scheme}"
        );
        let report = place.json(&format!("{output}.json"));
        assert_eq!(report["output"]["format"], layout);

        place.done(&format!("convert {output} -o {output}-plain --quiet --json plain.json"));
        let plain = place.json("plain.json");
        assert_eq!(decoded(&plain), decoded(&report), "{layout} {scheme}");
        assert_eq!(plain["output"]["format"], "plain");
        let config = place.json(&format!("{output}-plain/config.json"));
        assert_eq!(config.get("quantization_config"), None);
    }
}

#[test]
fn layouts_are_evaluated_and_inspected_like_any_model() {
    let place = Place::new();
    for (layout, report) in [("gptq", "a.json"), ("awq", "b.json")] {
        quantize(&place, layout, "w4a16-g64", layout);
        place.done(&format!("eval {layout} --text heldout.txt --ctx 128 --chunks 2 --quiet --json {report}"));
        let text = place.done(&format!("inspect {layout}"));
        for part in [layout, "2,229,504", "group_size 64"] {
            assert!(text.contains(part), "no {part} in:\n{text}");
        }
    }
    let perplexity = |report: &str| place.json(report)["evaluation"]["perplexity"]["value"].clone();
    assert_eq!(perplexity("a.json"), perplexity("b.json"), "one scheme in two layouts");
}

/// Seven tensors of a layer, in what GPTQ's readers look for.
#[test]
fn a_gptq_folder_has_the_tensors_that_readers_look_for() {
    let place = Place::new();
    quantize(&place, "gptq", "w4a16-g64", "out");
    let folder = safetensors::Folder::open(&place.at("out")).unwrap();
    let shape = |name: &str| {
        folder.info(&format!("model.layers.1.mlp.down_proj.{name}")).map(|info| info.shape.clone())
    };
    assert_eq!(shape("qweight"), Some(vec![64, 256]));
    assert_eq!(shape("qzeros"), Some(vec![8, 32]));
    assert_eq!(shape("scales"), Some(vec![8, 256]));
    assert_eq!(shape("g_idx"), Some(vec![512]));
    assert_eq!(shape("weight"), None);
    let zeros = folder.bytes("model.layers.1.mlp.down_proj.qzeros").unwrap();
    assert!(zeros.iter().all(|&byte| byte == 0x77), "zeros of 8, less 1");
}

/// Columns of another order belong to the groups that `g_idx` says.
#[test]
fn columns_that_g_idx_gives_to_other_groups_are_read_with_their_scales() {
    let place = Place::new();
    quantize(&place, "gptq", "w4a16-g64", "out");
    let name = "model.layers.0.mlp.up_proj";
    let before = load(&place, name);
    edit_tensor(&place, &format!("{name}.g_idx"), |bytes| {
        let (first, last) = (bytes[..4].to_vec(), bytes[4 * 255..].to_vec());
        bytes[..4].copy_from_slice(&last);
        bytes[4 * 255..].copy_from_slice(&first);
    });
    edit_json(&place.at("out/config.json"), |config| config["quantization_config"]["desc_act"] = json!(true));
    let after = load(&place, name);
    let scales: Vec<f32> = scales(&place, name);
    for row in 0..512 {
        for (col, from, to) in [(0, 0, 3), (255, 3, 0)] {
            let at = row * 256 + col;
            let code = before[at] / scales[from * 512 + row];
            let want = code.round() * scales[to * 512 + row];
            assert_eq!(after[at].to_bits(), want.to_bits(), "row {row}, column {col}");
        }
        assert_eq!(after[row * 256 + 1..row * 256 + 255], before[row * 256 + 1..row * 256 + 255]);
    }
}

fn load(place: &Place, name: &str) -> Vec<f32> {
    use attar_model::Weights as _;
    let source = attar::source::Source::open(&place.at("out")).unwrap();
    source.load(&format!("{name}.weight")).unwrap().into_raw_vec_and_offset().0
}

fn scales(place: &Place, name: &str) -> Vec<f32> {
    let folder = safetensors::Folder::open(&place.at("out")).unwrap();
    attar_checkpoint::decode_floats(
        attar_checkpoint::Dtype::F16,
        folder.bytes(&format!("{name}.scales")).unwrap(),
    )
    .unwrap()
}

fn edit_tensor(place: &Place, tensor: &str, edit: impl FnOnce(&mut [u8])) {
    crate::forge::edit_weights(&place.at("out"), |header, data| {
        let [start, end] = [0, 1].map(|at| header[tensor]["data_offsets"][at].as_u64().unwrap() as usize);
        edit(&mut data[start..end]);
    });
}

/// A lie of a folder, how it is told, and what the error must name.
type Lie = (&'static str, fn(&Place), &'static [&'static str]);

fn says(place: &Place, key: &str, value: Value) {
    edit_json(&place.at("out/config.json"), |config| config["quantization_config"][key] = value);
}

/// Takes a tensor of the first layer out of the file.
fn without(place: &Place, tensor: &str) {
    crate::forge::edit_weights(&place.at("out"), |header, _| {
        let name = format!("model.layers.0.self_attn.q_proj.{tensor}");
        let entry = header.shift_remove(&name).unwrap();
        header.insert(format!("spare.{tensor}"), entry);
    });
}

const GPTQ_LIES: [Lie; 9] = [
    ("bits that GPTQ has not", |place| says(place, "bits", json!(5)), &["bits = 5"]),
    ("other bits than the tensors have", |place| says(place, "bits", json!(8)), &["qzeros", "[2, 64]"]),
    ("a group size that does not divide", |place| says(place, "group_size", json!(96)), &["96", "256"]),
    (
        "another group size than the tensors have",
        |place| says(place, "group_size", json!(32)),
        &["qzeros", "[8, 32]"],
    ),
    (
        "an unknown quant_method",
        |place| says(place, "quant_method", json!("hqq")),
        &["quant_method = hqq", "gptq"],
    ),
    (
        "an unknown format",
        |place| says(place, "checkpoint_format", json!("marlin")),
        &["checkpoint_format = marlin"],
    ),
    ("no zeros", |place| without(place, "qzeros"), &["q_proj.qzeros", "missing"]),
    (
        "an order of columns, and none is there",
        |place| {
            says(place, "desc_act", json!(true));
            without(place, "g_idx");
        },
        &["q_proj.g_idx", "missing"],
    ),
    ("no scales", |place| without(place, "scales"), &["q_proj.scales", "missing"]),
];

const AWQ_LIES: [Lie; 4] = [
    ("bits that AWQ has not", |place| says(place, "bits", json!(3)), &["bits = 3"]),
    (
        "an order of codes that is not read",
        |place| says(place, "version", json!("gemv")),
        &["version = gemv"],
    ),
    ("a group size that does not divide", |place| says(place, "group_size", json!(96)), &["96", "256"]),
    ("no zeros", |place| without(place, "qzeros"), &["q_proj.qzeros", "missing"]),
];

#[test]
fn folders_that_lie_are_refused_by_what_they_lie_about() {
    let place = Place::new();
    for (layout, lies) in [("gptq", &GPTQ_LIES[..]), ("awq", &AWQ_LIES[..])] {
        for (lie, tell, named) in lies {
            quantize(&place, layout, "w4a16-g64", "out --force");
            tell(&place);
            let run = place.run("convert out -o plain");
            assert_eq!(run.code, Some(2), "{layout}, {lie}: {}", run.stderr);
            run.is_complaint(named);
        }
    }
}

#[test]
fn a_group_that_is_not_there_is_named() {
    let place = Place::new();
    quantize(&place, "gptq", "w4a16-g64", "out");
    edit_tensor(&place, "model.layers.0.self_attn.q_proj.g_idx", |bytes| {
        bytes[4..8].copy_from_slice(&4i32.to_le_bytes());
    });
    place.run("convert out -o plain").is_complaint(&["q_proj.weight", "column 1 belongs to group 4, of 4"]);
}

#[test]
fn shapes_that_no_reader_takes_are_refused_before_any_work() {
    let place = Place::new();
    for (layout, scheme, parts) in [
        ("gptq", "w4a16-g8", &["gptq", "groups of 8", "16, 32, 64, 128"][..]),
        ("awq", "w4a16-g256", &["awq", "groups of 256"]),
        ("gptq", "w5a16-g64", &["gptq", "w5a16-g64"]),
        ("awq", "w8a16-g64", &["awq", "w8a16-g64"]),
    ] {
        place.refuses(&format!("quantize books-2m -o out --scheme {scheme} --format {layout}"), parts);
    }
}
