//! A model of every family through both containers, quantized with statistics of text.

use std::fs;
use std::path::{Path, PathBuf};

use attar_checkpoint::{Container, decode_floats, safetensors};
use attar_model::family::{GgufWindow, QkNorm};
use attar_model::{FAMILIES, Family, GgufAdds, ModelConfig, Role, RopeScaling, TensorSpec};
use serde_json::{Value, json};

use super::QUICK;
use crate::forge;
use crate::place::{Place, fixture};

/// What the golden model of a family says, with the fixture's vocabulary, and sizes that blocks and llama.cpp take.
fn config(family: &Family) -> Value {
    let golden = fixture("golden/model").join(match family.name {
        "llama" => "llama-3.1",
        "qwen3_moe" => "qwen3-moe",
        name => name,
    });
    let mut config: Value = serde_json::from_slice(&fs::read(golden.join("config.json")).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", json!(64)),
        ("intermediate_size", json!(64)),
        ("moe_intermediate_size", json!(64)),
        ("head_dim", json!(16)),
        ("query_pre_attn_scalar", json!(16)),
        ("vocab_size", json!(4096)),
        ("max_position_embeddings", json!(256)),
        ("bos_token_id", json!(4094)),
        ("eos_token_id", json!(4095)),
    ] {
        config[key] = value;
    }
    config
}

/// Reproducible bf16 values of about the size that keeps activations in bounds.
fn values(spec: &TensorSpec, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let spread = if spec.shape.len() == 2 { 1.7 / (spec.shape[1] as f32).sqrt() } else { 0.3 };
    let random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = spread * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0);
        ((x.to_bits() >> 16) as u16).to_le_bytes()
    };
    std::iter::repeat_with(random).take(spec.len()).flatten().collect()
}

/// A random model of a family, with the fixture's tokenizer.
fn model(place: &Place, family: &Family) -> PathBuf {
    let folder = forge::copy(place, family.name);
    let json = config(family);
    fs::write(folder.join("config.json"), json.to_string()).unwrap();
    let config = ModelConfig::from_hf(&json).unwrap();
    let tensors: Vec<_> = (1..)
        .zip(config.tensors())
        .map(|(seed, spec)| (spec.name.clone(), spec.shape.clone(), values(&spec, seed)))
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let dtype = ::safetensors::Dtype::BF16;
        (name, ::safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    ::safetensors::serialize_to_file(views, None, &folder.join(forge::WEIGHTS)).unwrap();
    folder
}

/// Families that compute as Llama does, in whatever order their own GGUF files keep rows; of the others it is said what they have
/// that Llama has not.
#[test]
fn families_of_llamas_kind_have_layers_of_their_own_sizes_and_others_are_refused() {
    let place = Place::new();
    let mut written = Vec::new();
    for family in FAMILIES {
        let name = family.name;
        if family.experts.is_some() {
            continue; // whose layers do not compete
        }
        model(&place, family);
        let line = |output: &str| {
            format!("prune {name} -o {output} --ffn 0.5 --across-layers {QUICK} --quiet --json report.json")
        };
        let perplexity = |line: &str| {
            place.done(line);
            place.json("report.json")["evaluation"]["perplexity"]["value"].as_f64().unwrap()
        };
        let own = format!("{} --arch deci", line(&format!("{name}.gguf")));
        if ["llama", "mistral", "qwen2"].contains(&name) {
            let (filled, own) = (perplexity(&line(&format!("{name}-filled"))), perplexity(&own));
            assert!((filled / own - 1.0).abs() < 1e-5, "{name}: {filled} and {own}");
            written.push(name);
        } else {
            place.refuses(&own, &["architecture `deci`", "leave --arch out"]);
        }
    }
    assert_eq!(written, ["llama", "mistral", "qwen2"]);
}

/// The values of every tensor, in the order of the model.
fn tensors(folder: &Path) -> Vec<Vec<f32>> {
    let files = safetensors::open(folder).unwrap();
    let floats =
        |name: &str| decode_floats(files.info(name).unwrap().dtype, files.bytes(name).unwrap()).unwrap();
    read_config(folder).tensors().iter().map(|spec| floats(&spec.name)).collect()
}

fn read_config(folder: &Path) -> ModelConfig {
    ModelConfig::from_hf(&serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap())
        .unwrap()
}

/// Families that share an architecture of GGUF files, all with experts or all without, come back as the first of them, and
/// so are left out.
fn in_gguf() -> impl Iterator<Item = &'static Family> {
    let kind = |family: &Family| (family.gguf_arch, family.experts.is_some());
    let first = move |family: &Family| FAMILIES.iter().find(|other| kind(other) == kind(family));
    FAMILIES.iter().copied().filter(move |family| first(family) == Some(family))
}

#[test]
fn every_family_goes_to_gguf_and_comes_back() {
    let place = Place::new();
    for family in in_gguf() {
        let name = family.name;
        let folder = model(&place, family);
        let was = read_config(&folder);
        place.done(&format!("convert {name} -o {name}.gguf --quiet"));
        let eval = |model: &str| {
            place.done(&format!(
                "eval {model} --text heldout.txt --ctx 64 --chunks 4 --quiet --json eval.json"
            ));
            place.json("eval.json")["evaluation"]["perplexity"]["value"].as_f64().unwrap()
        };
        let (of_folder, of_gguf) = (eval(name), eval(&format!("{name}.gguf")));
        assert_eq!(of_folder.to_bits(), of_gguf.to_bits(), "{name}: {of_folder} and {of_gguf}");
        // Either is as good a source: whatever rows and norms the file keeps otherwise, the same matrices come of it.
        let made_from = |model: &str| {
            let line = "--scheme q4_0 --method rtn --no-eval --force --quiet --json made.json";
            place.done(&format!("quantize {model} -o made.gguf {line}"));
            let tensors = place.json("made.json")["tensors"].as_array().unwrap().clone();
            let coded = tensors.into_iter().filter(|t| t["encoding"] != "f32");
            coded.map(|t| (t["name"].clone(), t["decoded_sha256"].clone())).collect::<Vec<_>>()
        };
        assert_eq!(made_from(name), made_from(&format!("{name}.gguf")), "{name}");
        if matches!(was.rope_scaling, Some(RopeScaling::Llama3(_))) {
            continue; // these factors have no way back into a configuration
        }
        place.done(&format!("convert {name}.gguf -o {name}-back --quiet"));
        let back = place.at(&format!("{name}-back"));
        let windows = if family.gguf_window == GgufWindow::Unsaid {
            vec![None; was.num_hidden_layers]
        } else {
            was.sliding_windows.clone()
        };
        assert_eq!(read_config(&back), ModelConfig { sliding_windows: windows, ..was.clone() }, "{name}");
        for (spec, (came_back, values)) in
            was.tensors().iter().zip(tensors(&back).iter().zip(tensors(&folder)))
        {
            // One has been added to these, and taken away again.
            let allowed = if spec.gguf_adds == GgufAdds::One { f32::EPSILON / 2.0 } else { 0.0 };
            let near = came_back.iter().zip(&values).all(|(a, b)| (a - b).abs() <= allowed);
            assert!(near && came_back.len() == values.len(), "{}: other values came back", spec.name);
        }
    }
}

#[test]
fn every_family_is_quantized_with_statistics_of_what_its_matrices_read() {
    let place = Place::new();
    for family in FAMILIES {
        let name = family.name;
        let config = read_config(&model(&place, family));
        for (output, scheme) in [("out.gguf", "q4_0"), ("out", "w8a16-g32")] {
            place.done(&format!(
                "quantize {name} -o {output} --scheme {scheme} {QUICK} --force --quiet --json report.json"
            ));
            let report = place.json("report.json");
            let reported = report["tensors"].as_array().unwrap();
            assert_eq!(reported.len(), config.tensors().len(), "{name}");
            for (tensor, spec) in reported.iter().zip(config.tensors()) {
                assert_eq!(tensor["name"], spec.name);
                let is_head =
                    spec.role == Role::Head || spec.role == Role::Embedding && config.tie_word_embeddings;
                let coded =
                    if is_head { scheme == "q4_0" } else { spec.tap.is_some() && spec.role != Role::Router };
                let tokens = tensor["tokens_per_column"].as_f64();
                assert_eq!(tokens.is_some(), coded, "{name} as {scheme}: {tensor}");
                let (error, rtn) = (tensor["relative_error"].as_f64(), tensor["rtn_relative_error"].as_f64());
                assert!(!coded || error <= rtn, "{name} as {scheme}: {tensor}");
            }
            let divergence = report["evaluation"]["kl_divergence"]["mean"].as_f64().unwrap();
            assert!(divergence.is_finite() && divergence > 0.0, "{name} as {scheme}: {divergence}");
        }
    }
}

/// Without one of them the others would be divided by something else at every token, which no weight makes up for.
#[test]
fn heads_that_are_normed_together_are_cut_by_nobody_and_all_else_is() {
    let place = Place::new();
    let together: Vec<_> = FAMILIES.iter().filter(|family| family.qk_norm == QkNorm::Whole).collect();
    assert!(!together.is_empty());
    for family in together {
        let name = family.name;
        model(&place, family);
        let parts =
            [&*format!("heads of a {name} model cannot be cut"), "root mean square of all heads", "--ffn"];
        place.refuses(&format!("prune {name} -o out --heads 0.5 {QUICK}"), &parts);
        place.done(&format!("prune {name} -o {name}-cut --ffn 0.5 {QUICK} --quiet"));
    }
}

/// What is divided in norms, v and up is multiplied in what reads it, as every family computes: at eight bits next to nothing is lost, and
/// norms that are added to one, matrices of several parts and heads that share a value are no exception.
#[test]
fn equalizing_leaves_a_model_of_every_family_what_it_was() {
    let place = Place::new();
    for family in FAMILIES {
        let name = family.name;
        let folder = model(&place, family);
        place.done(&format!(
            "quantize {name} -o {name}-awq --scheme w8a16-g16 --method awq --calib calibration.txt --calib-tokens 1024 --ctx 64 --text \
             heldout.txt --chunks 4 --quiet --json report.json"
        ));
        let report = place.json("report.json");
        assert_eq!(report["output"]["method"], "awq");
        let cost = report["evaluation"]["kl_divergence"]["mean"].as_f64().unwrap();
        assert!(cost < 2e-3, "{name}: {cost}");
        if family.norms.before() {
            let norm = |folder: &Path| {
                let files = safetensors::open(folder).unwrap();
                files.bytes("model.layers.0.input_layernorm.weight").unwrap().to_vec()
            };
            assert_ne!(
                norm(&folder),
                norm(&place.at(&format!("{name}-awq"))),
                "{name}: nothing was equalized"
            );
        }
    }
}
