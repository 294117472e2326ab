//! The one place where errors become words for a person.
//!
//! Libraries return typed errors that carry the numbers; the pipeline adds where it was
//! ([`Explain::doing`]) and, where it can, what the user might do ([`Explain::hint`]).

use std::fmt;

use anstyle::{AnsiColor, Style};
use attar_checkpoint::error::system_hint;
use attar_checkpoint::tokenizer::TokenizerError;
use attar_model::device::CudaError;

/// Why a command could not be done: what was going on, the chain of causes, and a hint.
#[derive(Debug)]
pub struct Failure {
    messages: Vec<String>, // outermost first
    hint: Option<String>,
}

/// What every step of the pipeline returns.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure found by the pipeline itself.
    pub fn new(message: impl Into<String>) -> Self {
        Self { messages: vec![message.into()], hint: None }
    }

    /// The failure with a suggestion for the user; an earlier, more specific hint stays.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert(hint.into());
        self
    }

    /// The failure with one suggestion more.
    #[must_use]
    pub fn and_hint(mut self, hint: &str) -> Self {
        self.hint = Some(self.hint.map_or_else(|| hint.to_owned(), |first| format!("{first}; {hint}")));
        self
    }

    /// The innermost message: what went wrong, without where.
    pub fn cause(&self) -> &str {
        self.messages.last().map_or("", String::as_str)
    }

    /// All of it in one line, for a place that brings its own `error:`.
    pub fn in_one_line(&self) -> String {
        let hint = self.hint.iter().map(|hint| format!("hint: {hint}"));
        let parts: Vec<_> = [self.messages.join(": ")].into_iter().chain(hint).collect();
        parts.join("\n  ")
    }

    /// The failure with the nearest of the words there are, before any other suggestion.
    #[must_use]
    pub fn did_you_mean(mut self, word: Option<&str>) -> Self {
        if let Some(word) = word {
            let rest = self.hint.map(|hint| format!(" {}", capitalised(&hint))).unwrap_or_default();
            self.hint = Some(format!("did you mean `{word}`?{rest}"));
        }
        self
    }

    /// The failure with the lines of a file that show what it is about, below what went wrong.
    #[must_use]
    pub fn shown_by(mut self, lines: &str) -> Self {
        if let Some(cause) = self.messages.last_mut() {
            cause.push('\n');
            cause.push_str(lines);
        }
        self
    }

    /// As it is printed, its first words in these colours.
    pub fn in_colours(&self, palette: Palette) -> impl fmt::Display + '_ {
        Coloured { failure: self, palette }
    }

    /// The failure with what was being done when it happened.
    #[must_use]
    pub fn doing(mut self, what: String) -> Self {
        self.messages.insert(0, what);
        self
    }
}

/// A failure with the text of an error from a library, its sources and what a library suggests included.
impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let (mut messages, mut hint) = (Vec::<String>::new(), None);
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(cause) = next {
            let text = cause.to_string();
            // Transparent wrappers repeat their source word for word.
            if messages.last().is_none_or(|last| !last.contains(&text)) {
                messages.push(text);
            }
            hint = hint.or_else(|| library_hint(cause));
            next = cause.source();
        }
        Self { messages, hint }
    }
}

/// What a library or the system knows the user can do.
fn library_hint(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<attar_checkpoint::Error>() {
        return error.hint().map(str::to_owned);
    }
    if let Some(error) = error.downcast_ref::<attar_model::teacher::Error>() {
        return error.hint().map(str::to_owned);
    }
    if let Some(error) = error.downcast_ref::<attar_eval::report::Error>() {
        return Some(error.hint().to_owned());
    }
    if let Some(error) = error.downcast_ref::<CudaError>() {
        return error.hint();
    }
    if let Some(attar_model::Error::NotOnDevice { .. }) = error.downcast_ref() {
        return Some("--device cpu runs every model".to_owned());
    }
    if let Some(error) = error.downcast_ref::<std::io::Error>() {
        return system_hint(error.kind()).map(str::to_owned);
    }
    error.downcast_ref::<TokenizerError>().and_then(TokenizerError::hint)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.in_colours(Palette::PLAIN).fmt(f)
    }
}

/// The styles of the words that introduce others.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// Of `error:`.
    pub error: Style,
    /// Of `warning:`.
    pub warning: Style,
    /// Of `hint:`.
    pub hint: Style,
}

impl Palette {
    /// None.
    pub const PLAIN: Self = Self { error: Style::new(), warning: Style::new(), hint: Style::new() };

    /// As compilers have them.
    pub const COLOUR: Self = Self {
        error: AnsiColor::Red.on_default().bold(),
        warning: AnsiColor::Yellow.on_default().bold(),
        hint: AnsiColor::Cyan.on_default(),
    };
}

struct Coloured<'a> {
    failure: &'a Failure,
    palette: Palette,
}

/// `error: ...`, one `caused by:` per cause, and the hint after an empty line.
impl fmt::Display for Coloured<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failure: Failure { messages, hint }, palette: Palette { error, hint: of_hint, .. } } =
            self;
        let mut messages = messages.iter();
        if let Some(first) = messages.next() {
            write!(f, "{error}error:{error:#} {first}")?;
        }
        for cause in messages {
            write!(f, "\n  {error}caused by:{error:#} {cause}")?;
        }
        if let Some(hint) = hint {
            write!(f, "\n\n{of_hint}hint:{of_hint:#} {hint}")?;
        }
        Ok(())
    }
}

/// `text` as the beginning of a sentence.
fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

/// The one of the `known` words that `word` may be a slip of.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LEAST: f64 = 0.8;
    let word = word.to_lowercase();
    let likeness = known.into_iter().map(|known| (known, strsim::jaro_winkler(&word, known)));
    let likely = likeness.filter(|(_, likeness)| *likeness > LEAST);
    // Of equals the first.
    likely.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(known, _)| known)
}

/// Adds place and advice to a result on its way up.
pub trait Explain<T> {
    /// Says what was being done when it failed: "while planning `lm_head.weight`".
    ///
    /// # Errors
    /// The same failure, with its place.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;

    /// Says what the user can do about it.
    ///
    /// # Errors
    /// The same failure, with the hint unless it had one.
    fn hint<S: Into<String>>(self, hint: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Failure>> Explain<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().doing(what().into()))
    }

    fn hint<S: Into<String>>(self, hint: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().hint(hint()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_has_a_nearest_word_and_nonsense_has_none() {
        let known = ["output", "scheme", "method", "tensor", "sparsity"];
        for (word, meant) in [("schme", "scheme"), ("Output", "output"), ("sparcity", "sparsity")] {
            assert_eq!(nearest(word, known), Some(meant));
        }
        assert_eq!(nearest("banana", known), None);
    }

    #[test]
    fn colours_mark_words_and_change_none() {
        let failure = Failure::new("it broke").hint("mend it");
        let marked = failure.in_colours(Palette::COLOUR).to_string();
        assert!(marked.starts_with("\u{1b}[1m\u{1b}[31merror:\u{1b}[0m it broke"), "{marked:?}");
        assert!(marked.contains("\u{1b}[36mhint:\u{1b}[0m mend it"), "{marked:?}");
        assert!(!failure.to_string().contains('\u{1b}'));
    }

    #[test]
    fn a_failure_reads_place_cause_hint() {
        let io = std::io::Error::other("disk full");
        let failure = Err::<(), _>(io)
            .hint(|| "free some space")
            .hint(|| "a later, vaguer hint")
            .doing(|| "while writing `out.gguf`")
            .expect_err("an error stays an error");
        assert_eq!(
            failure.to_string(),
            "error: while writing `out.gguf`\n  caused by: disk full\n\nhint: free some space"
        );
    }
}
