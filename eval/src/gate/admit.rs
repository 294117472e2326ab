//! What can be said before anything is measured: whether there will be all that the limits compare.

use super::{Error, Limits, Subject, of_text, same_model};
use crate::report::Evaluation;
use crate::{Convention, Report};

pub(super) const A_TEXT: &str = "a text: --text";
pub(super) const A_TASK: &str = "a --task";
pub(super) const SOMETHING_BEFORE: &str = "a --baseline or a --reference to compare with";
pub(super) const DIVERGENCE_BEFORE: &str = "a --reference now, and one when the --baseline was made";
pub(super) const A_REFERENCE: &str = "a --reference to compare with";
pub(super) const ANSWERS_BEFORE: &str = "a --baseline with the same tasks or a --reference to compare with";

/// A text as it is cut: what has to be the same where two evaluations are compared window by window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// How reports name it.
    pub text: String,
    /// Of its tokens; an evaluation that does not tell is never the same as another.
    pub tokens_sha256: Option<String>,
    /// Tokens of a window.
    pub ctx: u64,
    /// Windows.
    pub chunks: u64,
    /// Which tokens count.
    pub convention: Convention,
}

impl Cut {
    /// Of what was measured.
    pub fn of(evaluation: &Evaluation) -> Self {
        Self {
            text: evaluation.text.clone(),
            tokens_sha256: evaluation.by_window.as_ref().map(|windows| windows.tokens_sha256.clone()),
            ctx: evaluation.ctx,
            chunks: evaluation.chunks,
            convention: evaluation.convention,
        }
    }

    /// Whether both are of the same windows of the same tokens.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let key = |cut: &Self| (cut.tokens_sha256.clone(), cut.ctx, cut.convention);
        self.tokens_sha256.is_some() && key(self) == key(other)
    }
}

/// What is going to be measured, or has been.
#[derive(Debug)]
pub struct Prospect<'a> {
    /// The model; perhaps nothing of it is measured yet.
    pub report: &'a Report,
    /// Its texts.
    pub cuts: Vec<Cut>,
    /// Whether it is asked tasks.
    pub tasks: bool,
    /// Whether it is compared with a reference.
    pub reference: bool,
    /// What it scored before.
    pub baseline: Option<&'a Report>,
}

impl<'a> Prospect<'a> {
    /// Of what has been measured.
    pub(super) fn of(subject: &Subject<'a>) -> Self {
        let report = subject.report;
        let diverged = report.evaluations().any(|evaluation| evaluation.kl_divergence.is_some());
        Self {
            report,
            cuts: report.evaluations().map(Cut::of).collect(),
            tasks: !report.tasks.is_empty(),
            reference: diverged || report.tasks.iter().any(|task| task.reference.is_some()),
            baseline: subject.baseline.map(|(_, baseline)| baseline),
        }
    }
}

impl Limits {
    /// Refuses what [`judge`](Self::judge) would refuse, as far as that can be told before.
    ///
    /// # Errors
    /// No limit, a limit on what will not be measured, a baseline of another model or text.
    pub fn admit(&self, prospect: &Prospect<'_>) -> Result<(), Error> {
        if self.is_empty() {
            return Err(Error::NoLimit);
        }
        let Prospect { report, cuts, tasks, reference, baseline } = prospect;
        let then = |cut| baseline.map(|baseline| of_text(baseline, cut)).transpose();
        if let Some(baseline) = baseline {
            same_model(baseline, report)?;
        }
        let diverged = |then: Option<&Evaluation>| then.is_some_and(|then| then.kl_divergence.is_some());
        let mut divergences = *reference;
        for cut in cuts {
            divergences &= diverged(then(cut)?);
        }
        let text = (!cuts.is_empty(), A_TEXT);
        let before = (*reference || baseline.is_some(), SOMETHING_BEFORE);
        let divergences = (divergences, DIVERGENCE_BEFORE);
        let beside = (*reference, A_REFERENCE);
        let asked = (*tasks, A_TASK);
        let needs = [
            ("max-perplexity-increase", self.max_perplexity_increase.is_some(), [text, before]),
            ("max-kl-increase", self.max_kl_increase.is_some(), [text, divergences]),
            ("max-kl", self.max_kl.is_some(), [text, beside]),
            ("max-kl-p99", self.max_kl_p99.is_some(), [text, beside]),
            ("min-top1", self.min_top1.is_some(), [text, beside]),
            ("max-accuracy-drop", self.max_accuracy_drop.is_some(), [asked, (before.0, ANSWERS_BEFORE)]),
            ("min-accuracy", self.min_accuracy.is_some(), [asked, asked]),
        ];
        for (limit, is_set, needs) in needs {
            if let Some((_, what)) = needs.into_iter().find(|(is_there, _)| is_set && !is_there) {
                return Err(Error::Needs { limit, what });
            }
        }
        Ok(())
    }
}
