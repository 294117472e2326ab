//! Models whose MLPs are made of experts, from the folder to the figures and back.

use std::collections::BTreeMap;
use std::fs;

use ::safetensors::tensor::TensorView;
use attar_checkpoint::{Container, Dtype, decode_floats, encode_floats, gguf, safetensors};
use serde_json::{Value, json};

use crate::forge;
use crate::place::{Place, fixture};

const EXPERTS: usize = 8;
const LAYERS: usize = 2;

/// How a checkpoint keeps the experts.
#[derive(Clone, Copy, PartialEq)]
pub enum Layout {
    /// Three matrices for each, as Mixtral's checkpoints do.
    Separate,
    /// Two tensors for all of a layer, as transformers 5 does in memory and on request in files.
    Stacked,
}

/// Numbers between -1 and 1, the same for the same seed.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32) - 1.0
    }
}

/// Mixtral out of the fixture model: every expert is its MLP with noise of its own, the router is random.
pub fn mixtral(place: &Place, name: &str, layout: Layout) {
    let copy = forge::copy(place, name);
    forge::edit_json(&copy.join("config.json"), |config| {
        config["architectures"] = json!(["MixtralForCausalLM"]);
        config["model_type"] = json!("mixtral");
        config.insert("num_local_experts".to_owned(), json!(EXPERTS));
        config.insert("num_experts_per_tok".to_owned(), json!(2));
    });
    let fixture = safetensors::open(&fixture("books-2m")).unwrap();
    let floats = |name: &str| decode_floats(Dtype::Bf16, fixture.bytes(name).unwrap()).unwrap();
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for info in fixture.tensors().iter().filter(|info| !info.name.contains(".mlp.")) {
        tensors.insert(info.name.clone(), (info.shape.clone(), floats(&info.name)));
    }
    for layer in 0..LAYERS {
        let at = format!("model.layers.{layer}");
        let [gate, up, down] =
            ["gate", "up", "down"].map(|part| floats(&format!("{at}.mlp.{part}_proj.weight")));
        let mut random = noise(layer as u64 + 1);
        let mut stacks = [Vec::new(), Vec::new()];
        for expert in 0..EXPERTS {
            let [gate, up, down] = [&gate, &up, &down].map(|w| {
                let spread = (w.iter().map(|x| x * x).sum::<f32>() / w.len() as f32).sqrt();
                w.iter().map(|x| x + 0.5 * spread * random()).collect::<Vec<f32>>()
            });
            if layout == Layout::Stacked {
                stacks[0].extend(gate.into_iter().chain(up));
                stacks[1].extend(down);
                continue;
            }
            for (part, shape, values) in
                [("w1", [512, 256], gate), ("w3", [512, 256], up), ("w2", [256, 512], down)]
            {
                let name = format!("{at}.block_sparse_moe.experts.{expert}.{part}.weight");
                tensors.insert(name, (shape.to_vec(), values));
            }
        }
        let mut random = noise(layer as u64 + 101);
        let router = (vec![EXPERTS, 256], (0..EXPERTS * 256).map(|_| 0.4 * random()).collect());
        if layout == Layout::Stacked {
            let [both, down] = stacks;
            tensors.insert(format!("{at}.mlp.experts.gate_up_proj"), (vec![EXPERTS, 1024, 256], both));
            tensors.insert(format!("{at}.mlp.experts.down_proj"), (vec![EXPERTS, 256, 512], down));
            tensors.insert(format!("{at}.mlp.gate.weight"), router);
        } else {
            tensors.insert(format!("{at}.block_sparse_moe.gate.weight"), router);
        }
    }
    let bytes: Vec<_> = tensors
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, encode_floats(Dtype::Bf16, &values).unwrap()))
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(::safetensors::Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    ::safetensors::serialize_to_file(views, None, &copy.join(forge::WEIGHTS)).unwrap();
}

fn perplexity(place: &Place, model: &str) -> Value {
    place.done(&format!("eval {model} --text heldout.txt --ctx 128 --chunks 4 --quiet --json eval.json"));
    place.json("eval.json")["evaluation"]["perplexity"].clone()
}

fn tensors(report: &Value) -> BTreeMap<String, Value> {
    let named = |t: &Value| (t["name"].as_str().unwrap().to_owned(), t.clone());
    report["tensors"].as_array().unwrap().iter().map(named).collect()
}

#[test]
fn experts_survive_every_layout_bit_for_bit() {
    let place = Place::new();
    mixtral(&place, "separate", Layout::Separate);
    mixtral(&place, "stacked", Layout::Stacked);
    place.done("convert separate -o kept.gguf --quiet --json report.json");
    place.done("convert kept.gguf -o back --quiet");
    place.done("convert stacked -o unstacked --quiet");
    let expected = perplexity(&place, "separate");
    assert!(expected["value"].as_f64().is_some_and(|value| value > 1.0 && value < 200.0), "{expected}");
    for model in ["stacked", "kept.gguf", "back", "unstacked"] {
        assert_eq!(perplexity(&place, model), expected, "{model}");
    }
    let separate = safetensors::open(&place.at("separate")).unwrap();
    for model in ["back", "unstacked"] {
        let other = safetensors::open(&place.at(model)).unwrap();
        assert_eq!(separate.tensors().len(), other.tensors().len(), "{model}");
        for info in separate.tensors() {
            let floats = |file: &safetensors::Folder| {
                let dtype = file.info(&info.name).unwrap_or_else(|| panic!("{model}: {}", info.name)).dtype;
                decode_floats(dtype, file.bytes(&info.name).unwrap()).unwrap()
            };
            assert!(floats(&separate) == floats(&other), "{model}: {}", info.name);
        }
    }

    let file = gguf::File::open(&place.at("kept.gguf")).unwrap();
    for (name, shape) in [
        ("blk.1.ffn_gate_exps.weight", vec![EXPERTS, 512, 256]),
        ("blk.1.ffn_down_exps.weight", vec![EXPERTS, 256, 512]),
    ] {
        assert_eq!(file.info(name).map(|info| &info.shape), Some(&shape), "{name}");
    }
    let router = file.info("blk.0.ffn_gate_inp.weight").unwrap();
    assert_eq!((router.dtype, &router.shape[..]), (Dtype::F32, &[EXPERTS, 256][..]));
    let report = place.json("report.json");
    let tensors = tensors(&report);
    let third = &tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"];
    assert_eq!(third["stored_name"], "blk.1.ffn_down_exps.weight");
    assert_eq!((&third["role"], &third["expert"]), (&json!("down_proj"), &json!(3)));
}

#[test]
fn experts_are_not_tuned_and_that_is_told_before_any_work() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Stacked);
    place.refuses(
        "quantize mixtral -o out.gguf --scheme q4_0 --tune-tokens 4096 --calib-tokens 4096 --ctx 128",
        &["experts", "backward pass", "--tune-tokens"],
    );
}

#[test]
fn gptq_fits_experts_to_the_tokens_they_get_and_reports_them() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Separate);
    for (output, scheme) in [("q4_k_m.gguf", "q4_k_m"), ("w4", "w4a16-g64")] {
        let mut cost = Vec::new();
        for method in ["rtn", "gptq"] {
            place.done(&format!(
                "quantize mixtral -o {output} --scheme {scheme} --method {method} --calib calibration.txt \
                 --calib-tokens 4096 --ctx 256 --text heldout.txt --chunks 10 --force --quiet --json report.json"
            ));
            let report = place.json("report.json");
            cost.push(report["evaluation"]["kl_divergence"]["mean"].as_f64().unwrap());

            let tokens = report["calibration"]["tokens"].as_u64().unwrap();
            let routing = report["calibration"]["routing"].as_array().unwrap();
            assert_eq!(routing.len(), LAYERS);
            let tensors = tensors(&report);
            for (layer, routing) in routing.iter().enumerate() {
                assert_eq!(routing["layer"], layer);
                let counts: Vec<_> =
                    routing["expert_tokens"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
                assert_eq!((counts.len(), counts.iter().sum::<u64>()), (EXPERTS, 2 * tokens));
                for (expert, count) in counts.iter().enumerate() {
                    let name = format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight");
                    assert_eq!(tensors[&name]["tokens_per_column"], json!(*count as f64 / 512.0), "{name}");
                }
            }
        }
        assert!(cost[1] < 0.7 * cost[0], "{scheme}: KL divergence {} by gptq, {} by rtn", cost[1], cost[0]);
    }

    let encodings = tensors(&{
        place.done(
            "quantize mixtral -o q4.gguf --scheme q4_k_m --method rtn --no-eval --quiet --json report.json",
        );
        place.json("report.json")
    });
    for (name, encoding) in [
        ("self_attn.q_proj", "q4_k"),
        ("self_attn.k_proj", "q8_0"),
        ("self_attn.v_proj", "q8_0"),
        ("self_attn.o_proj", "q5_k"),
        ("block_sparse_moe.gate", "f32"),
        ("block_sparse_moe.experts.7.w1", "q4_k"),
    ] {
        assert_eq!(encodings[&format!("model.layers.0.{name}.weight")]["encoding"], encoding, "{name}");
    }
    let config = place.json("w4/config.json");
    let ignore = config["quantization_config"]["ignore"].as_array().unwrap();
    assert!(ignore.contains(&json!("model.layers.1.block_sparse_moe.gate")), "{ignore:?}");
    let folder = safetensors::open(&place.at("w4")).unwrap();
    assert!(folder.info("model.layers.1.block_sparse_moe.experts.7.w3.weight_packed").is_some());
    assert!(folder.info("model.layers.1.block_sparse_moe.gate.weight").is_some());
}

#[test]
fn threads_and_memory_change_no_bit_of_experts() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Separate);
    let line = "quantize mixtral -o out.gguf --scheme q4_0 --method gptq --calib-tokens 2560 --ctx 128 --text heldout.txt \
                --chunks 2 --force --quiet --json report.json";
    let mut seen = Vec::new();
    for options in ["--threads 1", "--threads 2", "--threads 3"] {
        place.done(&format!("{line} {options}"));
        let mut report = place.json("report.json");
        seen.push((
            report["output"]["sha256"].take(),
            report["evaluation"].take(),
            report["calibration"].take(),
        ));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[1], seen[2]);
}

#[test]
fn an_expert_that_gets_no_token_is_fitted_to_others_and_the_report_says_so() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Separate);
    place.done(
        "quantize mixtral -o out --scheme w4a16-g64 --method gptq --ctx 16 --calib-tokens 16 --text heldout.txt \
         --chunks 2 --quiet --json report.json",
    );
    let report = place.json("report.json");
    let tensors = tensors(&report);
    let counts = report["calibration"]["routing"][0]["expert_tokens"].as_array().unwrap().clone();
    let starved =
        counts.iter().position(|count| *count == json!(0)).expect("an expert without a token among 16");
    let busy = counts.iter().position(|count| *count != json!(0)).unwrap();
    for part in ["w1", "w2", "w3"] {
        let of = |expert: usize| {
            &tensors[&format!("model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight")]
        };
        let said = of(starved)["fallback"].as_str().unwrap_or_else(|| panic!("{:#}", of(starved)));
        assert!(said.contains("no token was sent to this expert: fitted to 16 of all tokens"), "{said}");
        assert_eq!(of(starved)["tokens_per_column"], 0.0);
        assert_eq!(of(starved)["shrinkage"], 0.5);
        let said = of(busy)["fallback"].as_str().unwrap_or_default();
        assert!(!said.contains("no token"), "{said}");
    }
    assert!(report["evaluation"]["kl_divergence"]["mean"].as_f64().is_some_and(|kl| kl > 0.0 && kl < 1.0));
}

#[test]
fn a_rule_for_one_expert_is_refused_where_all_share_a_tensor() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Separate);
    place.refuses(
        "quantize mixtral -o out.gguf --scheme q4_0 --method rtn --tensor experts.3.w2=q8_0 --no-eval",
        &["experts.0.w2.weight` as q4_0", "experts.3.w2.weight` as q8_0", "blk.0.ffn_down_exps.weight"],
    );
    let plan = place.done(
        "quantize mixtral -o out.gguf --scheme q4_0 --method rtn --tensor ffn_down_exps=q8_0 --dry-run",
    );
    let lines = |pattern: &str| plan.lines().filter(|line| line.contains(pattern)).count();
    assert_eq!((lines("experts.*.w2"), lines("experts.")), (LAYERS, 3 * LAYERS), "{plan}");
    let down = plan.lines().find(|line| line.contains("experts.*.w2")).unwrap();
    assert!(down.contains("8 x 256 x 512") && down.contains("q8_0"), "{down}");

    let plan =
        place.done("quantize mixtral -o out.gguf --scheme q4_0 --calib-tokens 2048 --ctx 128 --dry-run");
    assert!(plan.contains("experts: one of 8 in memory at a time, each on some 512 of the tokens"), "{plan}");

    place.done("quantize mixtral -o out --scheme w4a16-g64 --method rtn --tensor experts.3.w2=float --no-eval --quiet");
    let folder = safetensors::open(&place.at("out")).unwrap();
    let has = |name: &str| folder.info(&format!("model.layers.1.block_sparse_moe.experts.{name}")).is_some();
    assert!(has("3.w2.weight") && has("2.w2.weight_packed") && !has("3.w2.weight_packed"));
}

#[test]
fn missing_and_misshapen_experts_are_named() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Stacked);
    forge::edit_json(&place.at("mixtral").join("config.json"), |config| {
        config["num_local_experts"] = json!(9);
    });
    place.refuses("convert mixtral -o out", &["model.layers.0.mlp.gate.weight", "[8, 256]", "[9, 256]"]);
    mixtral(&place, "separate", Layout::Separate);
    forge::edit_json(&place.at("separate").join("config.json"), |config| {
        config["num_local_experts"] = json!(9);
    });
    fs::write(place.at("separate").join("generation_config.json"), "{}").unwrap();
    place.refuses("convert separate -o out", &["model.layers.0.block_sparse_moe.gate.weight", "[8, 256]"]);
}
