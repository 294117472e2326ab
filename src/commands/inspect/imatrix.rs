//! An importance matrix: what it was collected on, and what it tells of each weight.

use std::path::Path;

use attar_checkpoint::imatrix::{Entry, ImportanceMatrix, Layout, layout_at};
use attar_eval::render::{Page, Section, Table, left, right};
use attar_eval::{Report, report};
use serde::Serialize;
use serde_json::json;

use super::history::{Fact, listed, short};
use super::subject::layer_of;
use crate::cli::Global;
use crate::diagnostic::{Explain, Result};
use crate::talk::{human_bytes, say, terminal, thousands};

/// Means below which a column counts as silent, as in llama-imatrix.
const SILENT: f64 = 1e-5;

/// What llama-imatrix --show-statistics tells of a weight, over all its columns.
#[derive(Debug, PartialEq, Serialize)]
struct Statistics {
    name: String,
    columns: usize,
    /// Experts of which no token was seen; they have no share in the other figures.
    experts_without_tokens: usize,
    mean: f64,
    max: f64,
    /// Share of the columns that are not silent.
    active: f64,
    /// Of the columns' shares in the sum, in bits.
    entropy: f64,
    /// Share of the columns more than a standard deviation above the mean.
    outliers: f64,
    /// Cosine with the same weight of the layer before.
    similarity: Option<f64>,
}

/// Describes the file on stdout.
///
/// # Errors
/// One that is broken; a report that cannot be written.
pub fn run(path: &Path, global: &Global) -> Result<()> {
    let matrix = ImportanceMatrix::read(path).doing(|| format!("while opening `{}`", path.display()))?;
    let bytes = std::fs::metadata(path)?.len();
    let statistics = statistics(&matrix);
    let first = Section { facts: facts(path, &matrix, bytes), ..Section::default() };
    let title = path.display().to_string();
    let page = Page { schema: report::SCHEMA, title, sections: vec![first, table(&statistics)] };
    let columns = statistics.iter().map(|entry| entry.columns as u64).sum();
    let source = path.display().to_string();
    let model = report::Model {
        source,
        family: "imatrix".to_owned(),
        parameters: columns,
        bytes,
        quantized_as: None,
    };
    let found: serde_json::Map<_, _> =
        page.sections[0].facts.iter().map(|(label, text)| ((*label).to_owned(), json!(text))).collect();
    let inspection = json!({"facts": found, "statistics": statistics});
    let delivery = global.delivery();
    delivery.check(&[])?;
    delivery.in_files_with(&Report::new(model), "inspection", &inspection)?;
    say(&terminal().lay_out(&page))
}

fn facts(path: &Path, matrix: &ImportanceMatrix, bytes: u64) -> Vec<Fact> {
    let layout = match layout_at(path) {
        Some(Layout::Dat) => ".dat, the layout before GGUF",
        _ => "GGUF",
    };
    let chunks = thousands(matrix.chunk_count.into());
    let collected = match matrix.chunk_size {
        Some(size) => format!("{chunks} chunks of {} tokens", thousands(size.into())),
        None => format!("{chunks} chunks"),
    };
    let mut facts = vec![
        ("file", format!("{layout}, {}", human_bytes(bytes))),
        ("kind", "imatrix".to_owned()),
        ("entries", thousands(matrix.entries.len() as u64)),
        ("collected on", collected),
    ];
    if !matrix.datasets.is_empty() {
        facts.push(("dataset", listed(&matrix.datasets)));
    }
    if !matrix.sha256.is_empty() {
        facts.push(("tokens sha256", listed(&matrix.sha256)));
    }
    facts
}

/// Of every weight, layer by layer.
fn statistics(matrix: &ImportanceMatrix) -> Vec<Statistics> {
    let mut all: Vec<_> = matrix.entries.iter().map(|(name, entry)| of_entry(name, entry, matrix)).collect();
    let layer = |entry: &Statistics| layer_of(&entry.name).map_or(u64::MAX, |(_, layer)| layer);
    all.sort_by_key(layer); // stable: names in their order
    all
}

fn of_entry(name: &str, entry: &Entry, matrix: &ImportanceMatrix) -> Statistics {
    let means: Vec<f64> = entry.means().map(f64::from).collect();
    let count = means.len().max(1) as f64;
    let share = |is_one: &dyn Fn(f64) -> bool| means.iter().filter(|x| is_one(**x)).count() as f64 / count;
    let sum: f64 = means.iter().sum();
    let mean = sum / count;
    let deviation = (means.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
    let parts = means.iter().map(|x| x / sum).filter(|part| *part > 0.0);
    let before = before(name).and_then(|before| matrix.entries.get(&before));
    Statistics {
        name: name.to_owned(),
        columns: entry.sums().len() / entry.counts().len(),
        experts_without_tokens: entry.counts().iter().filter(|count| **count == 0).count(),
        mean,
        max: means.iter().copied().fold(0.0, f64::max),
        active: share(&|x| x > SILENT),
        entropy: parts.map(|part| -part * part.log2()).sum::<f64>().max(0.0),
        outliers: share(&|x| deviation > 0.0 && (x - mean) / deviation > 1.0),
        similarity: before.and_then(|before| cosine(entry.sums(), before.sums())),
    }
}

/// The name that the same weight has a layer before.
fn before(name: &str) -> Option<String> {
    let (stem, layer) = layer_of(name)?;
    let rest = name.strip_prefix(stem)?.strip_prefix('.')?.split_once('.')?.1;
    Some(format!("{stem}.{}.{rest}", layer.checked_sub(1)?))
}

fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    (a.len() == b.len() && cosine.is_finite()).then_some(cosine)
}

fn table(statistics: &[Statistics]) -> Section<'static> {
    let columns = vec![
        left("weight"),
        right("columns"),
        right("mean"),
        right("max"),
        right("active"),
        right("entropy"),
        right("z > 1"),
        right("like before"),
    ];
    let row = |of: &Statistics| {
        vec![
            short(&of.name),
            thousands(of.columns as u64),
            figure(of.mean),
            figure(of.max),
            format!("{:.1}%", 100.0 * of.active),
            format!("{:.2}", of.entropy),
            format!("{:.2}%", 100.0 * of.outliers),
            of.similarity.map_or("-".to_owned(), |cosine| format!("{cosine:.4}")),
        ]
    };
    let mut remarks = vec![
        "Of the mean square of what each column multiplies: entropy of the columns' shares in bits, columns more than a \
         standard deviation above the mean, cosine with the same weight of the layer before."
            .to_owned(),
    ];
    let starved = statistics.iter().filter(|of| of.experts_without_tokens > 0);
    remarks.extend(starved.map(|of| {
        format!("{}: no token reached {} of its experts.", short(&of.name), of.experts_without_tokens)
    }));
    let rows = statistics.iter().map(row).collect();
    Section { heading: "Weights", table: Some(Table { columns, rows }), remarks, ..Section::default() }
}

/// Four digits that count.
fn figure(x: f64) -> String {
    if x == 0.0 || (1e-3..1e5).contains(&x) { format!("{x:.4}") } else { format!("{x:.3e}") }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_llama_imatrix() {
        let entry = |sums: &[f32]| Entry::new("any", sums.to_vec(), vec![2]).unwrap();
        let entries = [
            ("blk.1.attn_q.weight".to_owned(), entry(&[2.0, 2.0, 2.0, 10.0])),
            ("blk.0.attn_q.weight".to_owned(), entry(&[0.0, 0.0, 0.0, 10.0])),
        ];
        let matrix = ImportanceMatrix { entries: entries.into(), ..ImportanceMatrix::default() };
        let [first, second] = <[Statistics; 2]>::try_from(statistics(&matrix)).unwrap();
        assert_eq!(
            (first.name.as_str(), first.mean, first.max, first.active),
            ("blk.0.attn_q.weight", 1.25, 5.0, 0.25)
        );
        assert_eq!((first.entropy, first.outliers, first.similarity), (0.0, 0.25, None));
        assert_eq!((second.mean, second.active), (2.0, 1.0));
        let entropy = -(3.0 * 0.125 * 0.125f64.log2() + 0.625 * 0.625f64.log2());
        assert!((second.entropy - entropy).abs() < 1e-12);
        assert!((second.similarity.unwrap() - 10.0 / 112.0f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn the_layer_before_is_one_less() {
        assert_eq!(before("blk.10.ffn_up.weight").as_deref(), Some("blk.9.ffn_up.weight"));
        assert_eq!((before("blk.0.ffn_up.weight"), before("output.weight")), (None, None));
    }
}
