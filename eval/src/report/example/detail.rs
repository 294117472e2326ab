//! An evaluation taken apart.

use super::{evaluation, quantized};
use crate::Perplexity;
use crate::report::{
    Breakdown, ByWindow, Check, Evaluation, Group, Histogram, Limit, Mean, Prediction, Report,
    TaskComparison, TaskResult, Verdict, WorstToken,
};
use crate::report::{Share, Tensor};

fn group(name: &str, tokens: u64, kl: f64) -> Group {
    Group {
        name: name.to_owned(),
        tokens,
        perplexity: Perplexity { value: 30.0 + 1000.0 * kl, stderr: 0.8 },
        perplexity_ratio: Some(Perplexity { value: 1.0 + kl, stderr: kl / 5.0 }),
        kl_divergence: Some(Mean { mean: kl, stderr: kl / 12.0 }),
        top1_agreement: Some(1.0 - 5.0 * kl),
    }
}

fn worst(before: &str, token: &str, kl_divergence: f64) -> WorstToken {
    WorstToken {
        window: 3,
        position: 411,
        before: before.to_owned(),
        token: token.to_owned(),
        kl_divergence,
        reference: Prediction { top: token.to_owned(), probability: Some(0.913) },
        model: Prediction { top: " a".to_owned(), probability: Some(0.000_04) },
    }
}

/// `evaluation` with every part.
fn in_detail() -> Evaluation {
    let from = [0.0].into_iter().chain((0..28).map(|bin| 1e-6 * 10_f64.powf(f64::from(bin) / 4.0))).collect();
    let tokens =
        (0..29).map(|bin| (1200.0 * (-f64::from((bin - 15) * (bin - 15)) / 20.0).exp()) as u64).collect();
    Evaluation {
        kl_histogram: Some(Histogram { from, tokens }),
        breakdown: Some(Breakdown {
            position: vec![
                group("0 to 63", 600, 0.012),
                group("64 to 255", 1900, 0.009),
                group("256 to 511", 2600, 0.008),
            ],
            kind: vec![
                group("word", 3200, 0.008),
                group("digits", 90, 0.021),
                group("punctuation", 810, 0.004),
            ],
            frequency: vec![
                group("once", 480, 0.017),
                group("2 to 10", 1700, 0.010),
                group("more", 2920, 0.006),
            ],
        }),
        worst_tokens: vec![
            worst(
                "“My dear Mr. Bennet,” said his lady to him one day, “have you heard that Netherfield",
                " Park",
                0.874,
            ),
            worst("Chapter 12.\n\n", "It", 0.613),
        ],
        by_window: Some(ByWindow {
            tokens_sha256: "aa".repeat(32),
            nll: vec![3.7, 3.8, 3.6],
            reference_nll: vec![3.69, 3.79, 3.59],
            kl_divergence: vec![0.008, 0.010, 0.009],
            same_top: vec![243, 239, 245],
        }),
        ..evaluation()
    }
}

fn task() -> TaskResult {
    let share = |part| Share::of(part, 40);
    TaskResult {
        name: "arc_easy".to_owned(),
        file: String::new(),
        items_sha256: String::new(),
        items: 40,
        accuracy: share(21),
        normalised_accuracy: Some(share(20)),
        perplexity: None,
        picked: vec![0; 40],
        normalised: vec![0; 40],
        reference: Some(TaskComparison {
            accuracy: share(22),
            normalised_accuracy: Some(share(20)),
            perplexity: None,
            changed: 3,
            lost: 2,
            won: 1,
            p_value: 1.0,
        }),
    }
}

/// A limit that was kept, and one that was not.
fn check() -> Check {
    let limit = |name: &str, value: f64, limit: f64, verdict| Limit {
        name: name.to_owned(),
        subject: "fixtures/heldout.txt".to_owned(),
        value,
        stderr: Some(0.000_2),
        limit,
        p_value: Some(0.01),
        verdict,
        said: format!("{value}, at most {limit}"),
    };
    let limits = vec![
        limit("max-kl", 0.008_81, 0.01, Verdict::Passed),
        limit("max-perplexity-increase", 0.009_2, 0.005, Verdict::Failed),
    ];
    Check { passed: false, against: Some("baseline.json".to_owned()), limits }
}

/// A report with every part, and every part of its evaluation.
pub(crate) fn detailed() -> Report {
    let elsewhere = Evaluation { text: "wiki.test.raw".to_owned(), ..in_detail() };
    Report {
        evaluation: Some(in_detail()),
        further_evaluations: vec![elsewhere],
        tasks: vec![task()],
        check: Some(check()),
        ..quantized()
    }
}

/// Tensors of a model of many layers.
pub(crate) fn deep(layers: usize) -> Vec<Tensor> {
    let roles = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let error =
        |layer: usize, role: usize| 1e-3 * (1.0 + (layer as f64 * 0.7).sin() / 2.0) * (1.0 + role as f64);
    let of_layer = |layer: usize| {
        roles.iter().enumerate().map(move |(at, role)| super::tensor(layer, role, "q4_k", error(layer, at)))
    };
    (0..layers).flat_map(of_layer).collect()
}
