//! The gate: is a model good enough, and no worse than it was?
//!
//! A figure of one text is the same in every run, so a limit on a figure is held to as it stands. A *change* is another matter: the same change of
//! a model moves one window up and the next one down, and a mean of few windows moves by chance. So a change counts where it is beyond its
//! limit *and* the windows, compared one by one, agree that there is one.

mod admit;

use std::fmt;

use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::perplexity::mean_and_stderr;
use crate::render::figures::{bytes, grouped, measured, percent, small};
use crate::report::{Check, Evaluation, Limit, TaskComparison, TaskResult, Verdict};
use crate::{Report, report};
use admit::{A_REFERENCE, ANSWERS_BEFORE, DIVERGENCE_BEFORE, SOMETHING_BEFORE};
pub use admit::{Cut, Prospect};

/// A change so unlikely where there is none is taken for one.
pub const SIGNIFICANCE: f64 = 0.05;

/// What a model is held to; what is missing is not looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// By how large a share perplexity may rise.
    pub max_perplexity_increase: Option<f64>,
    /// By how large a share mean KL divergence may rise above that of the baseline.
    pub max_kl_increase: Option<f64>,
    /// Mean KL divergence from the reference, in nats.
    pub max_kl: Option<f64>,
    /// Its 99th percentile.
    pub max_kl_p99: Option<f64>,
    /// Share of tokens, 0 to 1, where reference and model put the same token first.
    pub min_top1: Option<f64>,
    /// Bytes of the model's files.
    pub max_bytes: Option<u64>,
    /// By how much a task's accuracy, 0 to 1, may fall.
    pub max_accuracy_drop: Option<f64>,
    /// A task's accuracy, 0 to 1.
    pub min_accuracy: Option<f64>,
}

/// A mean divergence below this, in nats, is rounding; no rise within it counts.
const ROUNDING: f64 = 1e-6;

/// Why a model could not be held to its limits.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// Nothing is asked.
    #[error("no limit was given")]
    NoLimit,
    /// A limit that wants what there is not.
    #[error("--{limit} needs {what}")]
    Needs {
        /// The limit.
        limit: &'static str,
        /// What is missing.
        what: &'static str,
    },
    /// The baseline is of something else.
    #[error("the baseline is of another model: {baseline}, and this is {found}")]
    OtherModel {
        /// The model of the baseline.
        baseline: String,
        /// The model that is checked.
        found: String,
    },
    /// The baseline was measured on something else.
    #[error("the baseline has no figures for {subject}{detail}")]
    OtherTokens {
        /// The text or task.
        subject: String,
        /// How the two differ, if they have a name in common.
        detail: String,
    },
}

impl Limits {
    /// What a change since `baseline` is held to where nothing is said: 1 % of perplexity, and a quarter of the divergence where the baseline
    /// has one.
    pub fn unasked(baseline: &Report) -> Self {
        let diverges = baseline.evaluations().any(|then| then.kl_divergence.is_some());
        Self {
            max_perplexity_increase: Some(0.01),
            max_kl_increase: diverges.then_some(0.25),
            ..Self::default()
        }
    }

    /// Whether one of them wants a text to be scored.
    pub fn want_text(&self) -> bool {
        let changes = [self.max_perplexity_increase, self.max_kl_increase];
        let figures = [self.max_kl, self.max_kl_p99, self.min_top1];
        changes.iter().chain(&figures).any(Option::is_some)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Holds what `subject` measured to all limits.
    ///
    /// # Errors
    /// A baseline of another model, text or task; a limit on what was not measured.
    pub fn judge(&self, subject: &Subject<'_>) -> Result<Check, Error> {
        self.admit(&Prospect::of(subject))?;
        let mut limits = Vec::new();
        for evaluation in subject.report.evaluations() {
            let then =
                subject.baseline.map(|(_, baseline)| of_text(baseline, &Cut::of(evaluation))).transpose()?;
            self.text(evaluation, then, &mut limits)?;
        }
        self.tasks(subject, &mut limits)?;
        if let Some(most) = self.max_bytes {
            let (value, said) = (subject.bytes, bytes(subject.bytes));
            let said = format!(
                "the files take {said} ({} bytes); at most {} are allowed",
                grouped(value),
                bytes(most)
            );
            limits.push(exact("max-bytes", "files", value as f64, most as f64, value > most, said));
        }
        let passed = limits.iter().all(|limit| limit.verdict != Verdict::Failed);
        let original = || subject.report.evaluations().find_map(|e| Some(e.reference.as_ref()?.path.clone()));
        let against = subject.baseline.map(|(name, _)| name.to_owned());
        Ok(Check {
            passed,
            against: against.or(subject.reference.map(str::to_owned)).or_else(original),
            limits,
        })
    }

    fn text(
        &self,
        now: &Evaluation,
        then: Option<&Evaluation>,
        limits: &mut Vec<Limit>,
    ) -> Result<(), Error> {
        let text = &now.text;
        if let Some(limit) = self.max_perplexity_increase {
            let change = Change::of_perplexity(now, then)
                .ok_or(Error::Needs { limit: "max-perplexity-increase", what: SOMETHING_BEFORE })?;
            limits.push(change.held_to("max-perplexity-increase", text, limit));
        }
        if let Some(limit) = self.max_kl_increase {
            match then.and_then(|then| Change::of_divergence(now, then)) {
                Some(change) => limits.push(change.held_to("max-kl-increase", text, limit)),
                None => {
                    return Err(Error::Needs { limit: "max-kl-increase", what: DIVERGENCE_BEFORE });
                }
            }
        }
        let kl = |limit| now.kl_divergence.ok_or(Error::Needs { limit, what: A_REFERENCE });
        if let Some(limit) = self.max_kl {
            let kl = kl("max-kl")?;
            let said = format!(
                "mean KL divergence {}; at most {} is allowed",
                measured(kl.mean, kl.stderr),
                small(limit)
            );
            limits.push(exact("max-kl", text, kl.mean, limit, kl.mean > limit, said));
        }
        if let Some(limit) = self.max_kl_p99 {
            let kl = kl("max-kl-p99")?;
            let said = format!(
                "99 % of the tokens diverge by less than {}; {} is allowed",
                small(kl.p99),
                small(limit)
            );
            limits.push(exact("max-kl-p99", text, kl.p99, limit, kl.p99 > limit, said));
        }
        if let Some(limit) = self.min_top1 {
            let share = now.top1_agreement.ok_or(Error::Needs { limit: "min-top1", what: A_REFERENCE })?;
            let said = format!(
                "{} of the tokens have the reference's first token first; at least {} must",
                percent(share),
                percent(limit)
            );
            limits.push(exact("min-top1", text, share, limit, share < limit, said));
        }
        Ok(())
    }

    fn tasks(&self, subject: &Subject<'_>, limits: &mut Vec<Limit>) -> Result<(), Error> {
        for task in &subject.report.tasks {
            if let Some(limit) = self.max_accuracy_drop {
                let then = task
                    .reference
                    .ok_or(Error::Needs { limit: "max-accuracy-drop", what: ANSWERS_BEFORE })?;
                limits.push(accuracy_drop(task, &then, limit));
            }
            if let Some(limit) = self.min_accuracy {
                let share = task.accuracy.value;
                let said =
                    format!("{} of the items are right; at least {} must be", percent(share), percent(limit));
                limits.push(exact("min-accuracy", &task.name, share, limit, share < limit, said));
            }
        }
        Ok(())
    }
}

/// The options that set them, and with what.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [
            ("max-perplexity-increase", self.max_perplexity_increase.map(percent)),
            ("max-kl-increase", self.max_kl_increase.map(percent)),
            ("max-kl", self.max_kl.map(small)),
            ("max-kl-p99", self.max_kl_p99.map(small)),
            ("min-top1", self.min_top1.map(percent)),
            ("max-bytes", self.max_bytes.map(bytes)),
            ("max-accuracy-drop", self.max_accuracy_drop.map(percent)),
            ("min-accuracy", self.min_accuracy.map(percent)),
        ];
        let set: Vec<_> =
            limits.into_iter().filter_map(|(name, limit)| Some(format!("{name} {}", limit?))).collect();
        f.write_str(&set.join(", "))
    }
}

/// What is held to limits.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// What it scores; tasks stand beside those they are compared with.
    pub report: &'a Report,
    /// Bytes of its files.
    pub bytes: u64,
    /// What it scored before, and where that is kept.
    pub baseline: Option<(&'a str, &'a Report)>,
    /// The model it is compared with, by name.
    pub reference: Option<&'a str>,
}

/// A change for the worse, as a share of what was.
struct Change {
    what: &'static str,
    than: &'static str,
    from: String,
    to: String,
    value: f64,
    stderr: Option<f64>,
    p_value: Option<f64>,
}

impl Change {
    /// From the baseline, or where there is none from the reference.
    fn of_perplexity(now: &Evaluation, then: Option<&Evaluation>) -> Option<Self> {
        let windows = now.by_window.as_ref()?;
        let (before, perplexity) = match then {
            Some(then) => (&then.by_window.as_ref()?.nll, then.perplexity),
            None => (&windows.reference_nll, now.reference_perplexity?),
        };
        let paired = Paired::of(&windows.nll, before)?;
        let value = paired.mean.exp() - 1.0;
        Some(Self {
            what: "perplexity",
            than: if then.is_some() { "before" } else { "of the reference" },
            from: format!("{:.4}", perplexity.value),
            to: format!("{:.4}", now.perplexity.value),
            value,
            stderr: paired.stderr.map(|stderr| (1.0 + value) * stderr),
            p_value: paired.p_value,
        })
    }

    fn of_divergence(now: &Evaluation, then: &Evaluation) -> Option<Self> {
        let (windows, before) = (now.by_window.as_ref()?, then.by_window.as_ref()?);
        let (kl, kl_before) = (now.kl_divergence?, then.kl_divergence?);
        let paired = Paired::of(&windows.kl_divergence, &before.kl_divergence)?;
        let scale = kl_before.mean.max(ROUNDING);
        Some(Self {
            what: "mean KL divergence",
            than: "before",
            from: small(kl_before.mean),
            to: small(kl.mean),
            value: paired.mean / scale,
            stderr: paired.stderr.map(|stderr| stderr / scale),
            p_value: paired.p_value,
        })
    }

    fn held_to(self, name: &'static str, subject: &str, limit: f64) -> Limit {
        let verdict = of_change(self.value > limit, self.p_value);
        let value = format!("{:+.2}", 100.0 * self.value);
        let error = self.stderr.map(|stderr| format!(" ± {:.2}", 100.0 * stderr)).unwrap_or_default();
        let said = format!(
            "{} {}, {} {}: {value}{error} %; at most {:+.2} % is allowed{}",
            self.what,
            self.to,
            self.than,
            self.from,
            100.0 * limit,
            by_chance(verdict, self.p_value, "text")
        );
        Limit {
            name: name.to_owned(),
            subject: subject.to_owned(),
            value: self.value,
            stderr: self.stderr,
            limit,
            p_value: self.p_value,
            verdict,
            said,
        }
    }
}

/// Two figures for every window, compared one by one.
struct Paired {
    mean: f64,
    stderr: Option<f64>,
    p_value: Option<f64>,
}

impl Paired {
    /// The mean of `now - then`, and how likely one so large or larger is where the true one is 0: the one-sided paired t-test. Of one
    /// window nothing is known but its difference.
    fn of(now: &[f64], then: &[f64]) -> Option<Self> {
        if now.len() != then.len() || now.is_empty() {
            return None;
        }
        let differences: Vec<f64> = now.iter().zip(then).map(|(now, then)| now - then).collect();
        let (mean, stderr) = mean_and_stderr(&differences);
        let windows = differences.len();
        if windows < 2 {
            return Some(Self { mean, stderr: None, p_value: None });
        }
        let p_value = if stderr > 0.0 {
            let t = StudentsT::new(0.0, 1.0, (windows - 1) as f64).ok()?;
            t.sf(mean / stderr)
        } else if mean > 0.0 {
            0.0
        } else {
            1.0
        };
        Some(Self { mean, stderr: Some(stderr), p_value: Some(p_value) })
    }
}

/// A task's items, compared one by one.
fn accuracy_drop(task: &TaskResult, then: &TaskComparison, limit: f64) -> Limit {
    let value = then.accuracy.value - task.accuracy.value;
    // The test is two-sided; only a loss is for the worse.
    let p_value = if then.lost > then.won { then.p_value / 2.0 } else { 1.0 };
    let verdict = of_change(value > limit, Some(p_value));
    let said = format!(
        "accuracy {}, before {}: {} lost, {} won of {}; at most {} less is allowed{}",
        percent(task.accuracy.value),
        percent(then.accuracy.value),
        grouped(then.lost),
        grouped(then.won),
        grouped(task.items),
        percent(limit),
        by_chance(verdict, Some(p_value), "items")
    );
    Limit {
        name: "max-accuracy-drop".to_owned(),
        subject: task.name.clone(),
        value,
        stderr: None,
        limit,
        p_value: Some(p_value),
        verdict,
        said,
    }
}

/// A change fails where it is beyond its limit and no chance, as far as that can be told.
fn of_change(is_beyond: bool, p_value: Option<f64>) -> Verdict {
    match (is_beyond, p_value.is_none_or(|p| p < SIGNIFICANCE)) {
        (false, _) => Verdict::Passed,
        (true, false) => Verdict::Noise,
        (true, true) => Verdict::Failed,
    }
}

/// What the test says of a change beyond its limit.
fn by_chance(verdict: Verdict, p_value: Option<f64>, more: &str) -> String {
    match (verdict, p_value.map(small)) {
        (Verdict::Noise, Some(p)) => {
            format!("; but so much comes by chance (p = {p}): more {more} would tell")
        }
        (Verdict::Failed, None) => "; of one window, nothing can be said of chance".to_owned(),
        (Verdict::Failed, Some(p)) => format!("; that is no chance (p = {p})"),
        _ => String::new(),
    }
}

/// A figure that is what it is.
fn exact(name: &str, subject: &str, value: f64, limit: f64, failed: bool, said: String) -> Limit {
    Limit {
        name: name.to_owned(),
        subject: subject.to_owned(),
        value,
        stderr: None,
        limit,
        p_value: None,
        verdict: if failed { Verdict::Failed } else { Verdict::Passed },
        said,
    }
}

fn same_model(baseline: &Report, report: &Report) -> Result<(), Error> {
    let key = |report: &Report| (report.model.family.clone(), report.parameters());
    if key(baseline) == key(report) {
        return Ok(());
    }
    let name = |report: &Report| {
        let (family, parameters) = key(report);
        format!("`{}`, a {family} of {} parameters", report.model.source, grouped(parameters))
    };
    Err(Error::OtherModel { baseline: name(baseline), found: name(report) })
}

/// What the baseline has to say of the same tokens.
fn of_text<'a>(baseline: &'a Report, now: &Cut) -> Result<&'a Evaluation, Error> {
    let other = baseline.evaluations().find(|then| then.text == now.text);
    // Files move: what the text is called matters only where two begin alike.
    let alike = other.into_iter().chain(baseline.evaluations());
    if let Some(then) = alike.into_iter().find(|then| now.is_same(&Cut::of(then))) {
        return Ok(then);
    }
    let detail = other.map(|then| {
        format!(
            " as it is now: it was {} windows of {} tokens, convention {}, and is {} of {}, {}, or the text has changed",
            then.chunks, then.ctx, then.convention, now.chunks, now.ctx, now.convention
        )
    });
    Err(Error::OtherTokens {
        subject: format!("the text `{}`", now.text),
        detail: detail.unwrap_or_default(),
    })
}

impl report::Report {
    /// Leaves the figures, without where they come from.
    pub fn drop_details(&mut self) {
        for evaluation in self.evaluation.iter_mut().chain(&mut self.further_evaluations) {
            evaluation.worst_tokens = Vec::new();
            evaluation.breakdown = None;
            evaluation.kl_histogram = None;
        }
    }

    /// What a baseline needs of it: the figures, without how and how long they were taken.
    #[must_use]
    pub fn as_baseline(&self) -> Self {
        let mut baseline = Self { run: None, check: None, tensors: Vec::new(), ..self.clone() };
        baseline.drop_details();
        for task in &mut baseline.tasks {
            task.reference = None;
        }
        baseline
    }
}

#[cfg(test)]
mod tests;
