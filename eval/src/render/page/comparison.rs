//! Several reports side by side.

use std::collections::HashSet;
use std::path::Path;

use super::evaluation::{lower_bound, passage, reference_label};
use super::{Figure, Page, Section, Table, left, none, right};
use crate::render::check;
use crate::render::figures::{bytes, compact, measured, percent, short_perplexity};
use crate::report::{Evaluation, Model, Report};

/// The column that tells models apart of which some was cut away.
const WEIGHTS: &str = "weights";

/// What several reports say, one line each.
pub(in crate::render) fn of_comparison(reports: &[Report]) -> Page<'_> {
    let columns = vec![
        left("output"),
        left("scheme"),
        left("method"),
        right(WEIGHTS),
        right("size"),
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
    rows.extend(reports.iter().map(output_row));
    let mut table = Table { columns, rows };
    let counts = reports.iter().flat_map(|report| [report.beginning().parameters, report.parameters()]);
    if counts.collect::<HashSet<_>>().len() < 2 {
        table.drop_column(WEIGHTS); // all have as many
    }
    section.table = Some(table);
    section.figure = (!reports.is_empty()).then_some(Figure::Pareto(reports));
    let held = reports.iter().filter_map(|report| {
        let mut section = check::section(report.check.as_ref()?);
        section.facts.insert(0, ("output", file_name(report.subject())));
        Some(section)
    });
    Page { title: "Comparison".to_owned(), sections: [section].into_iter().chain(held).collect() }
}

/// An evaluation that stands for all, where all were made on the same tokens and against a reference of one kind.
pub(in crate::render) fn shared_passage(reports: &[Report]) -> Option<&Evaluation> {
    let first = reports.first()?.evaluation.as_ref()?;
    let key = |e: &Evaluation| {
        let signal = e.reference.as_ref().map(|reference| reference.signal.clone());
        (e.text.clone(), e.tokens, e.chunks, e.ctx, e.convention, signal)
    };
    let same = |report: &Report| report.evaluation.as_ref().is_some_and(|e| key(e) == key(first));
    reports.iter().all(same).then_some(first)
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

fn output_row(report: &Report) -> Vec<String> {
    let output = report.output.as_ref();
    let evaluation = report.evaluation.as_ref();
    let kl = evaluation.and_then(|e| e.kl_divergence);
    let size = output.map_or(report.model.bytes, |o| o.bytes);
    vec![
        file_name(output.map_or(&report.model.source, |o| &o.path)),
        output.map_or_else(none, |o| o.scheme.clone()),
        output.and_then(|o| o.method.clone()).unwrap_or_else(none),
        compact(report.parameters()),
        bytes(size),
        output.map_or_else(none, |o| format!("{:.2}", o.bits_per_weight)),
        evaluation.map_or_else(none, |e| short_perplexity(e.perplexity)),
        kl.map_or_else(none, |kl| measured(kl.mean, kl.stderr)),
        evaluation.and_then(|e| e.top1_agreement).map_or_else(none, percent),
    ]
}

pub(in crate::render) fn file_name(path: &str) -> String {
    let name = Path::new(path).file_name();
    name.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}
