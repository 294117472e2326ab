//! What a student learns from: text files and JSON lines, cut into windows.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::Convention;
use attar_model::Windows;
use serde::Deserialize;

use crate::chat::{ChatTemplate, Conversation};
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::training::{Data, LearnedText};
use crate::talk::{Stage, Talk};
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
#[serde(untagged)]
enum Line {
    Text { text: String },
    Conversation(Conversation),
}

/// Something to learn from, as it is tokenized.
enum Document {
    Text(String),
    /// Written out by the chat template, which ends it itself.
    Conversation(String),
}

/// Documents of files, and what writes conversations out once there are any.
struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    chat: Option<ChatTemplate>,
}

impl Reader<'_> {
    /// The documents of a file.
    fn documents(&mut self, file: &DataFile) -> Result<Vec<Document>> {
        let content = Text::read(&file.path)?.content;
        if !file.path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl")) {
            return Ok(vec![Document::Text(content)]);
        }
        let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(number, line)| {
                let at = || format!("while reading line {} of `{}`", number + 1, file.path.display());
                self.document(line).doing(at)
            })
            .collect()
    }

    fn document(&mut self, line: &str) -> Result<Document> {
        let value: serde_json::Value = serde_json::from_str(line).hint(|| EACH_LINE)?;
        match serde_json::from_value(value) {
            Ok(Line::Text { text }) => Ok(Document::Text(text)),
            Ok(Line::Conversation(conversation)) => {
                let chat = match self.chat.take() {
                    Some(chat) => chat,
                    None => ChatTemplate::of(self.tokenizer)?,
                };
                self.chat.insert(chat).write(&conversation).map(Document::Conversation)
            }
            Err(_) => Err(Failure::new("it has neither a `text` nor `messages`").hint(EACH_LINE)),
        }
    }

    /// The tokens of documents, one after the other; `end` follows each text that is not alone.
    fn tokens(&self, documents: &[Document], end: Option<u32>, errand: &Stage) -> Result<Vec<u32>> {
        let mut stream = Vec::new();
        for document in documents {
            match document {
                Document::Text(text) => {
                    stream.extend(self.tokenizer.encode(text)?);
                    errand.step(text.len() as u64, "");
                    stream.extend(end.filter(|_| documents.len() > 1));
                }
                Document::Conversation(text) => {
                    stream.extend(self.tokenizer.encode_with_controls(text)?);
                    errand.step(text.len() as u64, "");
                }
            }
        }
        Ok(stream)
    }
}

/// What a line of a `.jsonl` file is.
const EACH_LINE: &str = "each line is an object such as {\"text\": \"...\"} or {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}]}";

/// The tokens of one file, plain text as llama.cpp reads it, JSON lines one after the other with `end` behind each text; control tokens
/// that are spelled out in a text are found `with_controls` only.
///
/// # Errors
/// A file that cannot be read; conversations where the tokenizer has no chat template for them.
pub fn tokens(
    path: &Path,
    tokenizer: &Tokenizer,
    end: Option<u32>,
    with_controls: bool,
    talk: Talk,
) -> Result<Vec<u32>> {
    let file = DataFile { path: path.to_owned(), weight: 1.0 };
    let mut reader = Reader { tokenizer, chat: None };
    let documents = reader.documents(&file)?;
    if let [Document::Text(text)] = &documents[..] {
        let text = Convention::LlamaCpp.trim(text);
        return Ok(if with_controls {
            tokenizer.encode_with_controls(text)?
        } else {
            tokenizer.encode(text)?
        });
    }
    let errand = talk.errand("tokenizing", std::fs::metadata(path).map_or(0, |file| file.len()), "bytes");
    let tokens = reader.tokens(&documents, end, &errand)?;
    errand.done();
    Ok(tokens)
}

/// Cuts the files into windows of `ctx` tokens; the last `held_out` share of each file's is never learned from, and
/// 64 of all these at most are scored.
///
/// Documents follow one another, texts with `end` behind each where there is such a token, conversations as the chat template
/// writes them; each window begins with BOS where the tokenizer adds one. What is left at a file's end is not used.
///
/// # Errors
/// A file that cannot be read, one without two full windows; conversations where the tokenizer has no chat template for them.
pub fn read(
    files: &[DataFile],
    tokenizer: &Tokenizer,
    end: Option<u32>,
    ctx: usize,
    held_out: f64,
    talk: Talk,
) -> Result<Data> {
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let (mut tokens, mut texts, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let mut reader = Reader { tokenizer, chat: None };
    let bytes = files.iter().filter_map(|file| Some(std::fs::metadata(&file.path).ok()?.len())).sum();
    let errand = talk.errand("tokenizing", bytes, "bytes");
    for file in files {
        let first = tokens.len() / ctx;
        let documents = reader.documents(file)?;
        let stream = reader.tokens(&documents, end, &errand)?;
        // What the template begins with begins the first window already.
        let stream = bos.and_then(|bos| stream.strip_prefix(&[bos])).unwrap_or(&stream);
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
    errand.done();
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
