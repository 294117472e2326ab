//! What a rendering for people shows, before it is laid out.

mod allocation;
mod comparison;
mod difference;
mod evaluation;
mod pruning;
mod training;

use super::figures::{bytes, duration, grouped, small};
use super::{check, tasks};
use crate::report::{
    Allocation, Breakdown, Calibration, Distillation, Evaluation, Model, Output, Report, Run, SCHEMA, Tensor,
    WorstToken,
};
pub(super) use allocation::measured as measured_kl;
pub(super) use comparison::{file_name, of_comparison, shared_passage, with_what_all_share};
pub(super) use difference::of_difference;
pub(super) use evaluation::{lower_bound, sides};

/// A titled sequence of sections.
pub struct Page<'a> {
    /// The schema of what it is made of.
    pub schema: &'static str,
    /// What it is about.
    pub title: String,
    /// Its parts.
    pub sections: Vec<Section<'a>>,
}

/// Labelled facts, then a table, then remarks; each may be missing.
#[derive(Default)]
pub struct Section<'a> {
    /// Its title; one without is not set off from what stands above.
    pub heading: &'static str,
    /// Labels and what is to be said of them.
    pub facts: Vec<(&'static str, String)>,
    /// The table below them.
    pub table: Option<Table>,
    /// Sentences at the end.
    pub remarks: Vec<String>,
    /// What renderings that can draw show besides.
    pub figure: Option<Figure<'a>>,
}

/// What renderings that can draw show of a section besides.
#[derive(Clone, Copy)]
pub enum Figure<'a> {
    /// How many tokens diverge how far.
    Divergence(&'a Evaluation),
    /// Which kinds of tokens do.
    Breakdown(&'a Breakdown),
    /// Tokens in their context, in place of the table.
    Worst(&'a [WorstToken]),
    /// Errors by role and layer.
    Tensors(&'a [Tensor]),
    /// Losses on the way.
    Curves(&'a Distillation),
    /// What other sizes would have cost.
    Sizes(&'a Report, &'a Allocation),
    /// Where the time went.
    Stages(&'a Run),
    /// Cost against size.
    Pareto(&'a [Report]),
}

/// Rows of cells; every row is as long as `columns`.
pub struct Table {
    /// The heads of the columns.
    pub columns: Vec<Column>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Drops a column in which no row says anything.
    fn drop_if_empty(&mut self, heading: &str) {
        let at = self.columns.iter().position(|column| column.heading == heading);
        if at.is_some_and(|at| self.rows.iter().all(|row| row[at] == none())) {
            self.drop_column(heading);
        }
    }

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
pub(super) fn of_report(report: &Report) -> Page<'_> {
    let mut sections: Vec<_> = report.check.iter().map(check::section).collect();
    sections.push(model(&report.model));
    sections.extend(report.output.as_ref().map(|written| output(written, report)));
    sections.extend(report.pruning.as_ref().map(pruning::pruning));
    let search = report.pruning.as_ref().and_then(|pruning| pruning.search.as_ref());
    sections.extend(search.map(pruning::search));
    sections
        .extend(report.evaluation.as_ref().into_iter().flat_map(|e| evaluation::sections("Evaluation", e)));
    let further = report.further_evaluations.iter();
    sections.extend(further.flat_map(|e| evaluation::sections("Evaluation on another text", e)));
    sections.extend(tasks::section(&report.tasks));
    if !report.tensors.is_empty() {
        sections.push(tensors(&report.tensors));
    }
    sections.extend(report.allocation.as_ref().map(|chosen| allocation::section(report, chosen)));
    sections.extend(report.calibration.as_ref().map(calibration));
    sections.extend(report.distillation.as_ref().map(training::distillation));
    sections.extend(report.run.as_ref().map(run));
    Page { schema: SCHEMA, title: report.subject().to_owned(), sections }
}

fn model(model: &Model) -> Section<'static> {
    let mut facts = vec![
        ("source", model.source.clone()),
        ("family", model.family.clone()),
        ("parameters", grouped(model.parameters)),
        ("weights", bytes(model.bytes)),
    ];
    let again =
        |main_type| format!("already, most of it as {main_type}: what that cost comes on top of the figures");
    facts.extend(model.quantized_as.as_ref().map(|main_type| ("quantized", again(main_type))));
    Section { heading: "Model", facts, ..Section::default() }
}

/// Its weights are held against the model's; its files hold more than them.
fn output(output: &Output, report: &Report) -> Section<'static> {
    let mut facts = vec![
        ("path", output.path.clone()),
        ("format", output.format.clone()),
        ("scheme", output.scheme.clone()),
    ];
    facts.extend(output.method.clone().map(|method| ("method", method)));
    let (weights, all) = (report.weight_bytes(), report.model.bytes);
    let of_model = match 100.0 * weights as f64 / all as f64 {
        share if share.is_finite() => format!(", {share:.1} % of the model's"),
        _ => String::new(),
    };
    facts.push(("weights", format!("{}{of_model}", bytes(weights))));
    facts.push(("files", bytes(output.bytes)));
    facts.push(("bits per weight", format!("{:.3}", output.bits_per_weight)));
    facts.extend(output.sha256.clone().map(|sha256| ("sha256", sha256)));
    Section { heading: "Output", facts, ..Section::default() }
}

/// One line per role and encoding, in the order they first occur; fallbacks one by one.
fn tensors(tensors: &[Tensor]) -> Section<'_> {
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
    let rows: Vec<_> = groups.iter().map(|group| tensor_row(group)).collect();
    let fell_back = tensors.iter().filter_map(|t| Some((t, t.fallback.as_ref()?)));
    let remarks = fell_back.map(|(tensor, why)| format!("{}: {why}", tensor.name)).collect();
    let mut table = Table { columns, rows };
    for heading in ["relative error", "worst", "by rounding"] {
        table.drop_if_empty(heading);
    }
    Section {
        heading: "Tensors",
        table: Some(table),
        remarks,
        figure: Some(Figure::Tensors(tensors)),
        ..Section::default()
    }
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

fn calibration(calibration: &Calibration) -> Section<'static> {
    let mut facts = vec![
        ("files", calibration.files.join(", ")),
        ("sha256", calibration.sha256.clone()),
        ("tokens", calibration_tokens(calibration)),
    ];
    let mut remarks = Vec::new();
    if let Some(imatrix) = &calibration.imatrix {
        facts[0].0 = "importance matrix";
        let texts = imatrix.datasets.join(", ");
        facts.insert(2, ("collected on", if texts.is_empty() { none() } else { texts }));
        facts.insert(2, ("entries", grouped(imatrix.entries)));
        remarks.push(
            "It tells how large inputs are, not how they go together: errors were not fed back.".to_owned(),
        );
    }
    Section { heading: "Calibration", facts, remarks, ..Section::default() }
}

fn calibration_tokens(calibration: &Calibration) -> String {
    format!("{} in windows of {}", grouped(calibration.tokens), calibration.ctx)
}

fn run(run: &Run) -> Section<'_> {
    let mut facts =
        vec![("command", run.command.clone()), ("version", run.version.clone()), ("device", device(run))];
    facts.extend(machine(run).map(|machine| ("machine", machine)));
    facts.push(("time", duration(run.seconds)));
    facts.extend(run.peak_rss_bytes.map(|peak| ("peak memory", bytes(peak))));
    let stages: Vec<String> =
        run.stages.iter().map(|stage| format!("{} {}", stage.name, duration(stage.seconds))).collect();
    if !stages.is_empty() {
        facts.push(("stages", stages.join(", ")));
    }
    Section { heading: "Run", facts, figure: Some(Figure::Stages(run)), ..Section::default() }
}

fn device(run: &Run) -> String {
    match &run.precision {
        Some(precision) => format!("{}, {} threads, {precision}", run.device, run.threads),
        None => format!("{}, {} threads", run.device, run.threads),
    }
}

/// What is known of it.
fn machine(run: &Run) -> Option<String> {
    let parts = [
        run.cpu.clone(),
        run.cores.map(|cores| format!("{} cores", grouped(cores))),
        run.memory_bytes.map(|memory| format!("{} of memory", bytes(memory))),
        run.os.clone(),
    ];
    let known: Vec<String> = parts.into_iter().flatten().collect();
    (!known.is_empty()).then(|| known.join(", "))
}

#[cfg(test)]
mod tests;
