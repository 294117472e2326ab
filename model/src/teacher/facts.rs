//! What a cache says of itself, and which tensors follow from it.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::str::FromStr;

use attar_checkpoint::{Dtype, TensorInfo};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Error;
use crate::LogitShape;

/// Bytes of one tensor of rows, about: parts are what is read and let go of together.
const PART_BYTES: usize = 64 << 20;

/// What is kept of each scored position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Signal {
    /// What the head reads, in f32: the model itself to the bit.
    HiddenF32,
    /// What the head reads, rounded to bf16: half the size.
    HiddenBf16,
    /// The log-probabilities of the likeliest tokens, and what is left for all others.
    TopK(usize),
}

impl Signal {
    /// The type hidden states are stored in, where they are.
    pub fn hidden_dtype(self) -> Option<Dtype> {
        match self {
            Self::HiddenF32 => Some(Dtype::F32),
            Self::HiddenBf16 => Some(Dtype::Bf16),
            Self::TopK(_) => None,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HiddenF32 => f.pad("hidden-f32"),
            Self::HiddenBf16 => f.pad("hidden-bf16"),
            Self::TopK(k) => write!(f, "top-k={k}"),
        }
    }
}

impl FromStr for Signal {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "hidden-f32" => return Ok(Self::HiddenF32),
            "hidden-bf16" => return Ok(Self::HiddenBf16),
            _ => {}
        }
        let k = name.strip_prefix("top-k=").and_then(|k| k.parse().ok()).filter(|&k| k > 0);
        k.map(Self::TopK).ok_or_else(|| Error::UnknownSignal { name: name.to_owned() })
    }
}

impl TryFrom<String> for Signal {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<Signal> for String {
    fn from(signal: Signal) -> Self {
        signal.to_string()
    }
}

/// The model that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// Path or `hf:` name as given.
    pub source: String,
    /// Model family, as in the registry of families.
    pub family: String,
    /// SHA-256 of its weights, lower-case hex.
    pub sha256: String,
}

/// What a cache says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: String,
    /// The version of attar that wrote it.
    pub version: String,
    /// The model that was run.
    pub model: Teacher,
    /// The text, as given.
    pub text: String,
    /// SHA-256 of the tokens as little-endian u32, window after window; lower-case hex.
    pub tokens_sha256: String,
    /// How the text was cut into windows.
    pub convention: String,
    /// Tokens per window.
    pub ctx: usize,
    /// Windows.
    pub windows: usize,
    /// The positions of every window that are kept, first and one past the last.
    pub scored: [usize; 2],
    /// Tokens the teacher knows.
    pub vocab_size: usize,
    /// SHA-256 of their texts, as the tokenizer has it; unknown of caches written before it was kept, and of a teacher without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary_sha256: Option<String>,
    /// Features of its hidden states.
    pub hidden_size: usize,
    /// What the products of its head are divided by.
    pub logits_scaling: f32,
    /// What softly bounds them then, if anything does.
    pub logit_cap: Option<f32>,
    /// What its matrices were multiplied in, `f32` or `bf16`.
    pub precision: String,
    /// What is kept.
    pub signal: Signal,
    /// Windows whose rows lie in one tensor.
    pub windows_per_part: usize,
}

impl Facts {
    /// What becomes of the head's products.
    pub fn logit_shape(&self) -> LogitShape {
        LogitShape { scaling: self.logits_scaling, cap: self.logit_cap }
    }

    /// The positions of every window that are kept.
    pub fn positions(&self) -> Range<usize> {
        self.scored[0]..self.scored[1]
    }

    /// Kept positions of all windows.
    pub fn rows(&self) -> usize {
        self.windows * self.positions().len()
    }

    /// Windows that come to tensors of a good size.
    pub(super) fn good_part(&self) -> usize {
        let row_bytes = match self.signal {
            Signal::HiddenF32 => self.hidden_size.saturating_mul(4),
            Signal::HiddenBf16 => self.hidden_size.saturating_mul(2),
            Signal::TopK(k) => k.saturating_mul(4),
        };
        (PART_BYTES / row_bytes.saturating_mul(self.positions().len()).max(1)).max(1)
    }

    /// The parts that `rows` lie in: the number of each, and the rows within it.
    pub(super) fn parts(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let part_rows = self.windows_per_part * self.positions().len();
        let mut at = rows.start;
        std::iter::from_fn(move || {
            if at >= rows.end {
                return None;
            }
            let part = at / part_rows;
            let end = rows.end.min((part + 1) * part_rows);
            let within = at - part * part_rows..end - part * part_rows;
            at = end;
            Some((part, within))
        })
    }

    /// Every tensor of the cache; the head stored as `head`.
    ///
    /// # Errors
    /// Facts that contradict themselves, or come to more than can be addressed.
    pub(super) fn tensors(&self, head: Dtype) -> Result<Vec<TensorInfo>, Error> {
        self.check_counts()?;
        let info = |name: String, dtype: Dtype, shape: &[usize]| -> Result<TensorInfo, Error> {
            let bytes =
                dtype.bytes_for(shape).ok_or_else(|| absurd("sizes", "more than can be addressed"))?;
            Ok(TensorInfo { name, dtype, shape: shape.to_vec(), bytes })
        };
        let mut tensors = vec![info("tokens".to_owned(), Dtype::U32, &[self.windows, self.ctx])?];
        if self.signal.hidden_dtype().is_some() {
            tensors.push(info("head".to_owned(), head, &[self.vocab_size, self.hidden_size])?);
        }
        for part in 0..self.windows.div_ceil(self.windows_per_part) {
            let windows = self.windows_per_part.min(self.windows - part * self.windows_per_part);
            let rows = windows * self.positions().len();
            match (self.signal, self.signal.hidden_dtype()) {
                (Signal::TopK(k), _) => {
                    tensors.push(info(format!("ids.{part}"), Dtype::U32, &[rows, k])?);
                    tensors.push(info(format!("log_probs.{part}"), Dtype::F32, &[rows, k])?);
                    tensors.push(info(format!("rest.{part}"), Dtype::F32, &[rows])?);
                    tensors.push(info(format!("targets.{part}"), Dtype::F32, &[rows])?);
                }
                (_, dtype) => {
                    let shape = [rows, self.hidden_size];
                    tensors.push(info(format!("hidden.{part}"), dtype.unwrap_or(Dtype::F32), &shape)?);
                }
            }
        }
        Ok(tensors)
    }

    fn check_counts(&self) -> Result<(), Error> {
        let [first, end] = self.scored;
        if first >= end || end >= self.ctx {
            return Err(absurd("scored", &format!("{first} to {end} in windows of {}", self.ctx)));
        }
        if self.windows == 0 || self.windows_per_part == 0 {
            return Err(absurd(
                "windows",
                &format!("{} in parts of {}", self.windows, self.windows_per_part),
            ));
        }
        if self.vocab_size == 0 || self.hidden_size == 0 {
            return Err(absurd("vocab_size", &format!("{} by {}", self.vocab_size, self.hidden_size)));
        }
        if !self.logits_scaling.is_normal() {
            return Err(absurd("logits_scaling", &self.logits_scaling.to_string()));
        }
        if let Some(cap) = self.logit_cap.filter(|cap| !cap.is_normal() || *cap < 0.0) {
            return Err(absurd("logit_cap", &cap.to_string()));
        }
        if matches!(self.signal, Signal::TopK(k) if k >= self.vocab_size) {
            return Err(Error::TooManyKept { signal: self.signal, vocab_size: self.vocab_size });
        }
        // The tokens are the smallest thing that is stored for each window, so this bounds every product above.
        let part = self.windows_per_part.checked_mul(self.ctx);
        match self.windows.checked_mul(self.ctx).and(part) {
            Some(_) => Ok(()),
            None => Err(absurd("windows", "more than can be addressed")),
        }
    }
}

fn absurd(key: &'static str, found: &str) -> Error {
    Error::Absurd { key, found: found.to_owned() }
}

/// SHA-256 of tokens as little-endian u32, lower-case hex.
pub fn tokens_sha256(tokens: &[u32]) -> String {
    let mut hash = Sha256::new();
    for tokens in tokens.chunks(1 << 12) {
        hash.update(tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>());
    }
    hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // a String never fails
        hex
    })
}
