//! References: a model to run, or what was kept of one.

use std::path::{Path, PathBuf};

use attar_checkpoint::atomic::{self, Overwrite};
use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::Predictions;
use attar_model::teacher::{self, Cache, Facts, Signal, Teacher, Writer};
use attar_model::{Role, TensorSpec};

use super::score::Scoring;
use super::write::NewFolders;
use crate::diagnostic::{Explain, Failure, Result};
use crate::source::Source;
use crate::talk::{Talk, human_bytes};

/// What a model is to be compared with, opened.
#[derive(Debug)]
pub enum Original {
    /// A model, to be run.
    Model(Box<Source>),
    /// What was kept of one.
    Cache(Box<Cache>),
}

impl Original {
    /// Opens a model or a teacher cache.
    ///
    /// # Errors
    /// A path that leads to neither, files that are damaged or lie.
    pub fn open(path: &Path) -> Result<Self> {
        if Cache::is_at(path) {
            Ok(Self::Cache(Box::new(open_cache(path)?)))
        } else {
            Ok(Self::Model(Box::new(Source::open(path)?)))
        }
    }

    /// What was kept, where it is that.
    pub fn cache(&self) -> Option<&Cache> {
        match self {
            Self::Model(_) => None,
            Self::Cache(cache) => Some(cache),
        }
    }
}

/// Opens what was kept of `source`, to be compared with what is made of it.
///
/// # Errors
/// A folder that is no cache, a damaged one, one of another model.
pub fn open_cache_of(source: &Source, path: &Path, talk: Talk) -> Result<Cache> {
    let at = || format!("while opening the reference `{}`", path.display());
    if !Cache::is_at(path) {
        return Err(Failure::new(format!("there is no teacher cache: no {}", teacher::FACTS)).hint(
            "the model that is compressed is the reference itself; to spare its run, make a cache with attar eval MODEL --save-reference",
        ))
        .doing(at);
    }
    let cache = open_cache(path)?;
    let of = &cache.facts().model;
    if of.sha256 == source.sha256(talk).doing(at)? {
        return Ok(cache);
    }
    Err(Failure::new(format!(
        "it is of `{}`, whose weights are others than those of `{}`",
        of.source,
        source.path.display()
    ))
    .hint("make one of this model with attar eval MODEL --save-reference, or leave --reference out"))
    .doing(at)
}

fn open_cache(path: &Path) -> Result<Cache> {
    Cache::open(path)
        .doing(|| format!("while opening the teacher cache `{}`", path.display()))
        .hint(|| "the teacher cache is damaged: copy it again, or make it anew with --save-reference")
}

/// A teacher cache about to be written: everything but the predictions is on the disk, under a temporary name.
pub struct Keeping {
    writer: Writer,
    signal: Signal,
    path: PathBuf,
    _made: NewFolders, // goes last, when nothing temporary is in them any more
}

impl Keeping {
    /// Begins a cache of `source`, whose tokenizer is given with it, on the text of `scoring`; what would keep it from being written shows here.
    ///
    /// # Errors
    /// An output that exists, a folder that is read-only, a disk too full, more tokens to keep than there are.
    pub fn begin(
        path: &Path,
        signal: Signal,
        scoring: &Scoring,
        (source, tokenizer): (&Source, &Tokenizer),
        overwrite: Overwrite,
        talk: Talk,
    ) -> Result<Self> {
        let at = || format!("while preparing the teacher cache `{}`", path.display());
        if path.is_file() {
            return Err(Failure::new("a file is in the way of the folder").hint("name another folder"))
                .doing(at);
        }
        let made = NewFolders::above(path).doing(at)?;
        let head = head_of(source).map_or(attar_checkpoint::Dtype::F32, |spec| source.float_dtype(spec));
        let facts = facts(signal, scoring, (source, tokenizer), talk).doing(at)?;
        let writer = Writer::create(path, overwrite, facts, &scoring.windows, head).doing(at);
        let writer = writer.hint(
            || "name another folder, or give --force, which replaces a teacher cache and nothing else",
        )?;
        match atomic::free_bytes(path) {
            Some(free) if free < writer.bytes() => Err(Failure::new(format!(
                "it takes {}, the disk has {} left",
                human_bytes(writer.bytes()),
                human_bytes(free)
            ))
            .hint("make room, write to another disk, or keep less with --save-as"))
            .doing(at),
            _ => Ok(Self { writer, signal, path: path.to_owned(), _made: made }),
        }
    }

    /// Writes what a model predicted and gives the folder its name.
    ///
    /// # Errors
    /// Weights that cannot be read, a disk that refuses.
    pub fn finish(mut self, predictions: &Predictions<'_>, scoring: &Scoring, talk: Talk) -> Result<()> {
        let at = || format!("while writing the teacher cache `{}`", self.path.display());
        scoring.keep(predictions, self.signal, &mut self.writer, talk).doing(at)?;
        let bytes = self.writer.bytes();
        self.writer
            .finish()
            .doing(|| format!("while writing the teacher cache `{}`", self.path.display()))?;
        talk.note(&format!("kept: {} ({}, {})", self.path.display(), self.signal, human_bytes(bytes)));
        Ok(())
    }
}

fn head_of(source: &Source) -> Option<&TensorSpec> {
    let role = if source.config.tie_word_embeddings { Role::Embedding } else { Role::Head };
    source.specs.iter().find(|spec| spec.role == role)
}

/// Counts and hashes of the text are the writer's to fill in.
fn facts(
    signal: Signal,
    scoring: &Scoring,
    (source, tokenizer): (&Source, &Tokenizer),
    talk: Talk,
) -> Result<Facts> {
    let positions = scoring.convention.scored(scoring.windows.ctx());
    Ok(Facts {
        schema: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: Teacher {
            source: source.path.display().to_string(),
            family: source.config.family.name.to_owned(),
            sha256: source.sha256(talk)?,
        },
        text: scoring.text.clone(),
        tokens_sha256: String::new(),
        convention: scoring.convention.name().to_owned(),
        ctx: 0,
        windows: 0,
        scored: [positions.start, positions.end],
        vocab_size: source.config.vocab_size,
        vocabulary_sha256: Some(tokenizer.vocabulary_sha256()),
        hidden_size: source.config.hidden_size,
        logits_scaling: source.config.logits_scaling,
        logit_cap: source.config.logit_cap,
        precision: scoring.memory.streaming.precision.name().to_owned(),
        signal,
        windows_per_part: 0,
    })
}
