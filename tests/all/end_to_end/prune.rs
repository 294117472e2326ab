//! Models made smaller by cutting: what is written opens, and says what was reported.

use attar_checkpoint::{Container, decode_floats, safetensors};
use serde_json::Value;

use super::QUICK;
use super::experts::{Layout, mixtral};
use crate::place::Place;

fn number(report: &Value, pointer: &str) -> f64 {
    report.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer} in {report:#}"))
}

/// To half of the channels and half of the heads: a folder and a GGUF file that are the same model, at a cost that is told.
#[test]
fn a_folder_and_a_gguf_file_pruned_alike_score_alike() {
    let place = Place::new();
    let mut perplexities = Vec::new();
    for output in ["small", "small.gguf"] {
        place.done(&format!(
            "prune books-2m -o {output} --ffn 0.5 --heads 4 {QUICK} --quiet --json report.json"
        ));
        let report = place.json("report.json");
        let pruning = &report["pruning"];
        assert_eq!(pruning["before"]["intermediate_size"], 512);
        assert_eq!(pruning["after"]["intermediate_size"], 256);
        assert_eq!(pruning["after"]["query_heads"], 4);
        assert_eq!(pruning["after"]["kv_heads"], 4);
        assert_eq!(pruning["compensation"], "least-squares");
        for layer in pruning["layers"].as_array().unwrap() {
            let heads: Vec<u64> =
                layer["query_heads"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() / 2).collect();
            assert_eq!(heads, [0, 1, 2, 3], "one of each key head's two");
            for matrix in ["o_proj", "down_proj"] {
                let (dropped, error) = (
                    number(layer, &format!("/{matrix}/error_dropped")),
                    number(layer, &format!("/{matrix}/error")),
                );
                assert!(0.0 < error && error < 0.9 * dropped, "{matrix}: {error} of {dropped}");
            }
        }
        perplexities.push(number(&report, "/evaluation/perplexity/value"));
        assert!(number(&report, "/evaluation/kl_divergence/mean") > 0.0);
    }
    assert!((perplexities[0] / perplexities[1] - 1.0).abs() < 1e-6, "{perplexities:?}");
    let config = place.json("small/config.json");
    for (key, value) in [
        ("intermediate_size", 256),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 4),
        ("head_dim", 32),
        ("hidden_size", 256),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    // And it is a model like any other.
    place.done("quantize small -o again.gguf --scheme q4_k_m --method rtn --no-eval --quiet");
    place.done(&format!("prune small -o smaller --layers 1 --hidden 0.75 {QUICK} --quiet"));
    let config = place.json("smaller/config.json");
    assert_eq!((config["num_hidden_layers"].as_u64(), config["hidden_size"].as_u64()), (Some(1), Some(192)));
}

#[test]
fn repaired_is_closer_to_the_original_than_unrepaired_whatever_the_criterion() {
    let place = Place::new();
    for criterion in ["second-order", "activation", "fluctuation", "taylor", "magnitude"] {
        let mut cost = Vec::new();
        for (output, repair) in [("with", ""), ("without", "--no-repair")] {
            place.done(&format!(
                "prune books-2m -o {output} --ffn 0.5 --criterion {criterion} {repair} --calib-tokens 8192 --ctx 128 --chunks 8 \
                 --force --quiet --json report.json"
            ));
            let report = place.json("report.json");
            assert_eq!(report["pruning"]["criterion"], criterion);
            cost.push(number(&report, "/evaluation/kl_divergence/mean"));
        }
        assert!(cost[0] < cost[1], "{criterion}: KL divergence {} repaired, {} not", cost[0], cost[1]);
    }
}

#[test]
fn layers_go_by_number_or_by_what_their_loss_costs() {
    let place = Place::new();
    place.done(&format!("prune books-2m -o first --drop 0 {QUICK} --quiet --json first.json"));
    place.done(&format!("prune books-2m -o last --drop 1 {QUICK} --quiet --json last.json"));
    place.done(&format!("prune books-2m -o chosen --layers 1 {QUICK} --quiet --json chosen.json"));
    let [first, last, chosen] = ["first.json", "last.json", "chosen.json"].map(|name| place.json(name));
    let kl = |report: &Value| number(report, "/evaluation/kl_divergence/mean");
    assert!(kl(&chosen) <= kl(&first).min(kl(&last)), "the better of the two");
    assert_eq!(chosen["pruning"]["depth_criterion"], "loss");
    assert_eq!(first["pruning"]["dropped_layers"], serde_json::json!([{"layer": 0}]));
    assert_eq!(place.json("first/config.json")["num_hidden_layers"], 1);
}

/// The experts that stay are those that count for most, and every tensor of the others is gone.
#[test]
fn experts_go_and_tokens_are_sent_to_the_others() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Separate);
    let mut perplexities = Vec::new();
    for output in ["few", "few.gguf"] {
        place.done(&format!(
            "prune mixtral -o {output} --experts 5 --heads 4 {QUICK} --quiet --json report.json"
        ));
        let report = place.json("report.json");
        assert_eq!(report["pruning"]["after"]["experts"], 5);
        for layer in report["pruning"]["layers"].as_array().unwrap() {
            assert_eq!(layer["experts"].as_array().unwrap().len(), 5);
        }
        perplexities.push(number(&report, "/evaluation/perplexity/value"));
    }
    assert!((perplexities[0] / perplexities[1] - 1.0).abs() < 1e-6, "{perplexities:?}");
    assert_eq!(place.json("few/config.json")["num_local_experts"], 5);
    place.refuses("prune mixtral -o out --experts 1", &["--experts 1", "every token goes to 2"]);
    place.refuses("prune mixtral -o out --ffn 0.5", &["--ffn", "experts", "--experts"]);
    place.refuses(
        "prune mixtral -o out --heads 4 --criterion taylor",
        &["taylor", "gradients", "second-order"],
    );
}

/// Of shapes of the same size the nearest to the model is made, as if it had been named.
#[test]
fn a_target_is_met_by_the_best_of_the_shapes_that_were_measured() {
    let place = Place::new();
    let mut seen = Vec::new();
    for threads in [1, 2] {
        let line = format!(
            "prune books-2m -o found --target-params 0.75 {QUICK} --threads {threads} --quiet --force"
        );
        place.done(&format!("{line} --json report.json"));
        seen.push(place.json("report.json")["pruning"].take());
    }
    assert_eq!(seen[0], seen[1]);
    let search = &seen[0]["search"];
    assert_eq!((&search["target_parameters"], &search["tokens"]), (&1_672_128.into(), &256.into()));
    let candidates = search["candidates"].as_array().unwrap();
    let divergence = |candidate: &Value| number(candidate, "/kl_divergence");
    let chosen: Vec<&Value> = candidates.iter().filter(|candidate| candidate["chosen"] == true).collect();
    assert!(candidates.len() > 3 && chosen.len() == 1, "{search:#}");
    for candidate in candidates {
        let parameters = number(candidate, "/shape/parameters");
        assert!((0.95 * 1_672_128.0..=1_672_128.0).contains(&parameters), "{candidate:#}");
        assert!(divergence(candidate) >= divergence(chosen[0]) && divergence(chosen[0]) > 0.0);
    }
    assert_eq!(seen[0]["after"], chosen[0]["shape"]);
    let [layers, ffn, heads, kv_heads] = ["layers", "intermediate_size", "query_heads", "kv_heads"]
        .map(|key| chosen[0]["shape"][key].as_u64().unwrap());
    place.done(&format!(
        "prune books-2m -o named --layers {layers} --ffn {ffn} --heads {heads} --kv-heads {kv_heads} {QUICK} --quiet"
    ));
    let weights = |folder: &str| std::fs::read(place.at(folder).join("model.safetensors")).unwrap();
    assert!(weights("found") == weights("named"));
}

#[test]
fn targets_that_cannot_be_met_are_refused_before_any_work() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Separate);
    for (options, parts) in [
        (
            "books-2m --target-params 0.2",
            &["no shape comes to 445,900", "the smallest that is tried has", "--hidden"][..],
        ),
        ("books-2m --target-params 5M", &["2,229,504", "5,000,000", "0.6"]),
        ("books-2m --target-params 0.75 --align 512 --hidden 0.3", &["--align 512"]),
        ("books-2m --target-params 0.75 --ctx 128 --calib-tokens 128", &["one window", "--calib"]),
        ("books-2m --target-params 0.75 --criterion guess", &["guess", "second-order"]),
        ("mixtral --target-params 0.75", &["experts", "--experts N"]),
    ] {
        place.refuses(&format!("prune {options} -o out"), parts);
    }
    place.refuses(
        "prune books-2m -o out --target-params 0.6 --sparsity 2:4",
        &["zeros and a smaller shape", "--sparsity"],
    );
    for other in ["--layers 1", "--ffn 0.5", "--heads 4", "--drop 0", "--experts 2"] {
        let run = place.run(&format!("prune books-2m -o out --target-params 0.6 {other}"));
        let name = other.split(' ').next().unwrap();
        assert!(
            run.code == Some(2) && run.stderr.contains("cannot be used with") && run.stderr.contains(name)
        );
    }
}

/// A shape that some program does not take is made where it is asked for, and the report says so as the plan does.
#[test]
fn a_report_says_what_a_shape_rules_out() {
    let place = Place::new();
    let line = format!("prune books-2m --no-repair {QUICK}");
    let said = place.done(&format!("{line} -o odd --heads 6 --kv-heads 3 --json odd.json"));
    let refused = "a hidden size of 256 is no multiple of 6 query heads: transformers 5 refuses that of Llama and others";
    let ruled_out = &place.json("odd.json")["pruning"]["ruled_out"];
    assert!(ruled_out.as_array().unwrap().contains(&refused.into()), "{ruled_out}");
    let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat.contains(refused), "{said}");
    place.done(&format!("{line} -o even --ffn 256 --quiet --json even.json"));
    assert_eq!(place.json("even.json")["pruning"].get("ruled_out"), None);
}

/// Numbers of a model's report, one for each layer.
fn of_layers(report: &Value, of: impl Fn(&Value) -> u64) -> Vec<u64> {
    report["pruning"]["layers"].as_array().unwrap().iter().map(of).collect()
}

/// The sizes of the layers differ, their sum is what was asked for, and all that is written is one model: a folder and a GGUF file
/// filled up with zeros, and a GGUF file without.
#[test]
fn layers_that_compete_are_filled_up_with_zeros_or_keep_their_own_sizes_and_score_alike() {
    let place = Place::new();
    let shape = "--ffn 0.5 --kv-heads 0.5 --across-layers";
    let mut seen = Vec::new();
    for output in ["filled", "filled.gguf", "own.gguf --arch deci"] {
        place.done(&format!("prune books-2m -o {output} {shape} {QUICK} --quiet --json report.json"));
        seen.push(place.json("report.json"));
    }
    let sizes = |report: &Value| {
        let channels = of_layers(report, |layer| layer["channels"].as_u64().unwrap());
        (channels, of_layers(report, |layer| layer["kv_heads"].as_array().unwrap().len() as u64))
    };
    let (channels, kv_heads) = sizes(&seen[0]);
    assert_eq!((channels.iter().sum::<u64>(), kv_heads.iter().sum::<u64>()), (2 * 256, 2 * 2));
    assert!(
        channels[0] != channels[1] && channels.iter().all(|width| width.is_multiple_of(32)),
        "{channels:?}"
    );
    let perplexity = |report: &Value| number(report, "/evaluation/perplexity/value");
    for report in &seen {
        assert_eq!(sizes(report), (channels.clone(), kv_heads.clone()));
        assert!((perplexity(report) / perplexity(&seen[0]) - 1.0).abs() < 1e-6);
    }
    let widest = channels.iter().max().unwrap();
    let config = place.json("filled/config.json");
    assert_eq!(config["intermediate_size"].as_u64(), Some(*widest));
    assert_eq!(256 % config["num_attention_heads"].as_u64().unwrap(), 0, "transformers loads it");
    let across =
        |report: &Value| (report["pruning"]["across_layers"].clone(), number(report, "/output/parameters"));
    let [(filled, more), (own, fewer)] = [across(&seen[0]), across(&seen[2])];
    assert_eq!((&filled["layout"], &own["layout"]), (&"filled-up".into(), &"deci".into()));
    assert_eq!(
        (filled["zero_bytes"].as_f64(), own["zero_bytes"].as_u64()),
        (Some(2.0 * (more - fewer)), Some(0))
    );
    assert!(number(&seen[2], "/output/bytes") < number(&seen[1], "/output/bytes"));

    // And it is a model like any other, as long as it stays in GGUF files.
    let text = place.done("inspect own.gguf");
    assert!(text.contains("2, with sizes of their own") && text.contains(&format!("to {widest}")), "{text}");
    place.done("convert own.gguf -o again.gguf --quiet");
    place.done(&format!("quantize own.gguf -o own-q8.gguf --scheme q8_0 {QUICK} --quiet --json report.json"));
    assert!(number(&place.json("report.json"), "/evaluation/kl_divergence/mean") < 0.01);
    place.done(&format!(
        "eval again.gguf --reference own.gguf --text heldout.txt {} --quiet --json report.json",
        "--ctx 128 --chunks 4"
    ));
    assert!(number(&place.json("report.json"), "/evaluation/kl_divergence/mean").abs() < 1e-12);
    place.refuses("convert own.gguf -o back", &["another number for each layer", "config.json", ".gguf"]);
    place.refuses(
        &format!("prune own.gguf -o out --layers 1 {QUICK}"),
        &["layers of this model differ in size"],
    );
    place.refuses(
        "distill --teacher books-2m --student own.gguf -o taught --data heldout.txt --tokens 1024 --ctx 64",
        &["layers of the student differ in size", "without --arch deci"],
    );
}

/// What a layer lacks to the largest is no part of what is learned.
#[test]
fn zeros_that_layers_are_filled_up_with_stay_zeros_while_a_student_learns() {
    let place = Place::new();
    place.done(
        "prune books-2m -o filled --ffn 0.5 --across-layers --calib-tokens 1024 --ctx 128 --no-eval --quiet --json report.json",
    );
    let channels = of_layers(&place.json("report.json"), |layer| layer["channels"].as_u64().unwrap());
    place.done(
        "distill --teacher books-2m --student filled -o taught --data heldout.txt --tokens 1024 --ctx 64 --batch 4 \
         --learning-rate 1e-3 --weight-decay 0.1 --no-eval --quiet",
    );
    let [filled, taught] = ["filled", "taught"].map(|name| safetensors::open(&place.at(name)).unwrap());
    let floats = |files: &safetensors::Folder, name: &str| {
        let info = files.info(name).unwrap();
        (info.shape.clone(), decode_floats(info.dtype, files.bytes(name).unwrap()).unwrap())
    };
    let mut zeros = 0;
    for (layer, &kept) in channels.iter().enumerate() {
        let kept = usize::try_from(kept).unwrap();
        for matrix in ["gate_proj", "up_proj", "down_proj"] {
            let name = format!("model.layers.{layer}.mlp.{matrix}.weight");
            let (shape, values) = floats(&taught, &name);
            assert!(values != floats(&filled, &name).1, "{name} has learned something");
            let beyond = values.iter().enumerate().filter(|(at, _)| {
                let channel = if matrix == "down_proj" { at % shape[1] } else { at / shape[1] };
                channel >= kept
            });
            for (_, value) in beyond {
                zeros += 1;
                assert_eq!(value.to_bits() << 1, 0, "{name}");
            }
        }
    }
    assert_eq!(zeros, 3 * 256 * (2 * channels.iter().max().unwrap() - 512));
}

#[test]
fn layers_that_cannot_compete_are_refused_before_any_work() {
    let place = Place::new();
    mixtral(&place, "mixtral", Layout::Separate);
    for (options, parts) in [
        (
            "books-2m --layers 1 --across-layers -o out",
            &["--across-layers", "no channels and no key heads", "--ffn 0.5"][..],
        ),
        (
            "books-2m --ffn 0.5 --across-layers --criterion activation -o out",
            &["activation", "second-order, fluctuation and taylor"],
        ),
        ("books-2m --ffn 0.5 --across-layers --criterion magnitude -o out", &["magnitude"]),
        ("books-2m --ffn 0.5 --across-layers --arch deci -o out", &["--arch", "folder", ".gguf"]),
        ("mixtral --kv-heads 0.5 --across-layers -o out", &["experts"]),
    ] {
        place.refuses(&format!("prune {options}"), parts);
    }
    for (options, other) in [
        ("--target-params 0.6 --across-layers", "cannot be used with"),
        ("--ffn 0.5 --arch deci", "--across-layers"),
    ] {
        let run = place.run(&format!("prune books-2m -o out.gguf {options}"));
        assert!(run.code == Some(2) && run.stderr.contains(other), "{options}:\n{}", run.stderr);
    }
}

/// Everything at once, twice, with one thread and with two.
#[test]
fn threads_change_no_bit_of_what_is_pruned() {
    let place = Place::new();
    let mut seen = Vec::new();
    for threads in [1, 2] {
        place.done(&format!(
            "prune books-2m -o out --layers 1 --ffn 0.5 --heads 4 --kv-heads 2 --hidden 192 {QUICK} --threads {threads} --force \
             --quiet --json report.json"
        ));
        let mut report = place.json("report.json");
        place.done(&format!(
            "prune books-2m -o out.gguf --ffn 0.5 --kv-heads 2 --across-layers --arch deci {QUICK} --threads {threads} --force \
             --quiet --json across.json"
        ));
        let mut across = place.json("across.json");
        let mut taken = |key: &str| [report[key].take(), across[key].take()];
        seen.push((taken("output"), taken("pruning"), taken("evaluation")));
    }
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn a_dry_run_says_the_shape_and_what_it_rules_out_and_writes_nothing() {
    let place = Place::new();
    let before = place.contents();
    let plan = place.done(&format!("prune books-2m -o out --ffn 0.375 --layers 1 {QUICK} --dry-run"));
    for part in
        ["512 ->            192", "K-quants", "layers are chosen by loss", "second-order", "least squares"]
    {
        assert!(plan.contains(part), "no `{part}` in:\n{plan}");
    }
    let plan = place.done(&format!("prune books-2m -o out --heads 6 --kv-heads 3 {QUICK} --dry-run"));
    assert!(plan.contains("256 is no multiple of 6 query heads: transformers 5 refuses"), "{plan}");
    let plan = place.done(&format!("prune books-2m -o out --target-params 0.75 {QUICK} --dry-run"));
    for part in [
        "shapes of up to 1,672,128 parameters",
        "layers are chosen by loss",
        "least squares",
        "1,639,680  73.5 %",
    ] {
        assert!(plan.contains(part), "no `{part}` in:\n{plan}");
    }
    let plan = place.done(&format!("prune books-2m -o out --ffn 0.5 --across-layers {QUICK} --dry-run"));
    for part in [
        "512 ->            256",
        "layers compete",
        "filled up with zeros",
        "--arch deci",
        "steps of 32: K-quants",
    ] {
        assert!(plan.contains(part), "no `{part}` in:\n{plan}");
    }
    let plan = place
        .done(&format!("prune books-2m -o out.gguf --ffn 0.5 --across-layers --arch deci {QUICK} --dry-run"));
    assert!(plan.contains("layers compete") && plan.contains("architecture deci"), "{plan}");
    place.assert_contents(&before);
}

#[test]
fn what_cannot_be_is_refused_before_any_work() {
    let place = Place::new();
    place.write("taken", "a file");
    for (options, parts) in [
        ("", &["nothing would go", "--layers"][..]),
        ("--layers 3", &["--layers 3", "2 layers"]),
        ("--layers 0", &["--layers 0", "2 layers"]),
        ("--drop 0,1", &["--drop", "none of 2 would be left"]),
        ("--drop 5", &["5 is not one of 2"]),
        ("--heads 6", &["6 query heads", "4 key heads", "4, 8"]),
        ("--kv-heads 5", &["--kv-heads 5", "4 key heads"]),
        ("--ffn 513", &["--ffn 513", "512"]),
        ("--ffn 100 --align 64", &["100", "--align 64", "64 is"]),
        ("--experts 2", &["--experts", "--ffn"]),
        ("--ffn 0.5 --criterion guess", &["guess", "second-order", "taylor"]),
        ("--layers 1 --depth-criterion activation", &["activation", "block-influence"]),
        ("--layers 1 -o taken", &["a file is in the way"]),
        ("--layers 1 --max-memory 1MB", &["--max-memory"]),
    ] {
        let output = if options.contains("-o") { "" } else { "-o out" };
        place.refuses(&format!("prune books-2m {output} {options}"), parts);
    }
    place.done("quantize books-2m -o small.gguf --scheme q4_0 --method rtn --no-eval --quiet");
    place.refuses("prune small.gguf -o out --layers 1", &["quantized already"]);
}
