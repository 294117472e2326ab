//! Tasks that cannot be asked.

use crate::place::Place;

#[test]
fn a_gold_that_is_none_of_the_choices() {
    let place = Place::new();
    place.write("t.jsonl", "{\"query\": \"Q\", \"choices\": [\"a\", \"b\"], \"gold\": 2}\n");
    place.refuses("eval books-2m --task t.jsonl", &["t.jsonl", "line 1", "gold 2"]);
}

#[test]
fn a_task_that_is_no_task() {
    let place = Place::new();
    for (content, part) in [("", "empty"), ("words\n", "line 1"), ("{\"text\": \"words\"}\n", "other keys")] {
        place.write("t.jsonl", content);
        place.refuses("eval books-2m --task t.jsonl", &["t.jsonl", part]);
    }
    place.refuses("eval books-2m --task absent.jsonl", &["absent.jsonl"]);
}

#[test]
fn two_tasks_of_one_name() {
    let place = Place::new();
    place.write("t.jsonl", "{\"context\": \"a\", \"continuation\": \"b\"}\n");
    place.refuses("eval books-2m --task t.jsonl --task t.jsonl", &["two tasks", "`t`"]);
}

#[test]
fn tasks_beside_a_reference_that_was_kept_of_a_text() {
    let place = Place::new();
    place.write("t.jsonl", "{\"context\": \"a\", \"continuation\": \"b\"}\n");
    place.done("eval books-2m --text heldout.txt --ctx 128 --chunks 2 --quiet --save-reference cache");
    place.refuses("eval books-2m --task t.jsonl --reference cache", &["cache", "one text", "--reference"]);
}
