//! What a model answers, a line a task.

use super::figures::{grouped, percent, short_perplexity, small};
use super::page::{Section, Table, left, right};
use crate::report::{Share, TaskResult};

/// What a column says of a task.
type Figure = fn(&TaskResult) -> Option<String>;

/// None where there are no tasks. Columns that no task fills are left out.
pub(super) fn section(tasks: &[TaskResult]) -> Option<Section<'static>> {
    let columns: [(&'static str, Figure); 10] = [
        ("items", |task| Some(grouped(task.items))),
        ("accuracy", |task| Some(share(task.accuracy))),
        ("per character", |task| task.normalised_accuracy.map(share)),
        ("perplexity", |task| task.perplexity.map(short_perplexity)),
        ("reference", |task| Some(share(task.reference?.accuracy))),
        ("per character", |task| task.reference?.normalised_accuracy.map(share)),
        ("perplexity", |task| task.reference?.perplexity.map(short_perplexity)),
        ("changed", |task| Some(grouped(task.reference?.changed))),
        ("lost, won", |task| task.reference.map(|then| format!("{}, {}", then.lost, then.won))),
        ("p", |task| Some(small(task.reference?.p_value))),
    ];
    let filled: Vec<_> =
        columns.into_iter().filter(|(_, figure)| tasks.iter().any(|task| figure(task).is_some())).collect();
    let mut table = Table { columns: vec![left("task")], rows: Vec::new() };
    table.columns.extend(filled.iter().map(|(heading, _)| right(heading)));
    for task in tasks {
        let figures = filled.iter().map(|(_, figure)| figure(task).unwrap_or("-".to_owned()));
        table.rows.push([task.name.clone()].into_iter().chain(figures).collect());
    }
    (!tasks.is_empty()).then(|| Section { heading: "Tasks", table: Some(table), ..Section::default() })
}

fn share(share: Share) -> String {
    format!("{} ± {:.2}", percent(share.value).trim_end_matches(" %"), 100.0 * share.stderr)
}
