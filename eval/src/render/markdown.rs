//! Markdown, for an issue, a pull request or a model card.

use super::Renderer;
use super::page::{self, Align, Page, Section, Table};
use crate::report::{Difference, Report, SCHEMA_FAMILY};

/// GitHub's Markdown.
pub(super) struct Markdown;

impl Renderer for Markdown {
    fn name(&self) -> &'static str {
        "markdown"
    }

    fn extension(&self) -> &'static str {
        "md"
    }

    fn render(&self, report: &Report) -> String {
        lay_out(&page::of_report(report))
    }

    fn compare(&self, reports: &[Report]) -> String {
        lay_out(&page::with_what_all_share(reports))
    }

    fn wrote(&self, start: &str) -> bool {
        start.starts_with(&mark(SCHEMA_FAMILY))
    }

    fn differ(&self, difference: &Difference) -> String {
        lay_out(&page::of_difference(difference))
    }
}

/// How a file says that it is ours: a comment that no reader sees.
fn mark(schema: &str) -> String {
    format!("<!-- {schema}")
}

fn lay_out(page: &Page<'_>) -> String {
    let mut blocks = vec![mark(page.schema) + " -->", format!("# {}", escape(&page.title))];
    for section in &page.sections {
        if !section.heading.is_empty() {
            blocks.push(format!("## {}", section.heading));
        }
        lay_out_section(section, &mut blocks);
    }
    blocks.join("\n\n") + "\n"
}

fn lay_out_section(section: &Section<'_>, blocks: &mut Vec<String>) {
    let list = |lines: Vec<String>| (!lines.is_empty()).then(|| lines.join("\n"));
    let facts = section.facts.iter().map(|(label, value)| format!("- **{label}**: {}", escape(value)));
    blocks.extend(list(facts.collect()));
    blocks.extend(section.table.as_ref().map(lay_out_table));
    let remarks = section.remarks.iter().map(|remark| format!("- {}", escape(remark)));
    blocks.extend(list(remarks.collect()));
}

fn lay_out_table(table: &Table) -> String {
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let rule = |align: Align| if align == Align::Left { ":--" } else { "--:" };
    let mut lines = vec![
        line(table.columns.iter().map(|column| column.heading.to_owned()).collect()),
        line(table.columns.iter().map(|column| rule(column.align).to_owned()).collect()),
    ];
    lines.extend(table.rows.iter().map(|row| line(row.iter().map(|cell| escape(cell)).collect())));
    lines.join("\n")
}

/// `text` with the characters that mean something to Markdown made literal, on one line.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut in_word = false;
    while let Some(c) = chars.next() {
        let literal = match c {
            // Between two letters an underscore is one.
            '_' => in_word && chars.peek().is_some_and(|next| next.is_alphanumeric() || *next == '_'),
            '|' | '\\' | '`' | '*' | '<' | '>' | '[' | ']' | '&' => false,
            _ => true,
        };
        if !literal {
            escaped.push('\\');
        }
        escaped.push(if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
        in_word = c.is_alphanumeric() || (c == '_' && in_word);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn a_report_with_every_part() {
        insta::assert_snapshot!(Markdown.render(&example::quantized()));
    }

    #[test]
    fn a_comparison_is_one_table() {
        insta::assert_snapshot!(Markdown.compare(&example::compared()));
    }

    #[test]
    fn what_means_something_to_markdown_is_made_literal() {
        let cases = [
            ("q4_k_m", "q4_k_m"),
            ("_a_ b_", "\\_a\\_ b\\_"),
            ("a|b", "a\\|b"),
            ("*x* <b> [l](u) `c`", "\\*x\\* \\<b\\> \\[l\\](u) \\`c\\`"),
            ("&lt;", "\\&lt;"),
            ("line\n# two", "line\u{fffd}# two"),
        ];
        for (text, escaped) in cases {
            assert_eq!(escape(text), escaped);
        }
    }

    #[test]
    fn every_row_of_a_table_has_as_many_cells_as_its_head() {
        let text = Markdown.compare(&example::compared());
        let cells: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches(" | ").count())
            .collect();
        assert!(cells.len() > 3 && cells.iter().all(|&count| count == cells[0]), "{cells:?}");
    }
}
