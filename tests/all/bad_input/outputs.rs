//! Outputs that are in the way, cannot be written, or are not finished.

use std::fs;
use std::path::PathBuf;

use crate::forge::{self, MATRIX};
#[cfg(unix)]
use crate::place::on_a_full_disk;
use crate::place::{ATTAR, Place, skipped};

/// A little work, and all of it done.
const TO_GGUF: &str = "quantize books-2m -o out.gguf --scheme q4_0 --method rtn --no-eval";
const TO_FOLDER: &str = "quantize books-2m -o out --scheme w4a16-g64 --method rtn --no-eval";
/// Makes `out.gguf`.
const RECIPE: &str = "model = \"books-2m\"\n[[quantize]]\nscheme = \"q8_0\"\noutput = \"out.gguf\"\n";

#[test]
fn an_output_that_exists_is_refused() {
    let place = Place::new();
    place.done(TO_GGUF);
    place.done(TO_FOLDER);
    for (line, output) in [(TO_GGUF, "out.gguf"), (TO_FOLDER, "out")] {
        place.refuses(line, &[output, "exists already", "--force"]);
    }
    for output in ["out.gguf", "out"] {
        place.refuses(&format!("convert books-2m -o {output}"), &[output, "exists already", "--force"]);
    }
}

#[test]
fn an_output_that_exists_is_replaced_with_force() {
    let place = Place::new();
    let other = |line: &str| line.replace("q4_0", "q8_0").replace("w4a16", "w8a16");
    for (line, weights) in [(TO_GGUF, "out.gguf"), (TO_FOLDER, "out/model.safetensors")] {
        place.done(line);
        let old = fs::read(place.at(weights)).unwrap();
        let names = |place: &Place| place.contents().into_keys().collect::<Vec<_>>();
        let before = names(&place);
        place.done(&format!("{} --force", other(line)));
        let new = fs::read(place.at(weights)).unwrap();
        assert!(new.len() > old.len(), "eight bits take more than four");
        assert_eq!(names(&place), before);
    }
}

#[test]
fn an_old_output_survives_a_failing_run() {
    let place = Place::new();
    place.done(TO_GGUF);
    place.done(TO_FOLDER);
    let model = forge::copy(&place, "model");
    forge::set_value(&model, MATRIX, 0, 0x7fc0); // NaN
    for line in [TO_GGUF, TO_FOLDER] {
        place.refuses(&format!("{} --force", line.replace("books-2m", "model")), &[MATRIX, "NaN"]);
    }
    #[cfg(unix)]
    for line in [TO_GGUF, TO_FOLDER] {
        place.fails_with(&mut on_a_full_disk(&format!("{line} --force"), 1000), &["out"]);
    }
}

/// A slip of the hand with `--force` must not cost a folder of letters.
#[test]
fn a_folder_that_is_no_model_is_not_replaced_even_with_force() {
    let place = Place::new();
    fs::create_dir(place.at("letters")).unwrap();
    place.write("letters/dear.txt", "Dear Ada,\n");
    let line = TO_FOLDER.replace("-o out", "-o letters --force");
    place.refuses(&line, &["letters", "no model in it", "--force"]);
}

/// Replacing the folder would take the model with it.
#[test]
fn a_folder_around_the_model_is_not_replaced_even_with_force() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    fs::create_dir(place.at("around")).unwrap();
    fs::copy(model.join("config.json"), place.at("around/config.json")).unwrap();
    fs::rename(model, place.at("around/model")).unwrap();
    let line = TO_FOLDER.replace("books-2m -o out", "around/model -o around --force");
    place.refuses(&line, &["around", "the model lies in the folder"]);
}

#[test]
fn a_report_takes_the_place_of_reports_only() {
    let place = Place::new();
    place.write("letter.txt", "Dear Ada,\n");
    for taken in ["letter.txt", "books-2m/config.json", "./out.gguf"] {
        place.refuses(&format!("{TO_GGUF} --json {taken}"), &["--json", "name another file"]);
    }
    place.done(&format!("{TO_GGUF} --json report.json"));
    place.done(&format!("{TO_GGUF} --force --json report.json"));
}

#[test]
fn the_wrong_kind_of_thing_in_the_way() {
    let place = Place::new();
    fs::create_dir(place.at("out.gguf")).unwrap();
    place.write("out", "a file\n");
    for line in [TO_GGUF, TO_FOLDER] {
        place.refuses(line, &["out", "in the way"]);
        place.refuses(&format!("{line} --force"), &["out", "in the way"]);
    }
}

#[test]
fn the_model_itself_as_the_output() {
    let place = Place::new();
    forge::copy(&place, "model");
    for output in ["model", "./model", "books-2m/../model"] {
        let line = format!("quantize model -o {output} --scheme bf16 --no-eval --force");
        place.refuses(&line, &["the model itself"]);
    }
}

#[test]
fn an_output_below_a_file() {
    let place = Place::new();
    for line in [TO_GGUF, TO_FOLDER] {
        place.refuses(&line.replace("-o out", "-o heldout.txt/out"), &["heldout.txt/out"]);
    }
}

/// Folders made on the way to an output that never came go again.
#[test]
fn a_new_folder_is_not_left_behind_by_a_run_that_fails() {
    let place = Place::new();
    let model = forge::copy(&place, "model");
    forge::set_value(&model, MATRIX, 0, 0x7fc0); // NaN
    for line in [TO_GGUF, TO_FOLDER] {
        place.refuses(&line.replace("books-2m -o out", "model -o new/deep/out"), &[MATRIX]);
    }
}

#[test]
fn an_output_in_a_new_folder_is_made_with_it() {
    let place = Place::new();
    place.done(&TO_GGUF.replace("-o out", "-o new/deep/out"));
    assert!(place.at("new/deep/out.gguf").is_file());
}

#[test]
fn a_report_where_none_can_be() {
    let place = Place::new();
    fs::create_dir(place.at("reports")).unwrap();
    for (flag, at) in
        [("--json", "reports"), ("--json", "heldout.txt/report.json"), ("--report", "heldout.txt")]
    {
        place.refuses(&format!("{TO_GGUF} {flag} {at}"), &[at]);
        place.refuses(&format!("eval books-2m --text heldout.txt --ctx 64 --chunks 1 {flag} {at}"), &[at]);
        place.write("recipe.toml", RECIPE);
        place.refuses(&format!("run recipe.toml {flag} {at}"), &[at]);
    }
}

#[test]
fn a_report_in_the_place_of_the_output() {
    let place = Place::new();
    for line in [TO_GGUF, "convert books-2m -o out.gguf"] {
        place.refuses(&format!("{line} --json out.gguf"), &["take the place of `out.gguf`"]);
    }
    place.write("recipe.toml", RECIPE);
    place.refuses("run recipe.toml --json out.gguf", &["take the place of `out.gguf`"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk() {
    let place = Place::new();
    // A disk on which not even the tokenizer has room, and one on which the weights have none.
    for blocks in [10, 1000] {
        for (line, output) in
            [(TO_GGUF, "out.gguf"), (TO_FOLDER, "out"), ("convert books-2m -o out --quiet", "out")]
        {
            place.fails_with(&mut on_a_full_disk(line, blocks), &[output, "too large", "disk"]);
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_printed() {
    let place = Place::new();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    for line in ["inspect books-2m", "eval books-2m --text heldout.txt --ctx 64 --chunks 1"] {
        let output = std::process::Command::new(ATTAR)
            .args(line.split_whitespace())
            .current_dir(place.at(""))
            .stdout(full())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {stderr}");
        assert!(stderr.contains("error:") && stderr.contains("No space left"), "{line}: {stderr}");
    }
}

#[cfg(unix)]
#[test]
fn a_read_only_folder() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;

    /// Nobody.
    const NOBODY: u32 = 65534;

    let place = Place::new();
    let mode = |name: &str, mode: u32| {
        fs::set_permissions(place.at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let as_root = fs::metadata(place.at("")).unwrap().uid() == 0;
    // Nobody may not look into the repository.
    let model = forge::copy(&place, "model");
    fs::copy(ATTAR, place.at("attar")).unwrap();
    fs::create_dir(place.at("locked")).unwrap();
    mode("", 0o755);
    mode("model", 0o755);
    for file in fs::read_dir(model).unwrap() {
        mode(file.unwrap().path().to_str().unwrap(), 0o644);
    }
    mode("attar", 0o755);
    mode("locked", 0o555);
    let before = place.contents();
    for (line, what) in [
        ("quantize model -o locked/out.gguf --scheme q4_k_m", "locked/out.gguf"),
        ("quantize model -o locked/out --scheme w4a16-g64", "locked/out"),
        ("quantize model -o locked/new/out.gguf --scheme q4_k_m", "locked/new/out.gguf"),
        ("convert model -o locked/out.gguf", "locked/out.gguf"),
    ] {
        let mut command = std::process::Command::new(place.at("attar"));
        command.args(line.split_whitespace()).current_dir(place.at(""));
        if as_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        match command.output() {
            Ok(output) => {
                let run = crate::place::Run::from(output);
                run.is_complaint(&[what, "Permission denied", "choose a folder you may write to"]);
                assert!(run.stderr.starts_with("error:"), "{line}\nwork was begun:\n{}", run.stderr);
            }
            Err(error) if as_root => return skipped(&format!("this root may not act as nobody: {error}")),
            Err(error) => panic!("{error}"),
        }
        place.assert_contents(&before);
    }
    mode("locked", 0o755);
}

#[cfg(unix)]
#[test]
fn a_run_that_is_killed_leaves_nothing_under_the_final_name() {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    let place = Place::new();
    place.done(TO_FOLDER);
    let before = place.contents();
    for (line, partial) in [
        ("quantize books-2m -o out.gguf --scheme q4_k_m --no-eval --verbose", ".out.gguf.partial-"),
        ("quantize books-2m -o out --scheme w8a16-g64 --no-eval --verbose --force", ".out.partial-"),
    ] {
        let mut child = Command::new(ATTAR)
            .args(line.split_whitespace())
            .current_dir(place.at(""))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Killed once the first matrix is written: all the others are still to come.
        let mut talk = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(talk.any(|line| line.starts_with(MATRIX)), "{line}");
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "{line}: it had ended by itself");

        let partials = || {
            let names = fs::read_dir(place.at("")).unwrap().map(|entry| entry.unwrap().path());
            let is_partial =
                |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(partial);
            names.filter(is_partial).collect::<Vec<_>>()
        };
        assert_eq!(partials().len(), 1, "{line}: it had written nothing yet");
        let whole = |path: &PathBuf| !path.starts_with(&partials()[0]);
        let mut after = place.contents();
        let there = place.at("");
        after.retain(|path, _| whole(&there.join(path)));
        assert!(after == before, "{line}");
        // The next run to the same output takes away what was left of this one.
        place.done(&line.replace("--verbose", "--quiet"));
        assert!(partials().is_empty(), "{line}");
        if place.at("out.gguf").exists() {
            fs::remove_file(place.at("out.gguf")).unwrap();
        }
    }
}
