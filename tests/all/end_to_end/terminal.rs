//! What the program looks like, and what it gives to shells and to `man`.

use std::fs;
use std::path::Path;

use assert_cmd::Command;

use crate::place::{ATTAR, Place, skipped};

const ESCAPE: char = '\u{1b}';

#[test]
fn colours_are_for_terminals_and_for_those_who_insist() {
    let place = Place::new();
    let refused = "quantize books-2m -o out --scheme w4a16-g96";
    let shown = "eval books-2m --text heldout.txt --ctx 64 --chunks 2 --reference books-2m --quiet";
    let run = |line: &str, variables: &[(&str, &str)]| {
        let mut command = Command::new(ATTAR);
        command.args(line.split_whitespace()).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        let run = place.run_with(command.envs(variables.iter().copied()));
        (run.stdout, run.stderr)
    };
    // No terminal is here.
    let (plain, complaint) = (run(shown, &[]).0, run(refused, &[]).1);
    assert!(!plain.contains(ESCAPE) && !complaint.contains(ESCAPE), "{plain}{complaint}");
    let forced = [("CLICOLOR_FORCE", "1")];
    let (coloured, coloured_complaint) = (run(shown, &forced).0, run(refused, &forced).1);
    assert!(coloured.contains("\u{1b}[1mEvaluation\u{1b}[0m"), "{coloured:?}");
    assert!(coloured_complaint.contains("\u{1b}[1m\u{1b}[31merror:\u{1b}[0m"), "{coloured_complaint:?}");
    assert!(coloured_complaint.contains("\u{1b}[36mhint:\u{1b}[0m"), "{coloured_complaint:?}");
    let denied = [("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")];
    assert_eq!(run(refused, &denied).1, complaint);
    assert!(!run(shown, &denied).0.contains(ESCAPE));
}

#[test]
fn every_shell_gets_a_script_and_bash_accepts_its_own() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = place.done(&format!("completions {shell}"));
        for word in ["quantize", "inspect", "scheme"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        place.write(shell, &script);
    }
    if !Path::new("/bin/bash").exists() {
        return skipped("there is no bash");
    }
    let check = place.run_with(Command::new("/bin/bash").args(["-n", "bash"]));
    assert_eq!((check.code, check.stderr.as_str()), (Some(0), ""));
    let asks = "source ./bash; COMP_WORDS=(attar quantize --sch); COMP_CWORD=2; _attar attar --sch quantize; echo \"${COMPREPLY[@]}\"";
    let answer = place.run_with(Command::new("/bin/bash").args(["-c", asks]));
    assert_eq!(answer.stdout.trim(), "--scheme", "{}", answer.stderr);
}

#[test]
fn every_command_has_a_manual_page_and_none_is_overwritten_unasked() {
    let place = Place::new();
    place.done("man share/man1");
    let page = |name: &str| fs::read_to_string(place.at("share/man1").join(name)).unwrap();
    for command in [
        "inspect",
        "quantize",
        "prune",
        "convert",
        "eval",
        "compare",
        "check",
        "distill",
        "run",
        "completions",
        "man",
    ] {
        let text = page(&format!("attar-{command}.1"));
        assert!(text.contains(".TH") && text.contains("Examples:"), "{command}: {text}");
    }
    assert!(page("attar-quantize.1").contains("\\-\\-scheme"));
    assert_eq!(place.done("man"), page("attar.1"));
    place.fails("man share/man1", &["attar.1", "exists already", "--force"]);
    place.done("man share/man1 --force");
    if let Ok(output) =
        std::process::Command::new("man").args(["-l", "attar.1"]).current_dir(place.at("share/man1")).output()
    {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    } else {
        skipped("there is no man");
    }
}

/// The recipes of the repository, as they stand.
#[test]
fn every_recipe_of_the_library_can_be_planned() {
    let place = Place::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut recipes: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    recipes.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
    assert!(recipes.len() >= 4, "{recipes:?}");
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    for recipe in recipes {
        assert!(readme.contains(recipe.file_name().unwrap().to_str().unwrap()), "{}", recipe.display());
        let plan = place.done(&format!("run {} --dry-run", recipe.display()));
        for part in
            ["model ", "calibration ", "evaluation ", "stages ", "checks ", "report ", "bits per weight"]
        {
            assert!(plan.contains(part), "{}: no {part} in\n{plan}", recipe.display());
        }
    }
}
