//! What changed from one report to another.

use std::collections::HashMap;

use serde::Serialize;

use super::{ByWindow, Evaluation, Mean, Report, Run, Share, TaskResult, Tensor};
use crate::Perplexity;
use crate::perplexity::mean_and_stderr;

/// The schema of a difference.
const SCHEMA: &str = "attar-report-difference/1";

/// Two reports, and what can be said of both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Always `attar-report-difference/1`.
    pub schema: &'static str,
    /// What the reports are about.
    pub subject: Pair<String>,
    /// Bytes of all weight tensors.
    pub weight_bytes: Pair<u64>,
    /// Bytes of all files of what was written; null for a model alone.
    pub bytes: Pair<Option<u64>>,
    /// Bits per weight.
    pub bits_per_weight: Pair<Option<f64>>,
    /// Texts that both were scored on, in the order of the first.
    pub evaluations: Vec<EvaluationDifference>,
    /// Tasks that both answered.
    pub tasks: Vec<TaskDifference>,
    /// Weight tensors that both have, whose encoding or error changed; the largest change first.
    pub tensors: Vec<TensorDifference>,
    /// How they were made, where that differs.
    pub made: Vec<Changed>,
}

/// A figure of both.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pair<T> {
    /// Of the first report.
    pub before: T,
    /// Of the second.
    pub after: T,
}

impl<T> Pair<T> {
    /// What `figure` says of both.
    pub fn of<S: ?Sized>(before: &S, after: &S, figure: impl Fn(&S) -> T) -> Self {
        Self { before: figure(before), after: figure(after) }
    }
}

/// A fact that changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changed {
    /// What it is called.
    pub name: &'static str,
    /// What it was and is.
    pub value: Pair<Option<String>>,
}

/// Two evaluations on a text of one name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvaluationDifference {
    /// The text, as given.
    pub text: String,
    /// Scored tokens.
    pub tokens: Pair<u64>,
    /// Whether both scored as many tokens in the same way, and none knows that they are others: if not, their figures do not
    /// compare.
    pub comparable: bool,
    /// Perplexity.
    pub perplexity: Pair<Perplexity>,
    /// Mean KL divergence from the reference of each.
    pub kl_divergence: Pair<Option<Mean>>,
    /// Share of tokens where model and reference put the same first.
    pub top1_agreement: Pair<Option<f64>>,
    /// Window by window, where the windows are the same: what the text itself varies by cancels.
    pub paired: Option<Paired>,
}

/// The second less the first, window by window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// Windows.
    pub windows: u64,
    /// Negative log-likelihood per token, in nats.
    pub nll: Mean,
    /// Perplexity of the second over that of the first.
    pub perplexity_ratio: Perplexity,
    /// KL divergence, where both have it.
    pub kl_divergence: Option<Mean>,
}

/// Two results on a task of one name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskDifference {
    /// The task.
    pub name: String,
    /// Items answered rightly.
    pub accuracy: Pair<Share>,
    /// Items that the two answer differently, where both were asked as many.
    pub changed: Option<u64>,
}

/// A tensor that was stored otherwise, or with another error.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDifference {
    /// Hugging Face name; of an expert its number follows.
    pub name: String,
    /// Number format.
    pub encoding: Pair<String>,
    /// Relative error, where it is known.
    pub relative_error: Pair<Option<f64>>,
}

impl TensorDifference {
    /// The natural logarithm of how many times the error of the first that of the second is.
    pub fn log_ratio(&self) -> Option<f64> {
        let (before, after) = (self.relative_error.before?, self.relative_error.after?);
        (before > 0.0 && after > 0.0).then(|| (after / before).ln())
    }
}

impl Difference {
    /// From `before` to `after`.
    pub fn of(before: &Report, after: &Report) -> Self {
        let then: Vec<&Evaluation> = before.evaluations().collect();
        let same_text = |now: &Evaluation| then.iter().find(|then| then.text == now.text).copied();
        let mut evaluations: Vec<_> =
            after.evaluations().filter_map(|now| Some(evaluation(same_text(now)?, now))).collect();
        // Files move: two single evaluations on the same tokens are of one text, whatever it is called.
        if let ([then], [now], true) =
            (&then[..], &after.evaluations().collect::<Vec<_>>()[..], evaluations.is_empty())
        {
            evaluations.extend(same_windows(then, now).map(|_| evaluation(then, now)));
        }
        let task = |now: &TaskResult| {
            let then = before.tasks.iter().find(|then| then.name == now.name)?;
            Some(task(then, now))
        };
        Self {
            schema: SCHEMA,
            subject: Pair::of(before, after, |report| report.subject().to_owned()),
            weight_bytes: Pair::of(before, after, Report::weight_bytes),
            bytes: Pair::of(before, after, |report| Some(report.output.as_ref()?.bytes)),
            bits_per_weight: Pair::of(before, after, Report::bits_per_weight),
            evaluations,
            tasks: after.tasks.iter().filter_map(task).collect(),
            tensors: tensors(&before.tensors, &after.tensors),
            made: made(before, after),
        }
    }
}

fn evaluation(then: &Evaluation, now: &Evaluation) -> EvaluationDifference {
    let way = |e: &Evaluation| (e.tokens, e.chunks, e.ctx, e.convention);
    let kl = |e: &Evaluation| e.kl_divergence.map(|kl| Mean { mean: kl.mean, stderr: kl.stderr });
    EvaluationDifference {
        text: now.text.clone(),
        tokens: Pair::of(then, now, |e| e.tokens),
        comparable: way(then) == way(now) && !has_other_tokens(then, now),
        perplexity: Pair::of(then, now, |e| e.perplexity),
        kl_divergence: Pair::of(then, now, kl),
        top1_agreement: Pair::of(then, now, |e| e.top1_agreement),
        paired: same_windows(then, now).map(|(then, now)| paired(then, now)),
    }
}

/// Whether both know what they scored, and it was not the same.
pub(crate) fn has_other_tokens(then: &Evaluation, now: &Evaluation) -> bool {
    then.tokens_sha256().zip(now.tokens_sha256()).is_some_and(|(then, now)| then != now)
}

/// The windows of both, where they hold the same tokens.
fn same_windows<'a>(then: &'a Evaluation, now: &'a Evaluation) -> Option<(&'a ByWindow, &'a ByWindow)> {
    let (before, after) = (then.by_window.as_ref()?, now.by_window.as_ref()?);
    let same = before.tokens_sha256 == after.tokens_sha256
        && before.nll.len() == after.nll.len()
        && then.convention == now.convention;
    (same && !before.nll.is_empty()).then_some((before, after))
}

fn paired(then: &ByWindow, now: &ByWindow) -> Paired {
    let mean = |then: &[f64], now: &[f64]| {
        let differences: Vec<f64> = then.iter().zip(now).map(|(then, now)| now - then).collect();
        let (mean, stderr) = mean_and_stderr(&differences);
        Mean { mean, stderr }
    };
    let nll = mean(&then.nll, &now.nll);
    let ratio = nll.mean.exp();
    let both = then.kl_divergence.len() == then.nll.len() && now.kl_divergence.len() == now.nll.len();
    Paired {
        windows: then.nll.len() as u64,
        nll,
        perplexity_ratio: Perplexity { value: ratio, stderr: ratio * nll.stderr },
        kl_divergence: both.then(|| mean(&then.kl_divergence, &now.kl_divergence)),
    }
}

fn task(then: &TaskResult, now: &TaskResult) -> TaskDifference {
    let answers = then.picked.iter().zip(&now.picked);
    let changed = answers.filter(|(then, now)| then != now).count() as u64;
    TaskDifference {
        name: now.name.clone(),
        accuracy: Pair::of(then, now, |task| task.accuracy),
        changed: (then.picked.len() == now.picked.len()).then_some(changed),
    }
}

fn tensors(then: &[Tensor], now: &[Tensor]) -> Vec<TensorDifference> {
    let key = |tensor: &Tensor| (tensor.name.clone(), tensor.expert);
    let then: HashMap<_, &Tensor> = then.iter().map(|tensor| (key(tensor), tensor)).collect();
    let mut changed: Vec<TensorDifference> = now
        .iter()
        .filter_map(|now| {
            let then = *then.get(&key(now))?;
            let changed = then.encoding != now.encoding || then.relative_error != now.relative_error;
            changed.then(|| TensorDifference {
                name: match now.expert {
                    Some(expert) if !now.name.contains(&format!(".{expert}.")) => {
                        format!("{}, expert {expert}", now.name)
                    }
                    _ => now.name.clone(),
                },
                encoding: Pair::of(then, now, |tensor| tensor.encoding.clone()),
                relative_error: Pair::of(then, now, |tensor| tensor.relative_error),
            })
        })
        .collect();
    // An encoding that changed without a figure stands before small changes of the error, after large ones.
    let size = |tensor: &TensorDifference| tensor.log_ratio().map_or(0.0, f64::abs);
    changed.sort_by(|a, b| size(b).total_cmp(&size(a)));
    changed
}

/// The environment, and how each was made.
fn made(before: &Report, after: &Report) -> Vec<Changed> {
    type Fact = fn(&Report) -> Option<String>;
    fn of_run(report: &Report, fact: impl Fn(&Run) -> Option<String>) -> Option<String> {
        report.run.as_ref().and_then(fact)
    }
    let facts: [(&'static str, Fact); 15] = [
        ("model", |report| Some(report.model.source.clone())),
        ("format", |report| Some(report.output.as_ref()?.format.clone())),
        ("scheme", |report| Some(report.output.as_ref()?.scheme.clone())),
        ("method", |report| report.output.as_ref()?.method.clone()),
        ("calibration", |report| Some(report.calibration.as_ref()?.files.join(", "))),
        ("calibration sha256", |report| Some(report.calibration.as_ref()?.sha256.clone())),
        ("command", |report| of_run(report, |run| Some(run.command.clone()))),
        ("version", |report| of_run(report, |run| Some(run.version.clone()))),
        ("device", |report| of_run(report, |run| Some(run.device.clone()))),
        ("threads", |report| of_run(report, |run| Some(run.threads.to_string()))),
        ("precision", |report| of_run(report, |run| run.precision.clone())),
        ("processor", |report| of_run(report, |run| run.cpu.clone())),
        ("system", |report| of_run(report, |run| run.os.clone())),
        ("time", |report| of_run(report, |run| Some(format!("{:.1} s", run.seconds)))),
        ("peak memory", |report| {
            of_run(report, |run| Some(format!("{} MB", run.peak_rss_bytes? / 1_000_000)))
        }),
    ];
    let changed =
        facts.into_iter().map(|(name, fact)| Changed { name, value: Pair::of(before, after, fact) });
    changed.filter(|changed| changed.value.before != changed.value.after).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#[expect(clippy::float_cmp, reason = "these figures are exact")]
mod tests {
    use super::*;
    use crate::report::example;

    fn windows(sha256: &str, nll: &[f64], kl: &[f64]) -> ByWindow {
        ByWindow {
            tokens_sha256: sha256.to_owned(),
            nll: nll.to_vec(),
            reference_nll: Vec::new(),
            kl_divergence: kl.to_vec(),
            same_top: Vec::new(),
        }
    }

    fn with_windows(by_window: ByWindow) -> Report {
        let mut report = example::quantized();
        report.evaluation.as_mut().unwrap().by_window = Some(by_window);
        report
    }

    #[test]
    fn windows_of_the_same_tokens_are_compared_one_by_one() {
        let before = with_windows(windows("aa", &[3.0, 4.0, 5.0], &[0.5, 0.25, 0.75]));
        let after = with_windows(windows("aa", &[3.5, 4.5, 5.5], &[0.25, 0.25, 0.25]));
        let paired = Difference::of(&before, &after).evaluations[0].paired.unwrap();
        assert_eq!((paired.windows, paired.nll), (3, Mean { mean: 0.5, stderr: 0.0 }));
        assert_eq!(paired.perplexity_ratio.value, 0.5_f64.exp());
        assert_eq!(paired.kl_divergence.unwrap().mean, -0.25);
        let other = with_windows(windows("bb", &[3.5, 4.5, 5.5], &[]));
        assert_eq!(Difference::of(&before, &other).evaluations[0].paired, None);
        let shorter = with_windows(windows("aa", &[3.5], &[]));
        assert_eq!(Difference::of(&before, &shorter).evaluations[0].paired, None);
        let without = with_windows(windows("aa", &[1.0, 1.0, 1.0], &[]));
        assert_eq!(Difference::of(&before, &without).evaluations[0].paired.unwrap().kl_divergence, None);
    }

    #[test]
    fn texts_of_one_name_and_length_do_not_compare_where_their_tokens_differ() {
        let (one, other) =
            (with_windows(windows("aa", &[3.0], &[])), with_windows(windows("bb", &[3.0], &[])));
        assert!(!Difference::of(&one, &other).evaluations[0].comparable);
        // Who does not say what was scored may be right.
        let untold = with_windows(windows("", &[3.0], &[]));
        assert!(Difference::of(&one, &untold).evaluations[0].comparable);
        assert!(Difference::of(&one, &example::quantized()).evaluations[0].comparable);
    }

    #[test]
    fn a_model_and_an_output_compare_by_their_weights() {
        let (model, output) = (Report::new(example::model()), example::quantized());
        let difference = Difference::of(&model, &output);
        assert_eq!(difference.weight_bytes.before, model.model.bytes);
        assert!(difference.weight_bytes.after.abs_diff(4_812_132) < 2, "{:?}", difference.weight_bytes);
        assert_eq!(difference.bytes, Pair { before: None, after: Some(4_812_345) });
    }

    #[test]
    fn a_text_that_was_renamed_is_known_by_its_tokens() {
        let before = with_windows(windows("aa", &[3.0], &[]));
        let mut after = before.clone();
        after.evaluation.as_mut().unwrap().text = "elsewhere.txt".to_owned();
        assert_eq!(Difference::of(&before, &after).evaluations.len(), 1);
        after.evaluation.as_mut().unwrap().by_window = None;
        assert_eq!(Difference::of(&before, &after).evaluations.len(), 0);
    }

    #[test]
    fn nothing_differs_between_a_report_and_itself() {
        let report = example::quantized();
        let difference = Difference::of(&report, &report);
        assert!(difference.made.is_empty() && difference.tensors.is_empty());
        assert!(difference.evaluations[0].comparable);
    }

    #[test]
    fn the_tensor_whose_error_changed_most_comes_first() {
        let (before, mut after) = (example::quantized(), example::quantized());
        after.tensors[0].relative_error = Some(0.002);
        after.tensors[2].relative_error = Some(0.000_01);
        after.tensors[1].encoding = "q8_0".to_owned();
        let tensors = Difference::of(&before, &after).tensors;
        let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let of = |at: usize| before.tensors[at].name.as_str();
        assert_eq!(names, [of(2), of(0), of(1)]);
    }
}
