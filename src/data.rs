//! What a student learns from: text files and JSON lines, cut into windows.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use attar_checkpoint::tokenizer::Tokenizer;
use attar_model::Windows;
use serde::Deserialize;

use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::training::{Data, LearnedText};
use crate::text::Text;

/// A file to learn from and what it counts beside others: `FILE` or `FILE=WEIGHT`.
#[derive(Clone, Debug, PartialEq)]
pub struct DataFile {
    /// The file: plain text, or JSON lines where its name ends in `.jsonl`.
    pub path: PathBuf,
    /// How often it is seen, against others.
    pub weight: f64,
}

impl FromStr for DataFile {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.rsplit_once('=').map(|(path, weight)| (path, weight.parse::<f64>())) {
            Some((path, Ok(weight))) if weight > 0.0 && weight.is_finite() => {
                Ok(Self { path: path.into(), weight })
            }
            Some((_, Ok(weight))) => Err(format!("a weight is a positive number, not {weight}")),
            _ => Ok(Self { path: text.into(), weight: 1.0 }),
        }
    }
}

/// A line of a `.jsonl` file.
#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    messages: Option<serde_json::Value>,
}

impl DataFile {
    /// The documents of the file.
    fn documents(&self) -> Result<Vec<String>> {
        let content = Text::read(&self.path)?.content;
        if !self.path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl")) {
            return Ok(vec![content]);
        }
        let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(number, line)| {
                let at = || format!("while reading line {} of `{}`", number + 1, self.path.display());
                let each = || "each line is an object such as {\"text\": \"...\"}";
                match serde_json::from_str(line).doing(at).hint(each)? {
                    Line { text: Some(text), .. } => Ok(text),
                    Line { messages: Some(_), .. } => Err(Failure::new("it has `messages`").hint(
                        "attar applies no chat template: write each conversation out under the key `text`",
                    ))
                    .doing(at),
                    Line { .. } => Err(Failure::new("it has no `text`").hint(each())).doing(at),
                }
            })
            .collect()
    }
}

/// Cuts the files into windows of `ctx` tokens; the last `held_out` share of each file's is never learned from, and
/// 64 of all these at most are scored.
///
/// Documents follow one another, with `end` between them where there is such a token; each window begins with BOS where the
/// tokenizer adds one. What is left at a file's end is not used.
///
/// # Errors
/// A file that cannot be read, one without two full windows.
pub fn read(
    files: &[DataFile],
    tokenizer: &Tokenizer,
    end: Option<u32>,
    ctx: usize,
    held_out: f64,
) -> Result<Data> {
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let (mut tokens, mut texts, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for file in files {
        let first = tokens.len() / ctx;
        let mut stream = Vec::new();
        let documents = file.documents()?;
        let end = end.filter(|_| documents.len() > 1);
        for document in documents {
            stream.extend(tokenizer.encode(&document)?);
            stream.extend(end);
        }
        for window in stream.chunks_exact(ctx - usize::from(bos.is_some())) {
            tokens.extend(bos);
            tokens.extend_from_slice(window);
        }
        let windows = tokens.len() / ctx - first;
        let scored = scored_of(windows, held_out);
        if windows <= scored {
            return Err(Failure::new(format!(
                "`{}` has {} tokens, which are {windows} windows of {ctx}: too few to learn from",
                file.path.display(),
                stream.len()
            ))
            .hint("give more text, shorter windows with --ctx, or a smaller --held-out share"));
        }
        texts.push(LearnedText { first, learned: windows - scored, weight: file.weight });
        kept.extend(first + windows - scored..first + windows);
    }
    Ok(Data { windows: Windows::new(ctx, tokens), texts, held_out: thinned(kept) })
}

/// What a teacher cache was made of, its last `held_out` share never learned from.
///
/// # Errors
/// A cache with too few windows.
pub fn of_cache(windows: &Windows, path: &Path, held_out: f64) -> Result<Data> {
    let count = windows.count();
    let scored = scored_of(count, held_out);
    if count <= scored {
        return Err(Failure::new(format!(
            "the teacher cache `{}` has {count} windows: too few",
            path.display()
        ))
        .hint("make one of a longer text"));
    }
    let texts = vec![LearnedText { first: 0, learned: count - scored, weight: 1.0 }];
    Ok(Data { windows: windows.clone(), texts, held_out: thinned((count - scored..count).collect()) })
}

/// Windows of so many that are only scored: their share, one at least unless none are asked for.
fn scored_of(windows: usize, held_out: f64) -> usize {
    if held_out > 0.0 { ((windows as f64 * held_out).round() as usize).max(1) } else { 0 }
}

/// Held-out windows that are scored at each point of the curve, at most: some hundred tell enough.
const MOST_HELD_OUT: usize = 64;

/// Evenly chosen ones, no more than [`MOST_HELD_OUT`].
fn thinned(windows: Vec<usize>) -> Vec<usize> {
    let count = windows.len();
    if count <= MOST_HELD_OUT {
        return windows;
    }
    (0..MOST_HELD_OUT).map(|i| windows[i * count / MOST_HELD_OUT]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_have_a_weight() {
        let file = |path: &str, weight| Ok(DataFile { path: path.into(), weight });
        assert_eq!("a.txt".parse(), file("a.txt", 1.0));
        assert_eq!("a.txt=0.25".parse(), file("a.txt", 0.25));
        assert_eq!("a=b.txt".parse(), file("a=b.txt", 1.0));
        assert!("a.txt=0".parse::<DataFile>().is_err() && "a.txt=-1".parse::<DataFile>().is_err());
    }

    #[test]
    fn held_out_windows_are_spread_evenly() {
        assert_eq!(thinned((5..9).collect()), [5, 6, 7, 8]);
        let many = thinned((0..640).collect());
        assert!(many.len() == 64 && many.windows(2).all(|pair| pair[1] - pair[0] == 10));
    }
}
