//! A cache being written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use attar_checkpoint::atomic::{AtomicFile, AtomicFolder, Overwrite};
use attar_checkpoint::{Dtype, encode_floats, safetensors};
use ndarray::ArrayView2;

use super::facts::tokens_sha256;
use super::{Error, FACTS, Facts, SCHEMA, Signal, TopK};
use crate::{HeadSource, Windows};

/// Files larger than this are cut into shards.
const MAX_SHARD_BYTES: u64 = 2_000_000_000;

/// Values of the head that are copied together.
const CHUNK_VALUES: usize = 1 << 22;

/// A cache being written: the head first, then the scored positions in order. It appears under its name on
/// [`Writer::finish`], or never.
#[derive(Debug)]
pub struct Writer {
    folder: AtomicFolder,
    tensors: safetensors::Writer,
    facts: Facts,
    head: Dtype,
    bytes: u64,
    next_row: usize,
}

impl Writer {
    /// Plans the files and writes the tokens. Schema, counts and hashes in `facts` are filled in here from `windows`.
    ///
    /// `head` is the float type the teacher's head is stored in. With [`Overwrite::Yes`] only a cache is replaced.
    ///
    /// # Errors
    /// Facts that cannot be, an output that exists, a disk that refuses.
    pub fn create(
        path: &Path,
        overwrite: Overwrite,
        mut facts: Facts,
        windows: &Windows,
        head: Dtype,
    ) -> Result<Self, Error> {
        SCHEMA.clone_into(&mut facts.schema);
        facts.tokens_sha256 = tokens_sha256(windows.tokens());
        (facts.ctx, facts.windows) = (windows.ctx(), windows.count());
        facts.windows_per_part = facts.good_part();
        let plan = facts.tensors(head)?;
        let folder = AtomicFolder::create_marked(path, overwrite, FACTS)?;
        let metadata = BTreeMap::from([("schema".to_owned(), SCHEMA.to_owned())]);
        let mut tensors = safetensors::Writer::create(
            folder.temp_path(),
            Overwrite::No,
            &metadata,
            &plan,
            MAX_SHARD_BYTES,
        )?;
        let tokens: Vec<u8> = windows.tokens().iter().flat_map(|token| token.to_le_bytes()).collect();
        tensors.write("tokens", &tokens)?;
        let bytes = plan.iter().map(|tensor| tensor.bytes).sum();
        Ok(Self { folder, tensors, facts, head, bytes, next_row: 0 })
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Copies the teacher's head, where hidden states are kept; otherwise there is nothing to do.
    ///
    /// # Errors
    /// A head that cannot be read, a disk that refuses.
    pub fn head(&mut self, head: &HeadSource<'_>) -> Result<(), crate::Error> {
        if self.facts.signal.hidden_dtype().is_none() {
            return Ok(());
        }
        let (vocab_size, step) = (head.vocab_size(), (CHUNK_VALUES / head.hidden_size()).max(1));
        for first in (0..vocab_size).step_by(step) {
            let values = head.values(first..vocab_size.min(first + step))?;
            self.put("head", self.head, values.as_slice().unwrap_or_default())?;
        }
        Ok(())
    }

    /// What the head reads at the next scored positions, `[positions, hidden_size]`.
    ///
    /// # Errors
    /// A disk that refuses.
    ///
    /// # Panics
    /// If the cache keeps something else, or if these are more positions than there are.
    pub fn hidden(&mut self, normed: ArrayView2<'_, f32>) -> Result<(), Error> {
        let dtype = self.facts.signal.hidden_dtype();
        let dtype = dtype.unwrap_or_else(|| panic!("{} has no hidden states", self.facts.signal));
        let normed = normed.as_standard_layout();
        let values = normed.as_slice().unwrap_or_default();
        self.advance(normed.nrows(), |this, part, rows| {
            let size = this.facts.hidden_size;
            this.put(&format!("hidden.{part}"), dtype, &values[rows.start * size..rows.end * size])
        })
    }

    /// The likeliest tokens at the next scored positions.
    ///
    /// # Errors
    /// A disk that refuses.
    ///
    /// # Panics
    /// If the cache keeps something else, or if these are more positions than there are.
    pub fn top_k(&mut self, said: &TopK) -> Result<(), Error> {
        let k = said.ids.ncols();
        assert_eq!(self.facts.signal, Signal::TopK(k), "what the cache keeps");
        let ids: Vec<u8> = said.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let log_probs: Vec<f32> = said.log_probs.iter().copied().collect();
        let (rest, targets) = (said.rest.to_vec(), said.targets.to_vec());
        self.advance(said.ids.nrows(), |this, part, rows| {
            this.tensors.write(&format!("ids.{part}"), &ids[rows.start * k * 4..rows.end * k * 4])?;
            let probable = &log_probs[rows.start * k..rows.end * k];
            this.put(&format!("log_probs.{part}"), Dtype::F32, probable)?;
            this.put(&format!("rest.{part}"), Dtype::F32, &rest[rows.clone()])?;
            this.put(&format!("targets.{part}"), Dtype::F32, &targets[rows])
        })
    }

    /// Flushes to the disk and gives the folder its name.
    ///
    /// # Errors
    /// Positions that were not written, a disk that refuses.
    pub fn finish(self) -> Result<(), Error> {
        let Self { folder, tensors, facts, .. } = self;
        tensors.finish()?;
        let path = folder.temp_path().join(FACTS);
        let json = serde_json::to_string_pretty(&facts);
        let json = json.map_err(|source| Error::Json { path: folder.path().join(FACTS), source })?;
        let mut file = AtomicFile::create(&path, Overwrite::No)?;
        file.write_at(0, format!("{json}\n").as_bytes())?;
        file.finish()?;
        Ok(folder.finish()?)
    }

    /// Hands `put` the next `count` rows, part by part, counted within what was given.
    fn advance(
        &mut self,
        count: usize,
        mut put: impl FnMut(&mut Self, usize, Range<usize>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let rows = self.next_row..self.next_row + count;
        assert!(rows.end <= self.facts.rows(), "rows {rows:?} of {}", self.facts.rows());
        let mut at = 0;
        for (part, within) in self.facts.parts(rows) {
            put(self, part, at..at + within.len())?;
            at += within.len();
        }
        self.next_row += count;
        Ok(())
    }

    fn put(&mut self, name: &str, dtype: Dtype, values: &[f32]) -> Result<(), Error> {
        Ok(self.tensors.write(name, &encode_floats(dtype, values)?)?)
    }
}
