//! Questions with known answers.

use crate::place::Place;

const CHOICES: &str = r#"{"query": "Question: Where does a ship sail?", "choices": ["on the sea", "in the oven", "under a hat"], "gold": 0}
{"query": "Question: What is read?\n", "choices": ["a stone", "a letter"], "gold": 1}
"#;
const CONTEXTS: &str = r#"{"context_options": ["The captain was old, so the captain", "The captain was old, so the ship"], "continuation": "went home.", "gold": 0}
"#;
const LAST_WORDS: &str = r#"{"context": "He opened the", "continuation": "door"}
{"context": "once upon a", "continuation": "time"}
"#;

fn with_tasks() -> Place {
    let place = Place::new();
    for (name, lines) in [("which.jsonl", CHOICES), ("who.jsonl", CONTEXTS), ("last.jsonl", LAST_WORDS)] {
        place.write(name, lines);
    }
    place
}

#[test]
fn tasks_of_every_kind_are_answered_beside_a_text_and_without() {
    let place = with_tasks();
    let tasks = "--task which.jsonl --task who.jsonl --task last.jsonl";
    let printed = place.done(&format!("eval books-2m {tasks} --quiet --json alone.json"));
    for part in ["Tasks", "which", "who", "last", "per character"] {
        assert!(printed.contains(part), "no `{part}` in\n{printed}");
    }
    let alone = place.json("alone.json");
    assert!(alone.get("evaluation").is_none());
    let items: Vec<_> =
        alone["tasks"].as_array().unwrap().iter().map(|task| task["items"].as_u64()).collect();
    assert_eq!(items, [Some(2), Some(1), Some(2)]);

    place.done(&format!(
        "eval books-2m {tasks} --text heldout.txt --ctx 128 --chunks 2 --items 1 --threads 1 --quiet --json both.json"
    ));
    let both = place.json("both.json");
    assert!(both["evaluation"]["perplexity"]["value"].is_number());
    for (few, all) in both["tasks"].as_array().unwrap().iter().zip(alone["tasks"].as_array().unwrap()) {
        assert_eq!(few["items"], 1);
        assert_eq!(few["picked"][0], all["picked"][0], "an item is answered alike whatever stands beside it");
    }
}

#[test]
fn answers_are_compared_with_those_of_the_reference_item_by_item() {
    let place = with_tasks();
    place.done("quantize books-2m -o small.gguf --scheme q4_0 --method rtn --no-eval --quiet");
    for model in ["books-2m", "small.gguf"] {
        place.done(&format!(
            "eval {model} --reference books-2m --task which.jsonl --quiet --json report.json"
        ));
        let task = place.json("report.json")["tasks"][0].clone();
        let number = |key: &str| task["reference"][key].as_f64().unwrap();
        assert!(number("lost") + number("won") <= number("changed"));
        if model == "books-2m" {
            assert_eq!((number("changed"), number("p_value")), (0.0, 1.0));
            assert_eq!(task["reference"]["accuracy"], task["accuracy"]);
        }
    }
}
