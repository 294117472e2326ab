//! The report itself, and of several an array.

use serde::Serialize;

use super::Renderer;
use crate::report::{Difference, Report, SCHEMA_FAMILY};

/// Indented JSON with every figure in full.
pub(super) struct Json;

impl Renderer for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn extension(&self) -> &'static str {
        "json"
    }

    fn render(&self, report: &Report) -> String {
        pretty(report)
    }

    fn compare(&self, reports: &[Report]) -> String {
        pretty(reports)
    }

    fn wrote(&self, start: &str) -> bool {
        start.contains(&format!("\"{SCHEMA_FAMILY}"))
    }

    fn differ(&self, difference: &Difference) -> String {
        pretty(difference)
    }
}

fn pretty<T: Serialize + ?Sized>(value: &T) -> String {
    let json = serde_json::to_string_pretty(value);
    json.expect("a report holds strings, numbers and lists only") + "\n"
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn a_report_with_every_part() {
        insta::assert_snapshot!(Json.render(&example::quantized()));
    }

    #[test]
    fn what_is_written_reads_back_to_the_last_bit() {
        let report = example::quantized();
        assert_eq!(Report::from_json(&Json.render(&report)).unwrap(), report);
        let reports: Vec<Report> = serde_json::from_str(&Json.compare(&example::compared())).unwrap();
        assert_eq!(reports, example::compared());
    }
}
