//! How a student was taught.

use std::fmt::Write as _;

use super::{Figure, Section, Table, right};
use crate::render::figures::{duration, grouped, percent};
use crate::report::{BLOCK_OUTPUT, CurvePoint, Distillation};

pub(super) fn distillation(taught: &Distillation) -> Section<'_> {
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
    let figure = Some(Figure::Curves(taught));
    Section { heading: "Distillation", facts, table: Some(table), figure, ..Section::default() }
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
