//! What changed from one report to another.

use super::{Page, Section, Table, left, none, right};
use crate::render::figures::{bytes, grouped, measured, measured_alike, percent, short_perplexity, small};
use crate::report::{
    Changed, Difference, EvaluationDifference, Mean, Pair, Share, TaskDifference, TensorDifference,
};

/// Most rows of the table of tensors.
const MOST_TENSORS: usize = 12;

/// Bytes of two facts that stand on one line.
const SHORT: usize = 60;

pub(in crate::render) fn of_difference(difference: &Difference) -> Page<'static> {
    let mut sections = vec![size(difference)];
    sections.extend(difference.evaluations.iter().map(evaluation));
    let Difference { tasks, tensors, made, .. } = difference;
    sections.extend((!tasks.is_empty()).then(|| answers(tasks)));
    sections.extend((!tensors.is_empty()).then(|| weights(tensors)));
    sections.extend((!made.is_empty()).then(|| making(made)));
    if difference.evaluations.is_empty() {
        sections[0].remarks.push("No text was scored in both: their figures do not compare.".to_owned());
    }
    Page { schema: difference.schema, title: "Difference".to_owned(), sections }
}

/// A figure's name, then as it was, as it is, and what became of it.
fn before_and_after() -> Vec<super::Column> {
    vec![left(""), right("before"), right("after"), right("change")]
}

fn line(name: &str, figure: Pair<String>, change: Option<String>) -> Vec<String> {
    vec![name.to_owned(), figure.before, figure.after, change.unwrap_or_else(none)]
}

fn size(difference: &Difference) -> Section<'static> {
    let Difference { subject, weight_bytes, bytes: files, bits_per_weight: bits, .. } = difference;
    let facts = vec![("before", subject.before.clone()), ("after", subject.after.clone())];
    let size = |name: &str, before: u64, after: u64| {
        let shown = Pair { before: bytes(before), after: bytes(after) };
        line(name, shown, relative(before as f64, after as f64))
    };
    let mut rows = vec![size("weights", weight_bytes.before, weight_bytes.after)];
    rows.extend(files.before.zip(files.after).map(|(before, after)| size("files", before, after)));
    if let (Some(before), Some(after)) = (bits.before, bits.after) {
        let shown = Pair { before: format!("{before:.3}"), after: format!("{after:.3}") };
        rows.push(line("bits per weight", shown, Some(signed(after - before, 3))));
    }
    let table = Some(Table { columns: before_and_after(), rows });
    Section { facts, table, ..Section::default() }
}

fn evaluation(evaluation: &EvaluationDifference) -> Section<'static> {
    let tokens = evaluation.tokens;
    let mut facts = vec![("text", evaluation.text.clone())];
    let mut remarks = Vec::new();
    if evaluation.comparable {
        facts.push(("scored", format!("{} tokens", grouped(tokens.after))));
    } else {
        let [before, after] = [tokens.before, tokens.after].map(grouped);
        let same = if tokens.before == tokens.after { "others or in another way" } else { "" };
        facts.push(("scored", format!("{before} tokens, then {after} {same}").trim_end().to_owned()));
        remarks.push("Not scored on the same tokens in the same way: the figures do not compare.".to_owned());
    }
    if let Some(paired) = evaluation.paired {
        let windows = grouped(paired.windows);
        let ratio = measured(paired.perplexity_ratio.value, paired.perplexity_ratio.stderr);
        facts.push(("windows", format!("{windows}, the same in both: compared one by one")));
        facts.push(("perplexity ratio", format!("{ratio}{}", noise(paired.nll))));
        facts.push(("nats per token", change(paired.nll)));
        let kl = paired.kl_divergence;
        facts.extend(kl.map(|kl| ("KL divergence", format!("{}{}", change(kl), noise(kl)))));
    }
    let table = Some(Table { columns: before_and_after(), rows: evaluation_rows(evaluation) });
    Section { heading: "Evaluation", facts, table, remarks, ..Section::default() }
}

fn evaluation_rows(evaluation: &EvaluationDifference) -> Vec<Vec<String>> {
    let Pair { before, after } = evaluation.perplexity;
    let shown = Pair { before: short_perplexity(before), after: short_perplexity(after) };
    let mut rows = vec![line("perplexity", shown, relative(before.value, after.value))];
    let Pair { before, after } = evaluation.kl_divergence;
    if before.is_some() || after.is_some() {
        let change = before.zip(after).and_then(|(before, after)| relative(before.mean, after.mean));
        let mut shown = measured_alike([before, after]).into_iter().map(|kl| kl.unwrap_or_else(none));
        let shown =
            Pair { before: shown.next().unwrap_or_else(none), after: shown.next().unwrap_or_else(none) };
        rows.push(line("KL divergence", shown, change));
    }
    let Pair { before, after } = evaluation.top1_agreement;
    if before.is_some() || after.is_some() {
        let show = |share: Option<f64>| share.map_or_else(none, percent);
        let change = before.zip(after).map(|(before, after)| signed(100.0 * (after - before), 2));
        rows.push(line("top-1 agreement", Pair { before: show(before), after: show(after) }, change));
    }
    rows
}

fn answers(tasks: &[TaskDifference]) -> Section<'static> {
    let columns =
        vec![left("task"), right("before"), right("after"), right("change"), right("answers changed")];
    let show = |share: Share| percent(share.value);
    let row = |task: &TaskDifference| {
        let Pair { before, after } = task.accuracy;
        let shown = Pair { before: show(before), after: show(after) };
        let mut row = line(&task.name, shown, Some(signed(100.0 * (after.value - before.value), 2)));
        row.push(task.changed.map_or_else(none, grouped));
        row
    };
    let table = Some(Table { columns, rows: tasks.iter().map(row).collect() });
    Section { heading: "Tasks", table, ..Section::default() }
}

fn weights(tensors: &[TensorDifference]) -> Section<'static> {
    let columns =
        vec![left("tensor"), left("encoding"), left("after"), right("error"), right("after"), right("times")];
    let row = |tensor: &TensorDifference| {
        let error = tensor.relative_error;
        vec![
            tensor.name.clone(),
            tensor.encoding.before.clone(),
            tensor.encoding.after.clone(),
            error.before.map_or_else(none, small),
            error.after.map_or_else(none, small),
            tensor.log_ratio().map_or_else(none, |log| format!("{:.2}", log.exp())),
        ]
    };
    let rows = tensors.iter().take(MOST_TENSORS).map(row).collect();
    let more = tensors.len().saturating_sub(MOST_TENSORS);
    let remarks = (more > 0).then(|| format!("and {} more, changed less", grouped(more as u64)));
    let (table, remarks) = (Some(Table { columns, rows }), remarks.into_iter().collect());
    Section { heading: "Tensors that changed most", table, remarks, ..Section::default() }
}

fn making(made: &[Changed]) -> Section<'static> {
    let or_none = |value: &Option<String>| value.clone().unwrap_or_else(none);
    let facts = made.iter().flat_map(|changed| {
        let (before, after) = (or_none(&changed.value.before), or_none(&changed.value.after));
        if before.len() + after.len() < SHORT {
            vec![(changed.name, format!("{before}, now {after}"))]
        } else {
            vec![(changed.name, before), ("now", after)]
        }
    });
    Section { heading: "Made otherwise", facts: facts.collect(), ..Section::default() }
}

/// In per cent of what it was.
fn relative(before: f64, after: f64) -> Option<String> {
    (before > 0.0).then(|| match after / before {
        many if many >= 3.0 => format!("{many:.1} times"),
        share => format!("{} %", signed(100.0 * (share - 1.0), 2)),
    })
}

/// With its sign, and without one where nothing is left of it.
fn signed(value: f64, decimals: usize) -> String {
    let text = format!("{value:+.decimals$}");
    if text.chars().any(|c| c.is_ascii_digit() && c != '0') { text } else { "0".to_owned() }
}

/// A mean difference with its sign and its error.
fn change(mean: Mean) -> String {
    let size = measured(mean.mean.abs(), mean.stderr);
    let sign = if mean.mean < 0.0 { "-" } else { "+" };
    if mean.mean == 0.0 { size } else { format!("{sign}{size}") }
}

/// Whether a mean difference is one.
fn noise(mean: Mean) -> &'static str {
    if mean.mean.abs() < 2.0 * mean.stderr { ", within two standard errors of no change" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_have_signs_and_nothing_has_none() {
        assert_eq!(signed(1.234, 2), "+1.23");
        assert_eq!(signed(-1.234, 2), "-1.23");
        assert_eq!(signed(-0.000_1, 2), "0");
        assert_eq!(relative(0.0, 1.0), None);
        assert_eq!(relative(50.0, 200.0), Some("4.0 times".to_owned()));
        assert_eq!(relative(50.0, 75.0), Some("+50.00 %".to_owned()));
    }

    #[test]
    fn a_change_smaller_than_its_error_is_called_noise() {
        assert_eq!(noise(Mean { mean: 0.1, stderr: 0.1 }), ", within two standard errors of no change");
        assert_eq!(noise(Mean { mean: -0.3, stderr: 0.1 }), "");
        assert_eq!(change(Mean { mean: -0.3, stderr: 0.1 }), "-0.30 ± 0.10");
    }
}
