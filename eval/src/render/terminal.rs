//! Plain text, at most [`COLUMNS`] wide, legible without colour.

use super::Renderer;
use super::page::{self, Align, Page, Section, Table};
use crate::report::{Difference, Report};

const COLUMNS: usize = 110;
const GAP: &str = "  ";
/// A name is not cut shorter than this.
const LEAST_NAME: usize = 8;

/// Plain text for a terminal or a log.
pub(super) struct Terminal;

impl Renderer for Terminal {
    fn name(&self) -> &'static str {
        "terminal"
    }

    fn extension(&self) -> &'static str {
        "txt"
    }

    fn render(&self, report: &Report) -> String {
        lay_out(&page::of_report(report))
    }

    fn compare(&self, reports: &[Report]) -> String {
        lay_out(&page::of_comparison(reports))
    }

    fn differ(&self, difference: &Difference) -> String {
        lay_out(&page::of_difference(difference))
    }
}

fn lay_out(page: &Page<'_>) -> String {
    let mut lines = vec![clean(&page.title)];
    for section in &page.sections {
        lines.push(String::new());
        if section.heading.is_empty() {
            lay_out_section(section, "", &mut lines);
        } else {
            lines.push(section.heading.to_owned());
            lay_out_section(section, GAP, &mut lines);
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

fn lay_out_section(section: &Section<'_>, indent: &str, lines: &mut Vec<String>) {
    let width = section.facts.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let margin = indent.len() + width + GAP.len();
    for (label, value) in &section.facts {
        let mut label = format!("{indent}{label:width$}{GAP}");
        for line in wrap(&clean(value), COLUMNS - margin) {
            lines.push(format!("{label}{line}"));
            label = " ".repeat(margin);
        }
    }
    if let Some(table) = &section.table {
        if !section.facts.is_empty() {
            lines.push(String::new());
        }
        lay_out_table(table, indent, lines);
    }
    for remark in &section.remarks {
        for line in wrap(&clean(remark), COLUMNS - indent.len()) {
            lines.push(format!("{indent}{line}"));
        }
    }
}

fn lay_out_table(table: &Table, indent: &str, lines: &mut Vec<String>) {
    let mut rows: Vec<Vec<String>> =
        vec![table.columns.iter().map(|column| column.heading.to_owned()).collect()];
    rows.extend(table.rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()));
    let mut widths: Vec<usize> = (0..table.columns.len())
        .map(|column| rows.iter().map(|row| width(&row[column])).max().unwrap_or(0))
        .collect();
    let total = indent.len() + widths.iter().sum::<usize>() + GAP.len() * (widths.len() - 1);
    // The first column names things; names differ at their ends.
    let excess = total.saturating_sub(COLUMNS);
    widths[0] = widths[0].saturating_sub(excess).max(LEAST_NAME).min(widths[0]);

    for row in &rows {
        let cells = row.iter().zip(&table.columns).zip(&widths);
        let cells: Vec<String> = cells
            .map(|((cell, column), &width)| match column.align {
                Align::Left => format!("{:width$}", keep_end(cell, width)),
                Align::Right => format!("{cell:>width$}"),
            })
            .collect();
        lines.push(format!("{indent}{}", cells.join(GAP)).trim_end().to_owned());
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// `text`, or as much of its end as fits in `columns` after an ellipsis.
fn keep_end(text: &str, columns: usize) -> String {
    let excess = width(text).saturating_sub(columns);
    if excess == 0 {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(excess + 1)).collect()
}

/// Breaks `text` at spaces; a longer word stands alone on its line.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            line.push_str(word);
        } else if width(line) + 1 + width(word) <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// `text` without the characters a terminal would obey.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn a_report_with_every_part() {
        insta::assert_snapshot!(Terminal.render(&example::quantized()));
    }

    #[test]
    fn a_report_about_a_model_alone() {
        insta::assert_snapshot!(Terminal.render(&Report::new(example::model())));
    }

    #[test]
    fn a_report_against_a_teacher_cache_names_it_and_the_bound() {
        insta::assert_snapshot!(Terminal.render(&example::against_a_cache()));
    }

    #[test]
    fn a_comparison_starts_with_the_model_itself() {
        insta::assert_snapshot!(Terminal.compare(&example::compared()));
    }

    #[test]
    fn what_was_made_of_one_another_is_compared_with_the_model_it_began_with() {
        insta::assert_snapshot!(Terminal.compare(&example::chained()));
    }

    #[test]
    fn every_shape_of_a_search_is_shown() {
        insta::assert_snapshot!(Terminal.render(&example::pruned()));
    }

    #[test]
    fn a_comparison_over_different_texts_says_so() {
        let mut reports = example::compared();
        reports[1].evaluation.as_mut().expect("the example is evaluated").ctx = 256;
        insta::assert_snapshot!(Terminal.compare(&reports));
    }

    #[test]
    fn no_line_is_wider_than_the_page() {
        let mut reports = example::compared();
        let output = reports[0].output.as_mut().expect("the example has an output");
        output.path = format!("{}/{}-q4_k_m.gguf", "d".repeat(60), "a-very-long-name-".repeat(8));
        let run = reports[0].run.as_mut().expect("the example was run");
        run.command = "attar quantize --calib one.txt ".repeat(12);
        let alone = Terminal.render(&reports[0]);
        let together = Terminal.compare(&reports);
        // A path without spaces has no place to break.
        for line in alone.lines().chain(together.lines()).filter(|line| !line.contains("dddd")) {
            assert!(width(line) <= COLUMNS, "{} columns: {line}", width(line));
        }
        assert!(together.contains("…"), "{together}");
        assert!(together.contains("name--q4_k_m.gguf"), "{together}");
    }
}
