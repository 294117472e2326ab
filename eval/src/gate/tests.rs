#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::report::{ByWindow, Share, example};

/// Twelve windows of which each loses `each` nats a token, and one up and the next down by `noise` more.
fn worse_by(each: f64, noise: f64) -> Report {
    let mut report = example::quantized();
    let evaluation = report.evaluation.as_mut().unwrap();
    let swing = |window: usize| if window.is_multiple_of(2) { noise } else { -noise };
    let before = |window: usize| 3.0 + 0.1 * (window % 5) as f64;
    let nll: Vec<f64> = (0..12).map(|window| before(window) + each + swing(window)).collect();
    evaluation.by_window = Some(ByWindow {
        tokens_sha256: "ab".to_owned(),
        reference_nll: (0..12).map(before).collect(),
        kl_divergence: nll.iter().zip(0..).map(|(nll, window)| 0.01 + (nll - before(window))).collect(),
        same_top: vec![200; 12],
        nll,
    });
    report
}

fn judge(limits: Limits, now: &Report, baseline: Option<&Report>) -> Result<Check, Error> {
    let baseline = baseline.map(|baseline| ("baseline.json", baseline));
    limits.judge(&Subject { report: now, bytes: 5_000_000, baseline, reference: None })
}

fn verdicts(check: &Check) -> Vec<Verdict> {
    check.limits.iter().map(|limit| limit.verdict).collect()
}

#[test]
fn what_is_the_same_passes_whatever_the_limit() {
    let report = worse_by(0.0, 0.0);
    let limits =
        Limits { max_perplexity_increase: Some(0.0), max_kl_increase: Some(0.0), ..Limits::default() };
    let check = judge(limits, &report, Some(&report)).unwrap();
    assert!(check.passed);
    assert_eq!(verdicts(&check), [Verdict::Passed; 2]);
    assert_eq!(check.against.as_deref(), Some("baseline.json"));
}

#[test]
fn a_change_beyond_its_limit_fails_where_the_windows_agree_and_is_noise_where_they_do_not() {
    let before = worse_by(0.0, 0.0);
    let limits = Limits { max_perplexity_increase: Some(0.01), ..Limits::default() };
    for (each, noise, verdict) in [
        (0.005, 0.0, Verdict::Passed),
        (0.02, 0.01, Verdict::Failed),
        (0.02, 0.2, Verdict::Noise),
        (-0.2, 0.0, Verdict::Passed),
    ] {
        let check = judge(limits, &worse_by(each, noise), Some(&before)).unwrap();
        assert_eq!(verdicts(&check), [verdict], "{each} {noise}: {}", check.limits[0].said);
        assert_eq!(check.passed, verdict != Verdict::Failed);
    }
}

#[test]
fn without_a_baseline_the_reference_is_what_perplexity_may_rise_above() {
    let limits = Limits { max_perplexity_increase: Some(0.01), ..Limits::default() };
    let check = judge(limits, &worse_by(0.02, 0.001), None).unwrap();
    assert_eq!(verdicts(&check), [Verdict::Failed]);
    let limit = &check.limits[0];
    assert!((limit.value - (0.02_f64.exp() - 1.0)).abs() < 1e-12 && limit.stderr.is_some());
}

/// t = 3 over 12 windows: 0.0060 of Student's distribution with 11 degrees of freedom lie above it.
#[test]
fn the_test_is_students() {
    let now: Vec<f64> = (0..12).map(|window| f64::from(window) - 5.5).collect();
    let (_, stderr) = mean_and_stderr(&now);
    let then = vec![-3.0 * stderr; 12];
    let p = Paired::of(&now, &then).unwrap().p_value.unwrap();
    assert!((p - 0.006_04).abs() < 1e-4, "{p}");
    assert!(Paired::of(&now, &then[1..]).is_none());
    assert_eq!(Paired::of(&[2.0], &[1.0]).unwrap().p_value, None);
}

#[test]
fn limits_on_figures_are_held_to_as_they_stand() {
    let report = worse_by(0.0, 0.0); // KL 0.0088, p99 0.0613, top-1 95.3 %, 5 MB
    let none = Limits::default();
    for (limits, passes) in [
        (Limits { max_kl: Some(0.009), ..none }, true),
        (Limits { max_kl: Some(0.008), ..none }, false),
        (Limits { max_kl_p99: Some(0.07), ..none }, true),
        (Limits { max_kl_p99: Some(0.06), ..none }, false),
        (Limits { min_top1: Some(0.95), ..none }, true),
        (Limits { min_top1: Some(0.96), ..none }, false),
        (Limits { max_bytes: Some(5_000_000), ..none }, true),
        (Limits { max_bytes: Some(4_999_999), ..none }, false),
    ] {
        let check = judge(limits, &report, None).unwrap();
        assert_eq!(check.passed, passes, "{limits:?}");
        assert_eq!(check.limits.len(), 1);
    }
}

#[test]
fn a_task_that_fell_fails_where_more_was_lost_than_chance_loses() {
    let with = |right: u64, lost: u64, won: u64, p_value: f64| {
        let mut report = worse_by(0.0, 0.0);
        report.tasks = vec![TaskResult {
            name: "piqa".to_owned(),
            file: String::new(),
            items_sha256: String::new(),
            items: 500,
            accuracy: Share::of(right, 500),
            normalised_accuracy: None,
            perplexity: None,
            picked: vec![0; 500],
            normalised: Vec::new(),
            reference: Some(TaskComparison {
                accuracy: Share::of(300, 500),
                normalised_accuracy: None,
                perplexity: None,
                changed: lost + won,
                lost,
                won,
                p_value,
            }),
        }];
        report
    };
    let limits = Limits { max_accuracy_drop: Some(0.02), ..Limits::default() };
    for (report, verdict) in [
        (with(295, 10, 5, 0.3), Verdict::Passed),
        (with(280, 50, 30, 0.03), Verdict::Failed),
        (with(280, 120, 100, 0.2), Verdict::Noise),
        (with(320, 5, 25, 0.001), Verdict::Passed),
    ] {
        assert_eq!(verdicts(&judge(limits, &report, None).unwrap()), [verdict]);
    }
    let floor = Limits { min_accuracy: Some(0.58), ..Limits::default() };
    assert!(!judge(floor, &with(280, 0, 0, 1.0), None).unwrap().passed);
}

#[test]
fn what_does_not_compare_is_an_error_and_no_verdict() {
    let report = worse_by(0.0, 0.0);
    let mut other_model = report.clone();
    other_model.model.parameters += 1;
    let mut other_text = report.clone();
    other_text.evaluation.as_mut().unwrap().by_window.as_mut().unwrap().tokens_sha256 = "cd".to_owned();
    let limits = Limits::unasked(&report);
    let error = judge(limits, &report, Some(&other_model)).unwrap_err().to_string();
    assert!(error.contains("another model") && error.contains("7,344,385"), "{error}");
    let error = judge(limits, &report, Some(&other_text)).unwrap_err().to_string();
    assert!(error.contains("no figures for the text"), "{error}");

    let mut alone = report.clone();
    alone.evaluation.as_mut().unwrap().kl_divergence = None;
    assert!(matches!(
        judge(Limits { max_kl: Some(0.1), ..Limits::default() }, &alone, None),
        Err(Error::Needs { limit: "max-kl", .. })
    ));
    assert!(
        judge(Limits::unasked(&alone), &alone, Some(&alone)).unwrap().passed,
        "no divergence, none to rise"
    );
    assert!(matches!(
        judge(Limits::unasked(&report), &alone, Some(&report)),
        Err(Error::Needs { limit: "max-kl-increase", .. })
    ));
    let mut without = report.clone();
    without.evaluation = None;
    assert!(matches!(
        judge(Limits { min_top1: Some(0.9), ..Limits::default() }, &without, None),
        Err(Error::Needs { limit: "min-top1", .. })
    ));
    assert_eq!(judge(Limits::default(), &report, None), Err(Error::NoLimit));
}

#[test]
fn a_baseline_of_a_report_says_the_same_of_it() {
    let report = worse_by(0.0, 0.0);
    let baseline = report.as_baseline();
    assert!(baseline.run.is_none() && baseline.tensors.is_empty());
    assert!(judge(Limits::unasked(&report), &report, Some(&baseline)).unwrap().passed);
}

#[test]
fn a_rise_from_nothing_within_rounding_is_none() {
    let with = |kl: f64| {
        let mut report = worse_by(0.0, 0.0);
        let evaluation = report.evaluation.as_mut().unwrap();
        evaluation.kl_divergence.as_mut().unwrap().mean = kl;
        evaluation.by_window.as_mut().unwrap().kl_divergence = vec![kl; 12];
        report
    };
    let limits = Limits { max_kl_increase: Some(0.25), ..Limits::default() };
    assert!(judge(limits, &with(7e-13), Some(&with(0.0))).unwrap().passed);
    assert!(!judge(limits, &with(1e-3), Some(&with(0.0))).unwrap().passed);
}

#[test]
fn what_a_limit_lacks_is_known_before_anything_is_measured() {
    let report = worse_by(0.0, 0.0);
    let cut = Cut::of(report.evaluation.as_ref().unwrap());
    let lacks = |limits: Limits, text: bool, tasks: bool, reference: bool, baseline: Option<&Report>| {
        let cuts = if text { vec![cut.clone()] } else { Vec::new() };
        let prospect = Prospect { report: &report, cuts, tasks, reference, baseline };
        match limits.admit(&prospect) {
            Err(Error::Needs { limit, .. }) => Some(limit),
            Err(_) => Some("something else"),
            Ok(()) => None,
        }
    };
    let none = Limits::default();
    let kl = Limits { max_kl: Some(0.1), ..none };
    assert_eq!(lacks(none, true, true, true, None), Some("something else"));
    assert_eq!(lacks(kl, false, false, true, None), Some("max-kl"));
    assert_eq!(lacks(kl, true, false, false, None), Some("max-kl"));
    assert_eq!(lacks(kl, true, false, true, None), None);
    assert_eq!(lacks(Limits { max_bytes: Some(1), ..none }, false, false, false, None), None);
    let drop = Limits { max_accuracy_drop: Some(0.1), ..none };
    assert_eq!(lacks(drop, false, true, false, None), Some("max-accuracy-drop"));
    assert_eq!(lacks(drop, false, true, false, Some(&report)), None);
    let unasked = Limits::unasked(&report);
    assert_eq!(lacks(unasked, true, false, false, Some(&report)), Some("max-kl-increase"));
    assert_eq!(lacks(unasked, true, false, true, Some(&report)), None);
    let mut other = report.clone();
    other.evaluation.as_mut().unwrap().by_window.as_mut().unwrap().tokens_sha256 = "cd".to_owned();
    assert_eq!(lacks(unasked, true, false, true, Some(&other)), Some("something else"));
}

#[test]
fn of_two_texts_that_begin_alike_the_one_of_the_name_is_compared_with() {
    let (now, mut before) = (worse_by(0.0, 0.0), worse_by(0.0, 0.0));
    let mut short = worse_by(1.0, 0.0).evaluation.unwrap();
    short.text = "short.txt".to_owned();
    before.further_evaluations = vec![before.evaluation.take().unwrap()];
    before.evaluation = Some(short);
    let check = judge(Limits::unasked(&before), &now, Some(&before)).unwrap();
    assert!(check.limits.iter().all(|limit| limit.value.abs() < 1e-12), "{check:?}");
}

#[test]
fn limits_read_as_the_options_that_set_them() {
    let limits =
        Limits { max_kl: Some(0.02), max_bytes: Some(5_000_000), ..Limits::unasked(&worse_by(0.0, 0.0)) };
    let words = "max-perplexity-increase 1.00 %, max-kl-increase 25.00 %, max-kl 0.0200, max-bytes 5.00 MB";
    assert_eq!(limits.to_string(), words);
}
