//! The one place where errors become words for a person.
//!
//! Libraries return typed errors that carry the numbers; the pipeline adds where it was
//! ([`Explain::doing`]) and, where it can, what the user might do ([`Explain::hint`]).

use std::fmt;

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

    fn doing(mut self, what: String) -> Self {
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

/// `error: ...`, one `caused by:` per cause, and the hint after an empty line.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut messages = self.messages.iter();
        if let Some(first) = messages.next() {
            write!(f, "error: {first}")?;
        }
        for cause in messages {
            write!(f, "\n  caused by: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n\nhint: {hint}")?;
        }
        Ok(())
    }
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
