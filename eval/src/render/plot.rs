//! Drawings: SVG in the page and in files of its own, from the same panels.
//!
//! A drawing takes its colours from a few variables, so that it follows the reader's light or dark; programs that know
//! no variables see the light ones. Only finite numbers are drawn.

mod breakdown;
mod curves;
mod divergence;
mod label;
mod pareto;
mod scale;
mod sizes;
mod stages;
mod tensors;

use maud::{Markup, PreEscaped, html};

use super::markup::Text;
use super::page::{Figure, Page};
use crate::report::SCHEMA;
use scale::Axis;

/// Colours, light and dark.
pub(super) const PALETTE: &str = include_str!("plot/palette.css");

/// What the marks of a drawing look like.
pub(super) const STYLE: &str = include_str!("plot/plot.css");

/// Around the panels of a file, and between them.
const MARGIN: f64 = 16.0;

/// Height of a line of text.
const LINE: f64 = 20.0;

/// Width of a letter, on average over a long name.
const LETTER: f64 = 6.2;

/// What all drawings are called; further ones of a kind have a number after it.
const NAMES: &[&str] = &[
    "kl-histogram",
    "breakdown",
    "tensor-errors",
    "tensor-error-map",
    "kl-by-size",
    "distillation-loss",
    "distillation-perplexity",
    "stages",
    "pareto-kl",
    "pareto-perplexity",
];

/// Whether the file `name`.svg that begins with `start` is a drawing of a report's; none where no drawing is called so.
pub fn is_drawing(name: &str, start: &str) -> Option<bool> {
    let kind = match name.rsplit_once('-') {
        Some((kind, number)) if number.bytes().all(|digit| digit.is_ascii_digit()) => kind,
        _ => name,
    };
    NAMES.contains(&kind).then(|| start.contains(&format!("<!-- {SCHEMA} -->")))
}

/// A drawing of a report's figures.
pub struct Plot {
    name: String,
    pub(super) title: String,
    pub(super) caption: String,
    legend: Vec<Key>,
    panels: Vec<Panel>,
    columns: usize, // of panels in a file; a page finds its own
}

/// A mark, and what it stands for.
struct Key {
    class: &'static str,
    label: String,
}

/// A part of a drawing that stands alone where there is little room.
struct Panel {
    title: String,
    width: f64,
    height: f64,
    body: Markup,
}

impl Plot {
    fn of_one(name: &str, title: &str, caption: String, panel: Panel) -> Self {
        let (name, title) = (name.to_owned(), title.to_owned());
        Self { name, title, caption, legend: Vec::new(), panels: vec![panel], columns: 1 }
    }

    /// None without a panel.
    fn of_many(name: &str, title: &str, caption: String, panels: Vec<Panel>) -> Option<Self> {
        let (name, title, columns) = (name.to_owned(), title.to_owned(), panels.len().min(4));
        (columns > 0).then(|| Self { name, title, caption, legend: Vec::new(), panels, columns })
    }

    fn key(mut self, class: &'static str, label: impl Into<String>) -> Self {
        self.legend.push(Key { class, label: label.into() });
        self
    }

    /// What a file of it is called, without an extension.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The drawing as a file of its own.
    pub fn svg(&self) -> String {
        let columns = self.columns.min(self.panels.len()).max(1);
        let (wide, high) = self
            .panels
            .iter()
            .fold((0.0_f64, 0.0_f64), |(wide, high), panel| (wide.max(panel.width), high.max(panel.height)));
        let rows = self.panels.len().div_ceil(columns);
        let top = MARGIN + LINE * if self.legend.is_empty() { 1.5 } else { 2.5 };
        let width = 2.0 * MARGIN + columns as f64 * (wide + MARGIN) - MARGIN;
        let height = top + rows as f64 * (high + MARGIN);
        let place = |index: usize| {
            let (column, row) = ((index % columns) as f64, (index / columns) as f64);
            format!(
                "translate({} {})",
                px(MARGIN + column * (wide + MARGIN)),
                px(top + row * (high + MARGIN))
            )
        };
        let drawing = html! {
            svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (px(width)) " " (px(height)) }
                width=(px(width)) height=(px(height)) role="img" {
                (PreEscaped(format!("<!-- {SCHEMA} -->")))
                title { (Text(&self.title)) }
                desc { (Text(&self.caption)) }
                style { (PreEscaped(PALETTE)) (PreEscaped(STYLE)) }
                (rect("paper", 0.0, 0.0, width, height))
                (text("ink bold", MARGIN, MARGIN + 12.0, &self.title))
                (self.keys())
                @for (index, panel) in self.panels.iter().enumerate() {
                    g transform=(place(index)) { (panel.body) }
                }
            }
        };
        drawing.into_string() + "\n"
    }

    /// The legend of a file.
    fn keys(&self) -> Markup {
        let mut x = MARGIN;
        let y = MARGIN + 12.0 + LINE;
        let mut marks = String::new();
        for key in &self.legend {
            let mark = html! {
                (line(key.class, [x, y - 4.0], [x + 20.0, y - 4.0]))
                (text("", x + 26.0, y, &key.label))
            };
            marks.push_str(&mark.into_string());
            x += 26.0 + text_width(&key.label) + LINE;
        }
        PreEscaped(marks)
    }

    /// The drawing in a page.
    pub(super) fn inline(&self) -> Markup {
        let many = self.is_wide();
        let least = self.panels.iter().map(|panel| 0.8 * panel.width).fold(0.0, f64::max);
        html! {
            figure class=[many.then_some("wide")] {
                figcaption { b { (Text(&self.title)) } " " (Text(&self.caption)) }
                @if !self.legend.is_empty() {
                    p.legend {
                        @for key in &self.legend {
                            span {
                                svg.key viewBox="0 0 20 8" aria-hidden="true" {
                                    (line(key.class, [0.0, 4.0], [20.0, 4.0]))
                                }
                                (Text(&key.label))
                            }
                        }
                    }
                }
                div class=[many.then_some("panels")] style=[many.then(|| format!("--least:{}px", px(least)))] {
                    @for panel in &self.panels { (self.panel(panel)) }
                }
            }
        }
    }

    /// Whether it takes all the width there is.
    pub(super) fn is_wide(&self) -> bool {
        self.panels.len() > 2
    }

    fn panel(&self, panel: &Panel) -> Markup {
        let Panel { title, width, height, body } = panel;
        html! {
            svg viewBox={ "0 0 " (px(*width)) " " (px(*height)) } role="img" style={ "max-width:" (px(width * 1.4)) "px" } {
                title {
                    (Text(&self.title))
                    @if !title.is_empty() { ": " (Text(title)) }
                }
                (body)
            }
        }
    }
}

/// The drawings of a page. Names are different: further texts count from 2.
pub(super) fn of_page(page: &Page<'_>) -> Vec<Plot> {
    let mut plots: Vec<Plot> = Vec::new();
    for figure in page.sections.iter().filter_map(|section| section.figure) {
        for mut plot in of_figure(figure) {
            let again = plots.iter().filter(|other| other.title == plot.title).count();
            if again > 0 {
                plot.name = format!("{}-{}", plot.name, again + 1);
            }
            plots.push(plot);
        }
    }
    plots
}

/// The drawings of one figure; none where there is nothing to draw.
pub(super) fn of_figure(figure: Figure<'_>) -> Vec<Plot> {
    match figure {
        Figure::Divergence(evaluation) => divergence::plot(evaluation).into_iter().collect(),
        Figure::Breakdown(breakdown) => breakdown::plot(breakdown).into_iter().collect(),
        Figure::Worst(_) => Vec::new(),
        Figure::Tensors(tensors) => tensors::plots(tensors),
        Figure::Curves(taught) => curves::plots(taught),
        Figure::Sizes(report, allocation) => sizes::plot(report, allocation).into_iter().collect(),
        Figure::Stages(run) => stages::plot(run).into_iter().collect(),
        Figure::Pareto(reports) => pareto::plots(reports),
    }
}

/// The field of a panel in which data lie, with its two axes.
struct Field {
    x: Axis,
    y: Axis,
}

impl Field {
    /// Lines across at `ticks` of y, their labels at the left.
    fn rules(&self, ticks: &[f64], label: impl Fn(f64) -> String) -> Markup {
        html! {
            @for &tick in ticks {
                (line("rule", [self.x.start, self.y.at(tick)], [self.x.end, self.y.at(tick)]))
                (text("e", self.x.start - 6.0, self.y.at(tick) + 4.0, &label(tick)))
            }
        }
    }

    /// The lower edge, marks at `ticks` of x, their labels below.
    fn foot(&self, ticks: &[f64], label: impl Fn(f64) -> String) -> Markup {
        let bottom = self.y.start;
        html! {
            (line("axis", [self.x.start, bottom], [self.x.end, bottom]))
            @for &tick in ticks {
                (line("axis", [self.x.at(tick), bottom], [self.x.at(tick), bottom + 4.0]))
                (text("m", self.x.at(tick), bottom + 17.0, &label(tick)))
            }
        }
    }
}

/// A coordinate, to the hundredth.
fn px(value: f64) -> String {
    debug_assert!(value.is_finite(), "only finite numbers are drawn");
    let rounded = (value * 100.0).round() / 100.0;
    format!("{}", if rounded == 0.0 { 0.0 } else { rounded })
}

fn line(class: &str, from: [f64; 2], to: [f64; 2]) -> Markup {
    html! { line class=(class) x1=(px(from[0])) y1=(px(from[1])) x2=(px(to[0])) y2=(px(to[1])) {} }
}

fn rect(class: &str, x: f64, y: f64, width: f64, height: f64) -> Markup {
    html! { rect class=(class) x=(px(x)) y=(px(y)) width=(px(width.max(0.0))) height=(px(height.max(0.0))) {} }
}

fn text(class: &str, x: f64, y: f64, content: &str) -> Markup {
    html! { text class=[(!class.is_empty()).then_some(class)] x=(px(x)) y=(px(y)) { (Text(content)) } }
}

/// A broken line through points.
fn path(class: &str, points: &[[f64; 2]]) -> Markup {
    let points: Vec<String> = points.iter().map(|[x, y]| format!("{},{}", px(*x), px(*y))).collect();
    html! { polyline class=(class) points=(points.join(" ")) {} }
}

fn dot(class: &str, [x, y]: [f64; 2], radius: f64) -> Markup {
    html! { circle class=(class) cx=(px(x)) cy=(px(y)) r=(px(radius)) {} }
}

/// About how wide a label is drawn at most; fonts differ.
fn text_width(content: &str) -> f64 {
    7.0 * content.chars().count() as f64
}

/// A size or count whose last digits are zeros without them: `2 MB`.
fn round(label: &str) -> String {
    let (number, unit) = label.split_once(' ').unwrap_or((label, ""));
    let number =
        if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number };
    format!("{number} {unit}").trim_end().to_owned()
}

/// A label no wider than `width`, its end left out where it would be.
fn shortened(content: &str, width: f64) -> String {
    let fits = (width / LETTER) as usize;
    if content.chars().count() <= fits {
        return content.to_owned();
    }
    content.chars().take(fits.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests;
