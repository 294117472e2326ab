//! What a report looks like. Each rendering is one file and one line in [`RENDERERS`].
//!
//! Renderings for people are laid out from one `page`, so that all of them show the same
//! figures, rounded in the same way.

mod check;
pub(crate) mod figures;
mod html;
mod json;
mod junit;
mod markdown;
mod markup;
mod page;
mod plot;
mod tasks;
mod terminal;

use crate::report::{Difference, Report};
pub use page::{Align, Column, Figure, Page, Section, Table, left, right};
pub use plot::{Plot, is_drawing};
pub use terminal::{COLUMNS, Terminal};

/// One way to write reports down.
pub trait Renderer: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// The usual extension of a file of this kind, without a dot.
    fn extension(&self) -> &'static str;

    /// Whether it has anything to say of `subject`.
    fn shows(&self, _subject: Subject<'_>) -> bool {
        true
    }

    /// Whether its files say whose they are.
    fn marks(&self) -> bool {
        true
    }

    /// Whether a file that begins with `start` is one of its own; false where that cannot be told.
    fn wrote(&self, start: &str) -> bool;

    /// One report; ends in a newline.
    fn render(&self, report: &Report) -> String;

    /// Several reports side by side, one line each; ends in a newline.
    ///
    /// Where all of them come from one model and were scored on one text, the model itself is the
    /// first line.
    fn compare(&self, reports: &[Report]) -> String;

    /// What changed from one report to another; ends in a newline.
    fn differ(&self, difference: &Difference) -> String;
}

/// Every rendering.
pub const RENDERERS: &[&dyn Renderer] =
    &[&Terminal::FILE, &markdown::Markdown, &html::Html, &json::Json, &junit::Junit];

/// What is rendered.
#[derive(Clone, Copy)]
pub enum Subject<'a> {
    /// One report.
    Report(&'a Report),
    /// Several side by side.
    Comparison(&'a [Report]),
    /// What changed from one to another.
    Difference(&'a Difference),
}

impl Subject<'_> {
    /// Written down by `renderer`.
    pub fn text(&self, renderer: &dyn Renderer) -> String {
        match self {
            Self::Report(report) => renderer.render(report),
            Self::Comparison(reports) => renderer.compare(reports),
            Self::Difference(difference) => renderer.differ(difference),
        }
    }

    /// Every drawing of its page, as a file of its own; of a difference there is none.
    pub fn plots(&self) -> Vec<Plot> {
        match self {
            Self::Report(report) => plot::of_page(&page::of_report(report)),
            Self::Comparison(reports) => plot::of_page(&page::of_comparison(reports)),
            Self::Difference(_) => Vec::new(),
        }
    }
}

/// The rendering called `name`.
pub fn renderer(name: &str) -> Option<&'static dyn Renderer> {
    RENDERERS.iter().copied().find(|renderer| renderer.name() == name)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::report::example;

    /// A report whose every text tries to break out of its place.
    fn hostile() -> Report {
        let mut report = example::detailed();
        let text =
            "a|b\n# heading\u{1b}[31m</style><script>alert(\"1\")</script><img src='x' onerror=x>".to_owned();
        report.model.source = text.clone();
        report.tensors[0].role = "q|proj\u{7}<script>".to_owned();
        let output = report.output.as_mut().unwrap();
        output.path.clone_from(&text);
        output.scheme.clone_from(&text);
        let evaluation = report.evaluation.as_mut().unwrap();
        evaluation.worst_tokens[0].before.clone_from(&text);
        evaluation.worst_tokens[0].model.top.clone_from(&text);
        evaluation.breakdown.as_mut().unwrap().kind[0].name.clone_from(&text);
        let run = report.run.as_mut().unwrap();
        run.stages[0].name.clone_from(&text);
        run.command = text;
        report
    }

    #[test]
    fn every_renderer_has_a_name_of_its_own_and_is_found_by_it() {
        for &one in RENDERERS {
            assert_eq!(renderer(one.name()).unwrap().extension(), one.extension());
            let same = RENDERERS.iter().filter(|other| other.name() == one.name());
            assert_eq!(same.count(), 1, "{}", one.name());
        }
        assert!(renderer("pdf").is_none());
    }

    #[test]
    fn every_rendering_but_plain_text_knows_its_own_files_from_others() {
        let (mut report, reports) = (example::detailed(), example::compared());
        let difference = Difference::of(&report, &reports[0]);
        for renderer in RENDERERS.iter().filter(|renderer| renderer.marks()) {
            let texts = [renderer.render(&report), renderer.compare(&reports), renderer.differ(&difference)];
            for text in texts {
                let start: String = text.chars().take(1024).collect();
                assert!(renderer.wrote(&start), "{}: {start}", renderer.name());
            }
            for strange in
                ["", "# My report\n", "<!doctype html><title>attar report</title>", "{\"schema\": 1}"]
            {
                assert!(!renderer.wrote(strange), "{}: {strange}", renderer.name());
            }
        }
        report.check = None;
        for plot in Subject::Report(&report).plots() {
            assert!(is_drawing(plot.name(), &plot.svg()) == Some(true), "{}", plot.name());
            assert!(is_drawing(plot.name(), "<svg></svg>") == Some(false), "{}", plot.name());
        }
        assert_eq!(is_drawing("holiday", "<svg></svg>"), None);
    }

    #[test]
    fn every_rendering_ends_in_one_newline() {
        let (full, bare) = (example::quantized(), Report::new(example::model()));
        for renderer in RENDERERS {
            let texts = [
                renderer.render(&full),
                renderer.render(&bare),
                renderer.compare(&[full.clone(), bare.clone()]),
                renderer.differ(&Difference::of(&full, &bare)),
            ];
            for text in texts {
                assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{}: {text}", renderer.name());
            }
        }
    }

    #[test]
    fn no_rendering_lets_a_control_character_through() {
        for renderer in RENDERERS {
            let difference = Difference::of(&example::quantized(), &hostile());
            let texts =
                [renderer.render(&hostile()), renderer.compare(&[hostile()]), renderer.differ(&difference)];
            for text in texts {
                assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{}", renderer.name());
                assert!(!text.contains("\n# heading"), "{}", renderer.name());
            }
        }
    }

    #[test]
    fn no_page_and_no_drawing_lets_markup_through() {
        let (hostile, html) = (hostile(), renderer("html").unwrap());
        let difference = Difference::of(&example::quantized(), &hostile);
        let mut texts = vec![
            html.render(&hostile),
            html.compare(std::slice::from_ref(&hostile)),
            html.differ(&difference),
        ];
        let list = [hostile];
        for subject in [Subject::Report(&list[0]), Subject::Comparison(&list)] {
            texts.extend(subject.plots().iter().map(Plot::svg));
        }
        for text in texts {
            assert!(!text.contains("<script") && !text.contains("<img"), "{text}");
            assert!(text.matches("</style>").count() <= 1, "{text}");
        }
    }

    #[test]
    fn every_rendering_of_nothing_compared_is_harmless() {
        for renderer in RENDERERS {
            assert!(renderer.compare(&[]).ends_with('\n'), "{}", renderer.name());
        }
    }

    #[test]
    fn every_rendering_shows_perplexity_to_the_digits_llama_perplexity_prints() {
        for renderer in RENDERERS {
            let text = renderer.render(&example::quantized());
            assert!(text.contains("42.1234") || text.contains("42.1235"), "{}", renderer.name());
        }
    }
}
