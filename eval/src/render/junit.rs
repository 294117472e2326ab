//! `JUnit`'s XML, which CI servers show as tests: a limit is a test, a report a suite of them.

use quick_junit::{NonSuccessKind, Report as Suites, TestCase, TestCaseStatus, TestSuite};

use super::figures::visible;
use super::terminal::Terminal;
use super::{Renderer, Subject};
use crate::report::{Difference, Limit, Report, Verdict};

/// What all suites together are called.
const NAME: &str = "attar check";

/// `JUnit`'s XML.
pub(super) struct Junit;

impl Renderer for Junit {
    fn name(&self) -> &'static str {
        "junit"
    }

    fn extension(&self) -> &'static str {
        "xml"
    }

    /// A report without a check has no tests.
    fn shows(&self, subject: Subject<'_>) -> bool {
        match subject {
            Subject::Report(report) => report.check.is_some(),
            Subject::Comparison(reports) => reports.iter().any(|report| report.check.is_some()),
            Subject::Difference(_) => false,
        }
    }

    fn wrote(&self, start: &str) -> bool {
        start.contains(&format!("<testsuites name=\"{NAME}\""))
    }

    fn render(&self, report: &Report) -> String {
        write(&[suite(report)])
    }

    fn compare(&self, reports: &[Report]) -> String {
        write(&reports.iter().map(suite).collect::<Vec<_>>())
    }

    /// No limit was set: what changed is said and nothing tested.
    fn differ(&self, difference: &Difference) -> String {
        let mut suite = TestSuite::new(visible(&difference.subject.after));
        suite.set_system_out(Terminal::FILE.differ(difference));
        write(&[suite])
    }
}

fn suite(report: &Report) -> TestSuite {
    let model = report.output.as_ref().map_or(&report.model.source, |output| &output.path);
    let mut suite = TestSuite::new(visible(model));
    suite.add_test_cases(report.check.iter().flat_map(|check| &check.limits).map(case));
    suite.set_system_out(Terminal::FILE.render(report));
    suite
}

fn case(limit: &Limit) -> TestCase {
    let status = match limit.verdict {
        Verdict::Passed | Verdict::Noise => TestCaseStatus::success(),
        Verdict::Failed => {
            let mut failed = TestCaseStatus::non_success(NonSuccessKind::Failure);
            failed.set_message(limit.said.as_str()).set_type(limit.name.as_str());
            failed
        }
    };
    let mut case = TestCase::new(limit.name.as_str(), status);
    case.set_classname(limit.subject.as_str()).set_system_out(limit.said.as_str());
    case
}

fn write(suites: &[TestSuite]) -> String {
    let mut all = Suites::new(NAME);
    all.add_test_suites(suites.iter().cloned());
    all.to_string().expect("XML of text is written to memory").trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Check, example};

    #[test]
    fn a_limit_that_failed_is_a_test_that_failed() {
        let mut report = example::quantized();
        let limit = |name: &str, verdict| Limit {
            name: name.to_owned(),
            subject: "heldout.txt".to_owned(),
            value: 0.02,
            stderr: None,
            limit: 0.01,
            p_value: None,
            verdict,
            said: "mean KL divergence 0.02 & more; at most 0.01 is <allowed>".to_owned(),
        };
        let limits = vec![limit("max-kl", Verdict::Failed), limit("min-top1", Verdict::Passed)];
        report.check = Some(Check { passed: false, against: None, limits });
        let xml = Junit.render(&report);
        assert!(xml.contains(r#"tests="2""#) && xml.contains(r#"failures="1""#), "{xml}");
        assert!(xml.contains("&amp; more; at most 0.01 is &lt;allowed&gt;"), "{xml}");
        assert!(xml.contains(r#"classname="heldout.txt""#), "{xml}");
    }

    #[test]
    fn what_was_held_to_nothing_is_no_test() {
        let (mut held, free) = (example::quantized(), example::quantized());
        held.check = Some(Check { passed: true, against: None, limits: Vec::new() });
        assert!(Junit.shows(Subject::Report(&held)) && !Junit.shows(Subject::Report(&free)));
        assert!(!Junit.shows(Subject::Comparison(std::slice::from_ref(&free))));
        assert!(Junit.shows(Subject::Comparison(&[free, held])));
    }
}
