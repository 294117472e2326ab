//! Cost against size, model by model.

use std::collections::HashSet;

use maud::{Markup, html};

use super::label::{Area, Placer};
use super::scale::{Axis, number};
use super::{Field, Panel, Plot, dot, line, path, round, text};
use crate::render::figures::bytes;
use crate::render::page::{file_name, shared_passage};
use crate::report::{Output, Report};

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 380.0;
const RADIUS: f64 = 4.5;

/// A model of some size and cost.
struct Point {
    label: String,
    bytes: f64,
    cost: f64,
    stderr: f64,
    original: bool,
}

/// Divergence and perplexity against size; nothing where the reports do not compare.
pub(super) fn plots(reports: &[Report]) -> Vec<Plot> {
    if shared_passage(reports).is_none() {
        return Vec::new();
    }
    let labels = labels(reports);
    let points = |cost: &dyn Fn(&Report) -> Option<(f64, f64)>| -> Vec<Point> {
        let known =
            reports.iter().zip(&labels).filter_map(|(report, label)| Some((report, label, cost(report)?)));
        let point = |(report, label, (cost, stderr)): (&Report, &String, _)| Point {
            label: label.clone(),
            bytes: report.weight_bytes() as f64,
            cost,
            stderr,
            original: false,
        };
        known.map(point).filter(|point| point.bytes > 0.0 && point.cost.is_finite()).collect()
    };
    let kl = points(&|report| {
        let kl = report.evaluation.as_ref()?.kl_divergence?;
        Some((kl.mean, kl.stderr))
    });
    let rise = points(&|report| {
        let ratio = report.evaluation.as_ref()?.perplexity_ratio?;
        Some((100.0 * (ratio.value - 1.0), 100.0 * ratio.stderr))
    });
    if rise.len() == reports.len() {
        return [divergence(kl), rises(rise)].into_iter().flatten().collect();
    }
    let mut perplexity = points(&|report| {
        let perplexity = report.evaluation.as_ref()?.perplexity;
        Some((perplexity.value, perplexity.stderr))
    });
    perplexity.extend(original(reports));
    [divergence(kl), perplexities(perplexity)].into_iter().flatten().collect()
}

/// What all began with, where that is one model.
fn original(reports: &[Report]) -> Option<Point> {
    let first = reports.first()?;
    let perplexity = first.evaluation.as_ref()?.reference_perplexity?;
    let model = first.beginning();
    let same =
        reports.iter().all(|report| report.beginning().source == model.source && report.output.is_some());
    (same && model.bytes > 0 && perplexity.value.is_finite()).then(|| Point {
        label: format!("{} (original)", file_name(&model.source)),
        bytes: model.bytes as f64,
        cost: perplexity.value,
        stderr: 0.0,
        original: true,
    })
}

/// As short as tells all apart: the scheme, with the method where a scheme was taken twice, or the file.
fn labels(reports: &[Report]) -> Vec<String> {
    let file = |report: &Report| file_name(report.subject());
    let of_output = |report: &Report, name: &dyn Fn(&Output) -> String| {
        report.output.as_ref().map_or_else(|| file(report), name)
    };
    let scheme = |report: &Report| of_output(report, &|output| output.scheme.clone());
    let schemes: Vec<String> = reports.iter().map(scheme).collect();
    let with_method = |report: &Report| {
        of_output(report, &|output| match &output.method {
            Some(method) if schemes.iter().filter(|scheme| **scheme == output.scheme).count() > 1 => {
                format!("{} {method}", output.scheme)
            }
            _ => output.scheme.clone(),
        })
    };
    let labels: Vec<String> = reports.iter().map(with_method).collect();
    let distinct = labels.iter().collect::<HashSet<_>>().len() == labels.len();
    if distinct { labels } else { reports.iter().map(file).collect() }
}

fn divergence(points: Vec<Point>) -> Option<Plot> {
    let caption =
        "Mean KL divergence with its standard error; the line joins models that no other beats in both.";
    let (panel, caption) = logarithmic(points, "KL divergence from the reference (log)", caption)?;
    Some(Plot::of_one("pareto-kl", "KL divergence against size", caption, panel))
}

/// Perplexities of one text beside the original's: what they have in common, and that is nearly all, is left out.
fn rises(points: Vec<Point>) -> Option<Plot> {
    let caption = "By how much it is above the original's, with the standard error of that.";
    let (panel, caption) = logarithmic(points, "perplexity above the original's, % (log)", caption)?;
    Some(Plot::of_one("pareto-perplexity", "Perplexity against size", caption, panel))
}

/// Points with whiskers on a logarithmic axis; those that have no place on it are named below.
fn logarithmic(points: Vec<Point>, name: &str, caption: &str) -> Option<(Panel, String)> {
    let (drawn, not): (Vec<_>, Vec<_>) = points.into_iter().partition(|point| point.cost > 0.0);
    let lowest =
        |point: &Point| if point.stderr < point.cost { point.cost - point.stderr } else { point.cost / 2.0 };
    let ends = drawn.iter().flat_map(|point| [point.cost, lowest(point), point.cost + point.stderr]);
    let panel = panel(&drawn, Axis::log(ends), name)?;
    let names: Vec<_> = not.iter().map(|point| point.label.as_str()).collect();
    let rest = if names.is_empty() {
        String::new()
    } else {
        format!(" At 0 or below, and so not drawn: {}.", names.join(", "))
    };
    Some((panel, format!("{caption}{rest}")))
}

fn perplexities(points: Vec<Point>) -> Option<Plot> {
    let costs = || points.iter().map(|point| point.cost);
    let (least, largest) = costs().fold((f64::MAX, 0.0_f64), |(a, b), cost| (a.min(cost), b.max(cost)));
    let log = least > 0.0 && largest > 2.0 * least;
    let (y, name) =
        if log { (Axis::log(costs()), "perplexity (log)") } else { (Axis::around(costs()), "perplexity") };
    let panel = panel(&points, y, name)?;
    let caption = "Its standard error is that of the text, the same for all, and not drawn.".to_owned();
    Some(Plot::of_one("pareto-perplexity", "Perplexity against size", caption, panel))
}

fn panel(points: &[Point], y: Axis, name: &str) -> Option<Panel> {
    if points.is_empty() {
        return None;
    }
    let field = Field {
        x: Axis::log(points.iter().map(|point| point.bytes)).over(58.0, WIDTH - 16.0),
        y: y.over(HEIGHT - 44.0, 30.0),
    };
    let at = |point: &Point| [field.x.at(point.bytes), field.y.at(point.cost)];
    let front: Vec<[f64; 2]> = front(points).into_iter().map(at).collect();
    let is_log = name.ends_with("(log)");
    let body = html! {
        (text("ink", 0.0, 12.0, name))
        (field.rules(&field.y.ticks(6), number))
        (field.foot(&field.x.ticks(5), |size| round(&bytes(size as u64))))
        (path("front", &front))
        @for point in points {
            @if is_log && point.stderr > 0.0 { (whisker(&field, point)) }
            (dot(if point.original { "hollow" } else { "dot" }, at(point), RADIUS))
        }
        (names(&field, points, &front))
        (text("m", f64::midpoint(field.x.start, field.x.end), HEIGHT - 8.0, "weights (log)"))
    };
    Some(Panel { title: String::new(), width: WIDTH, height: HEIGHT, body })
}

/// The points that no other beats in size and cost, by size.
fn front(points: &[Point]) -> Vec<&Point> {
    let mut sorted: Vec<&Point> = points.iter().collect();
    sorted.sort_by(|a, b| a.bytes.total_cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
    let mut least = f64::INFINITY;
    sorted.retain(|point| {
        let better = point.cost < least;
        least = least.min(point.cost);
        better
    });
    sorted
}

fn whisker(field: &Field, point: &Point) -> Markup {
    let x = field.x.at(point.bytes);
    let low = if point.stderr < point.cost { field.y.at(point.cost - point.stderr) } else { field.y.start };
    let high = field.y.at(point.cost + point.stderr);
    html! {
        (line("whisker", [x, low], [x, high]))
        (line("whisker", [x - 4.0, low], [x + 4.0, low]))
        (line("whisker", [x - 4.0, high], [x + 4.0, high]))
    }
}

/// The name of each point beside it, off the front, and a line to those that found no place near.
fn names(field: &Field, points: &[Point], front: &[[f64; 2]]) -> Markup {
    let within = Area { left: field.x.start, top: 18.0, right: WIDTH, bottom: field.y.start };
    let places: Vec<[f64; 2]> =
        points.iter().map(|point| [field.x.at(point.bytes), field.y.at(point.cost)]).collect();
    let steps = front.windows(2).flat_map(|ends| {
        (0..=20).map(|step| {
            let share = f64::from(step) / 20.0;
            [0, 1].map(|side| ends[0][side] + share * (ends[1][side] - ends[0][side]))
        })
    });
    let marks = places.iter().map(|&place| Area::around(place, RADIUS + 1.0));
    let taken = marks.chain(steps.map(|step| Area::around(step, 2.0))).collect();
    let mut placer = Placer::new(within, taken);
    html! {
        @for (point, place) in points.iter().zip(places) {
            @let area = placer.place(&point.label, place);
            @let beside = [place[0].clamp(area.left, area.right), place[1].clamp(area.top, area.bottom)];
            @if (beside[0] - place[0]).hypot(beside[1] - place[1]) > 16.0 {
                (line("rule", place, beside))
            }
            (text("m ink", f64::midpoint(area.left, area.right), area.bottom - 3.5, &point.label))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    fn point(bytes: f64, cost: f64) -> Point {
        Point { label: String::new(), bytes, cost, stderr: 0.0, original: false }
    }

    #[test]
    fn the_front_holds_what_no_other_beats() {
        let points = [point(3.0, 1.0), point(1.0, 5.0), point(2.0, 6.0), point(2.0, 2.0), point(4.0, 1.0)];
        let front: Vec<_> = front(&points).into_iter().map(|point| (point.bytes, point.cost)).collect();
        assert_eq!(front, [(1.0, 5.0), (2.0, 2.0), (3.0, 1.0)]);
    }

    #[test]
    fn labels_are_as_long_as_they_must_be() {
        let mut reports = example::compared();
        assert_eq!(labels(&reports), ["q4_k_m", "w4a16-g64", "q8_0"]);
        reports.push(reports[0].clone());
        reports[3].output.as_mut().expect("the example has an output").method = Some("rtn".to_owned());
        assert_eq!(labels(&reports), ["q4_k_m gptq", "w4a16-g64", "q8_0", "q4_k_m rtn"]);
        reports[3].output.as_mut().expect("the example has an output").method = Some("gptq".to_owned());
        reports[3].output.as_mut().expect("the example has an output").path = "out/other.gguf".to_owned();
        assert_eq!(labels(&reports)[3], "other.gguf");
    }

    #[test]
    fn reports_that_do_not_compare_are_not_drawn_together() {
        let mut reports = example::compared();
        assert_eq!(plots(&reports).len(), 2);
        reports[0].evaluation.as_mut().expect("the example is evaluated").ctx = 256;
        assert!(plots(&reports).is_empty());
    }
}
