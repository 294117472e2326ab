//! References: a model to run, or what was kept of one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use attar_checkpoint::atomic::{self, Overwrite};
use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::{Convention, Predictions};
use attar_model::teacher::{self, Cache, Facts, LogProbs, LogProbsWriter, Signal, Teacher, Writer};
use attar_model::{Role, TensorSpec};

use super::score::{Kept, Scoring};
use super::site::NewFolders;
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

/// What a model that is scored is compared with, opened.
pub enum Beside {
    /// The model it was made of, or what was kept of it.
    Original(Original),
    /// What llama-perplexity kept.
    LogProbs(Box<LogProbs>),
}

impl Beside {
    /// Opens a model, a teacher cache, or a file of llama-perplexity's.
    ///
    /// # Errors
    /// A path that leads to none of them, files that are damaged or lie.
    pub fn open(path: &Path) -> Result<Self> {
        if !LogProbs::is_at(path) {
            return Original::open(path).map(Self::Original);
        }
        let file = LogProbs::open(path).doing(|| format!("while opening the reference `{}`", path.display()));
        let file = file.hint(|| "it was cut short or damaged: make it anew");
        Ok(Self::LogProbs(Box::new(file?)))
    }

    /// The model, where it is one, which is run.
    pub fn model(&self) -> Option<&Source> {
        match self {
            Self::Original(Original::Model(source)) => Some(source),
            _ => None,
        }
    }

    /// What was kept, where it is not run.
    pub fn kept(&self) -> Option<Kept<'_>> {
        match self {
            Self::Original(original) => original.cache().map(Kept::Cache),
            Self::LogProbs(file) => Some(Kept::LogProbs(file)),
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

/// In what form predictions are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveAs {
    /// A teacher cache, a folder.
    Cache(Signal),
    /// The file of llama-perplexity's `--kl-divergence-base`.
    LlamaCpp,
}

impl SaveAs {
    const LLAMA_CPP: &str = "llama.cpp";
}

impl fmt::Display for SaveAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cache(signal) => signal.fmt(f),
            Self::LlamaCpp => f.pad(Self::LLAMA_CPP),
        }
    }
}

impl FromStr for SaveAs {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        if name == Self::LLAMA_CPP {
            return Ok(Self::LlamaCpp);
        }
        let signal = name.parse().map(Self::Cache);
        signal.map_err(|error: teacher::Error| format!("{error}, and {}", Self::LLAMA_CPP))
    }
}

/// Predictions about to be written: everything but them is on the disk, under a temporary name.
pub struct Keeping {
    form: Form,
    path: PathBuf,
    _made: NewFolders, // goes last, when nothing temporary is in them any more
}

/// A folder or file under way.
enum Form {
    Cache(Box<Writer>, Signal),
    LogProbs(LogProbsWriter),
}

impl Form {
    fn bytes(&self, scoring: &Scoring<'_>, vocab_size: usize) -> u64 {
        let windows = &scoring.windows;
        match self {
            Self::Cache(writer, _) => writer.bytes(),
            Self::LogProbs(_) => LogProbsWriter::bytes(windows.count(), windows.ctx(), vocab_size),
        }
    }
}

impl Keeping {
    /// Begins to keep what `source`, whose tokenizer is given with it, predicts on the text of `scoring`; what would keep it from being written
    /// shows here.
    ///
    /// # Errors
    /// An output that exists, a folder that is read-only, a disk too full, more tokens to keep than there are, a form that does not hold these
    /// windows.
    pub fn begin(
        path: &Path,
        save_as: SaveAs,
        scoring: &Scoring<'_>,
        (source, tokenizer): (&Source, &Tokenizer),
        overwrite: Overwrite,
        talk: Talk,
    ) -> Result<Self> {
        let at = || format!("while preparing to keep predictions in `{}`", path.display());
        let made = NewFolders::above(path).doing(at)?;
        let vocab_size = source.config.vocab_size;
        let form = match save_as {
            SaveAs::Cache(signal) => {
                if path.is_file() {
                    return Err(
                        Failure::new("a file is in the way of the folder").hint("name another folder")
                    )
                    .doing(at);
                }
                let head =
                    head_of(source).map_or(attar_checkpoint::Dtype::F32, |spec| source.float_dtype(spec));
                let facts = facts(signal, scoring, (source, tokenizer), talk).doing(at)?;
                let writer = Writer::create(path, overwrite, facts, &scoring.windows, head).doing(at);
                let replaces =
                    "name another folder, or give --force, which replaces a teacher cache and nothing else";
                Form::Cache(Box::new(writer.hint(|| replaces)?), signal)
            }
            SaveAs::LlamaCpp if scoring.convention != Convention::LlamaCpp => {
                return Err(Failure::new("llama.cpp's file holds the second half of every window only")
                    .hint("leave --convention out, or keep a teacher cache with another --save-as"))
                .doing(at);
            }
            SaveAs::LlamaCpp => {
                let windows = &scoring.windows;
                let writer =
                    LogProbsWriter::create(path, overwrite, windows.tokens(), windows.ctx(), vocab_size);
                let replaces =
                    "name another file, or give --force, which replaces a file of this kind and nothing else";
                Form::LogProbs(writer.doing(at).hint(|| replaces)?)
            }
        };
        let bytes = form.bytes(scoring, vocab_size);
        match atomic::free_bytes(path) {
            Some(free) if free < bytes => Err(Failure::new(format!(
                "it takes {}, the disk has {} left",
                human_bytes(bytes),
                human_bytes(free)
            ))
            .hint("make room, write to another disk, or keep less with --save-as"))
            .doing(at),
            _ => Ok(Self { form, path: path.to_owned(), _made: made }),
        }
    }

    /// Writes what a model predicted and gives folder or file its name.
    ///
    /// # Errors
    /// Weights that cannot be read, a disk that refuses.
    pub fn finish(self, predictions: &Predictions<'_>, scoring: &Scoring<'_>, talk: Talk) -> Result<()> {
        let path = self.path.display();
        let at = || format!("while keeping predictions in `{path}`");
        let bytes = human_bytes(self.form.bytes(scoring, predictions.vocab_size()));
        match self.form {
            Form::Cache(mut writer, signal) => {
                scoring.keep(predictions, signal, &mut writer, talk).doing(at)?;
                writer.finish().doing(at)?;
                talk.note(&format!("kept: {path} ({signal}, {bytes})"));
            }
            Form::LogProbs(mut writer) => {
                scoring.keep_log_probs(predictions, &mut writer, talk).doing(at)?;
                writer.finish().doing(at)?;
                talk.note(&format!("kept: {path} (for llama-perplexity --kl-divergence-base, {bytes})"));
            }
        }
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
    scoring: &Scoring<'_>,
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
