//! `attar inspect`: what a model is, and what each scheme would make of it.

use std::fmt::Write as _;
use std::path::Path;

use attar_eval::Report;
use attar_model::{LayerSizes, Precision};
use attar_quant::Rtn;

use crate::cli::Global;
use crate::device::Computer;
use crate::diagnostic::Result;
use crate::mix::FILE_TYPES;
use crate::pipeline::describe;
use crate::plan::{CalibrationSize, Plan, Request};
use crate::scheme::Scheme;
use crate::source::Source;
use crate::talk::{human_bytes, say, thousands};

/// Integer schemes worth showing; group sizes that do not divide the rows drop out.
const INTEGER_SCHEMES: [&str; 6] =
    ["w8a16-g128", "w4a16-g128", "w4a16-g128-asym", "w4a16-g64", "w4a16-g32", "w3a16-g64"];

/// Describes the model on stdout.
///
/// # Errors
/// A model that cannot be opened.
pub fn run(model: &Path, global: &Global) -> Result<()> {
    let source = Source::open(model)?;
    let mut text = about(&source);
    if global.verbose {
        text.push_str(&tensors(&source));
    }
    if source.is_quantized() {
        text.push_str("\nIts weights are quantized already: schemes start from full precision.\n");
    } else {
        text.push_str(&schemes(&source));
    }
    let delivery = global.delivery();
    delivery.check(&[])?;
    delivery.in_files(&Report::new(describe(&source)))?;
    say(&text)
}

fn about(source: &Source) -> String {
    let config = &source.config;
    let bits = 8.0 * source.bytes() as f64 / source.parameters() as f64;
    let each = |of: fn(&LayerSizes) -> usize, all: usize| {
        let least = config.layer_sizes.iter().map(of).min().unwrap_or(all);
        if least == all { all.to_string() } else { format!("{least} to {all}") }
    };
    let query_heads = each(|sizes| sizes.num_attention_heads, config.num_attention_heads);
    let kv_heads = each(|sizes| sizes.num_key_value_heads, config.num_key_value_heads);
    let shared = config.num_attention_heads != config.num_key_value_heads;
    let sharing = if shared { format!(", sharing {kv_heads} for keys and values") } else { String::new() };
    let heads = format!("{query_heads} of {}{sharing}", config.head_dim);
    let channels = each(|sizes| sizes.intermediate_size, config.intermediate_size);
    let layers = match &config.layer_sizes[..] {
        [] => config.num_hidden_layers.to_string(),
        each => format!("{}, with sizes of their own", each.len()),
    };
    let tokenizer = match source.tokenizer() {
        Ok(tokenizer) => format!("{} tokens", thousands(tokenizer.vocab_size() as u64)),
        Err(failure) => failure.cause().to_owned(),
    };
    let facts = [
        ("model", source.path.display().to_string()),
        ("family", config.family.name.to_owned()),
        ("parameters", thousands(source.parameters())),
        ("size", format!("{}, {bits:.2} bits per weight", human_bytes(source.bytes()))),
        ("layers", layers),
        ("hidden size", format!("{}, in the MLP {channels}", config.hidden_size)),
        ("heads", heads),
        (
            "vocabulary",
            format!(
                "{} rows, {}",
                thousands(config.vocab_size as u64),
                if config.tie_word_embeddings { "the head is the embedding" } else { "a head of its own" }
            ),
        ),
        ("tokenizer", tokenizer),
        ("context", format!("{} tokens", thousands(config.max_position_embeddings as u64))),
    ];
    facts.iter().fold(String::new(), |mut text, (label, value)| {
        let _ = writeln!(text, "{label:<12}  {value}"); // a String never fails
        text
    })
}

fn tensors(source: &Source) -> String {
    let mut text =
        format!("\n{:<48} {:<28} {:>16} {:>8} {:>10}\n", "tensor", "in GGUF", "shape", "type", "size");
    for spec in &source.specs {
        let shape = spec.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
        let (stored, size) = (source.stored_type(spec), human_bytes(source.stored_bytes(spec)));
        let _ = writeln!(text, "{:<48} {:<28} {shape:>16} {stored:>8} {size:>10}", spec.name, spec.gguf_name);
    }
    text
}

/// A line per scheme; what its container or the shapes forbid is left out.
fn schemes(source: &Source) -> String {
    let mut text = format!("\n{:<18} {:>10} {:>12}  {}\n", "scheme", "size", "bits/weight", "notes");
    let file_types = FILE_TYPES.iter().map(|t| (Scheme::Gguf(*t), true));
    let integers = INTEGER_SCHEMES.iter().filter_map(|name| Some((name.parse().ok()?, false)));
    for (scheme, gguf) in file_types.chain(integers) {
        let calibration = Some(CalibrationSize { tokens: 1, ctx: 1 });
        let request = Request {
            source,
            scheme: Some(scheme),
            gguf,
            rules: &[],
            calibration,
            max_memory: None,
            precision: Precision::F32,
            computer: &Computer::cpu(),
            solver: &Rtn,
            zeros: None,
        };
        let Ok(plan) = Plan::new(&request) else { continue };
        let unfit = plan.tensors.iter().filter(|t| t.fallback.is_some()).count();
        let note = if unfit == 0 {
            String::new()
        } else {
            format!("{unfit} tensors whose rows do not fit fall back")
        };
        let line = format!(
            "{:<18} {:>10} {:>12.3}  {note}",
            scheme.name(),
            human_bytes(plan.bytes()),
            plan.bits_per_weight()
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
