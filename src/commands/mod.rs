//! One file per command: what was typed becomes jobs, and their reports are delivered.

pub mod check;
pub mod compare;
pub mod convert;
pub mod deliver;
pub mod distill;
pub mod eval;
pub mod imatrix;
pub mod inspect;
pub mod manual;
pub mod prune;
pub mod quantize;
pub mod report;

use std::path::PathBuf;

use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::Convention;
use attar_model::{ModelConfig, Precision};

use crate::cli::Global;
use crate::device::Computer;
use crate::diagnostic::{Failure, Result};
use crate::pipeline::score::{Kept, SAME_TOKENIZER, Scoring};
use crate::pipeline::{Calibration, Job};
use crate::plan::{Correct, Plan, ScoringMemory, ScoringSize};
use crate::source::Source;
use crate::talk::{Talk, Verbosity, say};

use crate::text::{self, Text};
use deliver::Delivery;

impl Global {
    /// The voice that was asked for.
    pub fn talk(&self) -> Talk {
        Talk::new(match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, false) => Verbosity::Normal,
            (false, true) => Verbosity::Verbose,
        })
    }

    /// Where reports are wanted.
    pub fn delivery(&self) -> Delivery {
        Delivery { json: self.json.clone(), folder: self.report.clone() }
    }

    /// What computes models of these shapes.
    ///
    /// # Errors
    /// A CUDA device that was named and is not there, cannot be used, or does not run one of the models.
    pub fn computer(&self, models: &[&ModelConfig]) -> Result<Computer> {
        Computer::find(self.device, self.device_memory, models, self.talk())
    }

    /// What becomes of outputs that exist.
    pub fn overwrite(&self) -> Overwrite {
        if self.force { Overwrite::Yes } else { Overwrite::No }
    }
}

/// Plans a job and finds out what would keep it from being done; `None` where only the plan was asked for, which is then
/// said.
///
/// # Errors
/// What cannot work.
pub fn prepare(job: &Job<'_>, delivery: &Delivery, global: &Global) -> Result<Option<Plan>> {
    let plan = job.plan()?;
    if global.dry_run {
        let notes = job.notes(&plan).into_iter().fold(String::new(), |text, note| text + &note + "\n");
        say(&format!("{plan}\n{notes}"))?;
        return Ok(None);
    }
    job.check(&plan)?;
    delivery.check(&[job.output])?;
    if plan.solves_there && job.correct == Correct::Auto {
        job.talk.note("on the device drift is not corrected and scales are not fitted once more: --device cpu takes longer and loses less");
    }
    Ok(Some(plan))
}

/// The text to calibrate on as it was asked for.
pub struct CalibrationRequest<'a> {
    /// Files; the built-in text where there are none.
    pub files: &'a [PathBuf],
    /// At most this many tokens.
    pub tokens: usize,
    /// Tokens per window.
    pub ctx: Option<usize>,
    /// What decides which windows of a text are taken; where it is missing they are the first.
    pub seed: Option<u64>,
}

impl CalibrationRequest<'_> {
    /// Reads and cuts it.
    ///
    /// # Errors
    /// Files that cannot be read, texts without a usable token.
    pub fn read(&self, source: &Source, tokenizer: &Tokenizer) -> Result<Calibration> {
        let texts = Text::to_calibrate(self.files)?;
        let [calibrate_ctx, _] = text::DEFAULT_CTX;
        let ctx = self.ctx.unwrap_or(calibrate_ctx.min(source.config.max_position_embeddings).max(1));
        let windows = text::calibration_windows(&texts, tokenizer, ctx, self.tokens, self.seed)?;
        let facts = attar_eval::report::Calibration {
            files: texts.iter().map(|text| text.name.clone()).collect(),
            sha256: text::sha256(&texts),
            tokens: windows.tokens().len() as u64,
            ctx: windows.ctx() as u64,
            seed: self.seed,
            ..attar_eval::report::Calibration::default()
        };
        Ok(Calibration { windows, facts })
    }
}

/// The text to score on as it was asked for.
#[derive(Clone, Copy)]
pub struct ScoringRequest<'a> {
    /// The file; the built-in held-out text where there is none.
    pub file: Option<&'a PathBuf>,
    /// Tokens per window.
    pub ctx: Option<usize>,
    /// The first windows only.
    pub chunks: Option<usize>,
    /// Which tokens count.
    pub convention: Convention,
    /// How exactly matrices are multiplied.
    pub precision: Precision,
    /// A run of another model that this one is to be compared with: where nothing else is asked for, the text is cut
    /// as it was then.
    pub as_in: Option<Kept<'a>>,
    /// Models that are run: the one that is scored, and the one it is compared with unless that was run before.
    pub models: usize,
    /// Memory all of the work may use, if bounded.
    pub max_memory: Option<u64>,
    /// What computes.
    pub computer: &'a Computer,
}

impl ScoringRequest<'_> {
    /// Reads and cuts it, or takes it from the run it is to be compared with where no file is named and that run has it; holds it
    /// to that run.
    ///
    /// # Errors
    /// A file that cannot be read, a text too short, another text or vocabulary than in that run, too little memory.
    pub fn read<'t>(&self, source: &Source, tokenizer: &'t Tokenizer) -> Result<Scoring<'t>> {
        let [_, score_ctx] = text::DEFAULT_CTX;
        let ctx = self.ctx.or(self.as_in.map(Kept::ctx));
        let chunks = self.chunks.or(self.as_in.map(Kept::windows));
        let ctx = ctx.unwrap_or(score_ctx.min(source.config.max_position_embeddings).max(1));
        let (name, windows) = if let (None, Some(Kept::LogProbs(file))) = (self.file, self.as_in) {
            (file.path().display().to_string(), text::windows_of(file, tokenizer))
        } else {
            let text = Text::held_out(self.file.map(PathBuf::as_path))?;
            let windows = text::evaluation_windows(&text, tokenizer, ctx, self.convention, chunks)?;
            (text.name, windows)
        };
        let size = ScoringSize {
            tokens: windows.tokens().len(),
            ctx,
            scored: windows.count() * self.convention.scored(ctx).len(),
            models: self.models,
            heads: self.models + usize::from(self.as_in.is_some_and(Kept::has_head)),
        };
        let memory =
            ScoringMemory::plan(&source.config, size, self.precision, self.max_memory, self.computer)?;
        let decode = Box::new(|tokens: &[u32]| tokenizer.decode(tokens).unwrap_or_default());
        let scoring = Scoring { text: name, windows, convention: self.convention, memory, decode };
        match self.as_in {
            Some(Kept::Cache(cache)) => scoring.check(cache, source, tokenizer).map(|()| scoring),
            Some(Kept::LogProbs(file)) => {
                scoring.check_log_probs(file, source.config.vocab_size).map(|()| scoring)
            }
            None => Ok(scoring),
        }
    }

    /// Refuses an `other` model that cannot be compared token by token with `source`, whose text is cut as `scoring` has it.
    ///
    /// # Errors
    /// Another tokenizer or vocabulary.
    pub fn check_other(&self, scoring: &Scoring<'_>, source: &Source, other: &Source) -> Result<()> {
        let same_ctx = Self { ctx: Some(scoring.windows.ctx()), ..*self };
        let [size, other_size] = [source.config.vocab_size, other.config.vocab_size];
        let cause = if same_ctx.read(other, &other.tokenizer()?)?.windows != scoring.windows {
            "cut the text into different tokens".to_owned()
        } else if size != other_size {
            format!("have {size} and {other_size} tokens in their vocabularies")
        } else {
            return Ok(());
        };
        Err(Failure::new(format!("`{}` and `{}` {cause}", source.path.display(), other.path.display()))
            .hint(SAME_TOKENIZER))
    }
}
