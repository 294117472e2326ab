//! Students of the fixture model: what they learn is written, and a run that was killed is not lost.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::forge;
#[cfg(unix)]
use crate::place::on_a_full_disk;
use crate::place::{ATTAR, Place};

/// A student that has lost a layer, and a run it learns in.
fn school() -> Place {
    let place = Place::new();
    place.done("prune books-2m -o cut --drop 1 --no-eval --quiet");
    place
}

const RUN: &str = "distill --teacher books-2m --student cut --data calibration.txt --ctx 64 --batch 4 --quiet \
                   --learning-rate 1e-3 --held-out 0.1 --text heldout.txt --chunks 4";

pub fn weights(place: &Place, output: &str) -> Vec<u8> {
    fs::read(place.at(output).join("model.safetensors")).unwrap()
}

#[test]
fn a_student_that_was_cut_comes_nearer_its_teacher_again() {
    let place = school();
    place.done(&format!("{RUN} -o taught --tokens 10000 --json taught.json --log steps.jsonl"));
    let report = place.json("taught.json");
    let taught = &report["distillation"];
    let curve = taught["curve"].as_array().unwrap();
    let held_out = |at: usize| curve[at]["held_out_loss"].as_f64().unwrap();
    assert!(held_out(curve.len() - 1) < 0.7 * held_out(0), "{taught:#}");
    assert_eq!(taught["steps"], 40);
    assert_eq!((&taught["loss"], &taught["skipped_steps"]), (&"forward-kl".into(), &0.into()));
    let log = fs::read_to_string(place.at("steps.jsonl")).unwrap();
    let steps = log.lines().filter(|line| line.contains("gradient_norm")).count();
    assert_eq!((steps, log.lines().count() - steps), (40, curve.len()));
    assert!(!place.at("taught.training").exists(), "what was kept on the way is gone");
    // What was written is what was scored.
    let line =
        "eval taught --text heldout.txt --chunks 4 --ctx 64 --reference books-2m --quiet --json again.json";
    place.done(line);
    let again = place.json("again.json");
    for key in ["perplexity", "kl_divergence", "top1_agreement"] {
        assert_eq!(again["evaluation"][key], report["evaluation"][key], "{key}");
    }
}

/// What the stream is to be is learned beside what is predicted, and the report says of which layers.
#[test]
fn layers_of_a_student_come_nearer_those_of_its_teacher() {
    let place = school();
    let run = format!("{RUN} --tokens 2560 --hidden-loss 0.5 --no-eval")
        .replace("--text heldout.txt --chunks 4", "");
    place.done(&format!("{run} -o even --json even.json --report told"));
    place.done(&format!("{run} -o named --json named.json --layer-map 0:0"));
    let taught = |name: &str| place.json(name)["distillation"].clone();
    let (even, named) = (taught("even.json"), taught("named.json"));
    assert_eq!((&even["hidden_loss"], &named["layer_map"]), (&0.5.into(), &serde_json::json!([[0, 0]])));
    for taught in [&even, &named] {
        let curve = taught["curve"].as_array().unwrap();
        let [first, last] =
            [&curve[0], &curve[curve.len() - 1]].map(|at| at["held_out_loss"].as_f64().unwrap());
        assert!(last < 0.9 * first, "{taught:#}");
    }
    assert!(fs::read_to_string(place.at("told/report.md")).unwrap().contains("0.5 of the error of"));
}

/// One layer after another, each nearer its teacher's than before; killed between two or within one, to the same weights.
#[test]
fn a_student_that_learns_layer_by_layer_comes_nearer_and_survives_being_killed() {
    let place = Place::new();
    place.done("prune books-2m -o thin --ffn 0.5 --no-eval --no-repair --quiet --calib heldout.txt");
    let run = RUN.replace("--student cut", "--student thin --local --tokens 5120");
    place.done(&format!("{run} -o whole --json whole.json --log steps.jsonl"));
    let report = place.json("whole.json");
    let taught = &report["distillation"];
    assert_eq!((&taught["loss"], &taught["steps"]), (&"block-output".into(), &40.into()));
    assert_eq!(taught["layer_map"], serde_json::json!([[0, 0], [1, 1]]));
    let curve = taught["curve"].as_array().unwrap();
    for layer in 0..2 {
        let of_layer = curve.iter().filter(|point| point["layer"] == layer);
        let losses: Vec<_> = of_layer.map(|point| point["held_out_loss"].as_f64().unwrap()).collect();
        assert!(losses.len() > 5 && losses[losses.len() - 1] < 0.9 * losses[0], "{layer}: {losses:?}");
    }
    let log = fs::read_to_string(place.at("steps.jsonl")).unwrap();
    let steps = |layer: usize| {
        let named = format!("\"layer\":{layer}");
        log.lines().filter(|line| line.contains("gradient_norm") && line.contains(&named)).count()
    };
    assert_eq!([steps(0), steps(1)], [20, 20]);
    let line =
        "eval thin --text heldout.txt --chunks 4 --ctx 64 --reference books-2m --quiet --json thin.json";
    place.done(line);
    let kl = |name: &str| place.json(name)["evaluation"]["kl_divergence"]["mean"].as_f64().unwrap();
    assert!(kl("whole.json") < 0.7 * kl("thin.json"), "{}, {}", kl("whole.json"), kl("thin.json"));

    let words =
        format!("{run} -o killed --save-every 0 --no-eval").replace("--text heldout.txt --chunks 4", "");
    for enough in [3, 25] {
        let more = if enough == 3 { "" } else { " --resume" };
        kill_once_kept(&place, &format!("{words}{more}"), "killed", enough);
    }
    place.done(&format!("{words} --resume --threads 1"));
    assert!(weights(&place, "killed") == weights(&place, "whole"));
}

/// From what a teacher said once, hidden states to the bit, the same is learned as from the teacher.
#[test]
fn a_kept_teacher_teaches_what_it_would_say() {
    let place = school();
    let keep =
        "eval books-2m --text calibration.txt --ctx 64 --chunks 40 --convention hf --quiet --save-reference";
    place.done(&format!("{keep} hidden"));
    place.done(&format!("{keep} likeliest --save-as top-k=32"));
    let from = |teacher: &str, output: &str, more: &str| {
        place.done(&format!(
            "distill --teacher {teacher} --student cut -o {output} --batch 4 --tokens 2560 --no-eval --quiet --json {output}.json {more}"
        ));
        let report = place.json(&format!("{output}.json"));
        let curve = report["distillation"]["curve"].as_array().unwrap().clone();
        curve.iter().map(|point| point["held_out_loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let online = from("books-2m", "online", "--data calibration.txt --ctx 64 --held-out 0.1");
    let hidden = from("hidden", "kept", "--held-out 0.1");
    let likeliest = from("likeliest", "top", "--held-out 0.1 --loss jsd");
    for losses in [&online, &hidden, &likeliest] {
        assert!(losses[losses.len() - 1] < 0.95 * losses[0], "{losses:?}");
    }
}

/// A model that learns to be itself in few bits: better than one that was rounded unprepared.
#[test]
fn a_student_sees_its_weights_as_they_will_be_stored() {
    let place = Place::new();
    let run = RUN.replace("--student cut", "--student books-2m").replace("1e-3", "3e-4");
    place.done(&format!("{run} -o aware --scheme w2a16-g64 --tokens 10240 --json aware.json"));
    place.done("quantize books-2m -o rounded --scheme w2a16-g64 --method rtn --no-eval --quiet");
    let line = "--text heldout.txt --chunks 4 --ctx 64 --reference books-2m --quiet --json";
    place.done(&format!("eval rounded {line} rounded.json"));
    let kl = |name: &str| place.json(name)["evaluation"]["kl_divergence"]["mean"].as_f64().unwrap();
    assert!(kl("aware.json") < 0.5 * kl("rounded.json"), "{}, {}", kl("aware.json"), kl("rounded.json"));
    assert_eq!(place.json("aware.json")["output"]["scheme"], "w2a16-g64");
}

/// A run that says nothing of what it wrote.
fn unscored() -> String {
    format!("{RUN} --tokens 10240 --no-eval").replace("--text heldout.txt --chunks 4", "")
}

/// Conversations by a template that adds nothing but the end are the texts they are made of.
#[test]
fn conversations_are_learned_as_the_chat_template_writes_them() {
    let place = school();
    let text = fs::read_to_string(place.at("calibration.txt")).unwrap();
    let (mut texts, mut chats) = (Vec::new(), Vec::new());
    for part in text.split("\n\n").filter(|part| part.len() > 20).take(60) {
        let (ask, answer) = part.split_at(part.char_indices().nth(10).unwrap().0);
        let messages =
            serde_json::json!([{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]);
        texts.push(serde_json::json!({"text": part}).to_string());
        chats.push(serde_json::json!({"messages": messages}).to_string());
    }
    place.write("texts.jsonl", &texts.join("\n"));
    place.write("chats.jsonl", &chats.join("\n"));
    let run = "distill --teacher books-2m --student cut --ctx 64 --batch 4 --tokens 512 --no-eval --quiet";
    let line = |data: &str| format!("{run} --data {data} -o {data}.out --json {data}.json");
    place.refuses(
        &line("chats.jsonl"),
        &["line 1 of `chats.jsonl`", "no chat template", "chat_template.jinja"],
    );
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}{{ eos_token }}";
    place.write("cut/chat_template.jinja", template);
    place.done(&line("texts.jsonl"));
    place.done(&line("chats.jsonl"));
    assert!(weights(&place, "texts.jsonl.out") == weights(&place, "chats.jsonl.out"));
    let sha256 = |name: &str| place.json(name)["distillation"]["data_sha256"].clone();
    assert_eq!(sha256("texts.jsonl.json"), sha256("chats.jsonl.json"));
    assert!(place.at("chats.jsonl.out/chat_template.jinja").is_file(), "the template goes with the student");

    place.write("cut/chat_template.jinja", "{{ raise_exception('only the assistant speaks') }}");
    let refused = line("chats.jsonl").replace(".out", ".no");
    place.refuses(&refused, &["line 1 of `chats.jsonl`", "only the assistant speaks", "change its messages"]);
    place.write("cut/chat_template.jinja", "{% for %}");
    place.refuses(&refused, &["chat template of the tokenizer", "syntax error"]);
}

/// Kills a run on its way to `output` with SIGKILL once so many of its steps are kept.
pub fn kill_once_kept(place: &Place, words: &str, output: &str, steps: u64) {
    let mut child = Command::new(ATTAR)
        .args(words.split_whitespace())
        .current_dir(place.at(""))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let kept = place.at(output).with_extension("training").join("training.json");
    let kept_steps = || {
        let facts: serde_json::Value = serde_json::from_slice(&fs::read(&kept).ok()?).ok()?;
        facts["steps"].as_u64()
    };
    let started = Instant::now();
    while kept_steps().is_none_or(|kept| kept < steps) {
        assert!(started.elapsed() < Duration::from_mins(4), "nothing was kept");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    assert!(!place.at(output).exists(), "it was over before it was killed");
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_weights() {
    let place = school();
    let run = unscored();
    place.done(&format!("{run} -o whole"));
    let words = format!("{run} -o killed --save-every 0 --log steps.jsonl");
    kill_once_kept(&place, &words, "killed", 1);
    place.fails(&words, &["killed.training", "not finished", "--resume"]);
    place.fails(&format!("{words} --resume --seed 1"), &["other settings"]);
    let half = place.at(".killed.training.partial-1-abcdef");
    fs::create_dir_all(half.join("optimizer")).unwrap();
    place.done(&format!("{words} --resume --threads 1 --json killed.json"));
    assert!(!half.exists(), "what a run leaves half written when it is killed goes with the next");
    assert!(weights(&place, "killed") == weights(&place, "whole"));
    assert_eq!(place.json("killed.json")["distillation"]["steps"], 40);
    let log = fs::read_to_string(place.at("steps.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let steps =
        lines.filter(|line| line["gradient_norm"].is_number()).map(|line| line["step"].as_u64().unwrap());
    assert!(steps.eq(1..=40), "steps that were done twice are told once:\n{log}");
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_costs_the_steps_since_the_run_was_kept_and_no_others() {
    let place = school();
    let run = unscored();
    place.done(&format!("{run} -o whole"));
    let words = format!("{run} -o short --save-every 0");
    place.fails_with(
        &mut on_a_full_disk(&words, 1000),
        &["short.training", "after step 1", "too large", "disk"],
    );
    kill_once_kept(&place, &words, "short", 1);
    let kept = &place.json("short.training/training.json")["steps"];
    let still = format!("still keeps step {kept}, from which --resume goes on");
    let words = format!("{words} --resume");
    place.fails_with(&mut on_a_full_disk(&words, 1000), &["short.training", &still, "too large", "disk"]);
    place.done(&words);
    assert!(weights(&place, "short") == weights(&place, "whole"));
}

/// A disk that has room for the student but not for a run of it.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_too_small_to_keep_a_run_is_refused_before_any_work() {
    use crate::place::skipped;

    let place = school();
    fs::create_dir(place.at("small")).unwrap();
    let on_a_small_disk = |program: &str, line: &str| {
        let script = "mount -t tmpfs -o size=8m tmpfs small && exec \"$0\" \"$@\"";
        let mut command = assert_cmd::Command::new("unshare");
        command.args(["-rm", "sh", "-c", script, program]).args(line.split_whitespace());
        command
    };
    if on_a_small_disk("true", "").current_dir(place.at("")).output().is_ok_and(|run| run.status.success()) {
        let line = format!("{} -o small/out", unscored());
        let parts = ["small/out.training", "is kept", "8.39 MB", "make room"];
        let stderr = place.fails_with(&mut on_a_small_disk(ATTAR, &line), &parts);
        assert!(stderr.starts_with("error:"), "work was begun:\n{stderr}");
    } else {
        skipped("this user may not mount a file system");
    }
}

#[test]
fn a_teacher_with_other_tokens_is_refused() {
    let place = Place::new();
    forge::with_more_rows(&place, "larger", 4);
    let teach = |teacher: &str| {
        format!(
            "distill --teacher {teacher} --student books-2m -o out --data calibration.txt --ctx 64 --no-eval"
        )
    };
    place.refuses(&teach("larger"), &["the teacher knows 4,100 tokens, the student 4,096", "same tokenizer"]);
    let other = forge::copy(&place, "other");
    forge::edit_json(&other.join("tokenizer.json"), |tokenizer| {
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        (vocab["!"], vocab["$"]) = (3.into(), 0.into());
    });
    place.refuses(&teach("other"), &["2 tokens", "token 0 for `$` and for `!`", "same tokenizer"]);
    let silent = forge::copy(&place, "silent");
    fs::remove_file(silent.join("tokenizer.json")).unwrap();
    let run = place.run(&format!("{} --dry-run", teach("silent")));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("warning: the teacher has no tokenizer"), "{}", run.stderr);
}

#[test]
fn what_cannot_be_taught_is_refused_before_any_work() {
    let place = Place::new();
    let ask = "distill --teacher books-2m --student books-2m -o out";
    place.refuses(ask, &["nothing to learn from", "--data"]);
    place.refuses(&format!("{ask} --data calibration.txt --ctx 100000"), &["too few", "--ctx"]);
    place.write("short.txt", "Not a window of it.");
    let few = ["`short.txt`", "0 windows of 512", "too few", "--ctx"];
    place.refuses(&format!("{ask} --data calibration.txt --data short.txt"), &few);
    place.refuses(&format!("{ask} --data calibration.txt --held-out 1"), &["too few", "--held-out"]);
    place.refuses(
        &format!("{ask} --data calibration.txt --resume"),
        &["no run to go on with", "out.training"],
    );
    place.refuses(&format!("{ask} --data calibration.txt --device cuda"), &["cuda", "CUDA", "--device cpu"]);
    place.write("lines.jsonl", "{\"text\": \"a\"}\n{\"words\": []}\n");
    place.refuses(&format!("{ask} --data lines.jsonl"), &["line 2", "neither a `text` nor `messages`"]);
    place.write("lines.jsonl", "{\"text\": \"a\"}\nno json\n");
    place.fails(&format!("{ask} --data lines.jsonl"), &["line 2 of `lines.jsonl`"]);
    let layers = format!("{ask} --data calibration.txt --hidden-loss 1");
    place.refuses(&format!("{layers} --layer-map 0:9"), &["the teacher has no layer 9", "--layer-map"]);
    place.done("prune books-2m -o narrow --hidden 0.75 --no-eval --quiet");
    let narrow = layers.replace("--student books-2m", "--student narrow");
    place.refuses(&narrow, &["residual stream has", "hidden size"]);
    place.refuses(&format!("{layers} --device cuda"), &["cuda"]);
    let local = format!("{ask} --data calibration.txt --local");
    place.refuses(&format!("{local} --layer-map 0:1,1:0"), &["rise", "--layer-map"]);
    place.refuses(&format!("{local} --max-memory 50MB"), &["--max-memory", "optimizer"]);
    for clash in ["--hidden-loss 1", "--scheme q8_0", "--loss jsd", "--cross-entropy 0.5"] {
        let run = place.run(&format!("{local} {clash}"));
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{clash}");
        assert!(run.stderr.contains("cannot be used with"), "{}", run.stderr);
    }
    let run = place.run(&format!("{ask} --data calibration.txt --layer-map 0:1"));
    assert!(run.code == Some(2) && run.stderr.contains("--hidden-loss"), "{}", run.stderr);
    place.done("eval books-2m --text heldout.txt --ctx 64 --chunks 4 --quiet --save-reference kept");
    let ask = "distill --teacher kept --student books-2m -o out";
    place.refuses(&format!("{ask} --data calibration.txt"), &["text of its own", "--data"]);
    place.refuses(&format!("{ask} --ctx 32"), &["windows of its own length"]);
    place.refuses(&format!("{ask} --hidden-loss 1"), &["says nothing of its layers", "teacher itself"]);
}
