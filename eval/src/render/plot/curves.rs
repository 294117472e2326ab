//! How a student learned.

use std::collections::BTreeMap;

use maud::html;

use super::scale::{Axis, number};
use super::{Field, Panel, Plot, dot, path, round, text};
use crate::render::figures::compact;
use crate::report::{CurvePoint, Distillation};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;

/// What is drawn of a point.
type Measure = fn(&CurvePoint) -> Option<f64>;

/// Losses and held-out perplexity over tokens; nothing where fewer than two points have them.
pub(super) fn plots(taught: &Distillation) -> Vec<Plot> {
    let losses: [(&str, Measure); 2] = [("other", |point| point.loss), ("line", |point| point.held_out_loss)];
    let loss = panel(taught, &losses, "loss").map(|panel| {
        let caption = format!("{} over the tokens learned from.", taught.loss);
        let plot = Plot::of_one("distillation-loss", "Loss", caption, panel);
        plot.key("line", "held-out text").key("other", "text learned from")
    });
    let perplexities: [(&str, Measure); 1] = [("line", |point| point.held_out_perplexity)];
    let perplexity = panel(taught, &perplexities, "perplexity").map(|panel| {
        let caption = "On held-out text, over the tokens learned from.".to_owned();
        Plot::of_one("distillation-perplexity", "Perplexity of the student", caption, panel)
    });
    [loss, perplexity].into_iter().flatten().collect()
}

/// One line for each measure, and for each layer where layers learned one after another.
fn panel(taught: &Distillation, measures: &[(&'static str, Measure)], name: &str) -> Option<Panel> {
    let mut series: BTreeMap<(usize, Option<u64>), Vec<[f64; 2]>> = BTreeMap::new();
    for point in &taught.curve {
        for (index, (_, measure)) in measures.iter().enumerate() {
            if let Some(value) = measure(point).filter(|value| value.abs() < 1e150) {
                series.entry((index, point.layer)).or_default().push([point.tokens as f64, value]);
            }
        }
    }
    if series.values().map(Vec::len).sum::<usize>() < 2 {
        return None;
    }
    let values = || series.values().flatten().map(|[_, value]| *value);
    let (least, largest) = values().fold((f64::MAX, 0.0_f64), |(a, b), value| (a.min(value), b.max(value)));
    let y = if least > 0.0 && largest > 8.0 * least { Axis::log(values()) } else { Axis::around(values()) };
    let tokens = taught.curve.iter().map(|point| point.tokens as f64);
    let field = Field { x: Axis::from_zero(tokens).over(52.0, WIDTH - 12.0), y: y.over(HEIGHT - 44.0, 12.0) };
    let body = html! {
        (field.rules(&field.y.ticks(5), number))
        (field.foot(&field.x.ticks(5), |tokens| round(&compact(tokens as u64))))
        @for ((index, _), points) in &series {
            @let class = measures[*index].0;
            @let drawn: Vec<[f64; 2]> = points.iter().map(|[x, y]| [field.x.at(*x), field.y.at(*y)]).collect();
            (path(class, &drawn))
            @if class == "line" {
                @for &point in &drawn { (dot("dot", point, 2.5)) }
            } @else if drawn.len() == 1 {
                (dot("otherdot", drawn[0], 2.5))
            }
        }
        (text("m", f64::midpoint(field.x.start, field.x.end), HEIGHT - 8.0, "tokens learned from"))
    };
    Some(Panel { title: name.to_owned(), width: WIDTH, height: HEIGHT, body })
}
