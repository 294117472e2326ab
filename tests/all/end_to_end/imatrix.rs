//! Importance matrices: collected, merged, converted, looked at, quantized by.

use std::path::Path;

use attar_checkpoint::imatrix::ImportanceMatrix;

use crate::place::Place;

fn read(path: &Path) -> ImportanceMatrix {
    ImportanceMatrix::read(path).unwrap()
}

const COLLECT: &str = "imatrix books-2m --text heldout.txt --ctx 128 --chunks 6";

#[test]
fn every_matrix_of_a_block_has_an_entry_and_what_reads_the_same_has_the_same() {
    let place = Place::new();
    let said = place.done(&format!("{COLLECT} -o m.gguf --json m.json"));
    assert!(said.contains("6 chunks of 128 tokens"), "{said}");
    let matrix = read(&place.at("m.gguf"));
    let layers = matrix.entries.keys().filter(|name| name.ends_with(".attn_q.weight")).count();
    assert_eq!(matrix.entries.len(), 7 * layers);
    for layer in 0..layers {
        let of = |name: &str| &matrix.entries[&format!("blk.{layer}.{name}.weight")];
        assert!(of("attn_q") == of("attn_k") && of("attn_q") == of("attn_v"));
        assert!(of("ffn_gate") == of("ffn_up") && of("ffn_gate") != of("ffn_down"));
        assert_eq!(of("attn_output").counts(), [6 * 128]);
    }
    assert_eq!((matrix.datasets, matrix.chunk_count), (vec!["heldout.txt".to_owned()], 6));
    let report = place.json("m.json");
    assert_eq!(report["imatrix"]["tokens_sha256"][0], matrix.sha256[0].as_str());
    assert_eq!(report["calibration"]["tokens"], 6 * 128);

    // Neither threads nor memory change a bit.
    place.done(&format!("{COLLECT} -o again.gguf --threads 1 --max-memory 112MB --quiet"));
    assert_eq!(std::fs::read(place.at("m.gguf")).unwrap(), std::fs::read(place.at("again.gguf")).unwrap());
    place.done(&format!("{COLLECT} -o bf16.gguf --precision bf16"));
    let bf16 = read(&place.at("bf16.gguf"));
    for (name, entry) in &matrix.entries {
        let (exact, rounded): (f32, f32) = (entry.means().sum(), bf16.entries[name].means().sum());
        assert!((exact - rounded).abs() < 0.03 * exact, "{name}: {rounded} is not {exact}");
    }
}

#[test]
fn weights_and_merging_add_up_and_the_old_layout_keeps_the_means() {
    let place = Place::new();
    let collect = |texts: &str, output: &str| {
        place.done(&format!("imatrix books-2m {texts} --ctx 128 --chunks 2 -o {output}"));
    };
    collect("--text heldout.txt", "a.gguf");
    collect("--text calibration.txt", "b.gguf");
    collect("--text heldout.txt --text calibration.txt=2", "weighed.gguf");
    place.done("imatrix --merge a.gguf b.gguf b.gguf -o merged.gguf");
    let (weighed, merged) = (read(&place.at("weighed.gguf")), read(&place.at("merged.gguf")));
    for (name, entry) in &merged.entries {
        assert_eq!(entry.counts(), weighed.entries[name].counts());
        let pairs = entry.sums().iter().zip(weighed.entries[name].sums());
        pairs.for_each(|(a, b)| assert!((a - b).abs() <= 1e-5 * a, "{name}: {b} is not {a}"));
    }
    place.done("imatrix --merge merged.gguf -o merged.dat");
    let old = read(&place.at("merged.dat"));
    assert_eq!((old.chunk_size, old.chunk_count), (None, 6));
    // What was there is added to, and a file of the same kind is replaced.
    place.done("imatrix books-2m --text heldout.txt --ctx 128 --chunks 2 --merge a.gguf -o a.gguf --force");
    assert_eq!(read(&place.at("a.gguf")).most_counted(), 4 * 128);
    let shown = place.done("inspect merged.dat");
    for part in [".dat, the layout before GGUF", "6 chunks", "blk.1.ffn_down.weight", "like before"] {
        assert!(shown.contains(part), "{shown}");
    }
    assert!(place.done("inspect merged.gguf --json i.json").contains("heldout.txt"), "no dataset");
    assert!(place.json("i.json")["inspection"]["statistics"][0]["mean"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_model_is_quantized_by_one_without_a_text() {
    let place = Place::new();
    place.done(&format!("{COLLECT} -o m.gguf"));
    place.done("imatrix --merge m.gguf -o m.dat");
    let plan = place.done("quantize books-2m -o q.gguf --scheme q4_k_m --imatrix m.gguf --dry-run");
    assert!(plan.contains("errors are not fed back") && !plan.contains("calibration:"), "{plan}");
    for imatrix in ["m.gguf", "m.dat"] {
        let ending = &imatrix[2..];
        place.done(&format!(
            "quantize books-2m -o {ending}.gguf --scheme q4_0 --imatrix {imatrix} --no-eval --json {ending}.json"
        ));
    }
    let report = place.json("gguf.json");
    assert_eq!(report["output"]["method"], "rtn");
    assert_eq!(report["calibration"]["files"][0], "m.gguf");
    assert_eq!(report["calibration"]["imatrix"]["datasets"][0], "heldout.txt");
    let codes = |report: &serde_json::Value| -> Vec<String> {
        let tensors = report["tensors"].as_array().unwrap();
        tensors.iter().map(|tensor| tensor["decoded_sha256"].to_string()).collect()
    };
    assert_eq!(codes(&report), codes(&place.json("dat.json")));
    place.done("quantize books-2m -o plain.gguf --scheme q4_0 --method rtn --no-eval --json plain.json");
    assert_ne!(codes(&report), codes(&place.json("plain.json")));
    let shown = place.done("inspect gguf.gguf");
    assert!(shown.contains("m.gguf, of heldout.txt, ") && shown.contains("entries, 6 chunks"), "{shown}");
    place.done("quantize books-2m -o w4 --scheme w4a16-g64 --imatrix m.gguf --no-eval");
}

#[test]
fn a_recipe_may_name_one_for_an_output() {
    let place = Place::new();
    place.done(&format!("{COLLECT} -o m.gguf"));
    let head = "model = \"books-2m\"\n[evaluation]\ntext = \"heldout.txt\"\nctx = 128\nchunks = 2\n";
    let table = |more: &str| {
        format!(
            "{head}[[quantize]]\nscheme = \"q4_0\"\noutput = \"out/q.gguf\"\nimatrix = \"m.gguf\"\n{more}"
        )
    };
    place.write("recipe.toml", &table(""));
    place.done("run recipe.toml --quiet --json recipe.json");
    place.done("quantize books-2m -o q.gguf --scheme q4_0 --imatrix m.gguf --no-eval --json q.json");
    let hash = |report: &serde_json::Value| report["tensors"][2]["decoded_sha256"].clone();
    let report = place.json("recipe.json");
    assert_eq!(report[0]["output"]["method"], "rtn");
    assert_eq!(hash(&report[0]), hash(&place.json("q.json")));
    place.write("wrong.toml", &table("method = \"gptq\"\n"));
    place.refuses("run wrong.toml", &["feeds errors back", "wrong.toml:"]);
    place.write("zeros.toml", &table("sparsity = \"2:4\"\n"));
    place.refuses("run zeros.toml", &["decided by a text", "zeros.toml:"]);
}

#[test]
fn what_an_importance_matrix_lacks_is_told_of_each_matrix() {
    let place = Place::new();
    place.done(&format!("{COLLECT} -o m.gguf"));
    let mut matrix = read(&place.at("m.gguf"));
    matrix.entries.remove("blk.0.ffn_up.weight");
    write(&matrix, &place.at("m.gguf"));
    place.done("quantize books-2m -o q.gguf --scheme q4_0 --imatrix m.gguf --no-eval --json q.json");
    let report = place.json("q.json");
    let tensors = report["tensors"].as_array().unwrap();
    let told: Vec<_> = tensors.iter().filter(|tensor| tensor["fallback"].is_string()).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0]["name"].as_str().unwrap().contains("layers.0.mlp.up_proj"));
    assert!(told[0]["fallback"].as_str().unwrap().contains("no entry of it"));
}

fn write(matrix: &ImportanceMatrix, path: &Path) {
    use attar_checkpoint::{atomic::Overwrite, imatrix::Layout};
    matrix.write(path, Overwrite::Yes, Layout::Gguf).unwrap();
}

#[test]
fn what_does_not_go_with_it_is_refused_before_any_work() {
    let place = Place::new();
    place.done(&format!("{COLLECT} -o m.gguf"));
    let quantize = |rest: &str| format!("quantize books-2m -o q.gguf --no-eval --imatrix {rest}");
    let refuses = |rest: &str, parts: &[&str]| place.refuses(&quantize(rest), parts);
    refuses("m.gguf --scheme q4_k_m --method gptq", &["feeds errors back", "leave --method out"]);
    refuses("m.gguf --scheme f16", &["`f16` has no codes", "leave --imatrix out"]);
    refuses("none.gguf --scheme q4_0", &["cannot open none.gguf"]);
    refuses("heldout.txt --scheme q4_0", &["not a sound importance matrix"]);

    let sound = read(&place.at("m.gguf"));
    let wrong = |name: &str, change: &dyn Fn(&mut ImportanceMatrix)| {
        let mut matrix = sound.clone();
        change(&mut matrix);
        write(&matrix, &place.at(name));
    };
    let one = sound.entries["blk.0.ffn_down.weight"].clone();
    wrong("wide.gguf", &|matrix| drop(matrix.entries.insert("blk.0.attn_q.weight".to_owned(), one.clone())));
    refuses("wide.gguf --scheme q4_0", &["`blk.0.attn_q.weight`", "columns in the model", "attar imatrix"]);
    wrong("deep.gguf", &|matrix| drop(matrix.entries.insert("blk.99.attn_q.weight".to_owned(), one.clone())));
    refuses("deep.gguf --scheme q4_0", &["entries of layer 99"]);
    wrong("other.gguf", &|matrix| matrix.entries = [("a.weight".to_owned(), one.clone())].into());
    refuses("other.gguf --scheme q4_0", &["no entry of any weight"]);

    place.refuses("imatrix --merge m.gguf wide.gguf -o x.gguf", &["`blk.0.attn_q.weight`", "in the other"]);
    place.refuses("imatrix books-2m --merge deep.gguf --text heldout.txt --ctx 128 -o x.gguf", &["layer 99"]);
    place.refuses("imatrix books-2m --text heldout.txt -o m.gguf", &["m.gguf` exists already", "--force"]);
    place.write("notes.gguf", "mine");
    place.refuses("imatrix --merge m.gguf -o notes.gguf --force", &["no importance matrix", "--force"]);
    place.write("short.txt", "too short");
    place.refuses("imatrix books-2m --text short.txt -o x.gguf", &["short.txt", "--ctx"]);
}
