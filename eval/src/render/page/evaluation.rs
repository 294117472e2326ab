//! What a model scores, and where it hurts.

use super::{Figure, Section, Table, left, none, right};
use crate::Divergence;
use crate::render::figures::{
    grouped, measured, measured_alike, percent, perplexity, probability, small, visible,
};
use crate::report::{Breakdown, Evaluation, Group, Mean, Prediction, Reference, WorstToken};

/// Most rows of the table of worst tokens.
const WORST: usize = 10;

/// Characters of the text before a token that its row shows, and of a token.
const CONTEXT: usize = 32;
const TOKEN: usize = 12;

/// What it scores, on whom it costs most, where it costs most.
pub(super) fn sections<'a>(heading: &'static str, e: &'a Evaluation) -> Vec<Section<'a>> {
    let mut sections = vec![evaluation(heading, e)];
    sections.extend(e.breakdown.as_ref().and_then(hurts));
    sections.extend((!e.worst_tokens.is_empty()).then(|| worst(&e.worst_tokens)));
    sections
}

fn evaluation<'a>(heading: &'static str, evaluation: &'a Evaluation) -> Section<'a> {
    let mut facts = vec![
        ("text", evaluation.text.clone()),
        ("scored", passage(evaluation)),
        ("perplexity", perplexity(evaluation.perplexity)),
    ];
    facts.extend(evaluation.reference.as_ref().map(|reference| ("reference", reference_label(reference))));
    facts.extend(evaluation.reference_perplexity.map(|p| ("of the reference", perplexity(p))));
    facts.extend(evaluation.perplexity_ratio.map(|p| ("ratio of the two", measured(p.value, p.stderr))));
    let bound = lower_bound(evaluation).unwrap_or_default();
    let kl = evaluation.kl_divergence.map(|kl| format!("{}{bound}", measured(kl.mean, kl.stderr)));
    facts.extend(kl.map(|kl| ("KL divergence", kl)));
    facts.extend(evaluation.top1_agreement.map(|share| ("top-1 agreement", percent(share))));
    let table = evaluation.kl_divergence.map(quantiles);
    Section { heading, facts, table, figure: Some(Figure::Divergence(evaluation)), ..Section::default() }
}

/// One line per group. Columns that no group fills are left out.
fn hurts(breakdown: &Breakdown) -> Option<Section<'_>> {
    let sides = sides(breakdown);
    let groups: Vec<&Group> = sides.iter().flat_map(|(_, groups)| groups.iter()).collect();
    let each = |figure: &dyn Fn(&Group) -> Option<String>| groups.iter().map(|group| figure(group)).collect();
    let ratio = |group: &&Group| group.perplexity_ratio.map(|p| Mean { mean: p.value, stderr: p.stderr });
    let figures: [(&'static str, Vec<Option<String>>); 5] = [
        ("tokens", each(&|group| Some(grouped(group.tokens)))),
        ("perplexity", each(&|group| Some(format!("{:.2}", group.perplexity.value)))),
        ("ratio", measured_alike(groups.iter().map(ratio))),
        ("KL divergence", measured_alike(groups.iter().map(|group| group.kl_divergence))),
        ("top-1", each(&|group| group.top1_agreement.map(percent))),
    ];
    let mut table = Table { columns: vec![left("by"), left("")], rows: Vec::new() };
    for (side, groups) in sides {
        let sides = std::iter::once(side).chain(std::iter::repeat(""));
        table.rows.extend(sides.zip(groups).map(|(side, group)| vec![side.to_owned(), visible(&group.name)]));
    }
    for (heading, cells) in figures.into_iter().filter(|(_, cells)| cells.iter().any(Option::is_some)) {
        table.columns.push(right(heading));
        table.rows.iter_mut().zip(cells).for_each(|(row, cell)| row.push(cell.unwrap_or_else(none)));
    }
    let figure = Some(Figure::Breakdown(breakdown));
    let section = Section { heading: "Where it hurts", figure, ..Section::default() };
    (!table.rows.is_empty()).then_some(Section { table: Some(table), ..section })
}

/// The three ways tokens are put into groups.
pub(in crate::render) fn sides(breakdown: &Breakdown) -> [(&'static str, &[Group]); 3] {
    let Breakdown { position, kind, frequency } = breakdown;
    [("position", position), ("kind", kind), ("frequency", frequency)]
}

fn worst(tokens: &[WorstToken]) -> Section<'_> {
    let columns = vec![
        left("text before"),
        left("token"),
        right("KL"),
        left("reference says"),
        right("gives"),
        left("model says"),
        right("gives"),
    ];
    let says = |prediction: &Prediction, there: &str| {
        let top = visible(&prediction.top).chars().take(TOKEN).collect();
        let gives = |share| format!("{there} {}", probability(share));
        [top, prediction.probability.map_or_else(none, gives)]
    };
    let row = |token: &WorstToken| {
        let before = visible(&token.before);
        let skipped = before.chars().count().saturating_sub(CONTEXT);
        let there: String = visible(&token.token).chars().take(TOKEN).collect();
        let said = [&token.reference, &token.model].map(|prediction| says(prediction, &there));
        let mut row = vec![before.chars().skip(skipped).collect(), there, small(token.kl_divergence)];
        row.extend(said.into_iter().flatten());
        row
    };
    let rows = tokens.iter().take(WORST).map(row).collect();
    let (table, figure) = (Some(Table { columns, rows }), Some(Figure::Worst(tokens)));
    Section { heading: "Worst tokens", table, figure, ..Section::default() }
}

pub(super) fn reference_label(reference: &Reference) -> String {
    let of = if reference.model.is_empty() { String::new() } else { format!(" of {}", reference.model) };
    let unknown = reference.unknown_targets.map(|count| {
        format!(
            "; its perplexity is unknown, as {} tokens of the text lie below what it tells apart",
            grouped(count)
        )
    });
    format!("{} {} ({}{of}{})", reference.kind, reference.path, reference.signal, unknown.unwrap_or_default())
}

/// What is to be said of a divergence that is not over the whole vocabulary.
pub(in crate::render) fn lower_bound(evaluation: &Evaluation) -> Option<String> {
    let buckets = evaluation.reference.as_ref()?.kl_buckets?;
    Some(format!(", a lower bound: over {} tokens and the rest as one", buckets.saturating_sub(1)))
}

pub(super) fn passage(evaluation: &Evaluation) -> String {
    let inputs = evaluation.inputs.as_ref().map(|inputs| format!(", inputs of matrices {inputs}"));
    format!(
        "{} tokens in {} windows of {}, convention {}{}",
        grouped(evaluation.tokens),
        grouped(evaluation.chunks),
        evaluation.ctx,
        evaluation.convention,
        inputs.unwrap_or_default()
    )
}

fn quantiles(kl: Divergence) -> Table {
    let headings = ["KL median", "90 %", "99 %", "99.9 %", "max"];
    let row = [kl.median, kl.p90, kl.p99, kl.p99_9, kl.max];
    Table { columns: headings.map(right).to_vec(), rows: vec![row.map(small).to_vec()] }
}
