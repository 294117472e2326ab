//! `attar report`: reports shown again, what changed from one to another, several side by side.

use std::path::Path;

use attar_eval::Report;
use attar_eval::render::Subject;
use attar_eval::report::Difference;

use crate::cli::{Global, ReportArgs};
use crate::commands::deliver;
use crate::diagnostic::Result;
use crate::talk::say;

/// The schema as it is published.
const SCHEMA: &str = include_str!("../../docs/attar-report-1.schema.json");

/// Shows what was asked for on stdout, and writes it wherever else it is wanted.
///
/// # Errors
/// A file that is missing or holds no report of this schema, a report that cannot be written.
pub fn run(args: &ReportArgs, global: &Global) -> Result<()> {
    if args.schema {
        return say(SCHEMA);
    }
    let files =
        args.files.iter().map(|path| deliver::read_reports(path)).collect::<Result<Vec<Vec<Report>>>>()?;
    let delivery = global.delivery();
    // One file may be written again; of several none is what takes its place.
    let kept: Vec<&Path> = match &args.files[..] {
        [_] => Vec::new(),
        several => several.iter().map(AsRef::as_ref).collect(),
    };
    delivery.check(&kept)?;
    let (files_given, reports) = (files.len(), files.into_iter().flatten().collect::<Vec<_>>());
    let format = args.format.name();
    match &reports[..] {
        [report] => delivery.shown(Subject::Report(report), format),
        [before, after] if files_given == 2 => {
            delivery.shown(Subject::Difference(&Difference::of(before, after)), format)
        }
        reports => delivery.shown(Subject::Comparison(reports), format),
    }
}
