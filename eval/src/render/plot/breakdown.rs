//! Which groups of tokens it costs most.

use maud::{Markup, html};

use super::scale::{Axis, number};
use super::{Field, Panel, Plot, line, px, rect, shortened, text};
use crate::render::figures::{measured, visible};
use crate::render::page::sides;
use crate::report::{Breakdown, Group, Mean};

const WIDTH: f64 = 424.0;
const LABELS: f64 = 210.0;
const FIGURES: f64 = 128.0;
const ROW: f64 = 26.0;
const TOP: f64 = 30.0;

/// What is drawn of a group.
type Measure = fn(&Group) -> Option<Mean>;

/// Divergence where there is one, else perplexity; none without a group.
pub(super) fn plot(breakdown: &Breakdown) -> Option<Plot> {
    let sides = sides(breakdown);
    let groups: Vec<&Group> = sides.iter().flat_map(|(_, groups)| groups.iter()).collect();
    let divergence: Measure = |group| group.kl_divergence;
    let perplexity: Measure =
        |group| Some(Mean { mean: group.perplexity.value, stderr: group.perplexity.stderr });
    let diverge = groups.iter().any(|group| group.kl_divergence.is_some());
    let (measure, name) = if diverge { (divergence, "KL divergence") } else { (perplexity, "perplexity") };
    let drawn: Vec<Mean> = groups.iter().filter_map(|group| measure(group)).filter(drawable).collect();
    let x = Axis::from_zero(drawn.iter().map(|mean| mean.mean + mean.stderr)).over(LABELS, WIDTH - FIGURES);
    let panels: Vec<Panel> = sides
        .into_iter()
        .filter(|(_, groups)| !groups.is_empty())
        .map(|(side, groups)| panel(side, groups, measure, x))
        .collect();
    let caption = format!("Mean {name} of each group of tokens, with its standard error; one scale for all.");
    Plot::of_many("breakdown", "By position, kind and frequency", caption, panels)
}

fn drawable(mean: &Mean) -> bool {
    mean.mean.is_finite() && mean.stderr.is_finite()
}

fn panel(side: &str, groups: &[Group], measure: Measure, x: Axis) -> Panel {
    let bottom = TOP + ROW * groups.len() as f64;
    let field = Field { x, y: Axis::steps(groups.len() as u64).over(bottom, TOP) };
    let body = html! {
        (text("ink bold", 0.0, 14.0, &format!("by {side}")))
        @for tick in x.ticks(3) {
            (line("rule", [x.at(tick), TOP - 4.0], [x.at(tick), bottom]))
        }
        @for (index, group) in groups.iter().enumerate() {
            (row(group, measure(group).filter(drawable), x, TOP + ROW * (index as f64 + 0.5)))
        }
        (field.foot(&x.ticks(3), number))
    };
    Panel { title: format!("by {side}"), width: WIDTH, height: bottom + 24.0, body }
}

fn row(group: &Group, mean: Option<Mean>, x: Axis, y: f64) -> Markup {
    let name = visible(&group.name);
    let Some(Mean { mean, stderr }) = mean else {
        return text("e", LABELS - 8.0, y + 4.0, &shortened(&name, LABELS - 8.0));
    };
    let [zero, end] = [x.at(0.0), x.at(mean)];
    let [low, high] = [x.at(mean - stderr), x.at(mean + stderr)];
    html! {
        (text("e ink", LABELS - 8.0, y + 4.0, &shortened(&name, LABELS - 8.0)))
        (rect("bar", zero, y - 7.0, end - zero, 14.0))
        (line("whisker", [low, y], [high, y]))
        (line("whisker", [low, y - 3.0], [low, y + 3.0]))
        (line("whisker", [high, y - 3.0], [high, y + 3.0]))
        text class="e" x=(px(WIDTH)) y=(px(y + 4.0)) { (measured(mean, stderr)) }
    }
}
