use crate::render::{Subject, renderer};
use crate::report::{Difference, example};

fn shown(subject: Subject<'_>) -> String {
    subject.text(renderer("terminal").expect("there is a terminal"))
}

#[test]
fn an_evaluation_taken_apart() {
    let text = shown(Subject::Report(&example::detailed()));
    assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    insta::assert_snapshot!(text);
}

/// Another scheme, window by window, on another machine.
#[test]
fn what_changed_from_one_report_to_another() {
    let (before, mut after) = (example::detailed(), example::detailed());
    let output = after.output.as_mut().expect("the example has an output");
    output.scheme = "q8_0".to_owned();
    output.path = "out/books-7m-q8_0.gguf".to_owned();
    (output.bytes, output.bits_per_weight) = (7_801_234, 8.5);
    let evaluation = after.evaluation.as_mut().expect("the example is evaluated");
    evaluation.perplexity.value = 41.749;
    evaluation.kl_divergence.as_mut().expect("there is a reference").mean = 0.000_91;
    let windows = evaluation.by_window.as_mut().expect("the example is taken apart");
    windows.nll = vec![3.694, 3.789, 3.593];
    windows.kl_divergence = vec![0.000_8, 0.001_1, 0.000_9];
    after.tasks[0].picked[3] = 1;
    after.tensors[1].encoding = "q8_0".to_owned();
    after.tensors[1].relative_error = Some(0.000_011);
    let run = after.run.as_mut().expect("the example was run");
    run.cpu = Some("Ampere Altra".to_owned());
    run.command = run.command.replace("q4_k_m", "q8_0");
    insta::assert_snapshot!(shown(Subject::Difference(&Difference::of(&before, &after))));
}
