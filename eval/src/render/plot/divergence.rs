//! How many tokens diverge how far.

use maud::{Markup, html};

use super::label::Flags;
use super::scale::{Axis, number};
use super::{Field, Panel, Plot, line, rect, text};
use crate::Divergence;
use crate::render::figures::grouped;
use crate::report::{Evaluation, Histogram};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
/// Room for the labels of the quantiles.
const TOP: f64 = 84.0;

/// None without a histogram, or one of no tokens.
pub(super) fn plot(evaluation: &Evaluation) -> Option<Plot> {
    let bars = Bars::of(evaluation.kl_histogram.as_ref()?)?;
    let tallest = bars.shares.iter().copied().fold(0.0, f64::max);
    let field = Field {
        x: Axis::log_between(bars.edges[0], bars.edges[bars.shares.len()]).over(44.0, WIDTH - 14.0),
        y: Axis::from_zero([tallest]).over(HEIGHT - 44.0, TOP),
    };
    let body = html! {
        (field.rules(&field.y.ticks(5), |share| format!("{} %", number(100.0 * share))))
        @for (index, &share) in bars.shares.iter().enumerate() {
            (bar(&field, &bars, index, share))
        }
        (field.foot(&field.x.ticks(6), number))
        (quantiles(&field, evaluation.kl_divergence))
        (text("m", f64::midpoint(field.x.start, field.x.end), HEIGHT - 8.0, "KL divergence of a token, nats (log)"))
    };
    let panel = Panel { title: String::new(), width: WIDTH, height: HEIGHT, body };
    let mut caption = format!("How far the predictions of {} tokens moved.", grouped(bars.tokens));
    if bars.open[0] {
        caption.push_str(" The first bar holds all below its end.");
    }
    if bars.open[1] {
        caption.push_str(" The last holds all above its beginning.");
    }
    Some(Plot::of_one("kl-histogram", "KL divergence, token by token", caption, panel))
}

/// The bins that hold tokens and those between, the open ones closed as wide as their neighbours.
struct Bars {
    edges: Vec<f64>, // one more than shares
    shares: Vec<f64>,
    tokens: u64,
    open: [bool; 2], // at the first bar, at the last
}

impl Bars {
    fn of(histogram: &Histogram) -> Option<Self> {
        let Histogram { from, tokens: counts } = histogram;
        let rising = from.windows(2).all(|pair| pair[0] < pair[1]);
        let positive = from.get(1..)?;
        let drawable =
            positive.len() > 1 && positive[0].is_normal() && from.iter().all(|edge| edge.is_finite());
        if from.len() != counts.len() || !rising || !drawable {
            return None;
        }
        let step = |low: f64, high: f64| high / low;
        let last = from.len() - 1;
        let mut edges = from.clone();
        edges[0] = from[1] / step(from[1], from[2.min(last)]).max(1.1);
        edges.push(from[last] * step(from[last - 1].max(edges[0]), from[last]));
        let first_held = counts.iter().position(|&count| count > 0)?;
        let last_held = counts.iter().rposition(|&count| count > 0)?;
        let tokens: u64 = counts.iter().sum();
        let shares =
            counts[first_held..=last_held].iter().map(|&count| count as f64 / tokens as f64).collect();
        Some(Self {
            edges: edges[first_held..=last_held + 1].to_vec(),
            shares,
            tokens,
            open: [first_held == 0, last_held == last],
        })
    }
}

fn bar(field: &Field, bars: &Bars, index: usize, share: f64) -> Markup {
    let [left, right] = [bars.edges[index], bars.edges[index + 1]].map(|edge| field.x.at(edge));
    let top = field.y.at(share);
    html! {
        g {
            title { (number(bars.edges[index])) " to " (number(bars.edges[index + 1])) ": " (format!("{:.2} %", 100.0 * share)) }
            (rect("bar", left + 0.5, top, right - left - 1.0, field.y.start - top))
        }
    }
}

/// Marks of the quantiles that lie within the bars, each a flag: the label at the left of the end of its line.
fn quantiles(field: &Field, kl: Option<Divergence>) -> Markup {
    let Some(kl) = kl else { return html! {} };
    let marks =
        [("median", kl.median), ("90 %", kl.p90), ("99 %", kl.p99), ("99.9 %", kl.p99_9), ("max", kl.max)];
    let mut flags = Flags::default();
    let marks: Vec<_> = marks
        .into_iter()
        .filter(|(_, value)| value.is_normal() && *value > 0.0)
        .map(|(name, value)| (format!("{name} {}", number_of(value)), field.x.at(value)))
        .map(|(label, x)| {
            let (end, row) = flags.place(&label, x, field.x.start);
            (label, x, end, TOP - 10.0 - 14.0 * row as f64)
        })
        .collect();
    html! {
        @for (label, x, end, y) in &marks {
            (line("mark", [*x, y - 9.0], [*x, field.y.start]))
            (text("e ink", *end, *y, label))
        }
    }
}

fn number_of(value: f64) -> String {
    if value < 1e-3 { number(value) } else { crate::render::figures::small(value) }
}
