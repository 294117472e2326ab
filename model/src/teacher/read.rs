//! A cache, opened as a stranger's.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use attar_checkpoint::safetensors::Folder;
use attar_checkpoint::{Container, Dtype, TensorInfo, decode_floats};
use ndarray::{Array1, Array2, ArrayD, IxDyn};
use serde::Deserialize;

use super::facts::tokens_sha256;
use super::{Error, FACTS, Facts, SCHEMA, Signal};
use crate::{HeadSource, LoadError, Weights, Windows};

/// Facts longer than this are nobody's.
const MOST_FACTS_BYTES: u64 = 1 << 20;

/// Probabilities that add up to one but for this are taken for a distribution.
const MASS_TOLERANCE: f64 = 1e-3;

/// An opened cache: its facts are sound, its tensors have the shapes they call for, its tokens are those they name.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    facts: Facts,
    windows: Windows,
    files: Folder,
}

/// The likeliest tokens of some positions and what is left for all others; natural logarithms.
#[derive(Debug, Clone, PartialEq)]
pub struct TopK {
    /// The likeliest first, `[rows, k]`.
    pub ids: Array2<u32>,
    /// Their log-probabilities, `[rows, k]`.
    pub log_probs: Array2<f32>,
    /// The logarithm of the probability of all other tokens together, `[rows]`.
    pub rest: Array1<f32>,
    /// The log-probability of the token that follows in the text, `[rows]`.
    pub targets: Array1<f32>,
}

/// What the teacher said at the scored positions of one window.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// What its head reads, `[positions, hidden_size]`.
    Hidden(Array2<f32>),
    /// Its likeliest tokens.
    TopK(TopK),
}

/// One window of the text with what the teacher said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesson<'a> {
    /// The tokens, `[ctx]`.
    pub tokens: &'a [u32],
    /// The positions that were scored; position `p` predicts token `p + 1`.
    pub positions: Range<usize>,
    /// What was said there.
    pub said: Said,
}

#[derive(Deserialize)]
struct Named {
    schema: String,
}

impl Cache {
    /// Whether the folder at `path` means to be a cache.
    pub fn is_at(path: &Path) -> bool {
        path.join(FACTS).is_file()
    }

    /// Opens the cache in the folder `path`.
    ///
    /// # Errors
    /// Files that are missing, damaged or lying; another schema; tensors or tokens other than its facts call for.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let facts = read_facts(&path.join(FACTS))?;
        let files = Folder::open(path)?;
        // The tokens first: the file's size bounds them, and they bound all other counts.
        expect(&files, "tokens", Dtype::U32, &[facts.windows, facts.ctx])?;
        let head = match files.info("head") {
            Some(info) if info.dtype.is_float() => info.dtype,
            _ => Dtype::F32,
        };
        for TensorInfo { name, dtype, shape, .. } in facts.tensors(head)? {
            expect(&files, &name, dtype, &shape)?;
        }
        let tokens = integers(files.bytes("tokens")?);
        files.release("tokens");
        let found = tokens_sha256(&tokens);
        if found != facts.tokens_sha256 {
            return Err(Error::Tokens { found, expected: facts.tokens_sha256 });
        }
        check_tokens("tokens", &tokens, facts.vocab_size)?;
        let windows = Windows::new(facts.ctx, tokens);
        Ok(Self { path: path.to_path_buf(), facts, windows, files })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The tokens the teacher read.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// Holds the cache to a text cut by `convention`, whose windows are scored at `positions`, and to a model that
    /// knows `vocab_size` tokens.
    ///
    /// # Errors
    /// Other tokens, positions or vocabulary.
    pub fn check(
        &self,
        windows: &Windows,
        convention: &str,
        positions: Range<usize>,
        vocab_size: usize,
    ) -> Result<(), Error> {
        let facts = &self.facts;
        if facts.vocab_size != vocab_size {
            return Err(Error::OtherVocabulary { facts: Box::new(facts.clone()), model: vocab_size });
        }
        let cut = facts.convention == convention && facts.positions() == positions;
        if cut && self.windows == *windows {
            return Ok(());
        }
        let (count, ctx) = (windows.count(), windows.ctx());
        let same_cut = cut && count == facts.windows && ctx == facts.ctx;
        let differ = if same_cut { ", but its tokens are others" } else { "" };
        let asked = format!("{count} windows of {ctx} in convention {convention}{differ}");
        Err(Error::OtherTokens { facts: Box::new(facts.clone()), asked })
    }

    /// Holds the cache to a tokenizer, by the hash of its vocabulary; a cache that does not know its own is taken at its word.
    ///
    /// # Errors
    /// Tokens that stand for other text.
    pub fn check_vocabulary(&self, sha256: &str) -> Result<(), Error> {
        match &self.facts.vocabulary_sha256 {
            Some(own) if own != sha256 => Err(Error::OtherTexts { facts: Box::new(self.facts.clone()) }),
            _ => Ok(()),
        }
    }

    /// What the head reads at some scored positions, counted through all windows; `[rows.len(), hidden_size]`.
    ///
    /// # Errors
    /// Numbers that are NaN or infinite.
    ///
    /// # Panics
    /// If the cache keeps no hidden states, or has no such rows.
    pub fn hidden(&self, rows: Range<usize>) -> Result<Array2<f32>, Error> {
        assert!(rows.end <= self.facts.rows(), "rows {rows:?} of {}", self.facts.rows());
        let dtype = self.facts.signal.hidden_dtype();
        let dtype = dtype.unwrap_or_else(|| panic!("{} has no hidden states", self.facts.signal));
        let size = self.facts.hidden_size;
        let mut values = Vec::with_capacity(rows.len() * size);
        for (part, within) in self.facts.parts(rows.clone()) {
            values.extend(self.floats(&format!("hidden.{part}"), dtype, size, within)?);
        }
        Ok(shaped(rows.len(), size, values))
    }

    /// The likeliest tokens at some scored positions, counted through all windows.
    ///
    /// # Errors
    /// Tokens outside the vocabulary or named twice, numbers that are no distribution.
    ///
    /// # Panics
    /// If the cache keeps hidden states, or has no such rows.
    pub fn top_k(&self, rows: Range<usize>) -> Result<TopK, Error> {
        assert!(rows.end <= self.facts.rows(), "rows {rows:?} of {}", self.facts.rows());
        let Signal::TopK(k) = self.facts.signal else {
            panic!("{} has no likeliest tokens", self.facts.signal)
        };
        let (mut ids, mut log_probs, mut rest, mut targets) = (vec![], vec![], vec![], vec![]);
        for (part, within) in self.facts.parts(rows.clone()) {
            let name = format!("ids.{part}");
            let bytes = self.files.bytes(&name)?;
            let found = integers(&bytes[within.start * k * 4..within.end * k * 4]);
            check_tokens(&name, &found, self.facts.vocab_size)?;
            let found = shaped(within.len(), k, found);
            let floats =
                |name: &str, cols| self.floats(&format!("{name}.{part}"), Dtype::F32, cols, within.clone());
            let probable = shaped(within.len(), k, floats("log_probs", k)?);
            let (left, target) = (floats("rest", 1)?, floats("targets", 1)?);
            for row in 0..within.len() {
                let lie = distribution_flaw(&found, &probable, row, left[row], target[row]);
                if let Some(flaw) = lie {
                    let row = within.start + row;
                    return Err(Error::Number {
                        name: format!("log_probs.{part}"),
                        row,
                        found: flaw.to_owned(),
                    });
                }
            }
            ids.extend(found);
            log_probs.extend(probable);
            rest.extend(left);
            targets.extend(target);
        }
        let count = rows.len();
        Ok(TopK {
            ids: shaped(count, k, ids),
            log_probs: shaped(count, k, log_probs),
            rest: rest.into(),
            targets: targets.into(),
        })
    }

    /// The teacher's head, where hidden states are kept.
    pub fn head(&self) -> Option<HeadSource<'_>> {
        let shape = [self.facts.vocab_size, self.facts.hidden_size];
        self.facts
            .signal
            .hidden_dtype()
            .map(|_| HeadSource::named(self, "head", shape, self.facts.logit_shape()))
    }

    /// Window after window with what the teacher said of it; each is read when it is asked for.
    pub fn lessons(&self) -> impl Iterator<Item = Result<Lesson<'_>, Error>> {
        let positions = self.facts.positions();
        self.windows.tokens().chunks_exact(self.facts.ctx).enumerate().map(move |(window, tokens)| {
            let rows = window * positions.len()..(window + 1) * positions.len();
            let said = match self.facts.signal {
                Signal::TopK(_) => Said::TopK(self.top_k(rows)?),
                Signal::HiddenF32 | Signal::HiddenBf16 => Said::Hidden(self.hidden(rows)?),
            };
            Ok(Lesson { tokens, positions: positions.clone(), said })
        })
    }

    /// Rows of a tensor of finite floats, one row after another.
    fn floats(&self, name: &str, dtype: Dtype, cols: usize, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let row_bytes = cols * dtype.block_bytes();
        let bytes = self.files.bytes(name)?;
        let values = decode_floats(dtype, &bytes[rows.start * row_bytes..rows.end * row_bytes])?;
        self.files.release(name);
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => Err(Error::Number {
                name: name.to_owned(),
                row: rows.start + at / cols,
                found: values[at].to_string(),
            }),
        }
    }
}

/// The head is the one tensor a cache lends as a model does.
impl Weights for Cache {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        let values = self.load_range(name, 0..self.facts.vocab_size)?;
        Ok(values
            .into_dyn()
            .into_shape_with_order(IxDyn(&[self.facts.vocab_size, self.facts.hidden_size]))?)
    }

    fn load_range(&self, name: &str, rows: Range<usize>) -> Result<Array2<f32>, LoadError> {
        let Some(info) = self.files.info(name).filter(|_| self.has(name)) else {
            return Err(format!("a teacher cache lends no tensor `{name}`").into());
        };
        if rows.end > self.facts.vocab_size {
            return Err(format!("there is no row {} in the head", rows.end - 1).into());
        }
        let size = self.facts.hidden_size;
        Ok(shaped(rows.len(), size, self.floats(name, info.dtype, size, rows)?))
    }

    fn has(&self, name: &str) -> bool {
        name == "head" && self.facts.signal.hidden_dtype().is_some()
    }
}

fn read_facts(path: &Path) -> Result<Facts, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_path_buf(), source };
    let json = |source| Error::Json { path: path.to_path_buf(), source };
    let mut text = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MOST_FACTS_BYTES).read_to_end(&mut text).map_err(unreadable)?;
    // Of a later version's facts the schema is still to be read.
    let Named { schema } = serde_json::from_slice(&text).map_err(json)?;
    if schema != SCHEMA {
        return Err(Error::Schema { found: schema });
    }
    serde_json::from_slice(&text).map_err(json)
}

fn expect(files: &Folder, name: &str, dtype: Dtype, shape: &[usize]) -> Result<(), Error> {
    let info = files.info(name).ok_or_else(|| Error::Missing { name: name.to_owned() })?;
    if info.dtype == dtype && info.shape == shape {
        return Ok(());
    }
    Err(Error::Tensor {
        name: name.to_owned(),
        found: format!("{} {:?}", info.dtype, info.shape),
        expected: format!("{dtype} {shape:?}"),
    })
}

fn integers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

fn check_tokens(name: &str, tokens: &[u32], vocab_size: usize) -> Result<(), Error> {
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        None => Ok(()),
        Some(&token) => Err(Error::Token { name: name.to_owned(), token, vocab_size }),
    }
}

/// Why a row is not the likeliest tokens of a distribution, the likeliest first.
fn distribution_flaw(
    ids: &Array2<u32>,
    log_probs: &Array2<f32>,
    row: usize,
    rest: f32,
    target: f32,
) -> Option<&'static str> {
    let (ids, log_probs) = (ids.row(row), log_probs.row(row));
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    let mass: f64 = log_probs.iter().chain([&rest]).map(|&ln| f64::from(ln).exp()).sum();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        Some("a token twice")
    } else if log_probs.iter().zip(log_probs.iter().skip(1)).any(|(before, after)| before < after) {
        Some("a token likelier than the one before it")
    } else if (mass - 1.0).abs() > MASS_TOLERANCE {
        Some("probabilities that do not add up to one")
    } else if target > 0.0 {
        Some("a probability above one")
    } else {
        None
    }
}

fn shaped<T>(rows: usize, cols: usize, values: Vec<T>) -> Array2<T> {
    Array2::from_shape_vec((rows, cols), values).expect("as many values as rows and columns call for")
}
