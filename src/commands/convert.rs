//! `attar convert`: the same numbers in another container.

use attar_model::Precision;

use crate::cli::{ConvertArgs, Global, Method};
use crate::commands::prepare;
use crate::commands::quantize::check_weights;
use crate::device::Computer;
use crate::diagnostic::{Failure, Result};
use crate::pipeline::{Clock, Job, is_gguf};
use crate::plan::{Correct, NO_RULES};
use crate::source::Source;

/// Plans, checks, writes, reopens, reports.
///
/// # Errors
/// Whatever kept it from being done.
pub fn run(args: &ConvertArgs, global: &Global) -> Result<()> {
    let talk = global.talk();
    let delivery = global.delivery();
    let source = Source::open(&args.model)?;
    if source.is_quantized() {
        if is_gguf(&args.output) {
            return Err(Failure::new(
                "quantized weights would be decoded to f32, and the file be many times larger",
            )
            .hint("give a folder as the output to decode them all the same"));
        }
        talk.warn("the weights are quantized: they are decoded to f32, exactly");
    }
    let tokenizer = if is_gguf(&args.output) || source.is_gguf() {
        Some(source.tokenizer()?)
    } else {
        source.tokenizer().ok()
    };
    let job = Job {
        source: &source,
        tokenizer: tokenizer.as_ref(),
        scheme: None,
        method: Method::Rtn,
        zeros: None,
        rules: &NO_RULES,
        calibration: None,
        imatrix: None,
        learned: None,
        tuning: None,
        correct: Correct::Off,
        output: &args.output,
        overwrite: global.overwrite(),
        pre_tokenizer: args.pre_tokenizer.as_deref(),
        precision: Precision::F32,
        max_memory: global.max_memory,
        computer: &Computer::cpu(),
        talk,
    };
    let Some(plan) = prepare(&job, &delivery, global)? else { return Ok(()) };
    let mut clock = Clock::default();
    clock.time("check", || check_weights(&source, talk))?;
    let (_, mut report) = job.run(&plan, &mut clock)?;
    report.run = Some(clock.run(None, []));
    delivery.one(&report)
}
