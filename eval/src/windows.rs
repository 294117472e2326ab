//! Cutting a tokenized text into windows, as llama-perplexity does and as is usual around
//! Hugging Face models. The two give different figures for one model, so a figure without its
//! convention says nothing.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use attar_model::Windows;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Whose figures a perplexity compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Convention {
    /// llama-perplexity: the text is one stream, BOS replaces the first token of every window, and
    /// the second half of each window is scored.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// Windows side by side, BOS put before each where the tokenizer adds one, every predicted
    /// token scored.
    #[serde(rename = "hf")]
    Hf,
}

impl Convention {
    /// Every convention, in the order they are listed to users.
    pub const ALL: [Self; 2] = [Self::LlamaCpp, Self::Hf];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::LlamaCpp => "llama.cpp",
            Self::Hf => "hf",
        }
    }

    /// The part of a file's text that is tokenized: llama-perplexity drops one trailing newline.
    pub fn trim(self, text: &str) -> &str {
        match self {
            Self::LlamaCpp => text.strip_suffix('\n').unwrap_or(text),
            Self::Hf => text,
        }
    }

    /// The positions of a window whose prediction is scored; position `p` predicts token `p + 1`.
    pub fn scored(self, ctx: usize) -> Range<usize> {
        let first = match self {
            Self::LlamaCpp => ctx / 2,
            Self::Hf => 0,
        };
        first..ctx.saturating_sub(1)
    }

    fn smallest_ctx(self) -> usize {
        match self {
            Self::LlamaCpp => 3,
            Self::Hf => 2,
        }
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Convention {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|convention| convention.name() == name)
            .ok_or_else(|| Error::UnknownConvention { name: name.to_owned() })
    }
}

/// Cuts `tokens` into whole windows of `ctx` tokens; what is left at the end is dropped.
///
/// `tokens` is the text alone, without special tokens; `bos` is the token a tokenizer puts first,
/// `None` where it adds none. `max_chunks` keeps only the first windows.
///
/// # Errors
/// A text too short for the convention, a `ctx` at which nothing is scored, `max_chunks` of 0.
///
/// # Source
/// `LlamaCpp`: the procedure of llama.cpp's `llama-perplexity`, which asks for two windows at least.
pub fn windows(
    tokens: &[u32],
    ctx: usize,
    convention: Convention,
    bos: Option<u32>,
    max_chunks: Option<usize>,
) -> Result<Windows, Error> {
    let smallest = convention.smallest_ctx();
    if ctx < smallest {
        return Err(Error::CtxTooSmall { ctx, smallest, convention });
    }
    if max_chunks == Some(0) {
        return Err(Error::NoChunks);
    }
    let limit = max_chunks.unwrap_or(usize::MAX);
    let cut = match convention {
        Convention::LlamaCpp => cut_stream(tokens, ctx, bos, limit)?,
        Convention::Hf => cut_side_by_side(tokens, ctx, bos, limit)?,
    };
    Ok(Windows::new(ctx, cut))
}

fn cut_stream(tokens: &[u32], ctx: usize, bos: Option<u32>, limit: usize) -> Result<Vec<u32>, Error> {
    let count = tokens.len() + usize::from(bos.is_some());
    if count / 2 < ctx {
        return Err(Error::TextTooShort {
            tokens: count,
            needed_tokens: ctx.saturating_mul(2),
            ctx,
            convention: Convention::LlamaCpp,
        });
    }
    let chunks = (count / ctx).min(limit);
    let mut cut: Vec<u32> = bos.into_iter().chain(tokens.iter().copied()).take(chunks * ctx).collect();
    if let Some(bos) = bos {
        cut.iter_mut().step_by(ctx).for_each(|first| *first = bos);
    }
    Ok(cut)
}

fn cut_side_by_side(tokens: &[u32], ctx: usize, bos: Option<u32>, limit: usize) -> Result<Vec<u32>, Error> {
    let text_per_window = ctx - usize::from(bos.is_some());
    if tokens.len() < text_per_window {
        return Err(Error::TextTooShort {
            tokens: tokens.len(),
            needed_tokens: text_per_window,
            ctx,
            convention: Convention::Hf,
        });
    }
    Ok(tokens
        .chunks_exact(text_per_window)
        .take(limit)
        .flat_map(|window| bos.into_iter().chain(window.iter().copied()))
        .collect())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    const BOS: u32 = 9999;

    fn text(count: u32) -> Vec<u32> {
        (0..count).collect()
    }

    #[test]
    fn llama_cpp_overwrites_the_first_token_of_every_chunk_with_bos() {
        // The stream is BOS 0 1 2 3 4 5 6 7: tokens 3 and 7 stand first in their chunk and are lost.
        let windows = windows(&text(11), 4, Convention::LlamaCpp, Some(BOS), None).unwrap();
        assert_eq!(windows.tokens(), [BOS, 0, 1, 2, BOS, 4, 5, 6, BOS, 8, 9, 10]);
    }

    #[test]
    fn llama_cpp_keeps_every_token_where_the_tokenizer_adds_no_bos() {
        let windows = windows(&text(9), 4, Convention::LlamaCpp, None, None).unwrap();
        assert_eq!(windows.tokens(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn hf_puts_bos_before_every_window_and_loses_no_token_but_the_tail() {
        let windows = windows(&text(8), 4, Convention::Hf, Some(BOS), None).unwrap();
        assert_eq!(windows.tokens(), [BOS, 0, 1, 2, BOS, 3, 4, 5]);
    }

    #[test]
    fn hf_without_bos_fills_the_window_with_text() {
        let windows = windows(&text(9), 4, Convention::Hf, None, None).unwrap();
        assert_eq!(windows.tokens(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn llama_cpp_scores_the_second_half_of_a_window() {
        assert_eq!(Convention::LlamaCpp.scored(512), 256..511);
        assert_eq!(Convention::LlamaCpp.scored(512).len(), 255);
        assert_eq!(Convention::LlamaCpp.scored(255).len(), 127);
    }

    #[test]
    fn hf_scores_every_predicted_token() {
        assert_eq!(Convention::Hf.scored(512).len(), 511);
    }

    #[test]
    fn max_chunks_keeps_the_first_windows() {
        for convention in Convention::ALL {
            let all = windows(&text(40), 4, convention, Some(BOS), None).unwrap();
            let some = windows(&text(40), 4, convention, Some(BOS), Some(2)).unwrap();
            assert_eq!(some.tokens(), &all.tokens()[..8], "{convention}");
        }
    }

    #[test]
    fn more_chunks_than_the_text_holds_is_the_whole_text() {
        let all = windows(&text(40), 4, Convention::Hf, None, None).unwrap();
        let asked = windows(&text(40), 4, Convention::Hf, None, Some(1000)).unwrap();
        assert_eq!(asked.tokens(), all.tokens());
    }

    #[test]
    fn a_text_too_short_for_two_llama_cpp_windows_is_refused_with_the_counts() {
        let error = windows(&text(6), 4, Convention::LlamaCpp, Some(BOS), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the text has 7 tokens, but convention `llama.cpp` needs at least 8 at ctx 4"
        );
        assert!(windows(&text(7), 4, Convention::LlamaCpp, Some(BOS), None).is_ok());
        assert!(windows(&text(7), 4, Convention::LlamaCpp, None, None).is_err());
    }

    #[test]
    fn a_text_too_short_for_one_hf_window_is_refused_with_the_counts() {
        let error = windows(&text(2), 4, Convention::Hf, Some(BOS), None).unwrap_err();
        assert_eq!(error.to_string(), "the text has 2 tokens, but convention `hf` needs at least 3 at ctx 4");
        assert!(windows(&text(3), 4, Convention::Hf, Some(BOS), None).is_ok());
    }

    #[test]
    fn an_empty_text_is_refused() {
        for convention in Convention::ALL {
            assert!(windows(&[], 512, convention, Some(BOS), None).is_err(), "{convention}");
        }
    }

    #[test]
    fn a_ctx_that_scores_nothing_is_refused_and_the_next_larger_scores_one_token() {
        for convention in Convention::ALL {
            let smallest = convention.smallest_ctx();
            assert!(convention.scored(smallest - 1).is_empty(), "{convention}");
            assert_eq!(convention.scored(smallest).len(), 1, "{convention}");
            let error = windows(&text(40), smallest - 1, convention, None, None).unwrap_err();
            assert!(matches!(error, Error::CtxTooSmall { .. }), "{convention}: {error}");
        }
    }

    #[test]
    fn zero_chunks_are_refused() {
        let error = windows(&text(40), 4, Convention::Hf, None, Some(0)).unwrap_err();
        assert!(matches!(error, Error::NoChunks), "{error}");
    }

    #[test]
    fn a_convention_is_known_by_its_name_alone() {
        for convention in Convention::ALL {
            assert_eq!(convention.name().parse::<Convention>().unwrap(), convention);
        }
        let error = "llamacpp".parse::<Convention>().unwrap_err();
        assert_eq!(error.to_string(), "unknown convention `llamacpp`: `llama.cpp` and `hf` are known");
    }

    #[test]
    fn only_llama_cpp_drops_a_trailing_newline_and_only_one() {
        assert_eq!(Convention::LlamaCpp.trim("a\n\n"), "a\n");
        assert_eq!(Convention::LlamaCpp.trim("a"), "a");
        assert_eq!(Convention::Hf.trim("a\n"), "a\n");
    }
}
