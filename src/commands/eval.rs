//! `attar eval`: what a model scores, alone or against the one it was made from.

use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::tasks::{Task, compare};
use attar_eval::{Reference, Report};
use attar_model::Device;
use attar_model::teacher::Signal;

use crate::cli::{EvalArgs, Global};
use crate::commands::ScoringRequest;
use crate::device::Computer;
use crate::diagnostic::{Failure, Result};
use crate::pipeline::score::Scoring;
use crate::pipeline::tasks::{self, Exam};
use crate::pipeline::teacher::{Keeping, Original};
use crate::pipeline::{Clock, describe};
use crate::source::Source;
use crate::talk::say;

/// Cuts the text, tokenizes the tasks, runs the models, reports, keeps what is to be kept.
///
/// # Errors
/// A model, cache, text or task that cannot be read, models with different tokenizers.
pub fn run(args: &EvalArgs, global: &Global) -> Result<()> {
    let talk = global.talk();
    let delivery = global.delivery();
    let source = Source::open(&args.model)?;
    let original = args.reference.as_deref().map(Original::open).transpose()?;
    let tokenizer = source.tokenizer()?;
    let model = (&source, &tokenizer);
    let mut models = vec![&source.config];
    if let Some(Original::Model(original)) = &original {
        models.push(&original.config);
    }
    let computer = global.computer(&models)?;
    let scoring = args.scoring(global, model, original.as_ref(), &computer)?;
    let tasks = tasks::read(&args.task, args.items.map(|items| items as usize))?;
    let exams = args.exams((global, &computer), model, original.as_ref(), &tasks)?;
    if global.dry_run {
        return say(&plan(args, original.as_ref(), scoring.as_ref(), &exams));
    }
    let keep_at = args.save_reference.as_deref();
    delivery.check(&keep_at.into_iter().collect::<Vec<_>>())?;

    let mut clock = Clock::default();
    let mut report = Report::new(describe(&source));
    if let Some(exam) = exams.first() {
        report.tasks = clock.time("tasks", || exam.sit("tasks", talk))?;
    }
    if let Some(exam) = exams.get(1) {
        let then = clock.time("reference tasks", || exam.sit("reference", talk))?;
        for ((task, now), then) in tasks.iter().zip(&mut report.tasks).zip(&then) {
            compare(task, now, then);
        }
    }
    let memory = scoring.as_ref().map(|scoring| &scoring.memory).or(exams.first().map(|exam| &exam.memory));
    let streaming = memory.map(|memory| memory.streaming.clone());
    if let Some(scoring) = scoring {
        let begin = |path| Keeping::begin(path, args.save_as, &scoring, model, global.overwrite(), talk);
        let keeping = keep_at.map(|path| clock.time("prepare", || begin(path))).transpose()?;
        let source_of;
        let reference = match original {
            None => None,
            Some(Original::Cache(cache)) => Some(Reference::Cache(cache)),
            Some(Original::Model(original)) => {
                source_of = original;
                Some(clock.time("reference", || scoring.reference(&source_of, talk))?)
            }
        };
        let scored = clock.time("evaluate", || scoring.predict(&source, reference.as_ref(), talk))?;
        let (predictions, evaluation) = scored;
        report.evaluation = Some(evaluation);
        if let Some(keeping) = keeping {
            clock.time("keep", || keeping.finish(&predictions, &scoring, talk))?;
        }
    }
    let devices = streaming.iter().map(|streaming| &streaming.device);
    report.run = Some(clock.run(streaming.as_ref().map(|streaming| streaming.precision), devices));
    delivery.one(&report)
}

impl EvalArgs {
    /// The text, cut, where there is one.
    fn scoring(
        &self,
        global: &Global,
        (source, tokenizer): (&Source, &Tokenizer),
        original: Option<&Original>,
        computer: &Computer,
    ) -> Result<Option<Scoring>> {
        let Some(text) = &self.text else { return Ok(None) };
        let request = ScoringRequest {
            file: Some(text),
            ctx: self.ctx,
            chunks: self.chunks,
            convention: self.convention.into(),
            precision: self.precision.into(),
            as_in: original.and_then(Original::cache),
            models: 1 + usize::from(matches!(original, Some(Original::Model(_)))),
            max_memory: global.max_memory,
            computer,
        };
        let scoring = request.read(source, tokenizer)?;
        if let Some(Original::Model(original)) = original {
            let same_ctx = ScoringRequest { ctx: Some(scoring.windows.ctx()), ..request };
            if same_ctx.read(original, &original.tokenizer()?)?.windows != scoring.windows {
                return Err(Failure::new("the two models cut the text into different tokens")
                    .hint("only models with the same tokenizer can be compared token by token"));
            }
        }
        Ok(Some(scoring))
    }

    /// The tasks for the model, then for the reference; none where there are no tasks.
    fn exams<'a>(
        &self,
        (global, computer): (&Global, &Computer),
        (source, tokenizer): (&'a Source, &Tokenizer),
        original: Option<&'a Original>,
        tasks: &'a [Task],
    ) -> Result<Vec<Exam<'a>>> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let exam = |source: &'a Source, tokenizer: &Tokenizer| {
            Exam::plan(tasks, source, tokenizer, self.precision.into(), global.max_memory, computer)
        };
        let mut exams = vec![exam(source, tokenizer)?];
        match original {
            None => {}
            Some(Original::Model(original)) => exams.push(exam(original, &original.tokenizer()?)?),
            Some(Original::Cache(cache)) => return Err(tasks::refuse_cache(cache.path())),
        }
        Ok(exams)
    }

    /// Whether the likeliest tokens of a model are kept or read, which a CUDA device does not find.
    fn keeps_likeliest(&self, original: Option<&Original>) -> bool {
        let read = original.and_then(Original::cache).is_some_and(|cache| cache.head().is_none());
        read || self.save_reference.is_some() && matches!(self.save_as, Signal::TopK(_))
    }
}

/// What would be done.
fn plan(args: &EvalArgs, original: Option<&Original>, scoring: Option<&Scoring>, exams: &[Exam]) -> String {
    let text = scoring.map(|Scoring { windows, memory, .. }| {
        let (tokens, ctx, count) = (windows.tokens().len(), windows.ctx(), windows.count());
        let head = match (&memory.streaming.device, args.keeps_likeliest(original)) {
            (Device::Cuda(_), true) => "likeliest tokens: found and compared on the processor\n",
            _ => "",
        };
        format!("{tokens} tokens in {count} windows of {ctx}\n{head}{memory}\n")
    });
    let tasks = exams.iter().map(|exam| format!("tasks: {} texts\n{}\n", exam.texts(), exam.memory));
    text.into_iter().chain(tasks).collect()
}
