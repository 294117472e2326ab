//! `attar convert`: the same numbers in another container.

mod copy;

use attar_model::Precision;

use crate::cli::{ConvertArgs, FloatArg, Global, Layout, Method};
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
    let (to_file, layout) = (is_gguf(&args.output), args.format.and_then(Layout::quantized));
    check_split(args.split_max_size, &args.output)?;
    if to_file && args.format.is_some() {
        return Err(Failure::new("--format is about folders, and a GGUF file has one layout only")
            .hint("leave it out, or name an output that does not end in .gguf"));
    }
    if let (Some(file), true, None) = (source.gguf(), to_file, args.dtype) {
        let copy = Copy { source: &source, file, args, overwrite: global.overwrite(), talk };
        return copy.run(&delivery, global.dry_run);
    }
    if let Some(layout) = layout.filter(|_| !source.is_quantized()) {
        return Err(Failure::new(format!("the model is floats, and {} holds codes", layout.name()))
            .hint("attar quantize chooses codes, and has the same --format"));
    }
    let keeps_codes = source.is_quantized() && args.dtype.is_none() && (to_file || layout.is_some());
    if source.is_quantized() && !keeps_codes {
        match args.dtype {
            None | Some(FloatArg::F32) => {
                talk.warn(
                    "the weights are quantized: they are decoded to f32, exactly; --format keeps their codes",
                );
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
        layout,
        keeps_codes,
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
