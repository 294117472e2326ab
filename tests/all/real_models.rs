//! Real models and texts, where the machine has them.

use crate::place::{Place, shared};

/// `llama-perplexity` on the same model as an F32 file, with f32 keys and values, prints these digits.
#[test]
fn the_perplexity_of_stories260k_is_llama_cpps_to_the_last_digit() {
    let (Some(model), Some(text)) = (shared("models/stories260K"), shared("text/wikitext-2/wiki.test.raw"))
    else {
        return;
    };
    let place = Place::new();
    place.link_folder(&model, "stories260K");
    place.link_folder(text.parent().unwrap(), "text");
    place.done("convert stories260K -o f32.gguf --quiet --json report.json");
    assert_eq!(place.json("report.json")["output"]["scheme"], "f32");
    for model in ["stories260K", "f32.gguf"] {
        let printed = place.done(&format!(
            "eval {model} --text text/wiki.test.raw --ctx 512 --chunks 20 --convention llama.cpp --quiet --json report.json"
        ));
        let evaluation = place.json("report.json")["evaluation"].clone();
        let figure = |key: &str| evaluation["perplexity"][key].as_f64().unwrap();
        assert_eq!(
            format!("{:.4} +/- {:.5}", figure("value"), figure("stderr")),
            "96.8851 +/- 4.80102",
            "{model}"
        );
        assert_eq!(evaluation["tokens"], 5100, "{model}");
        assert!(printed.contains("96.8851") && printed.contains("4.80102"), "{printed}");
    }
}

#[test]
fn a_real_sharded_model_opens() {
    let Some(model) = shared("models/books-7m-sharded") else { return };
    let place = Place::new();
    place.link_folder(&model, "books-7m-sharded");
    let text = place.done("inspect books-7m-sharded");
    for part in ["llama", "7,344,384", "32.00 bits per weight", "q4_k_m"] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
}

/// A folder whose tokenizer is `tokenizer.json` and `tokenizer.model`, and one with the latter alone, are the same model.
#[test]
fn a_tokenizer_model_alone_is_enough() {
    let Some(model) = shared("models/stories260K") else { return };
    let place = Place::new();
    let mut scores = Vec::new();
    for name in ["both", "pieces"] {
        place.link_folder(&model, name);
        if name == "pieces" {
            std::fs::remove_file(place.at("pieces/tokenizer.json")).unwrap();
        }
        place
            .done(&format!("eval {name} --text heldout.txt --ctx 128 --chunks 4 --quiet --json report.json"));
        scores.push(place.json("report.json")["evaluation"].clone());
    }
    assert!(scores[0]["tokens"].as_u64().is_some_and(|tokens| tokens > 0));
    assert_eq!(scores[0], scores[1]);
}

/// Where no pairs are named, the layer before those that a cut left out is taught to do their work, by a command and in a recipe, in
/// which the cut is not written yet when the teaching is planned.
#[test]
fn layers_of_a_cut_are_taught_as_far_as_the_teachers_reach() {
    let Some(model) = shared("models/books-7m") else { return };
    let place = Place::new();
    place.link_folder(&model, "books-7m");
    let learn = "--tokens 256 --ctx 64 --batch 2 --no-eval --quiet --json report.json --local";
    place.done("prune books-7m -o cut --drop 2,3,6 --no-eval --quiet");
    place.done(&format!("distill --teacher books-7m --student cut -o taught --data heldout.txt {learn}"));
    let pairs = serde_json::json!([[0, 0], [1, 3], [2, 4], [3, 6], [4, 7]]);
    assert_eq!(place.json("report.json")["distillation"]["layer_map"], pairs);
    place.write(
        "r.toml",
        "model = \"books-7m\"\n[evaluation]\ntext = \"heldout.txt\"\nctx = 64\nchunks = 2\n\
         [prune]\ndrop = [2, 3, 6]\noutput = \"r/cut\"\n\
         [distill]\ndata = [\"heldout.txt\"]\ntokens = 256\nctx = 64\nbatch = 2\nlocal = true\noutput = \"r/taught\"\n",
    );
    place.done("run r.toml --quiet --report reports");
    let found = std::fs::read_dir(place.at("reports")).unwrap().map(|entry| entry.unwrap().path());
    let told = found.filter(|path| path.extension().is_some_and(|ending| ending == "json"));
    let told: Vec<String> = told.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let compact = |text: &String| text.split_whitespace().collect::<String>();
    assert!(
        told.iter().any(|text| compact(text).contains("\"layer_map\":[[0,0],[1,3],[2,4],[3,6],[4,7]]")),
        "{told:?}"
    );
}
