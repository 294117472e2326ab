//! Where the time went.

use maud::{Markup, html};

use super::{Panel, Plot, px, rect, text};
use crate::render::figures::{duration, percent};
use crate::render::markup::Text;
use crate::report::Run;

const WIDTH: f64 = 460.0;
const BAR: f64 = 28.0;
const ROW: f64 = 22.0;
const COLUMNS: usize = 2;
/// Seconds that no run takes.
const FOREVER: f64 = 1e12;

/// None where no stage took any time.
pub(super) fn plot(run: &Run) -> Option<Plot> {
    let mut stages: Vec<(&str, f64)> = run
        .stages
        .iter()
        .map(|stage| (stage.name.as_str(), stage.seconds))
        .filter(|(_, secs)| *secs > 0.0 && *secs < FOREVER)
        .collect();
    let named: f64 = stages.iter().map(|(_, secs)| secs).sum();
    if !named.is_normal() {
        return None;
    }
    if run.seconds > 1.02 * named && run.seconds < FOREVER {
        stages.push(("all else", run.seconds - named));
    }
    let total: f64 = stages.iter().map(|(_, secs)| secs).sum();
    let rows = stages.len().div_ceil(COLUMNS);
    let mut x = 0.0;
    let bars: Vec<Markup> = stages
        .iter()
        .enumerate()
        .map(|(index, &(name, secs))| {
            let wide = WIDTH * secs / total;
            let from = x;
            x += wide;
            part(from, wide, shade(index, stages.len()), &label(name, secs, total))
        })
        .collect();
    let body = html! {
        @for bar in &bars { (bar) }
        @for (index, &(name, secs)) in stages.iter().enumerate() {
            @let left = WIDTH / COLUMNS as f64 * (index % COLUMNS) as f64;
            @let middle = BAR + 18.0 + ROW * (index / COLUMNS) as f64;
            g fill-opacity=(px(shade(index, stages.len()))) { (rect("bar", left, middle - 6.0, 12.0, 12.0)) }
            (text("", left + 18.0, middle + 4.0, &label(name, secs, total)))
        }
    };
    let panel = Panel { title: String::new(), width: WIDTH, height: BAR + 10.0 + ROW * rows as f64, body };
    let caption = format!("{} in all.", duration(run.seconds));
    Some(Plot::of_one("stages", "Where the time went", caption, panel))
}

fn label(name: &str, secs: f64, total: f64) -> String {
    format!("{name} {} ({})", duration(secs), percent(secs / total).replace(".00", ""))
}

/// Neighbours differ.
fn shade(index: usize, stages: usize) -> f64 {
    1.0 - 0.85 * index as f64 / stages.max(2) as f64
}

fn part(x: f64, wide: f64, shade: f64, title: &str) -> Markup {
    html! {
        g fill-opacity=(px(shade)) {
            title { (Text(title)) }
            (rect("bar gap", x, 0.0, wide, BAR))
        }
    }
}
