//! Several reports side by side.

use std::collections::HashSet;
use std::path::Path;

use super::evaluation::{lower_bound, passage, reference_label};
use super::{Figure, Page, Section, Table, calibration_tokens, device, left, machine, none, right};
use crate::render::check;
use crate::render::figures::{bytes, compact, grouped, measured_alike, percent, short_perplexity};
use crate::report::{Evaluation, Mean, Model, Report, SCHEMA, has_other_tokens};

/// The column that tells models apart of which some was cut away.
const PARAMETERS: &str = "params";

/// What several reports say, one line each.
pub(in crate::render) fn of_comparison(reports: &[Report]) -> Page<'_> {
    let columns = vec![
        left("output"),
        left("scheme"),
        left("method"),
        right(PARAMETERS),
        right("weights"),
        right("bits/w"),
        right("perplexity"),
        right("KL divergence"),
        right("top-1"),
    ];
    let mut section = Section::default();
    let mut rows = Vec::new();
    match shared_passage(reports) {
        Some(evaluation) => {
            section.facts = vec![("text", evaluation.text.clone()), ("scored", passage(evaluation))];
            let reference = evaluation.reference.as_ref();
            section.facts.extend(reference.map(|reference| ("reference", reference_label(reference))));
            let bound = lower_bound(evaluation);
            section.remarks.extend(bound.map(|bound| format!("KL divergence is{}.", &bound[1..])));
            rows.extend(model_row(reports));
        }
        None if reports.is_empty() => section.remarks.push("nothing to compare".to_owned()),
        None if reports.iter().all(|report| report.evaluation.is_none()) => {}
        None => section
            .remarks
            .push("Not all were scored on the same tokens: their figures do not compare.".to_owned()),
    }
    let kl = |report: &Report| {
        report.evaluation.as_ref()?.kl_divergence.map(|kl| Mean { mean: kl.mean, stderr: kl.stderr })
    };
    let divergences = measured_alike(reports.iter().map(kl));
    rows.extend(reports.iter().zip(divergences).map(|(report, kl)| output_row(report, kl)));
    let mut table = Table { columns, rows };
    let counts = reports.iter().flat_map(|report| [report.beginning().parameters, report.parameters()]);
    if counts.collect::<HashSet<_>>().len() < 2 {
        table.drop_column(PARAMETERS); // all have as many
    }
    section.table = Some(table);
    section.figure = (!reports.is_empty()).then_some(Figure::Pareto(reports));
    let held = reports.iter().filter_map(|report| {
        let mut section = check::section(report.check.as_ref()?);
        section.facts.insert(0, ("output", file_name(report.subject())));
        Some(section)
    });
    let sections = [section].into_iter().chain(held).collect();
    Page { schema: SCHEMA, title: "Comparison".to_owned(), sections }
}

/// The same, and what all were made of and with, where there is room for it.
pub(in crate::render) fn with_what_all_share(reports: &[Report]) -> Page<'_> {
    let mut page = of_comparison(reports);
    page.sections.extend(in_common(reports));
    page
}

/// What is true of every report.
fn in_common(reports: &[Report]) -> Option<Section<'static>> {
    type Fact = fn(&Report) -> Option<String>;
    let facts: [(&'static str, Fact); 11] = [
        ("model", |report| Some(report.beginning().source.clone())),
        ("family", |report| Some(report.beginning().family.clone())),
        ("parameters", |report| Some(grouped(report.beginning().parameters))),
        ("weights", |report| Some(bytes(report.beginning().bytes))),
        ("calibration", |report| Some(report.calibration.as_ref()?.files.join(", "))),
        ("its sha256", |report| Some(report.calibration.as_ref()?.sha256.clone())),
        ("its tokens", |report| report.calibration.as_ref().map(calibration_tokens)),
        ("command", |report| Some(report.run.as_ref()?.command.clone())),
        ("version", |report| Some(report.run.as_ref()?.version.clone())),
        ("device", |report| report.run.as_ref().map(device)),
        ("machine", |report| machine(report.run.as_ref()?)),
    ];
    let first = reports.first()?;
    let shared = facts.into_iter().filter_map(|(label, fact)| {
        let said = fact(first)?;
        reports.iter().all(|report| fact(report).as_ref() == Some(&said)).then_some((label, said))
    });
    let facts: Vec<_> = shared.collect();
    (!facts.is_empty()).then(|| Section { heading: "In common", facts, ..Section::default() })
}

/// An evaluation that stands for all, where all were made on the same tokens and against a reference of one kind.
pub(in crate::render) fn shared_passage(reports: &[Report]) -> Option<&Evaluation> {
    let first = reports.first()?.evaluation.as_ref()?;
    let key = |e: &Evaluation| {
        let signal = e.reference.as_ref().map(|reference| reference.signal.clone());
        (e.text.clone(), e.tokens, e.chunks, e.ctx, e.convention, signal)
    };
    let evaluations = || reports.iter().filter_map(|report| report.evaluation.as_ref());
    let told = evaluations().find(|e| e.tokens_sha256().is_some()).unwrap_or(first);
    let same = |e: &Evaluation| key(e) == key(first) && !has_other_tokens(e, told);
    (evaluations().count() == reports.len() && evaluations().all(same)).then_some(first)
}

/// The uncompressed model, where all reports share it and it was their reference.
fn model_row(reports: &[Report]) -> Option<Vec<String>> {
    let first = reports.first()?;
    let reference = first.evaluation.as_ref()?.reference_perplexity?;
    let sources: HashSet<&str> = reports.iter().map(|report| report.beginning().source.as_str()).collect();
    let written = reports.iter().all(|report| report.output.is_some());
    (sources.len() == 1 && written).then(|| {
        let Model { source, parameters, bytes: size, .. } = first.beginning();
        let bits = 8.0 * *size as f64 / (*parameters).max(1) as f64;
        vec![
            file_name(source),
            none(),
            none(),
            compact(*parameters),
            bytes(*size),
            format!("{bits:.2}"),
            short_perplexity(reference),
            none(),
            none(),
        ]
    })
}

fn output_row(report: &Report, kl: Option<String>) -> Vec<String> {
    let output = report.output.as_ref();
    let evaluation = report.evaluation.as_ref();
    vec![
        file_name(output.map_or(&report.model.source, |o| &o.path)),
        output.map_or_else(none, |o| o.scheme.clone()),
        output.and_then(|o| o.method.clone()).unwrap_or_else(none),
        compact(report.parameters()),
        bytes(report.weight_bytes()),
        output.map_or_else(none, |o| format!("{:.2}", o.bits_per_weight)),
        evaluation.map_or_else(none, |e| short_perplexity(e.perplexity)),
        kl.unwrap_or_else(none),
        evaluation.and_then(|e| e.top1_agreement).map_or_else(none, percent),
    ]
}

pub(in crate::render) fn file_name(path: &str) -> String {
    let name = Path::new(path).file_name();
    name.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}
