//! How types were chosen for a file of a given size.

use super::{Figure, Section, Table, left, none, right};
use crate::render::figures::{bytes, small};
use crate::report::{Allocation, Report, SizePoint};

/// What was expected and measured, and the best of other sizes.
pub(super) fn section<'a>(report: &'a Report, allocation: &'a Allocation) -> Section<'a> {
    let Allocation { target_bytes, target_bits_per_weight, allowed, chosen, tensors, curve } = allocation;
    let mut facts = Vec::new();
    facts.extend(target_bytes.map(|target| ("target", bytes(target))));
    facts.extend(target_bits_per_weight.map(|bits| ("target", format!("{bits} bits per weight"))));
    if !allowed.is_empty() {
        facts.push(("allowed", allowed.join(", ")));
    }
    facts.push(("expected KL", small(chosen.predicted_kl)));
    facts.extend(measured(report).map(|kl| ("measured KL", small(kl))));
    let worst =
        tensors.iter().take(3).map(|t| format!("{} as {}: {}", t.name, t.encoding, small(t.predicted_kl)));
    facts.push(("costliest", worst.collect::<Vec<_>>().join(", ")));
    let columns =
        vec![left(""), right("bytes"), right("bits/weight"), right("expected KL"), right("measured KL")];
    let row = |mark: &str, point: &SizePoint, measured: Option<f64>| {
        let size = [bytes(point.bytes), format!("{:.3}", point.bits_per_weight), small(point.predicted_kl)];
        let measured = measured.map_or_else(none, small);
        [mark.to_owned()].into_iter().chain(size).chain([measured]).collect::<Vec<_>>()
    };
    let (smaller, larger): (Vec<_>, Vec<_>) = curve.iter().partition(|point| point.bytes < chosen.bytes);
    let mut rows: Vec<_> = smaller.into_iter().map(|point| row("", point, None)).collect();
    rows.push(row("chosen", chosen, measured(report)));
    rows.extend(
        larger.into_iter().filter(|point| point.bytes > chosen.bytes).map(|point| row("", point, None)),
    );
    let figure = Some(Figure::Sizes(report, allocation));
    Section { heading: "Types", facts, table: Some(Table { columns, rows }), figure, ..Section::default() }
}

/// The mean KL divergence of the file.
pub(in crate::render) fn measured(report: &Report) -> Option<f64> {
    Some(report.evaluation.as_ref()?.kl_divergence?.mean)
}
