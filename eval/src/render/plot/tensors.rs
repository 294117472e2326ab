//! What each tensor lost, by role and layer.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::scale::{Axis, number};
use super::{Field, Panel, Plot, dot, path, px, rect, shortened, text};
use crate::render::figures::small;
use crate::render::markup::Text;
use crate::report::Tensor;

const PANEL: [f64; 2] = [244.0, 158.0];
const MAP: f64 = 500.0;
const LABELS: f64 = 100.0;
const CELL: f64 = 22.0;
/// Shades of the map's key.
const SHADES: usize = 4;

/// Errors as small multiples and as a map; nothing where no layer has one.
pub(super) fn plots(tensors: &[Tensor]) -> Vec<Plot> {
    let roles = Role::all(tensors);
    let Some(last) = roles.iter().filter_map(|role| role.cells.keys().next_back().copied()).max() else {
        return Vec::new();
    };
    let grid = Grid { roles, last };
    [grid.multiples(), grid.map()].into_iter().flatten().collect()
}

struct Grid<'a> {
    roles: Vec<Role<'a>>,
    last: u64, // layer
}

/// The tensors of one role, layer by layer.
struct Role<'a> {
    name: &'a str,
    cells: BTreeMap<u64, Cell<'a>>,
}

/// A layer's tensors of one role: one, or one for each expert.
#[derive(Default)]
struct Cell<'a> {
    tensors: Vec<&'a Tensor>,
}

impl Cell<'_> {
    /// The mean over the experts of what can be drawn.
    fn mean(&self, of: fn(&Tensor) -> Option<f64>) -> Option<f64> {
        let known: Vec<f64> =
            self.tensors.iter().filter_map(|tensor| of(tensor)).filter(|e| drawable(*e)).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }

    fn error(&self) -> Option<f64> {
        self.mean(|tensor| tensor.relative_error)
    }

    fn rounded(&self) -> Option<f64> {
        self.mean(|tensor| tensor.rtn_relative_error)
    }

    /// What the reader is told of it.
    fn title(&self, role: &str, layer: u64, error: f64) -> String {
        let mut encodings: Vec<&str> = self.tensors.iter().map(|tensor| tensor.encoding.as_str()).collect();
        encodings.dedup();
        let experts = match self.tensors.len() {
            1 => String::new(),
            many => format!(", mean of {many}"),
        };
        format!("layer {layer}, {role}: {} ({}{experts})", small(error), encodings.join(", "))
    }
}

fn drawable(error: f64) -> bool {
    error.is_normal() && error > 0.0
}

impl<'a> Role<'a> {
    /// In the order they first occur; only those with an error in a layer.
    fn all(tensors: &'a [Tensor]) -> Vec<Self> {
        let mut roles: Vec<Self> = Vec::new();
        for tensor in tensors {
            let errors = [tensor.relative_error, tensor.rtn_relative_error];
            let Some(layer) = tensor.layer() else { continue };
            if !errors.into_iter().flatten().any(drawable) {
                continue;
            }
            let at = roles.iter().position(|role| role.name == tensor.role).unwrap_or_else(|| {
                roles.push(Self { name: &tensor.role, cells: BTreeMap::new() });
                roles.len() - 1
            });
            roles[at].cells.entry(layer).or_default().tensors.push(tensor);
        }
        roles
    }
}

impl Grid<'_> {
    fn cells(&self) -> impl Iterator<Item = &Cell<'_>> {
        self.roles.iter().flat_map(|role| role.cells.values())
    }

    /// One small panel per role.
    fn multiples(&self) -> Option<Plot> {
        let errors = self.cells().flat_map(|cell| [cell.error(), cell.rounded()]).flatten();
        let y = Axis::log(errors).over(PANEL[1] - 24.0, 26.0);
        let x = Axis::steps(self.last).over(48.0, PANEL[0] - 6.0);
        let field = Field { x, y };
        let panels = self.roles.iter().map(|role| panel(role, &field)).collect();
        let caption =
            "Relative error of the outputs, layer by layer (log); one scale for all, lower is better.";
        let plot = Plot::of_many("tensor-errors", "Error by role", caption.to_owned(), panels)?;
        let plot = plot.key("line", "as stored");
        let rounded = self.cells().any(|cell| cell.rounded().is_some());
        Some(if rounded { plot.key("other", "by plain rounding") } else { plot })
    }

    /// A row per role, a column per layer.
    fn map(&self) -> Option<Plot> {
        let shades = Shades::of(self.cells().filter_map(Cell::error).collect())?;
        let layers = self.last + 1;
        let wide = ((MAP - LABELS) / layers as f64).min(2.0 * CELL);
        let bottom = CELL * self.roles.len() as f64;
        let x = Axis::steps(self.last).over(LABELS, LABELS + wide * layers as f64);
        let most = if wide < 8.0 { 8 } else { 16 };
        let body = html! {
            @for (row, role) in self.roles.iter().enumerate() {
                @let top = CELL * row as f64;
                (text("e ink", LABELS - 8.0, top + 15.0, &shortened(role.name, LABELS - 8.0)))
                @for (&layer, cell) in &role.cells {
                    (shades.cell(role, layer, cell, x.at(layer as f64) - wide / 2.0, top, wide))
                }
            }
            @for tick in x.whole_ticks(most) {
                (text("m", x.at(tick), bottom + 16.0, &number(tick)))
            }
            (text("e", LABELS - 8.0, bottom + 16.0, "layer"))
            (shades.key(bottom + 34.0))
        };
        let panel = Panel { title: String::new(), width: MAP, height: bottom + 64.0, body };
        let caption = "The same in one view: the darker, the larger the error (log).".to_owned();
        Some(Plot::of_one("tensor-error-map", "Error by layer and role", caption, panel))
    }
}

fn panel<'a>(role: &Role<'a>, field: &Field) -> Panel {
    let points = |of: fn(&Cell<'a>) -> Option<f64>| -> Vec<[f64; 2]> {
        let known = role.cells.iter().filter_map(|(&layer, cell)| Some((layer, of(cell)?)));
        known.map(|(layer, error)| [field.x.at(layer as f64), field.y.at(error)]).collect()
    };
    let (solved, rounded) = (points(Cell::error), points(Cell::rounded));
    let radius = if role.cells.len() > 40 { 1.5 } else { 2.5 };
    let body = html! {
        (text("ink bold", 0.0, 13.0, &shortened(role.name, PANEL[0])))
        (field.rules(&field.y.ticks(4), number))
        (field.foot(&field.x.whole_ticks(6), number))
        (path("other", &rounded))
        @if rounded.len() == 1 { (dot("otherdot", rounded[0], radius)) }
        (path("line", &solved))
        @for &point in &solved { (dot("dot", point, radius)) }
    };
    Panel { title: role.name.to_owned(), width: PANEL[0], height: PANEL[1], body }
}

/// From an error to how dark it is, by its logarithm.
struct Shades {
    least: f64,
    largest: f64,
}

impl Shades {
    fn of(errors: Vec<f64>) -> Option<Self> {
        let least = errors.iter().copied().reduce(f64::min)?;
        Some(Self { least, largest: errors.into_iter().fold(least, f64::max) })
    }

    fn opacity(&self, error: f64) -> f64 {
        let range = self.largest.ln() - self.least.ln();
        let share = if range > 0.0 { (error.ln() - self.least.ln()) / range } else { 0.5 };
        0.1 + 0.9 * share
    }

    fn cell(&self, role: &Role<'_>, layer: u64, cell: &Cell<'_>, x: f64, y: f64, wide: f64) -> Markup {
        let Some(error) = cell.error() else { return rect("none", x, y, wide, CELL) };
        html! {
            g fill-opacity=(px(self.opacity(error))) {
                title { (Text(&cell.title(role.name, layer, error))) }
                (rect("bar gap", x, y, wide, CELL))
            }
        }
    }

    /// What the shades stand for.
    fn key(&self, y: f64) -> Markup {
        let share = |shade: usize| shade as f64 / (SHADES - 1) as f64;
        let [low, high] = [self.least.ln(), self.largest.ln()];
        let error = |shade: usize| (low + share(shade) * (high - low)).exp().clamp(self.least, self.largest);
        let shades = if self.largest > self.least { SHADES } else { 1 };
        html! {
            @for shade in 0..shades {
                @let x = LABELS + 98.0 * shade as f64;
                g fill-opacity=(px(self.opacity(error(shade)))) { (rect("bar", x, y, 14.0, 14.0)) }
                (text("", x + 20.0, y + 11.0, &small(error(shade))))
            }
        }
    }
}
