//! Limits and what became of them, a line each.

use super::page::Section;
use crate::report::{Check, Verdict};

pub(super) fn section(check: &Check) -> Section<'static> {
    let heading = if check.passed { "Check: passed" } else { "Check: FAILED" };
    let against = check.against.iter().map(|against| ("against", against.clone()));
    let limits = check.limits.iter().map(|limit| {
        let verdict = match limit.verdict {
            Verdict::Passed => "passed",
            Verdict::Noise => "noise",
            Verdict::Failed => "FAILED",
        };
        (verdict, format!("{}, {}: {}", limit.name, limit.subject, limit.said))
    });
    Section { heading, facts: against.chain(limits).collect(), ..Section::default() }
}
