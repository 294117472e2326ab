//! What was typed.

#![expect(clippy::doc_markdown, reason = "these comments are the help text, where backticks only disturb")]

mod check;
mod compare;
mod distill;
mod examples;
mod imatrix;
mod prune;
mod quantize;

use std::path::PathBuf;

use attar_eval::Convention;
use attar_model::Precision;
use attar_model::teacher::Signal;
use attar_quant::{Gptq, Rtn, Solver};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Deserialize;

use crate::device::DeviceArg;
use crate::diagnostic::Failure;
use crate::layout::{FolderLayout, LAYOUTS};
use crate::mix::FileType;
use crate::pipeline::teacher::SaveAs;
use crate::plan::Equalize;
use crate::scheme::Scheme;
pub use check::{CheckArgs, LimitArgs};
pub use compare::{Calibrate, CompareArgs, Contender};
pub use distill::{DecayArg, DistillArgs, LossArg};
pub use imatrix::ImatrixArgs;
pub use prune::{ArchArg, PruneArgs, ShapeArgs};
pub use quantize::{CALIB_TOKENS, QuantizeArgs, TargetArgs, TypesArgs, ZerosArgs, ZerosBy};

/// Makes language models small without making them stupid, and proves what it cost.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, disable_help_subcommand = true, after_help = examples::ATTAR)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
}

/// Flags that mean the same everywhere.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// Threads to compute with [default: all cores]; never changes a result
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Keep within this much memory, for example 16GB [default: half of what is available]; what does not fit is computed
    /// twice or put into a temporary file (in TMPDIR), and never changes a result
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_bytes)]
    pub max_memory: Option<u64>,

    /// Where to compute: auto, cpu, cuda or cuda:N; auto takes the first CUDA device if there is one that can do it, and -v
    /// says why if not
    #[arg(long, global = true, value_name = "DEVICE", default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,

    /// Keep within this much of a CUDA device's memory, for example 24GB [default: what is free]
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_bytes)]
    pub device_memory: Option<u64>,

    /// Print the plan and stop
    #[arg(long, global = true)]
    pub dry_run: bool,

    /// Replace an output that exists
    #[arg(long, global = true)]
    pub force: bool,

    /// Write the report as JSON to this file
    #[arg(long, global = true, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the report in every form (HTML, Markdown, text, JSON) and its plots (SVG) into this folder
    #[arg(long, global = true, value_name = "DIR")]
    pub report: Option<PathBuf>,

    /// Say nothing but results and errors
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Say more: a line per tensor
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show what a file or folder is: its family, shapes and sizes, what each scheme would make of it, what was done to it
    #[command(after_help = examples::INSPECT)]
    Inspect {
        /// A Hugging Face folder, a .gguf or .safetensors file, or an index of shards; of any kind of model, adapter or imatrix; or hf:owner/name
        model: PathBuf,
    },
    /// Quantize a model, reopen what was written, and report what it cost
    #[command(after_help = examples::QUANTIZE)]
    Quantize(QuantizeArgs),
    /// Cut layers, heads, channels or experts away, repair what stays, reopen what was written, and report what it cost
    #[command(after_help = examples::PRUNE)]
    Prune(PruneArgs),
    /// Change the container only: the same numbers in a GGUF or in one safetensors folder
    #[command(after_help = examples::CONVERT)]
    Convert(ConvertArgs),
    /// Measure perplexity and, against a reference, KL divergence
    #[command(after_help = examples::EVAL)]
    Eval(EvalArgs),
    /// Make many outputs of one model, and show them on one table and one plot: what each costs in bytes and in accuracy
    #[command(after_help = examples::COMPARE)]
    Compare(Box<CompareArgs>),
    /// Collect llama.cpp's importance matrix: how large what every matrix multiplies is, while a text runs through the model
    #[command(after_help = examples::IMATRIX)]
    Imatrix(ImatrixArgs),
    /// Hold a model to limits, or to what it scored before: exit code 1 where it fails, for CI
    #[command(after_help = examples::CHECK)]
    Check(Box<CheckArgs>),
    /// Teach a smaller or pruned model to predict what its teacher predicts
    #[command(after_help = examples::DISTILL)]
    Distill(DistillArgs),
    /// Carry out a recipe: prune a model, teach what is left, make several outputs of it, compare all in one table
    #[command(after_help = examples::RUN)]
    Run(RunArgs),
    /// Show a report again, what changed from one to another, or several side by side
    #[command(after_help = examples::REPORT)]
    Report(ReportArgs),
    /// Print what a shell needs to complete attar's commands and options
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write manual pages, one for each command
    #[command(after_help = examples::MAN)]
    Man {
        /// The folder for them [default: the page of the program itself goes to stdout]
        folder: Option<PathBuf>,
    },
}

impl Command {
    /// The models that were named, but for commands that read names of models out of a file too.
    pub fn models(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Inspect { model } => vec![model],
            Self::Quantize(args) => [&mut args.model].into_iter().chain(&mut args.reference).collect(),
            Self::Prune(args) => vec![&mut args.model],
            Self::Convert(args) => vec![&mut args.model],
            Self::Eval(args) => [&mut args.model].into_iter().chain(&mut args.reference).collect(),
            Self::Compare(args) => [&mut args.model].into_iter().chain(&mut args.files).collect(),
            Self::Imatrix(args) => args.model.iter_mut().collect(),
            Self::Distill(args) => [&mut args.teacher].into_iter().chain(&mut args.student).collect(),
            Self::Check(_) | Self::Run(_) | Self::Report(_) | Self::Completions { .. } | Self::Man { .. } => {
                Vec::new()
            }
        }
    }
}

/// `attar report`.
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// Reports as --json and --report write them: one is shown, of two what changed from the first to the second, of more a table; a
    /// file of several reports is a table too
    #[arg(value_name = "REPORT.json", required_unless_present = "schema")]
    pub files: Vec<PathBuf>,

    /// What is printed
    #[arg(long, value_enum, default_value_t = RenderingArg::Terminal)]
    pub format: RenderingArg,

    /// Print the JSON Schema of reports
    #[arg(long, conflicts_with_all = ["files", "format", "json", "report"])]
    pub schema: bool,
}

/// What a report looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RenderingArg {
    /// Plain text
    Terminal,
    /// For an issue, a pull request or a model card
    Markdown,
    /// A page with plots that needs nothing else
    Html,
    /// Every figure in full
    Json,
    /// Limits as tests, for CI servers
    Junit,
}

impl RenderingArg {
    /// Its name in the list of renderings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Terminal => "terminal",
            Self::Markdown => "markdown",
            Self::Html => "html",
            Self::Json => "json",
            Self::Junit => "junit",
        }
    }
}

/// `attar run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// A TOML file, as those in recipes/
    pub recipe: PathBuf,

    /// Go on with a recipe that was interrupted: outputs that are there are kept and compared with the others, and a student
    /// that had not learned all is taught on
    #[arg(long)]
    pub resume: bool,
}

/// `attar convert`.
#[derive(Args, Clone, Debug)]
pub struct ConvertArgs {
    /// A Hugging Face folder, a .gguf file, or any part of one that is split; or hf:owner/name
    pub model: PathBuf,

    /// Where to write: a name ending in .gguf is a GGUF, anything else a folder of safetensors; out of a GGUF into a GGUF every
    /// tensor is copied as it is, quantized ones too
    #[arg(long, short)]
    pub output: PathBuf,

    /// Round floats to this type, and decode what is quantized; a GGUF keeps vectors in f32 [default: floats as they are; quantized
    /// weights keep their codes in a GGUF, and with --format in a folder, else they are decoded to f32, exactly]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<FloatArg>,

    /// How a folder is to hold quantized weights, whose codes stay what they are: integers of GPTQ, AWQ, compressed-tensors and of the
    /// GGUF types q4_0, q5_0 and q8_0, and fp8 and mxfp4, where the other container has the same
    #[arg(long, value_enum, conflicts_with = "dtype")]
    pub format: Option<Layout>,

    /// Cut a GGUF into parts of at most so many bytes of tensors, for example 2GB: OUT-00001-of-00003.gguf and so on, as
    /// llama-gguf-split does; where all fits into one it is a file like any other, which puts parts together
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub split_max_size: Option<u64>,

    /// Name for `tokenizer.ggml.pre`, where attar does not recognise the tokenizer's splitting rule
    #[arg(long, value_name = "NAME")]
    pub pre_tokenizer: Option<String>,
}

/// What floats are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FloatArg {
    /// 4 bytes; nothing is rounded
    F32,
    /// 2 bytes, 8 bits of them the exponent
    Bf16,
    /// 2 bytes, 5 bits of them the exponent
    F16,
}

impl FloatArg {
    /// The scheme of that name.
    pub fn scheme(self) -> Option<Scheme> {
        let name = match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        };
        FileType::named(name).map(Scheme::Gguf)
    }
}

/// `attar eval`.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    /// A Hugging Face folder, floats or quantized, a .gguf file, or any part of one that is split; or hf:owner/name
    pub model: PathBuf,

    /// The text to score; may be given more than once, each is scored alone
    #[arg(long, value_name = "FILE", required_unless_present_any = ["task", "reference"])]
    pub text: Vec<PathBuf>,

    /// Questions to answer, JSON lines of query, choices, gold; of context_options, continuation, gold; or of context,
    /// continuation (a last word); scored as lm-evaluation-harness does; may be given more than once
    #[arg(long, value_name = "FILE")]
    pub task: Vec<PathBuf>,

    /// Answer the first N items of each task only
    #[arg(long, value_name = "N", requires = "task", value_parser = clap::value_parser!(u32).range(1..))]
    pub items: Option<u32>,

    /// Tokens per window [default: 512 as in llama-perplexity, less where the model was made for less]
    #[arg(long, value_name = "N")]
    pub ctx: Option<usize>,

    /// Score the first N windows only
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,

    /// Which perplexity to report
    #[arg(long, value_enum, default_value_t = ConventionArg::LlamaCpp)]
    pub convention: ConventionArg,

    /// The original, to measure KL divergence and agreement against: a model, a folder that --save-reference made of one, or a
    /// file of llama-perplexity's --kl-divergence-base, which brings its text with it
    #[arg(long, value_name = "MODEL|CACHE|FILE")]
    pub reference: Option<PathBuf>,

    /// Keep what the model predicts on this text in a new folder; given to --reference it stands for the model, which
    /// then need not be there
    #[arg(long, value_name = "DIR|FILE", requires = "text")]
    pub save_reference: Option<PathBuf>,

    /// What to keep: hidden-f32 (the model to the bit; 4 bytes per feature and scored token, and the head), hidden-bf16
    /// (half the size, rounded), top-k=N (the N likeliest tokens and the rest as one: KL divergence is then a lower
    /// bound), or llama.cpp (a file for llama-perplexity's --kl-divergence-base; 2 bytes per entry of the vocabulary and scored token)
    #[arg(long, value_name = "FORM", default_value_t = SaveAs::Cache(Signal::HiddenF32), requires = "save_reference")]
    pub save_as: SaveAs,

    /// What matrices are multiplied in
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    pub precision: PrecisionArg,
}

/// How codes are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// gptq where there are codes to choose, awq-gptq for w8a8 on the processor
    #[default]
    Auto,
    /// Round to nearest; needs no text, weighs by it where --calib is given
    Rtn,
    /// Round column by column, each error fed back into the columns that are left
    Gptq,
    /// Round to nearest what has been equalized: channels of large inputs multiplied in the weights that read them, divided in what gives them
    Awq,
    /// gptq on what has been equalized
    #[value(name = "awq-gptq")]
    #[serde(rename = "awq-gptq")]
    AwqGptq,
}

impl Method {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The same, where nothing was said what has been measured to lose least of those that can be had.
    ///
    /// Where inputs are rounded to integers, channels that stand out set the scale of all others: w8a8 of books-7m and books-2m loses 13 %
    /// less when they are equalized before `gptq`. As fp8, which has an exponent of its own for each, both lose the same, and where inputs
    /// stay as they are `gptq` alone is ahead (w3a16-g64 0.0120, 0.0128).
    #[must_use]
    pub fn resolved(self, scheme: Option<Scheme>, can_equalize: bool) -> Self {
        let to_integers = scheme.and_then(Scheme::inputs).is_some_and(|inputs| !inputs.is_float());
        if self == Self::Auto && to_integers && can_equalize { Self::AwqGptq } else { self }
    }

    /// What chooses the codes.
    pub fn solver(self) -> &'static dyn Solver {
        match self {
            Self::Rtn | Self::Awq => &Rtn,
            Self::Auto | Self::Gptq | Self::AwqGptq => &Gptq::DEFAULT,
        }
    }

    /// What is done to channels before.
    pub fn equalize(self) -> Equalize {
        match self {
            Self::Awq | Self::AwqGptq => Equalize::Activations,
            Self::Auto | Self::Rtn | Self::Gptq => Equalize::No,
        }
    }

    /// Whether codes of `scheme` are chosen by what a text tells: rounding needs none, and weighs by one that is given.
    pub fn learns(self, scheme: Scheme, calib: &[PathBuf]) -> bool {
        scheme.has_codes() && (self != Self::Rtn || !calib.is_empty())
    }
}

/// How a safetensors folder is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// Floats as transformers saves them
    Plain,
    /// Packed integers as vLLM and transformers load them
    CompressedTensors,
    /// Integers of 2, 3, 4 or 8 bits as GPTQ's tools write them
    Gptq,
    /// Integers of 4 bits as AWQ's tools write them
    Awq,
    /// Eight-bit floats with a scale for each block of 128 by 128
    Fp8,
}

/// Which perplexity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConventionArg {
    /// As llama-perplexity prints it: the second half of every window
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// As Hugging Face's guide computes it: every token of every window
    Hf,
}

/// How exactly matrices are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionArg {
    /// Exactly as llama-perplexity does on an F32 file
    #[default]
    F32,
    /// Twice as fast where the processor multiplies bf16, at half the memory for a block
    Bf16,
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Self {
        match arg {
            PrecisionArg::F32 => Self::F32,
            PrecisionArg::Bf16 => Self::Bf16,
        }
    }
}

impl From<ConventionArg> for Convention {
    fn from(arg: ConventionArg) -> Self {
        match arg {
            ConventionArg::LlamaCpp => Self::LlamaCpp,
            ConventionArg::Hf => Self::Hf,
        }
    }
}

impl From<Convention> for ConventionArg {
    fn from(convention: Convention) -> Self {
        match convention {
            Convention::LlamaCpp => Self::LlamaCpp,
            Convention::Hf => Self::Hf,
        }
    }
}

impl Layout {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::CompressedTensors => "compressed-tensors",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::Fp8 => "fp8",
        }
    }

    /// How it holds what is quantized; `None` where it holds floats.
    pub fn quantized(self) -> Option<&'static dyn FolderLayout> {
        LAYOUTS.iter().copied().find(|layout| layout.name() == self.name())
    }
}

fn parse_scheme(name: &str) -> Result<Scheme, String> {
    name.parse().map_err(|failure: Failure| failure.in_one_line())
}

/// `16GB`, `512 MB`, `1.5GiB`, or plain bytes.
///
/// # Errors
/// What is no size.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        other => return Err(format!("`{other}` is not a unit; use kB, MB, GB, KiB, MiB or GiB")),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * factor) as u64),
        _ => Err("a size is a number and a unit, for example 16GB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// The words of a line as a shell has them, up to where they go elsewhere.
    fn words(line: &str) -> Vec<String> {
        let own = line.split(['|', '>']).next().unwrap_or_default();
        own.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect()
    }

    #[test]
    fn every_example_of_the_help_is_understood_and_every_command_has_two() {
        use clap::CommandFactory;
        let attar = Cli::command();
        let helps = attar.get_subcommands().map(|command| (Some(command.get_name()), command));
        for (name, command) in helps.chain([(None, &attar)]) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<&str> =
                help.lines().map(str::trim).filter(|line| line.starts_with("attar ")).collect();
            assert!(lines.len() >= 2, "{name:?} has the examples {lines:?}");
            for line in lines {
                let words = words(line);
                let parsed = Cli::try_parse_from(&words);
                assert!(
                    parsed.is_ok(),
                    "{line}\n{}",
                    parsed.err().map(|e| e.to_string()).unwrap_or_default()
                );
                assert!(name.is_none_or(|name| words[1] == name), "{line} stands with {name:?}");
            }
        }
    }

    #[test]
    fn every_rendering_can_be_asked_for() {
        let asked: Vec<_> = RenderingArg::value_variants().iter().map(|rendering| rendering.name()).collect();
        let there: Vec<_> = attar_eval::render::RENDERERS.iter().map(|rendering| rendering.name()).collect();
        assert_eq!(asked, there);
    }

    #[test]
    fn sizes_are_decimal_unless_they_say_binary() {
        assert_eq!(parse_bytes("16GB"), Ok(16_000_000_000));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("123"), Ok(123));
        assert!(parse_bytes("lots").is_err() && parse_bytes("3 parsecs").is_err());
    }
}
