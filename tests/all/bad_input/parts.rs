//! GGUF files in parts that do not belong together.

use std::fs;

use crate::forge;
use crate::place::Place;

/// The fixture in parts, `m-00001-of-00003.gguf` and so on.
fn in_parts() -> (Place, [&'static str; 3]) {
    let place = Place::new();
    place.done("convert books-2m -o m.gguf --split-max-size 1700kB --quiet");
    let parts = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];
    assert!(parts.iter().all(|part| place.at(part).is_file()), "{:?}", place.contents().keys());
    (place, parts)
}

/// Sets the number behind a key of a part.
fn set(place: &Place, part: &str, key: &str, value: u16) {
    let file = fs::read(place.at(part)).unwrap();
    let at = file.windows(key.len()).position(|window| window == key.as_bytes()).unwrap();
    forge::overwrite(&place.at(part), at + key.len() + 4, &value.to_le_bytes());
}

#[test]
fn a_part_that_is_missing() {
    let (place, parts) = in_parts();
    fs::remove_file(place.at(parts[1])).unwrap();
    for line in [
        format!("eval {} --text heldout.txt", parts[0]),
        format!("convert {} -o out", parts[2]),
        format!("quantize {} -o out.gguf --scheme q4_k_m", parts[0]),
    ] {
        place.refuses(&line, &[parts[1], "part 2", "is not there", "in one folder"]);
    }
    let text = place.done(&format!("inspect {}", parts[0]));
    assert!(text.contains(parts[1]), "what is missing is named:\n{text}");
}

#[test]
fn a_part_that_is_there_twice() {
    let (place, parts) = in_parts();
    fs::copy(place.at(parts[0]), place.at(parts[1])).unwrap();
    place.refuses(
        &format!("eval {} --text heldout.txt", parts[0]),
        &[parts[1], "`split.no` says 0", "name says 1"],
    );
    place.refuses(&format!("inspect {}", parts[0]), &[parts[1], "`split.no` says 0"]);
}

#[test]
fn a_part_under_another_name() {
    let (place, parts) = in_parts();
    fs::rename(place.at(parts[0]), place.at("renamed.gguf")).unwrap();
    place.refuses(
        "eval renamed.gguf --text heldout.txt",
        &["renamed.gguf", "`-00001-of-00003.gguf`", "own names"],
    );
}

#[test]
fn a_part_of_another_model() {
    let (place, parts) = in_parts();
    let line = "quantize books-2m -o other/m.gguf --scheme q8_0 --method rtn --no-eval --split-max-size 630kB --quiet";
    place.done(line);
    fs::copy(place.at("other").join(parts[1]), place.at(parts[1])).unwrap();
    let said = ["`split.tensors.count` says 20", "another model's"];
    place.refuses(&format!("eval {} --text heldout.txt", parts[0]), &said);
}

#[test]
fn parts_that_lie_about_their_number_their_count_or_their_tensors() {
    for (key, value, said) in [
        ("split.no", 7, "`split.no` says 7"),
        ("split.count", 2, "`split.count` says 2"),
        ("split.count", u16::MAX, "`split.count` says 65535"),
        ("split.tensors.count", 3, "`split.tensors.count` says 3"),
    ] {
        for at in [1, 2] {
            let (place, parts) = in_parts();
            set(&place, parts[at], key, value);
            place.refuses(&format!("eval {} --text heldout.txt", parts[0]), &[parts[at], said]);
        }
    }
}

#[test]
fn a_part_that_is_cut_short() {
    let (place, parts) = in_parts();
    forge::cut_in_half(&place.at(parts[2]));
    place.refuses(&format!("eval {} --text heldout.txt", parts[0]), &[parts[2], "cut short"]);
}
