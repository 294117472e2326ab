//! Text that fits its width, legible without colour.

use anstyle::{AnsiColor, Style};

use super::Renderer;
use super::page::{self, Align, Column, Page, Section, Table};
use crate::report::{Difference, Report};

/// The width of files, and of what no terminal is behind.
pub const COLUMNS: usize = 110;
/// Nothing is laid out narrower than this.
const LEAST_COLUMNS: usize = 40;
const GAP: &str = "  ";
/// A name is not cut shorter than this while there are columns that can be spared.
const SHORT_NAME: usize = 20;
/// A name is not cut shorter than this.
const LEAST_NAME: usize = 8;

/// Columns that a narrow table can do without, those first that are missed least.
const SPARED: &[&str] = &[
    "by rounding",
    "files",
    "method",
    "params",
    "worst",
    "count",
    "bits/w",
    "bits/weight",
    "90 %",
    "99.9 %",
    "hidden size",
    "key heads",
    "query heads",
    "tokens",
    "top-1",
    "scheme",
    "perplexity",
];

/// Figures that a reader looks for first.
const ACCENTED: &[&str] = &["KL divergence"];

const HEADING: Style = Style::new().bold();
const ACCENT: Style = AnsiColor::Cyan.on_default();
const WARNING: Style = AnsiColor::Yellow.on_default();
const ASIDE: Style = Style::new().dimmed();

/// Text for a terminal, or for a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Characters of a line.
    pub width: usize,
    /// Whether words are marked with the escape codes of terminals.
    pub colour: bool,
}

impl Terminal {
    /// What files hold, whatever the terminal is like.
    pub const FILE: Self = Self { width: COLUMNS, colour: false };

    /// A page in lines of its width; ends in a newline.
    pub fn lay_out(&self, page: &Page) -> String {
        let mut lines = vec![self.paint(HEADING, &clean(&page.title))];
        for section in &page.sections {
            lines.push(String::new());
            if section.heading.is_empty() {
                self.lay_out_section(section, "", &mut lines);
            } else {
                lines.push(self.paint(HEADING, section.heading));
                self.lay_out_section(section, GAP, &mut lines);
            }
        }
        lines.push(String::new());
        lines.join("\n")
    }

    fn columns(&self) -> usize {
        self.width.max(LEAST_COLUMNS)
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.colour && !text.is_empty() { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// A figure, marked where it is one that a reader looks for first.
    fn figure(&self, label: &str, text: &str) -> String {
        if ACCENTED.contains(&label) { self.paint(ACCENT, text) } else { text.to_owned() }
    }

    fn lay_out_section(&self, section: &Section, indent: &str, lines: &mut Vec<String>) {
        let label_width = section.facts.iter().map(|(label, _)| width(label)).max().unwrap_or(0);
        let margin = indent.len() + label_width + GAP.len();
        for (name, value) in &section.facts {
            let mut label = format!("{indent}{name:label_width$}{GAP}");
            for line in wrap(&clean(value), self.columns() - margin) {
                lines.push(format!("{label}{}", self.figure(name, &line)));
                label = " ".repeat(margin);
            }
        }
        if let Some(table) = &section.table {
            if !section.facts.is_empty() {
                lines.push(String::new());
            }
            self.lay_out_table(table, indent, lines);
        }
        for remark in &section.remarks {
            for line in wrap(&clean(remark), self.columns() - indent.len()) {
                lines.push(format!("{indent}{}", self.paint(WARNING, &line)));
            }
        }
    }

    fn lay_out_table(&self, table: &Table, indent: &str, lines: &mut Vec<String>) {
        let mut rows: Vec<Vec<String>> =
            vec![table.columns.iter().map(|column| column.heading.to_owned()).collect()];
        rows.extend(table.rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()));
        let natural: Vec<usize> = (0..table.columns.len())
            .map(|column| rows.iter().map(|row| width(&row[column])).max().unwrap_or(0))
            .collect();
        let fit = Fit::new(&table.columns, &natural, self.columns() - indent.len());

        for (at, row) in rows.iter().enumerate() {
            let last = fit.shown.last().map_or(0, |(column, _)| *column);
            let cells = fit.shown.iter().map(|&(column, width)| {
                let Column { heading, align } = table.columns[column];
                let text = match align {
                    Align::Left if column == last => keep_end(&row[column], width),
                    Align::Left => format!("{:width$}", keep_end(&row[column], width)),
                    Align::Right => format!("{:>width$}", row[column]),
                };
                if at == 0 { text } else { self.figure(heading, &text) }
            });
            let line = cells.collect::<Vec<_>>().join(GAP);
            let line = if at == 0 { self.paint(HEADING, line.trim_end()) } else { line };
            lines.push(format!("{indent}{}", line.trim_end()));
        }
        if !fit.spared.is_empty() {
            let aside = format!("no room for: {}", fit.spared.join(", "));
            for line in wrap(&aside, self.columns() - indent.len()) {
                lines.push(format!("{indent}{}", self.paint(ASIDE, &line)));
            }
        }
    }
}

/// Which columns of a table are shown, and how wide.
struct Fit {
    shown: Vec<(usize, usize)>, // column, width
    spared: Vec<&'static str>,
}

impl Fit {
    /// Cuts the names in the first column, and leaves out columns where that does not do.
    fn new(columns: &[Column], natural: &[usize], room: usize) -> Self {
        let names = columns.first().is_some_and(|column| column.align == Align::Left);
        let mut fit = Self { shown: natural.iter().copied().enumerate().collect(), spared: Vec::new() };
        loop {
            let spare = fit.next_to_go(columns);
            let least = match (names, spare) {
                (false, _) => usize::MAX,
                (true, Some(_)) => SHORT_NAME,
                (true, None) => LEAST_NAME,
            };
            let total = fit.shown.iter().map(|(_, width)| width).sum::<usize>();
            let excess = (total + GAP.len() * fit.shown.len().saturating_sub(1)).saturating_sub(room);
            let Some((_, first)) = fit.shown.first_mut() else { return fit };
            let cut = first.saturating_sub(excess).max(least).min(*first);
            if excess <= *first - cut || spare.is_none() {
                *first = cut;
                return fit;
            }
            let gone = fit.shown.remove(spare.unwrap_or_default());
            fit.spared.push(columns[gone.0].heading);
        }
    }

    /// The place in `shown` of the column that is missed least, none where all are needed.
    fn next_to_go(&self, columns: &[Column]) -> Option<usize> {
        let place = |heading: &&str| {
            self.shown.iter().skip(1).position(|(column, _)| columns[*column].heading == *heading)
        };
        SPARED.iter().find_map(place).map(|at| at + 1)
    }
}

impl Renderer for Terminal {
    fn name(&self) -> &'static str {
        "terminal"
    }

    fn extension(&self) -> &'static str {
        "txt"
    }

    fn render(&self, report: &Report) -> String {
        self.lay_out(&page::of_report(report))
    }

    fn compare(&self, reports: &[Report]) -> String {
        self.lay_out(&page::of_comparison(reports))
    }

    /// Plain text has no place for one.
    fn marks(&self) -> bool {
        false
    }

    fn wrote(&self, _start: &str) -> bool {
        false
    }

    fn differ(&self, difference: &Difference) -> String {
        self.lay_out(&page::of_difference(difference))
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
        insta::assert_snapshot!(Terminal::FILE.render(&example::quantized()));
    }

    #[test]
    fn a_report_about_a_model_alone() {
        insta::assert_snapshot!(Terminal::FILE.render(&Report::new(example::model())));
    }

    #[test]
    fn a_report_against_a_teacher_cache_names_it_and_the_bound() {
        insta::assert_snapshot!(Terminal::FILE.render(&example::against_a_cache()));
    }

    #[test]
    fn a_comparison_starts_with_the_model_itself() {
        insta::assert_snapshot!(Terminal::FILE.compare(&example::compared()));
    }

    #[test]
    fn what_was_made_of_one_another_is_compared_with_the_model_it_began_with() {
        insta::assert_snapshot!(Terminal::FILE.compare(&example::chained()));
    }

    #[test]
    fn every_shape_of_a_search_is_shown() {
        insta::assert_snapshot!(Terminal::FILE.render(&example::pruned()));
    }

    #[test]
    fn a_comparison_over_different_texts_says_so() {
        let mut reports = example::compared();
        reports[1].evaluation.as_mut().expect("the example is evaluated").ctx = 256;
        insta::assert_snapshot!(Terminal::FILE.compare(&reports));
    }

    /// A path without spaces has no place to break, nor has a hash.
    fn breaks(line: &&str) -> bool {
        !line.contains("dddd") && line.split(' ').all(|word| width(word) < 50)
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut reports = example::compared();
        let output = reports[0].output.as_mut().expect("the example has an output");
        output.path = format!("{}/{}-q4_k_m.gguf", "d".repeat(60), "a-very-long-name-".repeat(8));
        let run = reports[0].run.as_mut().expect("the example was run");
        run.command = "attar quantize --calib one.txt ".repeat(12);
        for columns in [60, 80, COLUMNS, 200] {
            let terminal = Terminal { width: columns, colour: false };
            let texts = [
                terminal.render(&reports[0]),
                terminal.render(&example::pruned()),
                terminal.compare(&reports),
            ];
            for line in texts.iter().flat_map(|text| text.lines()).filter(breaks) {
                assert!(width(line) <= columns, "{} of {columns} columns: {line}", width(line));
            }
            let [alone, _, together] = texts;
            assert!(alone.contains("KL divergence") && together.contains("KL divergence"), "{together}");
            assert!(together.contains("q4_k_m.gguf"), "{together}");
            assert!(together.contains('…'), "{together}");
        }
    }

    #[test]
    fn a_comparison_on_a_narrow_terminal_says_what_it_leaves_out() {
        let terminal = Terminal { width: 60, colour: false };
        insta::assert_snapshot!(terminal.compare(&example::compared()));
    }

    #[test]
    fn colour_marks_words_and_changes_none() {
        let coloured = Terminal { width: COLUMNS, colour: true };
        let reports = example::compared();
        for (marked, plain) in [
            (coloured.render(&reports[0]), Terminal::FILE.render(&reports[0])),
            (coloured.compare(&reports), Terminal::FILE.compare(&reports)),
        ] {
            assert!(marked.contains(&format!("{ACCENT}")) && marked.contains(&format!("{HEADING}")));
            let mut text = String::new();
            for part in marked.split('\u{1b}') {
                let code = part.starts_with('[').then(|| part.find('m')).flatten();
                text.push_str(&part[code.map_or(0, |end| end + 1)..]);
            }
            assert_eq!(text, plain);
        }
    }
}
