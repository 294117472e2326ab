//! Texts that are missing, empty, too short or no text.

use crate::place::Place;

const QUANTIZE: &str = "quantize books-2m -o out.gguf --scheme q4_k_m";

#[test]
fn an_evaluation_text_too_short_for_one_window() {
    let place = Place::new();
    place.write("short.txt", "A text of a few words.\n");
    for command in [format!("{QUANTIZE} --text short.txt"), "eval books-2m --text short.txt".to_owned()] {
        place.refuses(&command, &["short.txt", "at least 1024", "ctx 512", "--ctx"]);
        place.refuses(&format!("{command} --convention hf"), &["short.txt", "at least 511", "--ctx"]);
    }
}

#[test]
fn an_evaluation_text_that_is_not_there() {
    let place = Place::new();
    for command in [format!("{QUANTIZE} --text absent.txt"), "eval books-2m --text absent.txt".to_owned()] {
        place.refuses(&command, &["absent.txt"]);
    }
}

#[test]
fn an_evaluation_text_that_is_no_utf_8() {
    let place = Place::new();
    std::fs::write(place.at("latin1.txt"), b"caf\xe9 ".repeat(4000)).unwrap();
    place.refuses("eval books-2m --text latin1.txt", &["latin1.txt", "UTF-8"]);
}

#[test]
fn windows_in_which_nothing_can_be_scored() {
    let place = Place::new();
    for (flags, parts) in [
        ("--chunks 0", ["at least one", "0"]),
        ("--ctx 1", ["ctx 1", "smallest"]),
        ("--ctx 0", ["ctx 0", "smallest"]),
    ] {
        place.refuses(&format!("eval books-2m --text heldout.txt {flags}"), &parts);
    }
}

#[test]
fn a_calibration_text_that_is_empty() {
    let place = Place::new();
    place.write("empty.txt", "");
    place.write("blank.txt", " \n\n\t\n");
    for text in ["empty.txt", "blank.txt"] {
        place.refuses(&format!("{QUANTIZE} --calib {text}"), &[text, "empty"]);
        place.refuses(&format!("{QUANTIZE} --calib calibration.txt --calib {text}"), &[text, "empty"]);
    }
}

#[test]
fn a_calibration_text_of_three_tokens() {
    let place = Place::new();
    place.write("three.txt", "the the the");
    for scheme in ["q4_k_m", "q8_0"] {
        let line = format!("quantize books-2m -o out.gguf --scheme {scheme} --calib three.txt");
        place.refuses(&line, &["too few", "--calib"]);
    }
}

#[test]
fn a_calibration_text_that_is_not_there() {
    let place = Place::new();
    place.refuses(&format!("{QUANTIZE} --calib absent.txt"), &["absent.txt"]);
}

/// The number that is too small is the one in the message, not the length of the text.
#[test]
fn fewer_calibration_tokens_than_a_window_needs() {
    let place = Place::new();
    for tokens in ["0", "5"] {
        place.refuses(
            &format!("{QUANTIZE} --calib-tokens {tokens}"),
            &[&format!("{tokens} "), "--calib-tokens"],
        );
    }
    place.refuses(&format!("{QUANTIZE} --ctx 8 --no-eval"), &["8", "--ctx"]);
}
