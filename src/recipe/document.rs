//! The text of a recipe, and where in it something stands.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Failure, nearest};

/// Characters of a line that are shown around a mistake.
const SHOWN: usize = 100;

/// A recipe as it was read.
#[derive(Debug, Default)]
pub struct Document {
    path: PathBuf,
    text: String,
}

/// A step from a table or an array into one of its values.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// The value of a key.
    Key(&'a str),
    /// An element, counted from 0.
    Item(usize),
}

impl Document {
    /// A text that came from `path`.
    pub fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text }
    }

    /// What the text says, as keys and values of `T`.
    ///
    /// # Errors
    /// What is no TOML, a key that `T` does not have, a value that it does not take: with the line and column, and the nearest
    /// word there is.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        toml::from_str(&self.text).map_err(|error: toml::de::Error| {
            let Misfit { message, meant, known } = Misfit::of(error.message());
            let failure = Failure::new(message);
            let failure = if known.is_empty() { failure } else { failure.hint(known) };
            self.blame(error.span(), failure.did_you_mean(meant.as_deref()))
        })
    }

    /// `failure`, shown by the value that a way through the document leads to; by the last on the way that is there.
    pub fn at(&self, way: &[Step<'_>], failure: Failure) -> Failure {
        let span = DeTable::parse(&self.text).ok().and_then(|root| span(root.get_ref(), way, Part::Value));
        self.blame(span, failure)
    }

    /// `failure`, shown by the key at the end of the way.
    pub fn at_key(&self, way: &[Step<'_>], failure: Failure) -> Failure {
        let span = DeTable::parse(&self.text).ok().and_then(|root| span(root.get_ref(), way, Part::Key));
        self.blame(span, failure)
    }

    /// `failure`, shown by these bytes of the text.
    fn blame(&self, span: Option<Range<usize>>, failure: Failure) -> Failure {
        match span.and_then(|span| self.excerpt(&span)) {
            Some(excerpt) => failure.shown_by(&excerpt),
            None => failure,
        }
    }

    /// The line that `span` begins in, under its number, with a caret below each character of the span.
    fn excerpt(&self, span: &Range<usize>) -> Option<String> {
        let before = self.text.get(..span.start)?;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = self.text[start..].lines().next().unwrap_or_default();
        let number = before.matches('\n').count() + 1;
        let column = self.text[start..span.start].chars().count();
        let marked = self.text.get(span.clone())?.lines().next().unwrap_or_default().chars().count().max(1);

        let skipped = (column + marked.min(SHOWN)).saturating_sub(SHOWN);
        let shown = line.chars().skip(skipped).take(SHOWN).map(|c| if c.is_control() { ' ' } else { c });
        let carets = "^".repeat(marked.min(SHOWN));
        let margin = " ".repeat(number.to_string().len());
        let mut text = String::new();
        let path = self.path.display();
        // A String never fails.
        let _ = writeln!(text, "{margin}--> {path}:{number}:{}", column + 1);
        let _ = writeln!(text, "{margin} |");
        let _ = writeln!(text, "{number} | {}", shown.collect::<String>().trim_end());
        let _ = write!(text, "{margin} | {}{carets}", " ".repeat(column - skipped));
        Some(text)
    }
}

/// What of a key and its value is meant.
#[derive(Clone, Copy)]
enum Part {
    Key,
    Value,
}

/// Where the last thing on the way stands that is there; nowhere if not even the first is.
fn span(root: &DeTable<'_>, way: &[Step<'_>], part: Part) -> Option<Range<usize>> {
    let mut found = None;
    let mut table = Some(root);
    let mut array = None;
    for (at, step) in way.iter().enumerate() {
        let value: &Spanned<DeValue<'_>> = match step {
            Step::Key(name) => {
                let Some((key, value)) =
                    table.and_then(|table| table.iter().find(|(key, _)| key.get_ref() == name))
                else {
                    return found;
                };
                let is_last = at + 1 == way.len();
                // A table's own place is its heading.
                let by_key = is_last && matches!(part, Part::Key) || value.get_ref().is_table();
                found = Some(if by_key { key.span() } else { value.span() });
                value
            }
            Step::Item(index) => {
                let Some(value) = array.and_then(|array: &toml::de::DeArray<'_>| array.get(*index)) else {
                    return found;
                };
                found = Some(value.span());
                value
            }
        };
        (table, array) = match value.get_ref() {
            DeValue::Table(inner) => (Some(inner), None),
            DeValue::Array(inner) => (None, Some(inner)),
            _ => (None, None),
        };
    }
    found
}

/// What a recipe's keys do not take, in words for a person.
struct Misfit {
    message: String,
    meant: Option<String>,
    known: String,
}

impl Misfit {
    /// Of what serde says: it names what it found and, after it, what there is.
    fn of(message: &str) -> Self {
        let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let choice = [("unknown field", "key"), ("unknown variant", "word")]
            .into_iter()
            .find(|(start, _)| message.starts_with(start));
        match (choice, words.split_first()) {
            (Some((_, what)), Some((found, known))) => Self {
                message: format!("unknown {what} `{found}`"),
                meant: nearest(found, known.iter().copied()).map(str::to_owned),
                known: format!("known are {}", known.join(", ")),
            },
            _ => Self { message: plainly(message), meant: None, known: String::new() },
        }
    }
}

/// Rust's names of types in plain words.
fn plainly(message: &str) -> String {
    const WORDS: [(&str, &str); 6] = [
        ("missing field", "missing key"),
        ("expected usize", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected path string", "expected text"),
        ("expected a string", "expected text"),
    ];
    WORDS.into_iter().fold(message.to_owned(), |text, (rust, plain)| text.replace(rust, plain))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    const TEXT: &str = "model = \"m\"\n[prune]\nlayers = \"few\"\n\n[[quantize]]\nscheme = \"a\"\ntensor = [\"x=1\", \"y\"]\n";

    fn document(text: &str) -> Document {
        Document::new(Path::new("r.toml"), text.to_owned())
    }

    #[test]
    fn a_way_leads_to_a_line_and_a_column() {
        use Step::{Item, Key};
        let document = document(TEXT);
        for (way, place) in [
            (&[Key("model")][..], "1:9"),
            (&[Key("prune")], "2:2"),
            (&[Key("prune"), Key("layers")], "3:10"),
            (&[Key("quantize"), Item(0), Key("tensor"), Item(1)], "7:18"),
            // What is not there is shown by what it would be in.
            (&[Key("prune"), Key("output")], "2:2"),
        ] {
            let text = document.at(way, Failure::new("x")).to_string();
            assert!(text.contains(&format!("r.toml:{place}\n")), "{way:?}: {text}");
        }
        let text = document.at_key(&[Key("prune"), Key("layers")], Failure::new("x")).to_string();
        assert!(text.contains("r.toml:3:1\n") && text.ends_with("^^^^^^"), "{text}");
        let text = document.at(&[Key("nothing")], Failure::new("x")).to_string();
        assert_eq!(text, "error: x");
    }

    #[test]
    fn long_lines_and_odd_characters_are_shown_by_what_matters_of_them() {
        let text = format!("model = \"{}\"\n\"ü\" = \"\t{}\"\n", "m".repeat(300), "é".repeat(200));
        let document = document(&text);
        for key in ["model", "ü"] {
            let shown = document.at(&[Step::Key(key)], Failure::new("x")).to_string();
            assert!(shown.lines().all(|line| line.chars().count() < 120), "{shown}");
            assert!(shown.contains("^^^"), "{shown}");
        }
        assert!(Document::default().excerpt(&(5..9)).is_none());
        let end = text.len();
        assert!(document.excerpt(&(end..end)).unwrap().contains("r.toml:3:1"));
    }
}
