//! llama-perplexity's `--kl-divergence-base` file: what a model predicts at the second half of every window, rounded to 16 bits.
//!
//! ```text
//! "_logits_"                     8 bytes
//! ctx, vocab_size, windows       i32 each
//! tokens                         i32 [windows, ctx]
//! rows                           [windows, ctx - 1 - ctx / 2], each
//!   scale, least                 f32: ln p = scale * code + least
//!   codes                        u16 [vocab_size], and one more to make their number even
//! ```
//!
//! llama.cpp lets no logit lie more than 16 below the largest; what did is taken for more likely than it is, the token that follows in the
//! text among them. Rows written here reach down to that token, so that the reference's perplexity is right; where it lies higher they are llama.cpp's rows.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::atomic::{AtomicFile, Overwrite};
use crate::map::Map;

/// What such a file begins with.
pub const MAGIC: &[u8; 8] = b"_logits_";

const HEADER: usize = 20;
/// Bytes of `scale` and `least`.
const ROW_HEADER: usize = 8;
/// How far below the largest logit the smallest lies at least, if any lies so low, in nats.
const REACH: f32 = 16.0;
const MOST_CODE: f32 = 65_535.0;

/// How a file's counts or bytes contradict one another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Flaw {
    #[error("it does not begin with `_logits_`")]
    Magic,
    #[error("it has {bytes} bytes, which is less than its header takes")]
    NoHeader { bytes: usize },
    #[error("its {name} is {value}")]
    Count { name: &'static str, value: i32 },
    #[error(
        "{windows} windows of {ctx} tokens over {vocab_size} take {expected} bytes, the file has {bytes}"
    )]
    Size { windows: usize, ctx: usize, vocab_size: usize, expected: u128, bytes: usize },
    #[error("its token {place} is {token}, the vocabulary has {vocab_size}")]
    Token { place: usize, token: i32, vocab_size: usize },
    #[error("row {row} has scale {scale} and least log-probability {least}")]
    Row { row: usize, scale: String, least: String },
}

/// A file opened for reading.
#[derive(Debug)]
pub struct LogProbs {
    map: Map,
    ctx: usize,
    vocab_size: usize,
    tokens: Vec<u32>, // [windows, ctx]
}

impl LogProbs {
    /// Whether the file at `path` begins as these do.
    pub fn is_at(path: &Path) -> bool {
        use std::io::Read;

        let mut start = [0; MAGIC.len()];
        let is_file = path.is_file(); // a pipe would block
        is_file
            && std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok()
            && start == *MAGIC
    }

    /// Opens a file; rows are looked at when they are read.
    ///
    /// # Errors
    /// A file that cannot be read, or whose counts, size and tokens do not agree.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let map = Map::open(path)?;
        let flawed = |flaw| Error::LogProbs { path: path.to_owned(), source: Box::new(flaw) };
        let ([ctx, vocab_size], tokens) = header(&map).map_err(flawed)?;
        Ok(Self { map, ctx, vocab_size, tokens })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// Tokens of a window.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Tokens the model knows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The text's tokens, `[windows, ctx]`; which of them gave way to a BOS is not told.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Rows of all windows: the predictions of the positions from `ctx / 2` on, the last left out.
    pub fn rows(&self) -> usize {
        self.tokens.len() / self.ctx * rows_per_window(self.ctx)
    }

    /// One row.
    ///
    /// # Errors
    /// Numbers that are no log-probabilities.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, row: usize) -> Result<Row<'_>, Error> {
        assert!(row < self.rows(), "row {row} of {}", self.rows());
        let bytes = row_bytes(self.vocab_size);
        let bytes = &self.map[HEADER + 4 * self.tokens.len() + row * bytes..][..bytes];
        let (scale, least) = (f32_at(bytes, 0), f32_at(bytes, 4));
        let sound =
            scale.is_finite() && scale >= 0.0 && least.is_finite() && scale.mul_add(MOST_CODE, least) < 1.0;
        if !sound {
            let flaw = Flaw::Row { row, scale: scale.to_string(), least: least.to_string() };
            return Err(Error::LogProbs { path: self.path().to_owned(), source: Box::new(flaw) });
        }
        Ok(Row { scale, least, codes: &bytes[ROW_HEADER..][..2 * self.vocab_size] })
    }
}

/// What a model predicts at one position.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    scale: f32,
    least: f32,
    codes: &'a [u8],
}

impl<'a> Row<'a> {
    /// The code of every token; 0 stands for the least log-probability and for all below it.
    pub fn codes(&self) -> impl ExactSizeIterator<Item = u16> + use<'a> {
        self.codes.chunks_exact(2).map(|code| u16::from_le_bytes([code[0], code[1]]))
    }

    /// The code of one token.
    ///
    /// # Panics
    /// Where there is no such token.
    pub fn code(&self, token: usize) -> u16 {
        u16::from_le_bytes([self.codes[2 * token], self.codes[2 * token + 1]])
    }

    /// The log-probability a code stands for.
    pub fn log_prob(&self, code: u16) -> f32 {
        self.scale * f32::from(code) + self.least
    }
}

/// Writes a file, row by row.
#[derive(Debug)]
pub struct LogProbsWriter {
    file: AtomicFile,
    at: u64,
    rows_left: usize,
}

impl LogProbsWriter {
    /// Begins a file for the predictions of `tokens`, `[windows, ctx]`.
    ///
    /// # Errors
    /// A file that exists and may not be replaced or is of another kind, a folder that cannot be written to.
    ///
    /// # Panics
    /// Where the tokens are not whole windows, or a count exceeds what the format holds.
    pub fn create(
        path: &Path,
        overwrite: Overwrite,
        tokens: &[u32],
        ctx: usize,
        vocab_size: usize,
    ) -> Result<Self, Error> {
        assert!(tokens.len().is_multiple_of(ctx), "tokens are whole windows");
        if path.exists() && !LogProbs::is_at(path) {
            return Err(Error::Exists { path: path.to_owned() });
        }
        let mut file = AtomicFile::create(path, overwrite)?;
        let count = |count: usize| i32::try_from(count).expect("the format counts in i32").to_le_bytes();
        let windows = tokens.len() / ctx;
        let mut header = MAGIC.to_vec();
        header.extend([count(ctx), count(vocab_size), count(windows)].concat());
        header.extend(tokens.iter().flat_map(|&token| count(token as usize)));
        file.write_at(0, &header)?;
        Ok(Self { file, at: header.len() as u64, rows_left: windows * rows_per_window(ctx) })
    }

    /// Bytes of a file for so many windows.
    pub fn bytes(windows: usize, ctx: usize, vocab_size: usize) -> u64 {
        (HEADER + 4 * windows * ctx) as u64
            + (windows * rows_per_window(ctx)) as u64 * row_bytes(vocab_size) as u64
    }

    /// Adds rows that [`encode`] made, one after another.
    ///
    /// # Errors
    /// A disk that refuses.
    ///
    /// # Panics
    /// Where these are more rows than there are positions.
    pub fn rows(&mut self, rows: &[Vec<u8>]) -> Result<(), Error> {
        self.rows_left = self.rows_left.checked_sub(rows.len()).expect("a row for every position");
        let bytes = rows.concat();
        self.file.write_at(self.at, &bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// A disk that refuses.
    ///
    /// # Panics
    /// Where rows are missing.
    pub fn finish(self) -> Result<(), Error> {
        assert_eq!(self.rows_left, 0, "a row for every position");
        self.file.finish()
    }

    /// The name the file will have.
    pub fn path(&self) -> PathBuf {
        self.file.path().to_owned()
    }
}

/// A row as the file holds it, of finite logits whose softmax denominator, over e^(logit - largest), is `sum`; `target` is the token that follows in the text.
///
/// # Panics
/// Where there is no such token.
///
/// # Source
/// llama.cpp `llama-perplexity`, which lets no logit lie more than 16 below the largest; here `target` may, and has a code of its own.
pub fn encode(logits: &[f32], sum: f64, target: usize) -> Vec<u8> {
    let smaller = |a: f32, b: f32| if b < a { b } else { a };
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    // A step below the target, so that its code is not that of all that lie lower.
    let below_target = logits[target] - (largest - logits[target]) / (MOST_CODE - 1.0);
    let floor = if logits[target] < largest - REACH { below_target } else { largest - REACH };
    let least = logits.iter().copied().fold(f32::INFINITY, smaller).max(floor);
    let scale = (largest - least) / MOST_CODE;
    let least_log_prob = least - largest - sum.ln() as f32;

    let mut bytes = Vec::with_capacity(row_bytes(logits.len()));
    bytes.extend(scale.to_le_bytes());
    bytes.extend(least_log_prob.to_le_bytes());
    let per_scale = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let code = |logit: f32| {
        let code =
            if logit > least { (per_scale * (logit - least)).round_ties_even().min(MOST_CODE) } else { 0.0 };
        (code as u16).to_le_bytes()
    };
    bytes.extend(logits.iter().flat_map(|&logit| code(logit)));
    bytes.resize(row_bytes(logits.len()), 0);
    bytes
}

fn header(bytes: &[u8]) -> Result<([usize; 2], Vec<u32>), Flaw> {
    if !bytes.starts_with(MAGIC) {
        return Err(Flaw::Magic);
    }
    let Some(counts) = bytes.get(MAGIC.len()..HEADER) else {
        return Err(Flaw::NoHeader { bytes: bytes.len() });
    };
    let count = |place: usize, name: &'static str, least: i32| {
        let value = i32_at(counts, 4 * place);
        if value < least { Err(Flaw::Count { name, value }) } else { Ok(value as usize) }
    };
    let (ctx, vocab_size) = (count(0, "context", 3)?, count(1, "vocabulary", 1)?);
    let windows = count(2, "number of windows", 1)?;
    let rows = windows as u128 * rows_per_window(ctx) as u128;
    let expected =
        (HEADER as u128 + 4 * windows as u128 * ctx as u128) + rows * row_bytes(vocab_size) as u128;
    if expected != bytes.len() as u128 {
        return Err(Flaw::Size { windows, ctx, vocab_size, expected, bytes: bytes.len() });
    }
    let tokens = bytes[HEADER..][..4 * windows * ctx].chunks_exact(4).enumerate().map(|(place, token)| {
        let token = i32_at(token, 0);
        let known = u32::try_from(token).ok().filter(|token| (*token as usize) < vocab_size);
        known.ok_or(Flaw::Token { place, token, vocab_size })
    });
    Ok(([ctx, vocab_size], tokens.collect::<Result<_, _>>()?))
}

fn rows_per_window(ctx: usize) -> usize {
    ctx - 1 - ctx / 2
}

fn row_bytes(vocab_size: usize) -> usize {
    ROW_HEADER + 2 * vocab_size.next_multiple_of(2)
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_bits(i32_at(bytes, at) as u32)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    const CTX: usize = 4; // one row in a window
    const LOGITS: [f32; 3] = [0.5, -3.0, -40.0];

    fn sum(logits: &[f32]) -> f64 {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        logits.iter().map(|logit| f64::from(logit - largest).exp()).sum()
    }

    fn write(path: &Path, logits: &[f32; 3], target: usize) {
        let mut writer = LogProbsWriter::create(path, Overwrite::Yes, &[1, 0, 2, 2], CTX, 3).unwrap();
        writer.rows(&[encode(logits, sum(logits), target)]).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn what_is_written_reads_back_to_the_rounding_of_its_codes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base");
        let cases = [
            (LOGITS, 0, -16.0, [true, true, false]),
            ([0.5, -3.0, -10.0], 0, -16.0, [true, true, false]), // the least is where the scale begins
            (LOGITS, 2, -100.0, [true, true, false]),            // nothing lies lower
            ([0.5, -40.0, -50.0], 1, -40.5 - 40.5 / 65_534.0, [true, true, false]),
            ([0.5, -40.0, -50.0], 0, -16.0, [true, false, false]),
        ];
        for (logits, target, floor, told) in cases {
            write(&path, &logits, target);
            let file = LogProbs::open(&path).unwrap();
            assert_eq!(
                (file.ctx(), file.vocab_size(), file.tokens(), file.rows()),
                (CTX, 3, &[1, 0, 2, 2][..], 1)
            );
            let row = file.row(0).unwrap();
            let ln_sum = sum(&logits).ln() as f32;
            for (token, logit) in logits.into_iter().enumerate() {
                let truth = (logit - logits[0]).max(floor) - ln_sum;
                let found = row.log_prob(row.code(token));
                assert!((found - truth).abs() < 0.0004, "{token}: {found} is not {truth}");
            }
            assert_eq!(row.codes().map(|code| code > 0).collect::<Vec<_>>(), told);
        }
    }

    #[test]
    fn the_size_is_that_of_llama_cpps_files() {
        // stories260K on 2 windows of 512: measured on a file of llama-perplexity's.
        assert_eq!(LogProbsWriter::bytes(1, 512, 512), 20 + 4 * 512 + 255 * (512 + 4) * 2);
        assert_eq!(LogProbsWriter::bytes(2, 8, 3), 20 + 4 * 16 + 2 * 3 * (4 + 4) * 2);
    }

    #[test]
    fn equal_logits_have_no_scale_and_are_no_error() {
        let row = encode(&[2.0; 5], 5.0, 0);
        assert_eq!(f32_at(&row, 0).to_bits(), 0);
        assert!((f32_at(&row, 4) + 5_f32.ln()).abs() < 1e-6);
        assert_eq!(row.len(), row_bytes(5));
    }

    #[test]
    fn every_lie_of_a_header_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base");
        write(&path, &LOGITS, 0);
        let sound = std::fs::read(&path).unwrap();
        let with = |at: usize, value: i32| {
            let mut bytes = sound.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            bytes
        };
        let cases = [
            (sound[..12].to_vec(), "less than its header"),
            (b"_logits".to_vec(), "does not begin"),
            (sound[..sound.len() - 1].to_vec(), "the file has"),
            ([&sound[..], &[0]].concat(), "the file has"),
            (with(8, 2), "its context is 2"),
            (with(8, i32::MAX), "the file has"),
            (with(12, -1), "its vocabulary is -1"),
            (with(12, i32::MAX), "the file has"),
            (with(16, 0), "number of windows is 0"),
            (with(16, i32::MAX), "the file has"),
            (with(20, 3), "token 0 is 3"),
            (with(24, -5), "token 1 is -5"),
        ];
        for (bytes, part) in cases {
            std::fs::write(&path, bytes).unwrap();
            let error = LogProbs::open(&path).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(part), "{source}");
        }
        for (at, value) in [(36, f32::NAN), (36, -1.0), (40, f32::INFINITY), (36, 1.0)] {
            std::fs::write(&path, with(at, value.to_bits() as i32)).unwrap();
            assert!(LogProbs::open(&path).unwrap().row(0).is_err(), "{value} at {at}");
        }
    }

    #[test]
    fn only_files_of_its_kind_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "mine").unwrap();
        assert!(LogProbsWriter::create(&path, Overwrite::Yes, &[0; 4], CTX, 3).is_err());
        assert!(!LogProbs::is_at(&path) && !LogProbs::is_at(folder.path()));
    }
}
