//! `attar eval`: what a model scores, alone or against the one it was made from.

use attar_eval::{Reference, Report};
use attar_model::Device;
use attar_model::teacher::Signal;

use crate::cli::{EvalArgs, Global};
use crate::commands::ScoringRequest;
use crate::diagnostic::{Failure, Result};
use crate::pipeline::teacher::{Keeping, Original};
use crate::pipeline::{Clock, describe};
use crate::source::Source;
use crate::talk::say;

/// Cuts the text, runs the models, reports, keeps what is to be kept.
///
/// # Errors
/// A model, cache or text that cannot be read, models with different tokenizers.
pub fn run(args: &EvalArgs, global: &Global) -> Result<()> {
    let talk = global.talk();
    let delivery = global.delivery();
    let source = Source::open(&args.model)?;
    let original = args.reference.as_deref().map(Original::open).transpose()?;
    let tokenizer = source.tokenizer()?;
    let mut models = vec![&source.config];
    if let Some(Original::Model(original)) = &original {
        models.push(&original.config);
    }
    let computer = global.computer(&models)?;
    let request = ScoringRequest {
        file: Some(&args.text),
        ctx: args.ctx,
        chunks: args.chunks,
        convention: args.convention.into(),
        precision: args.precision.into(),
        as_in: original.as_ref().and_then(Original::cache),
        models: 1 + usize::from(matches!(original, Some(Original::Model(_)))),
        max_memory: global.max_memory,
        computer: &computer,
    };
    let scoring = request.read(&source, &tokenizer)?;
    if let Some(Original::Model(original)) = &original {
        let same_ctx = ScoringRequest { ctx: Some(scoring.windows.ctx()), ..request };
        if same_ctx.read(original, &original.tokenizer()?)?.windows != scoring.windows {
            return Err(Failure::new("the two models cut the text into different tokens")
                .hint("only models with the same tokenizer can be compared token by token"));
        }
    }
    if global.dry_run {
        let (tokens, ctx) = (scoring.windows.tokens().len(), scoring.windows.ctx());
        let memory = &scoring.memory;
        let head = match (&memory.streaming.device, args.keeps_likeliest(original.as_ref())) {
            (Device::Cuda(_), true) => "likeliest tokens: found and compared on the processor\n",
            _ => "",
        };
        let windows = scoring.windows.count();
        return say(&format!("{tokens} tokens in {windows} windows of {ctx}\n{head}{memory}\n"));
    }
    let keep_at = args.save_reference.as_deref();
    delivery.check(&keep_at.into_iter().collect::<Vec<_>>())?;

    let mut clock = Clock::default();
    let model = (&source, &tokenizer);
    let begin = |path| Keeping::begin(path, args.save_as, &scoring, model, global.overwrite());
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
    let mut report = Report::new(describe(&source));
    let scored = clock.time("evaluate", || scoring.predict(&source, reference.as_ref(), talk))?;
    let (predictions, evaluation) = scored;
    report.evaluation = Some(evaluation);
    if let Some(keeping) = keeping {
        clock.time("keep", || keeping.finish(&predictions, &scoring, talk))?;
    }
    report.run =
        Some(clock.run(Some(scoring.memory.streaming.precision), [&scoring.memory.streaming.device]));
    delivery.one(&report)
}

impl EvalArgs {
    /// Whether the likeliest tokens of a model are kept or read, which a CUDA device does not find.
    fn keeps_likeliest(&self, original: Option<&Original>) -> bool {
        let read = original.and_then(Original::cache).is_some_and(|cache| cache.head().is_none());
        read || self.save_reference.is_some() && matches!(self.save_as, Signal::TopK(_))
    }
}
