//! Teacher caches that are damaged, lie, or are of something else.

use std::fs;

use crate::forge::{copy, cut_in_half, edit_json};
use crate::place::Place;

const CUT: &str = "--ctx 128 --chunks 4";

/// The fixture kept on the held-out text as `cache`.
fn kept(form: &str) -> Place {
    let place = Place::new();
    place.done(&format!(
        "eval books-2m --text heldout.txt {CUT} --quiet --save-reference cache --save-as {form}"
    ));
    place
}

#[test]
fn a_cache_of_another_text_or_cut() {
    let place = kept("top-k=8");
    let made = "`heldout.txt`, 4 windows of 128 in convention llama.cpp, of `books-2m`";
    for (flags, part) in [
        ("--text calibration.txt", "its tokens are others"),
        ("--text heldout.txt --ctx 64", "4 windows of 64"),
        ("--text heldout.txt --chunks 3", "3 windows of 128"),
        ("--text heldout.txt --convention hf", "in convention hf"),
    ] {
        place.refuses(&format!("eval books-2m --reference cache {flags}"), &[made, part, "--save-reference"]);
    }
    let line = "quantize books-2m -o out.gguf --scheme q4_0 --reference cache";
    place.refuses(&format!("{line} --text calibration.txt"), &[made, "others"]);
}

#[test]
fn a_cache_that_lies_or_is_damaged() {
    type Damage = fn(&Place);
    let cases: [(Damage, &[&str]); 5] = [
        (|place| fs::remove_file(place.at("cache/model.safetensors")).unwrap(), &["cache"]),
        (|place| cut_in_half(&place.at("cache/model.safetensors")), &["cut short"]),
        (|place| place.write("cache/teacher-cache.json", "{"), &["teacher-cache.json"]),
        (
            |place| {
                edit_json(&place.at("cache/teacher-cache.json"), |facts| {
                    facts["schema"] = "attar-teacher-cache/9".into();
                });
            },
            &["attar-teacher-cache/9", "attar-teacher-cache/1"],
        ),
        (
            |place| {
                edit_json(&place.at("cache/teacher-cache.json"), |facts| facts["hidden_size"] = 128.into());
            },
            &["`head`", "[4096, 256]"],
        ),
    ];
    for (damage, parts) in cases {
        let place = kept("hidden-bf16");
        damage(&place);
        place.refuses("eval books-2m --text heldout.txt --reference cache", parts);
    }
}

#[test]
fn a_cache_of_another_model_is_no_reference_for_quantize() {
    let place = kept("top-k=8");
    edit_json(&place.at("cache/teacher-cache.json"), |facts| {
        facts["model"]["source"] = "other-model".into();
        facts["model"]["sha256"] = "00".into();
    });
    let line = "quantize books-2m -o out.gguf --scheme q4_0 --reference";
    place.refuses(&format!("{line} cache"), &["other-model", "weights are others", "books-2m"]);
    place.refuses(&format!("{line} books-2m"), &["no teacher cache", "--save-reference"]);
    place.refuses(&format!("{line} absent"), &["no teacher cache", "absent"]);
}

#[test]
fn a_folder_in_the_way_of_a_cache() {
    let place = kept("top-k=8");
    let line = format!("eval books-2m --text heldout.txt {CUT} --save-reference");
    place.refuses(&format!("{line} cache"), &["cache exists already", "--force"]);
    place.refuses(&format!("{line} books-2m --force"), &["books-2m exists already", "nothing else"]);
    place.refuses(&format!("{line} heldout.txt"), &["a file is in the way"]);
    place.done(&format!("{line} cache --force --quiet"));
}

#[test]
fn forms_that_cannot_be_kept() {
    let place = Place::new();
    let line = format!("eval books-2m --text heldout.txt {CUT} --save-reference cache --save-as");
    place.refuses(&format!("{line} top-k=4096"), &["top-k=4096", "vocabulary of 4096"]);
    for form in ["top-k=0", "hidden", "everything"] {
        let run = place.run(&format!("{line} {form}"));
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{form}");
        assert!(run.stderr.contains("hidden-f32, hidden-bf16 and top-k=N"), "{}", run.stderr);
    }
}

/// A cache knows its tokens by what they stand for; one that was written before that was kept is taken at its word.
#[test]
fn a_cache_of_a_teacher_whose_tokens_stand_for_other_text() {
    let place = kept("hidden-bf16");
    let other = copy(&place, "other");
    edit_json(&other.join("tokenizer.json"), |tokenizer| {
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let (one, two) = (vocab["$"].clone(), vocab["%"].clone());
        (vocab["$"], vocab["%"]) = (two, one);
    });
    let lines = [
        format!("eval other --text heldout.txt {CUT} --reference cache"),
        "distill --teacher cache --student other -o out --no-eval".to_owned(),
    ];
    for line in &lines {
        place.refuses(line, &["`books-2m`", "stand for other text", "same tokenizer"]);
        let same = place.run(&format!("{} --dry-run", line.replace("other", "books-2m")));
        assert_eq!(same.code, Some(0), "{}", same.stderr);
    }
    edit_json(&place.at("cache/teacher-cache.json"), |facts| {
        assert!(facts.remove("vocabulary_sha256").is_some());
    });
    for line in &lines {
        let run = place.run(&format!("{line} --dry-run"));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
    }
}
