//! What a report looks like. Each rendering is one file and one line in [`RENDERERS`].
//!
//! Renderings for people are laid out from one `page`, so that all of them show the same
//! figures, rounded in the same way.

mod check;
pub(crate) mod figures;
mod json;
mod junit;
mod markdown;
mod page;
mod tasks;
mod terminal;

use crate::report::Report;
pub use page::{Align, Column, Page, Section, Table, left, right};
pub use terminal::{COLUMNS, Terminal};

/// One way to write reports down.
pub trait Renderer: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// The usual extension of a file of this kind, without a dot.
    fn extension(&self) -> &'static str;

    /// One report; ends in a newline.
    fn render(&self, report: &Report) -> String;

    /// Several reports side by side, one line each; ends in a newline.
    ///
    /// Where all of them come from one model and were scored on one text, the model itself is the
    /// first line.
    fn compare(&self, reports: &[Report]) -> String;
}

/// Every rendering.
pub const RENDERERS: &[&dyn Renderer] = &[&Terminal::FILE, &markdown::Markdown, &json::Json, &junit::Junit];

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
        let mut report = example::quantized();
        report.model.source = "a|b\n# heading\u{1b}[31m".to_owned();
        report.tensors[0].role = "q|proj\u{7}".to_owned();
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
    fn every_rendering_ends_in_one_newline() {
        let (full, bare) = (example::quantized(), Report::new(example::model()));
        for renderer in RENDERERS {
            let texts = [
                renderer.render(&full),
                renderer.render(&bare),
                renderer.compare(&[full.clone(), bare.clone()]),
            ];
            for text in texts {
                assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{}: {text}", renderer.name());
            }
        }
    }

    #[test]
    fn no_rendering_lets_a_control_character_through() {
        for renderer in RENDERERS {
            for text in [renderer.render(&hostile()), renderer.compare(&[hostile()])] {
                assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{}", renderer.name());
                assert!(!text.contains("\n# heading"), "{}", renderer.name());
            }
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
