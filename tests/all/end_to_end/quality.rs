//! What compression costs, and that it costs the same every time.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::place::Place;

/// With the texts that come with the program, and as many bytes either way.
#[test]
fn gptq_diverges_less_than_rounding_to_nearest() {
    let place = Place::new();
    let outputs: Vec<(&str, &str, String)> = [("q4_k_m", ".gguf"), ("q4_0", ".gguf"), ("w4a16-g64", "")]
        .into_iter()
        .flat_map(|(scheme, ending)| {
            ["rtn", "gptq"].map(|method| (scheme, method, format!("{scheme}-{method}{ending}")))
        })
        .collect();
    let tables = outputs.iter().map(|(scheme, method, output)| {
        format!("[[quantize]]\nscheme = \"{scheme}\"\nmethod = \"{method}\"\noutput = \"{output}\"\n")
    });
    place.write("recipe.toml", &format!("model = \"books-2m\"\n{}", tables.collect::<String>()));
    place.done("run recipe.toml --quiet --json report.json");

    let reports = place.json("report.json");
    let reports = reports.as_array().unwrap();
    assert_eq!(reports.len(), outputs.len());
    let mut cost: BTreeMap<(&str, &str), (f64, f64)> = BTreeMap::new();
    for ((scheme, method, output), report) in outputs.iter().zip(reports) {
        assert_eq!(report["output"]["scheme"], *scheme);
        assert_eq!(report["output"]["method"], *method);
        assert_eq!(report["output"]["path"], *output);
        let evaluation = &report["evaluation"];
        let number = |pointer: &str| evaluation.pointer(pointer).and_then(Value::as_f64).unwrap();
        let ratio = number("/perplexity/value") / number("/reference_perplexity/value");
        assert!((ratio - 1.0).abs() < 0.02, "{scheme} by {method}: perplexity times {ratio}");
        assert!(number("/top1_agreement") > 0.85, "{scheme} by {method}: {evaluation:#}");
        cost.insert(
            (scheme, method),
            (number("/kl_divergence/mean"), report["output"]["bits_per_weight"].as_f64().unwrap()),
        );
    }
    for scheme in ["q4_k_m", "q4_0", "w4a16-g64"] {
        let (rtn, gptq) = (cost[&(scheme, "rtn")], cost[&(scheme, "gptq")]);
        assert_eq!(rtn.1.to_bits(), gptq.1.to_bits(), "{scheme}: not the same bytes");
        assert!(gptq.0 < 0.6 * rtn.0, "{scheme}: KL divergence {} by gptq, {} by rtn", gptq.0, rtn.0);
    }
}

/// What the whole model predicts can be had nearer to the original at the same size, in files and in folders: by scales, norms and codes.
#[test]
fn tuning_lowers_the_divergence_at_the_same_size() {
    let place = Place::new();
    for (scheme, output) in
        [("q4_0", "out.gguf"), ("q2_k", "out.gguf"), ("w3a16-g64-asym", "out"), ("mxfp4", "out")]
    {
        let [plain, tuned] = ["", "--tune-tokens 32768"].map(|tuning| {
            place.done(&format!(
                "quantize books-2m -o {output} --scheme {scheme} --method rtn --calib calibration.txt --calib-tokens 32768 --ctx 128 \
                 --precision bf16 --text heldout.txt --chunks 24 --force --quiet --json report.json {tuning}"
            ));
            place.json("report.json")
        });
        let number = |report: &Value, pointer: &str| report.pointer(pointer).and_then(Value::as_f64).unwrap();
        let cost = |report: &Value| number(report, "/evaluation/kl_divergence/mean");
        assert!(cost(&tuned) < 0.85 * cost(&plain), "{scheme}: {} and {}", cost(&plain), cost(&tuned));
        assert_eq!(plain["output"]["bytes"], tuned["output"]["bytes"]);
        let held_out = |which| number(&tuned, &format!("/calibration/tuned/held_out_{which}"));
        assert!(held_out("after") < held_out("before"), "{scheme}: {:#}", tuned["calibration"]);
        assert_eq!(plain["calibration"]["tuned"], Value::Null);
    }
}

/// Chunks, windows and rows are shared out differently among one thread and two; no bit of a file or figure may tell.
#[test]
fn threads_and_repetition_change_no_bit() {
    let place = Place::new();
    for (output, scheme) in [("out.gguf", "q4_k_m"), ("out", "w4a16-g64-asym")] {
        let mut seen: Vec<(Value, Value)> = Vec::new();
        for threads in [1, 2, 2] {
            place.done(&format!(
                "quantize books-2m -o {output} --scheme {scheme} --calib-tokens 4500 --ctx 128 --chunks 4 \
                 --threads {threads} --force --quiet --json report.json"
            ));
            let mut report = place.json("report.json");
            assert_eq!(report["run"]["threads"], threads);
            assert!(report["output"]["sha256"].as_str().is_some_and(|hash| hash.len() == 64));
            seen.push((report["output"].take(), report["evaluation"].take()));
        }
        assert_eq!(seen[0], seen[1], "{scheme}: one thread and two");
        assert_eq!(seen[1], seen[2], "{scheme}: two runs");
    }
}

#[test]
fn rules_for_single_tensors_are_kept_and_the_first_match_wins() {
    let place = Place::new();
    let rules = "--tensor layers.0.*down_proj=q8_0 --tensor ffn_down=q5_k --tensor attn_q=f16";
    place.done(&format!(
        "quantize books-2m -o out.gguf --scheme q4_0 --method rtn --no-eval --quiet --json report.json {rules}"
    ));
    let encodings = encodings(&place.json("report.json"));
    for (name, encoding) in [
        ("model.layers.0.mlp.down_proj.weight", "q8_0"),
        ("model.layers.1.mlp.down_proj.weight", "q5_k"),
        ("model.layers.0.self_attn.q_proj.weight", "f16"),
        ("model.layers.1.self_attn.q_proj.weight", "f16"),
        ("model.layers.1.self_attn.k_proj.weight", "q4_0"),
        ("model.embed_tokens.weight", "q6_k"),
        ("model.norm.weight", "f32"),
    ] {
        assert_eq!(encodings[name], encoding, "{name}");
    }
}

#[test]
fn a_matrix_of_a_folder_can_be_left_unquantized() {
    let place = Place::new();
    let line = "quantize books-2m -o out --scheme w4a16-g64 --method rtn --tensor down_proj=float --quiet --json report.json";
    place.done(&format!("{line} --ctx 128 --chunks 1"));
    let encodings = encodings(&place.json("report.json"));
    assert_eq!(encodings["model.layers.1.mlp.down_proj.weight"], "bf16");
    assert_eq!(encodings["model.layers.1.mlp.up_proj.weight"], "w4-g64");
    let config = place.json("out/config.json");
    let ignore = config["quantization_config"]["ignore"].as_array().unwrap();
    assert!(ignore.contains(&"model.layers.1.mlp.down_proj".into()), "{ignore:?}");
}

fn encodings(report: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    report["tensors"].as_array().unwrap().iter().map(|t| (text(&t["name"]), text(&t["encoding"]))).collect()
}

/// A long text leaves a tail and a short one no window at all: together they fill some.
#[test]
fn short_calibration_texts_count_too() {
    let place = Place::new();
    let long = std::fs::read_to_string(crate::place::fixture("calibration.txt")).unwrap();
    place.write("long.txt", &long[..8000]);
    place.write("short.txt", &long[20_000..21_200]);
    place.write("another.txt", &long[30_000..31_200]);
    let mut tokens = Vec::new();
    for files in ["--calib long.txt", "--calib long.txt --calib short.txt --calib another.txt"] {
        place.done(&format!(
            "quantize books-2m -o out.gguf --scheme q4_0 --no-eval --force --quiet --json report.json {files}"
        ));
        tokens.push(place.json("report.json")["calibration"]["tokens"].as_u64().unwrap());
    }
    assert!(tokens[1] > tokens[0], "{tokens:?}");
}

/// Rounding activations and weights to bf16 costs a hundredth of what four bits cost, and a file calibrated so is as good.
#[test]
fn bf16_changes_figures_far_less_than_quantizing_does() {
    let place = Place::new();
    for (precision, output) in [("f32", "exact.gguf"), ("bf16", "rounded.gguf")] {
        place.done(&format!(
            "quantize books-2m -o {output} --scheme q4_k_m --precision {precision} --no-eval --calib-tokens 8192"
        ));
    }
    let kl_divergence = |model: &str, precision: &str| {
        place.done(&format!(
            "eval {model} --reference books-2m --text heldout.txt --ctx 128 --precision {precision} --json r.json"
        ));
        let report = place.json("r.json");
        assert_eq!(report["run"]["precision"], precision);
        report.pointer("/evaluation/kl_divergence/mean").and_then(Value::as_f64).unwrap()
    };
    let exact = kl_divergence("exact.gguf", "f32");
    for (model, precision) in [("exact.gguf", "bf16"), ("rounded.gguf", "f32")] {
        let found = kl_divergence(model, precision);
        assert!((found / exact - 1.0).abs() < 0.05, "{model} in {precision}: {found} beside {exact}");
    }
}
