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
