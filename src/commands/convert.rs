//! `attar convert`: the same numbers in another container.

mod copy;

use attar_model::Precision;

use crate::cli::{ConvertArgs, FloatArg, Global, Method};
use crate::commands::prepare;
use crate::commands::quantize::check_weights;
use crate::device::Computer;
use crate::diagnostic::{Failure, Result};
use crate::pipeline::site::check_split;
use crate::pipeline::{Clock, Job, is_gguf};
use crate::plan::{Correct, NO_RULES};
use crate::scheme::Scheme;
use crate::source::Source;
use copy::Copy;

/// Plans, checks, writes, reopens, reports.
///
/// # Errors
/// Whatever kept it from being done.
pub fn run(args: &ConvertArgs, global: &Global) -> Result<()> {
    let talk = global.talk();
    let delivery = global.delivery();
    let source = Source::open(&args.model)?;
    check_split(args.split_max_size, &args.output)?;
    if let (Some(file), true, None) = (source.gguf(), is_gguf(&args.output), args.dtype) {
        let copy = Copy { source: &source, file, args, overwrite: global.overwrite(), talk };
        return copy.run(&delivery, global.dry_run);
    }
    if source.is_quantized() {
        match args.dtype {
            None if is_gguf(&args.output) => {
                return Err(Failure::new(
                    "quantized weights would be decoded to f32, and the file be many times larger",
                )
                .hint(
                    "say so with --dtype f32, or bf16, which is half of that; or give a folder as the output",
                ));
            }
            None | Some(FloatArg::F32) => {
                talk.warn("the weights are quantized: they are decoded to f32, exactly");
            }
            Some(dtype) => talk.warn(&format!(
                "the weights are quantized: they are decoded, and rounded to {}",
                dtype.scheme().map_or_else(String::new, Scheme::name)
            )),
        }
    }
    let tokenizer = if is_gguf(&args.output) || source.is_gguf() {
        Some(source.tokenizer()?)
    } else {
        source.tokenizer().ok()
    };
    let job = Job {
        source: &source,
        tokenizer: tokenizer.as_ref(),
        scheme: args.dtype.and_then(FloatArg::scheme),
        layout: None,
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
        max_part_bytes: args.split_max_size,
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
