//! What the documentation has its readers type, typed.
#![cfg(unix)]

use std::fs;
use std::path::Path;

use assert_cmd::Command;

use crate::place::{ATTAR, Place, Run};

/// A file of the repository.
fn repository(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The blocks of Markdown that are fenced as `language`.
fn blocks(markdown: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let end = |rest: &str| rest.split_once("```").unwrap().0.to_owned();
    markdown.split(fence.as_str()).skip(1).map(end).collect()
}

/// The script of the step `name` of an action.
fn step(action: &str, name: &str) -> String {
    let step = action.split("- name: ").find(|step| step.starts_with(name)).unwrap();
    let (_, script) = step.split_once("run: |\n").unwrap();
    let lines = script.lines().take_while(|line| line.is_empty() || line.starts_with("        "));
    lines.flat_map(|line| [line.trim_start_matches("        "), "\n"]).collect()
}

/// Runs a script where `attar` is found and git does nothing, as GitHub does: ended by the first command that fails.
fn bash(place: &Place, script: &str, variables: &[(&str, &str)]) -> Run {
    let bin = Path::new(ATTAR).parent().unwrap();
    let path = std::env::join_paths(
        [bin.to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let mut command = Command::new("bash");
    command.args(["-e", "-o", "pipefail", "-c", &format!("git() {{ :; }}\n{script}")]);
    command.env("PATH", path.unwrap()).env_remove("GITHUB_ACTIONS").envs(variables.iter().copied());
    place.run_with(&mut command)
}

/// A repository with a model, its original and a text, as docs/ci.md has it.
fn repository_with_a_model() -> Place {
    let place = Place::new();
    fs::rename(place.at("books-2m"), place.at("model")).unwrap();
    place.link_folder(&place.at("model"), "original");
    place
}

#[test]
fn the_commands_of_the_page_on_ci_do_what_it_says() {
    let page = repository("docs/ci.md");
    let (shell, tables) = (blocks(&page, "sh"), blocks(&page, "toml"));
    assert_eq!((shell.len(), tables.len()), (3, 1), "what else is there to run?");
    let place = repository_with_a_model();
    let run = |script: &str| {
        let run = bash(&place, script, &[]);
        (run.code, run.stdout + &run.stderr)
    };
    let (code, said) = run(&shell[0]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("baseline written") && said.contains("Check: passed"), "{said}");
    place.write("attar.toml", &tables[0]);
    let (code, said) = run(&shell[1]);
    assert_eq!(code, Some(0), "{said}");
    for limit in ["max-perplexity-increase", "max-bytes"] {
        assert!(said.contains(limit), "{said}");
    }
    // With all that the table has in comments, too.
    place.write("piqa.jsonl", "{\"query\": \"Q\", \"choices\": [\"a\", \"b\"], \"gold\": 0}\n");
    let whole: String = tables[0]
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|line| line.contains(" = ")).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    place.write("whole.toml", &whole);
    // A task that the baseline does not know yet is told of.
    let (code, said) = run("attar check --config whole.toml");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no figures for the task `piqa`") && said.contains("--update-baseline"), "{said}");
    let (code, said) = run("attar check --config whole.toml --update-baseline");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run("attar check --config whole.toml");
    assert_eq!(code, Some(0), "{said}");
    for limit in ["max-kl", "max-kl-p99", "min-top1", "max-accuracy-drop"] {
        assert!(said.contains(limit), "{said}");
    }

    // The script says which of three it was.
    for (table, code, words) in [
        (tables[0].clone(), 0, "good enough"),
        (tables[0].replace("5MB", "1MB"), 1, "worse than it may be"),
        (tables[0].replace("\"model\"", "\"absent\""), 2, "could not be checked"),
    ] {
        place.write("attar.toml", &table);
        let (found, said) = run(&shell[2]);
        assert_eq!(found, Some(code), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn the_action_tells_whether_it_passed_and_ends_as_attar_does() {
    let action = repository("action.yml");
    let place = repository_with_a_model();
    let build =
        bash(&place, &step(&action, "Build attar"), &[("GITHUB_PATH", "path"), ("RUNNER_TEMP", "temp")]);
    assert_eq!((build.code, place.at("path").exists()), (Some(0), false), "{}", build.stderr);

    let script = step(&action, "Check");
    let check = |arguments: &str, files: [&str; 2]| {
        place.write("output", "");
        let variables = [
            ("ARGUMENTS", arguments),
            ("JUNIT", files[0]),
            ("MARKDOWN", files[1]),
            ("GITHUB_OUTPUT", "output"),
            ("GITHUB_ACTIONS", "true"),
            ("GITHUB_STEP_SUMMARY", "summary.md"),
        ];
        let run = bash(&place, &script, &variables);
        (run, fs::read_to_string(place.at("output")).unwrap())
    };
    let line = "model --text heldout.txt --ctx 128 --chunks 2";
    let (run, output) = check(&format!("{line} --max-bytes 5MB"), ["c.xml", "c.md"]);
    assert_eq!((run.code, output.as_str()), (Some(0), "passed=true\n"), "{}", run.stderr);
    assert!(place.at("c.xml").is_file() && place.at("c.md").is_file() && place.at("summary.md").is_file());
    let (run, output) = check(&format!("{line} --max-bytes 1MB"), ["", ""]);
    assert_eq!((run.code, output.as_str()), (Some(1), "passed=false\n"), "{}", run.stderr);
    assert!(run.stdout.contains("::error title=attar check%3A max-bytes"), "{}", run.stdout);
    let (run, output) = check(line, ["", ""]);
    assert_eq!((run.code, output.as_str()), (Some(2), ""), "{}", run.stderr);
    // Over several lines, as YAML allows.
    let (run, output) = check("model\n--text heldout.txt\n  --chunks 2 --max-bytes 5MB\n", ["", ""]);
    assert_eq!((run.code, output.as_str()), (Some(0), "passed=true\n"), "{}", run.stderr);
}
