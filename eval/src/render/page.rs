//! What a rendering for people shows, before it is laid out.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use super::figures::{
    bytes, compact, duration, grouped, measured, percent, perplexity, short_perplexity, small,
};
use super::{check, tasks};
use crate::Divergence;
use crate::report::{
    BLOCK_OUTPUT, Calibration, Candidate, CurvePoint, Distillation, Evaluation, Model, Output, Pruning,
    Reference, Report, Run, Search, Shape, Tensor,
};

/// A titled sequence of sections.
pub struct Page {
    /// What it is about.
    pub title: String,
    /// Its parts.
    pub sections: Vec<Section>,
}

/// Labelled facts, then a table, then remarks; each may be missing.
#[derive(Default)]
pub struct Section {
    /// Its title; one without is not set off from what stands above.
    pub heading: &'static str,
    /// Labels and what is to be said of them.
    pub facts: Vec<(&'static str, String)>,
    /// The table below them.
    pub table: Option<Table>,
    /// Sentences at the end.
    pub remarks: Vec<String>,
}

/// Rows of cells; every row is as long as `columns`.
pub struct Table {
    /// The heads of the columns.
    pub columns: Vec<Column>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    fn drop_column(&mut self, heading: &str) {
        let Some(at) = self.columns.iter().position(|column| column.heading == heading) else { return };
        self.columns.remove(at);
        self.rows.iter_mut().for_each(|row| drop(row.remove(at)));
    }
}

/// The head of a column.
#[derive(Clone, Copy)]
pub struct Column {
    /// What it holds.
    pub heading: &'static str,
    /// The side its cells lean to.
    pub align: Align,
}

/// A side.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Figures.
    Right,
}

/// A column of words.
pub const fn left(heading: &'static str) -> Column {
    Column { heading, align: Align::Left }
}

/// A column of figures.
pub const fn right(heading: &'static str) -> Column {
    Column { heading, align: Align::Right }
}

/// What one report says.
pub(super) fn of_report(report: &Report) -> Page {
    let title = report.output.as_ref().map_or(&report.model.source, |output| &output.path);
    let mut sections: Vec<_> = report.check.iter().map(check::section).collect();
    sections.push(model(&report.model));
    sections.extend(report.output.as_ref().map(|written| output(written, &report.model)));
    sections.extend(report.pruning.as_ref().map(pruning));
    sections.extend(report.pruning.as_ref().and_then(|pruning| Some(search(pruning.search.as_ref()?))));
    sections.extend(report.evaluation.as_ref().map(evaluation));
    sections.extend(tasks::section(&report.tasks));
    if !report.tensors.is_empty() {
        sections.push(tensors(&report.tensors));
    }
    sections.extend(report.calibration.as_ref().map(calibration));
    sections.extend(report.distillation.as_ref().map(distillation));
    sections.extend(report.run.as_ref().map(run));
    Page { title: title.clone(), sections }
}

fn distillation(taught: &Distillation) -> Section {
    let tokens = taught.steps * taught.step_tokens;
    let rate = if taught.seconds > 0.0 { tokens as f64 / taught.seconds } else { 0.0 };
    let mut facts = vec![
        ("teacher", taught.teacher.clone()),
        ("data", taught.data.join(", ")),
        ("loss", loss_label(taught)),
        ("steps", format!("{} of {} tokens", grouped(taught.steps), grouped(taught.step_tokens))),
    ];
    if taught.skipped_steps > 0 {
        facts.push(("skipped", format!("{} steps without a finite gradient", grouped(taught.skipped_steps))));
    }
    facts.push(("held out", format!("{} tokens", grouped(taught.held_out_tokens))));
    facts.push(("learning rate", format!("{:e}", taught.learning_rate)));
    facts.push(("time", format!("{}, {} tokens/s", duration(taught.seconds), grouped(rate as u64))));
    let columns =
        [right("step"), right("tokens"), right("loss"), right("held-out loss"), right("perplexity")];
    let table = Table { columns: columns.to_vec(), rows: taught.curve.iter().map(curve_row).collect() };
    Section { heading: "Distillation", facts, table: Some(table), ..Section::default() }
}

fn loss_label(taught: &Distillation) -> String {
    if taught.loss == BLOCK_OUTPUT {
        return format!("{BLOCK_OUTPUT} of {} layers, one after another", taught.layer_map.len());
    }
    let mut label = format!("{} at temperature {}", taught.loss, taught.temperature);
    if taught.cross_entropy > 0.0 {
        let _ = write!(label, ", {} of cross-entropy", percent(taught.cross_entropy)); // a String never fails
    }
    if let Some(weight) = taught.hidden_loss {
        let _ = write!(label, ", {weight} of the error of {} layers", taught.layer_map.len());
    }
    label
}

fn curve_row(point: &CurvePoint) -> Vec<String> {
    let figure = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.4}"));
    vec![
        point.layer.map_or(grouped(point.step), |layer| format!("{}, layer {layer}", grouped(point.step))),
        grouped(point.tokens),
        figure(point.loss),
        figure(point.held_out_loss),
        figure(point.held_out_perplexity),
    ]
}

fn model(model: &Model) -> Section {
    let facts = vec![
        ("source", model.source.clone()),
        ("family", model.family.clone()),
        ("parameters", grouped(model.parameters)),
        ("size", bytes(model.bytes)),
    ];
    Section { heading: "Model", facts, ..Section::default() }
}

fn output(output: &Output, model: &Model) -> Section {
    let mut facts = vec![
        ("path", output.path.clone()),
        ("format", output.format.clone()),
        ("scheme", output.scheme.clone()),
    ];
    facts.extend(output.method.clone().map(|method| ("method", method)));
    let share = output.bytes as f64 / model.bytes as f64;
    let of_model =
        if model.bytes == 0 { String::new() } else { format!(", {:.1} % of the model", 100.0 * share) };
    facts.push(("size", format!("{}{of_model}", bytes(output.bytes))));
    facts.push(("bits per weight", format!("{:.3}", output.bits_per_weight)));
    facts.extend(output.sha256.clone().map(|sha256| ("sha256", sha256)));
    Section { heading: "Output", facts, ..Section::default() }
}

/// Only what has changed of the shape, then what each layer lost.
fn pruning(pruning: &Pruning) -> Section {
    let (before, after) = (&pruning.before, &pruning.after);
    let numbers = |shape: &Shape| {
        let experts = shape.experts.unwrap_or(0);
        [shape.layers, shape.hidden_size, shape.intermediate_size, shape.query_heads, shape.kv_heads, experts]
    };
    let names = ["layers", "hidden size", "ffn channels", "query heads", "key heads", "experts"];
    let changes = names.into_iter().zip(numbers(before).into_iter().zip(numbers(after)));
    let changed = changes.filter(|(_, (before, after))| before != after);
    let mut facts: Vec<_> = changed
        .map(|(name, (before, after))| (name, format!("{} of {}", grouped(after), grouped(before))))
        .collect();
    let share = 100.0 * after.parameters as f64 / before.parameters.max(1) as f64;
    facts.push(("parameters", format!("{}, {share:.1} % of the model", grouped(after.parameters))));
    facts.extend(pruning.criterion.clone().map(|criterion| ("criterion", criterion)));
    facts.extend(pruning.depth_criterion.clone().map(|criterion| ("layers chosen by", criterion)));
    facts.push(("compensation", pruning.compensation.clone()));
    if let Some(across) = &pruning.across_layers {
        let channels: Vec<_> = pruning.layers.iter().map(|layer| grouped(layer.channels)).collect();
        let heads: Vec<_> = pruning.layers.iter().map(|layer| layer.kv_heads.len().to_string()).collect();
        facts.push(("channels by layer", channels.join(", ")));
        facts.push(("key heads by layer", heads.join(", ")));
        facts.push(("filled up with", format!("{} of zeros", bytes(across.zero_bytes))));
    }
    let dropped: Vec<_> = pruning.dropped_layers.iter().map(|dropped| dropped.layer.to_string()).collect();
    if !dropped.is_empty() {
        facts.push(("dropped layers", dropped.join(", ")));
    }
    let columns =
        vec![right("layer"), right("o dropped"), right("repaired"), right("down dropped"), right("repaired")];
    let is_lossy = |layer: &&crate::report::PrunedLayer| layer.o_proj.is_some() || layer.down_proj.is_some();
    let rows: Vec<_> = pruning.layers.iter().filter(is_lossy).map(lost_row).collect();
    let table = (!rows.is_empty()).then_some(Table { columns, rows });
    let lost = pruning.layers.iter().flat_map(|l| [(l, "o_proj", &l.o_proj), (l, "down_proj", &l.down_proj)]);
    let fell_back =
        lost.filter_map(|(layer, name, lost)| Some((layer, name, lost.as_ref()?.fallback.as_ref()?)));
    let remarks =
        fell_back.map(|(layer, name, why)| format!("layer {}, {name} not repaired: {why}", layer.layer));
    let remarks = remarks.chain(pruning.ruled_out.iter().cloned()).collect();
    Section { heading: "Pruning", facts, table, remarks }
}

/// Every shape that was measured, in the order of the search.
fn search(search: &Search) -> Section {
    let columns = vec![
        left(""),
        right("layers"),
        right("hidden size"),
        right("ffn channels"),
        right("query heads"),
        right("key heads"),
        right("parameters"),
        right("KL divergence"),
    ];
    let row = |candidate: &Candidate| {
        let Shape { layers, hidden_size, intermediate_size, query_heads, kv_heads, parameters, .. } =
            candidate.shape;
        let mark = if candidate.chosen { "chosen" } else { "" };
        let numbers =
            [layers, hidden_size, intermediate_size, query_heads, kv_heads, parameters].map(grouped);
        [mark.to_owned()].into_iter().chain(numbers).chain([small(candidate.kl_divergence)]).collect()
    };
    let facts = vec![
        ("target", format!("{} parameters", grouped(search.target_parameters))),
        ("measured on", format!("{} tokens of the calibration text", grouped(search.tokens))),
    ];
    let rows = search.candidates.iter().map(row).collect();
    Section { heading: "Search", facts, table: Some(Table { columns, rows }), ..Section::default() }
}

fn lost_row(layer: &crate::report::PrunedLayer) -> Vec<String> {
    let both = |lost: &Option<crate::report::Lost>| {
        lost.as_ref().map_or_else(|| [none(), none()], |lost| [small(lost.error_dropped), small(lost.error)])
    };
    let mut row = vec![layer.layer.to_string()];
    row.extend(both(&layer.o_proj));
    row.extend(both(&layer.down_proj));
    row
}

fn evaluation(evaluation: &Evaluation) -> Section {
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
    Section { heading: "Evaluation", facts, table, ..Section::default() }
}

fn reference_label(reference: &Reference) -> String {
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
fn lower_bound(evaluation: &Evaluation) -> Option<String> {
    let buckets = evaluation.reference.as_ref()?.kl_buckets?;
    Some(format!(", a lower bound: over {} tokens and the rest as one", buckets.saturating_sub(1)))
}

fn passage(evaluation: &Evaluation) -> String {
    format!(
        "{} tokens in {} windows of {}, convention {}",
        grouped(evaluation.tokens),
        grouped(evaluation.chunks),
        evaluation.ctx,
        evaluation.convention
    )
}

fn quantiles(kl: Divergence) -> Table {
    let headings = ["KL median", "90 %", "99 %", "99.9 %", "max"];
    let row = [kl.median, kl.p90, kl.p99, kl.p99_9, kl.max];
    Table { columns: headings.map(right).to_vec(), rows: vec![row.map(small).to_vec()] }
}

/// One line per role and encoding, in the order they first occur; fallbacks one by one.
fn tensors(tensors: &[Tensor]) -> Section {
    let mut groups: Vec<Vec<&Tensor>> = Vec::new();
    for tensor in tensors {
        let alike =
            |group: &&mut Vec<&Tensor>| group[0].role == tensor.role && group[0].encoding == tensor.encoding;
        match groups.iter_mut().find(alike) {
            Some(group) => group.push(tensor),
            None => groups.push(vec![tensor]),
        }
    }
    let columns = vec![
        left("role"),
        left("encoding"),
        right("count"),
        right("bits/weight"),
        right("relative error"),
        right("worst"),
        right("by rounding"),
    ];
    let rows = groups.iter().map(|group| tensor_row(group)).collect();
    let fell_back = tensors.iter().filter_map(|t| Some((t, t.fallback.as_ref()?)));
    let remarks = fell_back.map(|(tensor, why)| format!("{}: {why}", tensor.name)).collect();
    Section { heading: "Tensors", table: Some(Table { columns, rows }), remarks, ..Section::default() }
}

fn tensor_row(group: &[&Tensor]) -> Vec<String> {
    let error =
        |of: fn(&Tensor) -> Option<f64>| -> Vec<f64> { group.iter().copied().filter_map(of).collect() };
    let solved = error(|tensor| tensor.relative_error);
    let rounded = error(|tensor| tensor.rtn_relative_error);
    vec![
        group[0].role.clone(),
        group[0].encoding.clone(),
        grouped(group.len() as u64),
        format!("{:.3}", group[0].bits_per_weight),
        mean(&solved).map_or_else(none, small),
        solved.iter().copied().reduce(f64::max).map_or_else(none, small),
        mean(&rounded).map_or_else(none, small),
    ]
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn none() -> String {
    "-".to_owned()
}

fn calibration(calibration: &Calibration) -> Section {
    let facts = vec![
        ("files", calibration.files.join(", ")),
        ("sha256", calibration.sha256.clone()),
        ("tokens", format!("{} in windows of {}", grouped(calibration.tokens), calibration.ctx)),
    ];
    Section { heading: "Calibration", facts, ..Section::default() }
}

fn run(run: &Run) -> Section {
    let device = match &run.precision {
        Some(precision) => format!("{}, {} threads, {precision}", run.device, run.threads),
        None => format!("{}, {} threads", run.device, run.threads),
    };
    let mut facts = vec![
        ("command", run.command.clone()),
        ("version", run.version.clone()),
        ("device", device),
        ("time", duration(run.seconds)),
    ];
    facts.extend(run.peak_rss_bytes.map(|peak| ("peak memory", bytes(peak))));
    let stages: Vec<String> =
        run.stages.iter().map(|stage| format!("{} {}", stage.name, duration(stage.seconds))).collect();
    if !stages.is_empty() {
        facts.push(("stages", stages.join(", ")));
    }
    Section { heading: "Run", facts, ..Section::default() }
}

/// The column that tells models apart of which some was cut away.
const WEIGHTS: &str = "weights";

/// What several reports say, one line each.
pub(super) fn of_comparison(reports: &[Report]) -> Page {
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
    let held = reports.iter().filter_map(|report| {
        let mut section = check::section(report.check.as_ref()?);
        let path = report.output.as_ref().map_or(&report.model.source, |output| &output.path);
        section.facts.insert(0, ("output", file_name(path)));
        Some(section)
    });
    Page { title: "Comparison".to_owned(), sections: [section].into_iter().chain(held).collect() }
}

/// An evaluation that stands for all, where all were made on the same tokens and against a reference of one kind.
fn shared_passage(reports: &[Report]) -> Option<&Evaluation> {
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

fn file_name(path: &str) -> String {
    let name = Path::new(path).file_name();
    name.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}
