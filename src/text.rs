//! Texts: read, hashed, tokenized, cut into windows.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use attar_checkpoint::tokenizer::Tokenizer;
use attar_distill::shuffled;
use attar_eval::Convention;
use attar_model::Windows;
use attar_model::teacher::LogProbs;
use sha2::{Digest, Sha256};

use crate::diagnostic::{Explain, Failure, Result};

/// The texts that come with the program: plain English prose written for attar.
const BUILT_IN: [(&str, &str); 2] = [
    ("built-in calibration text", include_str!("../fixtures/calibration.txt")),
    ("built-in held-out text", include_str!("../fixtures/heldout.txt")),
];

/// A text and how it is named in reports.
#[derive(Clone, Debug)]
pub struct Text {
    /// The path as given, or the name of a built-in text.
    pub name: String,
    /// What it says.
    pub content: String,
}

impl Text {
    /// Reads a UTF-8 text file.
    ///
    /// # Errors
    /// A file that cannot be read, is not UTF-8, or is empty.
    pub fn read(path: &Path) -> Result<Self> {
        let at = || format!("while reading the text `{}`", path.display());
        let bytes = std::fs::read(path).doing(at)?;
        let content = String::from_utf8(bytes).doing(at).hint(|| "texts are plain UTF-8 files")?;
        if content.trim().is_empty() {
            return Err(Failure::new(format!("the text `{}` is empty", path.display()))
                .hint("give plain text of some pages at least, or leave the option out to use attar's own"));
        }
        Ok(Self { name: path.display().to_string(), content })
    }

    /// The texts of `paths`, or the built-in one to calibrate on.
    ///
    /// # Errors
    /// As [`Text::read`].
    pub fn to_calibrate(paths: &[PathBuf]) -> Result<Vec<Self>> {
        if paths.is_empty() {
            Ok(vec![Self::built_in(0)])
        } else {
            paths.iter().map(|p| Self::read(p)).collect()
        }
    }

    /// The text at `path`, or the built-in one that nothing was calibrated on; built-in ones go by the name they have in reports, too.
    ///
    /// # Errors
    /// As [`Text::read`].
    pub fn held_out(path: Option<&Path>) -> Result<Self> {
        let named = |path: &Path| BUILT_IN.iter().position(|(name, _)| path == Path::new(name));
        match path {
            None => Ok(Self::built_in(1)),
            Some(path) => named(path).map_or_else(|| Self::read(path), |index| Ok(Self::built_in(index))),
        }
    }

    fn built_in(index: usize) -> Self {
        let (name, content) = BUILT_IN[index];
        Self { name: name.to_owned(), content: content.to_owned() }
    }
}

/// SHA-256 of the texts one after the other, in lower-case hex.
pub fn sha256(texts: &[Text]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.content.as_bytes());
    }
    hex(&hash.finalize())
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String never fails
        text
    })
}

/// Tokens per window where the user names none, unless the model was made for less: to calibrate on, and to score on as
/// llama-perplexity does.
pub const DEFAULT_CTX: [usize; 2] = [2048, 512];

/// The least a calibration window may be cut down to for a short text.
const LEAST_CTX: usize = 16;

/// Cuts texts into calibration windows of `ctx` tokens, as many as `most_tokens` allow, evenly from all texts: the first of each, or
/// where there is a `seed` those it draws.
///
/// Each window begins with BOS where the tokenizer adds one. What is shorter than a window, texts and their ends, fills
/// windows together; where no text is as long as one, all windows are as short as the longest text.
///
/// # Errors
/// Texts that give no usable token.
pub fn calibration_windows(
    texts: &[Text],
    tokenizer: &Tokenizer,
    ctx: usize,
    most_tokens: usize,
    seed: Option<u64>,
) -> Result<Windows> {
    let encode = |text: &Text| Ok(tokenizer.encode(&text.content)?);
    let tokens = texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let extra = usize::from(bos.is_some());
    let longest = tokens.iter().map(Vec::len).max().unwrap_or(0) + extra;
    let ctx = ctx.min(longest).min(most_tokens);
    if ctx < LEAST_CTX {
        return Err(Failure::new(format!(
            "calibration comes to windows of {ctx} tokens, which are too few: the least is {LEAST_CTX}"
        ))
        .hint("the least of --ctx, --calib-tokens and the longest --calib text counts; --method rtn needs no text"));
    }
    // Windows from all texts in turn, so that a limit cuts every text alike.
    let drawn = |number: usize| {
        let text = &tokens[number];
        let chunks: Vec<&[u32]> = text.chunks_exact(ctx - extra).collect();
        let place =
            |place| seed.map_or(place, |seed| shuffled(chunks.len(), seed ^ (number as u64) << 32, place));
        (0..chunks.len()).map(|at| chunks[place(at)]).collect::<Vec<_>>().into_iter()
    };
    let mut cut: Vec<_> = (0..tokens.len()).map(drawn).collect();
    let mut windows = Vec::with_capacity(most_tokens.min(tokens.iter().map(Vec::len).sum::<usize>() * 2));
    let mut found = true;
    while found {
        found = false;
        for chunks in &mut cut {
            if windows.len() + ctx > most_tokens {
                break;
            }
            if let Some(chunk) = chunks.next() {
                windows.extend(bos);
                windows.extend_from_slice(chunk);
                found = true;
            }
        }
    }
    // What is left of each, and texts shorter than a window, fill windows together.
    let rest = tokens.iter().flat_map(|text| text.chunks_exact(ctx - extra).remainder());
    let rest = rest.copied().collect::<Vec<_>>();
    for chunk in rest.chunks_exact(ctx - extra).take((most_tokens - windows.len()) / ctx) {
        windows.extend(bos);
        windows.extend_from_slice(chunk);
    }
    Ok(Windows::new(ctx, windows))
}

/// Tokenizes a held-out text and cuts it as `convention` says.
///
/// # Errors
/// A text too short for the convention.
pub fn evaluation_windows(
    text: &Text,
    tokenizer: &Tokenizer,
    ctx: usize,
    convention: Convention,
    chunks: Option<usize>,
) -> Result<Windows> {
    let tokens = tokenizer.encode(convention.trim(&text.content))?;
    cut(&tokens, &text.name, tokenizer, (ctx, convention, chunks))
}

/// Cuts the tokens of the text called `name` into windows of `ctx` as `convention` says, the first `chunks` of them.
///
/// # Errors
/// A text too short for the convention.
pub fn cut(
    tokens: &[u32],
    name: &str,
    tokenizer: &Tokenizer,
    (ctx, convention, chunks): (usize, Convention, Option<usize>),
) -> Result<Windows> {
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    attar_eval::windows(tokens, ctx, convention, bos, chunks)
        .map_err(|error| {
            let hint = match error {
                attar_eval::Error::TextTooShort { .. } => "use a longer text, or shorter windows with --ctx",
                _ => "ask for larger windows with --ctx, and for one of them at least with --chunks",
            };
            Failure::from(error).hint(hint)
        })
        .doing(|| format!("while cutting `{name}` into windows"))
}

/// The windows of a file of llama-perplexity's, as they are run: each begins with BOS where the tokenizer adds one.
pub fn windows_of(file: &LogProbs, tokenizer: &Tokenizer) -> Windows {
    let mut tokens = file.tokens().to_vec();
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
        tokens.iter_mut().step_by(file.ctx()).for_each(|first| *first = bos);
    }
    Windows::new(file.ctx(), tokens)
}
