//! One page of HTML that needs nothing else: no script, no font, no network.

mod headline;
mod verdict;
mod worst;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Renderer;
use super::markup::Text;
use super::page::{self, Align, Figure, Page, Section, Table};
use super::plot::{self, PALETTE, STYLE};
use crate::report::{Difference, Report, SCHEMA_FAMILY};

/// A self-contained page, light or dark as the reader's system is.
pub(super) struct Html;

const PAGE: &str = include_str!("html/page.css");

/// Nothing is loaded and nothing runs, whatever a report's texts say.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

impl Renderer for Html {
    fn name(&self) -> &'static str {
        "html"
    }

    fn extension(&self) -> &'static str {
        "html"
    }

    fn render(&self, report: &Report) -> String {
        let head = html! {
            @if let Some(words) = verdict::of(report) { p.verdict { (words) } }
            (headline::cards(report))
        };
        let version = report.run.as_ref().map(|run| run.version.as_str());
        lay_out(&page::of_report(report), &head, version)
    }

    fn compare(&self, reports: &[Report]) -> String {
        lay_out(&page::with_what_all_share(reports), &html! {}, None)
    }

    fn wrote(&self, start: &str) -> bool {
        start.contains(&format!("<meta name=\"generator\" content=\"{SCHEMA_FAMILY}"))
    }

    fn differ(&self, difference: &Difference) -> String {
        lay_out(&page::of_difference(difference), &html! {}, None)
    }
}

fn lay_out(page: &Page<'_>, head: &Markup, version: Option<&str>) -> String {
    let name = page::file_name(&page.title);
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="generator" content=(page.schema);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (Text(&name)) " - attar" }
                link rel="icon" href="data:,";
                style { (PreEscaped(PALETTE)) (PreEscaped(STYLE)) (PreEscaped(PAGE)) }
            }
            body {
                header {
                    p.eyebrow { "attar report" }
                    h1 { (Text(&name)) }
                    (head)
                }
                main {
                    @for (index, section) in page.sections.iter().enumerate() { (lay_out_section(section, index)) }
                }
                footer {
                    p { (page.schema) @if let Some(version) = version { ", attar " (Text(version)) } }
                }
            }
        }
    };
    document.into_string() + "\n"
}

/// A single figure stands beside facts and table where there is room.
fn lay_out_section(section: &Section<'_>, index: usize) -> Markup {
    let id = format!("part-{}", index + 1);
    let figures = section.figure.map(plot::of_figure).unwrap_or_default();
    let brief = section.table.is_none() && figures.is_empty() && section.remarks.is_empty();
    let (wide, narrow): (Vec<_>, Vec<_>) = figures.into_iter().partition(plot::Plot::is_wide);
    let facts = facts(&section.facts);
    let table = match (section.figure, &section.table) {
        (Some(Figure::Worst(tokens)), _) => worst::list(tokens),
        (_, Some(table)) => lay_out_table(table),
        (_, None) => html! {},
    };
    html! {
        section class=[brief.then_some("brief")] aria-labelledby=[(!section.heading.is_empty()).then_some(&id)] {
            @if !section.heading.is_empty() { h2 id=(id) { (section.heading) } }
            @for figure in &wide { (figure.inline()) }
            @match &narrow[..] {
                [figure] => {
                    div.columns { div.text { (facts) (table) } (figure.inline()) }
                },
                figures => {
                    (facts)
                    @if !figures.is_empty() { div.pair { @for figure in figures { (figure.inline()) } } }
                    (table)
                },
            }
            @if !section.remarks.is_empty() {
                ul.remarks { @for remark in &section.remarks { li { (Text(remark)) } } }
            }
        }
    }
}

fn facts(facts: &[(&'static str, String)]) -> Markup {
    html! {
        @if !facts.is_empty() {
            dl.facts {
                @for (label, value) in facts {
                    div { dt { (label) } dd { (Text(value)) } }
                }
            }
        }
    }
}

/// The first column names its row.
fn lay_out_table(table: &Table) -> Markup {
    let class = |index: usize| (table.columns[index].align == Align::Right).then_some("number");
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        @for (index, column) in table.columns.iter().enumerate() {
                            th scope="col" class=[class(index)] { (column.heading) }
                        }
                    }
                }
                tbody {
                    @for row in &table.rows {
                        tr {
                            @for (index, cell) in row.iter().enumerate() {
                                @if index == 0 {
                                    th scope="row" class=[class(0)] { (Text(cell)) }
                                } @else {
                                    td class=[class(index)] { (Text(cell)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
