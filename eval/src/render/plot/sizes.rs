//! What other sizes would have cost.

use maud::html;

use super::scale::{Axis, number};
use super::{Field, Panel, Plot, dot, path, round, text};
use crate::render::figures::compact;
use crate::render::page::measured_kl;
use crate::report::{Allocation, Report};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;

/// The expected KL divergence by size, and the measured one of the file; none where fewer than two sizes can be drawn.
pub(super) fn plot(report: &Report, allocation: &Allocation) -> Option<Plot> {
    let drawable = |[bytes, kl]: &[f64; 2]| *bytes > 0.0 && *bytes < 1e18 && *kl > 1e-30 && *kl < 1e30;
    let mut points: Vec<_> = allocation.curve.iter().chain([&allocation.chosen]).collect();
    points.sort_by_key(|point| point.bytes);
    let expected = points.iter().map(|point| [point.bytes as f64, point.predicted_kl]);
    let expected: Vec<[f64; 2]> = expected.filter(drawable).collect();
    if expected.len() < 2 || expected[0][0] >= expected[expected.len() - 1][0] {
        return None;
    }
    let measured = measured_kl(report).map(|kl| [allocation.chosen.bytes as f64, kl]).filter(drawable);
    let values = expected.iter().chain(&measured);
    let y = Axis::log(values.clone().map(|[_, kl]| *kl)).over(HEIGHT - 44.0, 12.0);
    let x = Axis::around(values.map(|[bytes, _]| *bytes)).over(52.0, WIDTH - 12.0);
    let field = Field { x, y };
    let place = |[bytes, kl]: [f64; 2]| [field.x.at(bytes), field.y.at(kl)];
    let line: Vec<[f64; 2]> = expected.iter().copied().map(place).collect();
    let body = html! {
        (field.rules(&field.y.ticks(5), number))
        (field.foot(&field.x.ticks(5), |bytes| round(&compact(bytes as u64))))
        (path("other", &line))
        @for &point in &line { (dot("otherdot", point, 2.0)) }
        @if let Some(point) = measured { (dot("dot", place(point), 4.0)) }
        (text("m", f64::midpoint(field.x.start, field.x.end), HEIGHT - 8.0, "bytes of the file"))
    };
    let panel = Panel { title: String::new(), width: WIDTH, height: HEIGHT, body };
    let caption = "Mean KL divergence by size, with the best types for each.".to_owned();
    let plot = Plot::of_one("kl-by-size", "Cost of other sizes", caption, panel).key("other", "expected");
    Some(if measured.is_some() { plot.key("line", "measured of this file") } else { plot })
}
