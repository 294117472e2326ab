//! `attar eval`: what a model scores, alone or against the one it was made from.

use attar_eval::Report;

use crate::cli::{EvalArgs, Global};
use crate::commands::ScoringRequest;
use crate::diagnostic::{Failure, Result};
use crate::pipeline::{Clock, describe};
use crate::source::Source;
use crate::talk::say;

/// Cuts the text, runs the models, reports.
///
/// # Errors
/// A model or text that cannot be read, models with different tokenizers.
pub fn run(args: &EvalArgs, global: &Global) -> Result<()> {
    let talk = global.talk();
    let delivery = global.delivery();
    let source = Source::open(&args.model)?;
    let reference = args.reference.as_deref().map(Source::open).transpose()?;
    let tokenizer = source.tokenizer()?;
    let request = ScoringRequest {
        file: Some(&args.text),
        ctx: args.ctx,
        chunks: args.chunks,
        convention: args.convention.into(),
        precision: args.precision.into(),
    };
    let scoring = request.read(&source, &tokenizer)?;
    if let Some(reference) = &reference {
        let same_ctx = ScoringRequest { ctx: Some(scoring.windows.ctx()), ..request };
        if same_ctx.read(reference, &reference.tokenizer()?)?.windows != scoring.windows {
            return Err(Failure::new("the two models cut the text into different tokens")
                .hint("only models with the same tokenizer can be compared token by token"));
        }
    }
    if global.dry_run {
        let (tokens, ctx) = (scoring.windows.tokens().len(), scoring.windows.ctx());
        return say(&format!("{tokens} tokens in {} windows of {ctx}\n", scoring.windows.count()));
    }
    delivery.check(&[])?;

    let mut clock = Clock::default();
    let reference = match &reference {
        Some(reference) => Some(clock.time("reference", || scoring.reference(reference, talk))?),
        None => None,
    };
    let mut report = Report::new(describe(&source));
    report.evaluation = Some(clock.time("evaluate", || scoring.score(&source, reference.as_ref(), talk))?);
    report.run = Some(clock.run(Some(scoring.precision)));
    delivery.one(&report)
}
