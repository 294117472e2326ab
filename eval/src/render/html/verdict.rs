//! The figures in one sentence.

use crate::render::figures::{percent, small};
use crate::report::{Evaluation, Report};

/// What a mean KL divergence below a limit, in nats, amounts to.
struct Level {
    below: f64,
    name: &'static str,
    predictions: &'static str,
}

/// From this divergence on, perplexity that did not change makes no model the original: predictions moved in both directions.
const FAR: f64 = 0.06;

/// The limits lie between what the usual formats of a model of eight billion weights score in llama.cpp's own table:
/// 0.0014 at 8 bits, 0.006 at 6, 0.011 at 5, 0.03 at 4, 0.1 at 3, 0.4 at 2. A small model diverges more in the same format,
/// so the words tell what the figure means, not which format it is usual in.
const LEVELS: [Level; 5] = [
    Level { below: 0.003, name: "Practically the original", predictions: "predictions hardly moved" },
    Level { below: 0.02, name: "Very close to the original", predictions: "predictions moved a little" },
    Level { below: FAR, name: "Close to the original", predictions: "predictions moved noticeably" },
    Level { below: 0.2, name: "Visibly not the original", predictions: "predictions moved far" },
    Level { below: f64::INFINITY, name: "Far from the original", predictions: "predictions moved very far" },
];

/// Perplexity is called unchanged where its ratio lies within this many standard errors of 1.
const NOISE: f64 = 2.0;

/// What the evaluation amounts to; none where there was nothing to compare with.
pub(super) fn of(report: &Report) -> Option<String> {
    let evaluation = report.evaluation.as_ref()?;
    let kl = evaluation.kl_divergence.map(|kl| kl.mean).filter(|kl| kl.is_finite());
    let level = kl.and_then(|kl| LEVELS.iter().find(|level| kl < level.below).or(LEVELS.last()));
    let unchanged = is_noise(evaluation);
    let name = match (unchanged, level) {
        (Some(true), Some(level)) if level.below > FAR => level.name,
        (Some(true), _) => "Within noise of the original",
        (_, Some(level)) => level.name,
        (Some(false), None) => "Not the original",
        (None, None) => return None,
    };
    let moved = kl.zip(level).map(|(kl, level)| moved(evaluation, kl, level));
    let parts: Vec<String> = [perplexity(evaluation), moved].into_iter().flatten().collect();
    let size = size(report).map(|size| format!(", at {size}")).unwrap_or_default();
    Some(format!("{name}{size}: {}.", parts.join("; ")))
}

/// What a divergence amounts to: how often another token comes first, where that is known.
fn moved(evaluation: &Evaluation, kl: f64, level: &Level) -> String {
    let changed = evaluation.top1_agreement.map(|share| match 1.0 - share {
        0.0 => ": the same token comes first in every place".to_owned(),
        changed => format!(": another token comes first in {} of all places", percent(changed)),
    });
    format!("{}{} (KL divergence {})", level.predictions, changed.unwrap_or_default(), small(kl))
}

fn is_noise(evaluation: &Evaluation) -> Option<bool> {
    let ratio = evaluation.perplexity_ratio?;
    Some((ratio.value - 1.0).abs() < NOISE * ratio.stderr)
}

fn perplexity(evaluation: &Evaluation) -> Option<String> {
    let ratio = evaluation.perplexity_ratio.filter(|ratio| ratio.value.is_finite())?;
    let change = 100.0 * (ratio.value - 1.0);
    Some(match (is_noise(evaluation), change) {
        (Some(true), _) => "perplexity did not measurably change".to_owned(),
        (_, 0.0) => "perplexity did not change".to_owned(),
        // A ratio far from 1 is easier read as one.
        (_, change) if change >= 100.0 => format!("perplexity {:.1} times as high", ratio.value),
        (_, change) if change > 0.0 => format!("perplexity {} % higher", small(change)),
        _ => format!("perplexity {} % lower", small(-change)),
    })
}

fn size(report: &Report) -> Option<String> {
    if !has_original(report) {
        return None;
    }
    let share = report.weight_bytes() as f64 / report.beginning().bytes as f64;
    let percent = percent(share);
    let whole = if share < 0.1 { percent } else { format!("{:.0} %", 100.0 * share) };
    Some(format!("{whole} of its size"))
}

/// Whether the model that was read, or that it was made of, is the one it is compared with: a student is compared with its
/// teacher, whose size is not told.
pub(super) fn has_original(report: &Report) -> bool {
    let known = report.original.is_some() || report.distillation.is_none();
    report.output.is_some() && known && report.beginning().bytes > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Perplexity;
    use crate::report::example;

    fn verdict(ratio: f64, stderr: f64, kl: Option<f64>) -> String {
        let mut report = example::quantized();
        let evaluation = report.evaluation.as_mut().expect("the example is evaluated");
        evaluation.perplexity_ratio = Some(Perplexity { value: ratio, stderr });
        match (kl, &mut evaluation.kl_divergence) {
            (Some(mean), Some(kl)) => kl.mean = mean,
            (_, kl) => *kl = None,
        }
        of(&report).expect("there is a reference")
    }

    #[test]
    fn noise_is_called_noise_unless_predictions_moved_all_the_same() {
        assert!(
            verdict(1.001, 0.001, Some(0.001))
                .starts_with("Within noise of the original, at 33 % of its size")
        );
        assert!(verdict(0.999, 0.001, None).starts_with("Within noise of the original"));
        assert!(verdict(1.001, 0.001, Some(0.3)).starts_with("Far from the original"));
        assert!(verdict(1.01, 0.001, Some(0.001)).starts_with("Practically the original"));
    }

    #[test]
    fn every_divergence_has_its_words() {
        for (kl, words) in [
            (0.0, "hardly"),
            (0.01, "a little"),
            (0.03, "noticeably"),
            (0.1, "moved far: "),
            (7.0, "moved very far: another token comes first in 4.69 % of all places (KL divergence 7.00)."),
        ] {
            let verdict = verdict(1.5, 0.001, Some(kl));
            assert!(verdict.contains(words) && verdict.contains("perplexity 50.0 % higher"), "{verdict}");
        }
        assert!(verdict(12.0, 0.1, None).contains("12.0 times as high"));
        assert!(verdict(0.75, 0.01, None).contains("25.0 % lower"));
    }

    #[test]
    fn a_model_compared_with_nothing_gets_no_verdict() {
        assert_eq!(of(&Report::new(example::model())), None);
    }
}
