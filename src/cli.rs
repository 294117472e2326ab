//! What was typed.

#![expect(clippy::doc_markdown, reason = "these comments are the help text, where backticks only disturb")]

mod check;
mod compare;
mod distill;
mod examples;
mod imatrix;
mod prune;

use std::path::PathBuf;

use attar_checkpoint::GgmlType;
use attar_eval::Convention;
use attar_model::Precision;
use attar_model::teacher::Signal;
use attar_quant::{Solver, SparseGpt, Sparsity, Wanda};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Deserialize;

use crate::device::DeviceArg;
use crate::diagnostic::Failure;
use crate::mix::{Fallback, FileType};
use crate::pipeline::teacher::SaveAs;
use crate::plan::{Correct, written_type};
use crate::scheme::Scheme;
pub use check::{CheckArgs, LimitArgs};
pub use compare::{Calibrate, CompareArgs, Contender};
pub use distill::{DecayArg, DistillArgs, LossArg};
pub use imatrix::ImatrixArgs;
pub use prune::{ArchArg, PruneArgs, ShapeArgs};

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
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a file or folder is: its family, shapes and sizes, what each scheme would make of it, what was done to it
    #[command(after_help = examples::INSPECT)]
    Inspect {
        /// A Hugging Face folder, a .gguf or .safetensors file, or an index of shards; of any kind of model, adapter or imatrix
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

/// Calibration tokens where no number is given.
pub const CALIB_TOKENS: usize = 131_072;

/// `attar quantize`.
#[derive(Args, Clone, Debug)]
pub struct QuantizeArgs {
    /// A Hugging Face folder or a .gguf file of floats, or any part of one that is split
    pub model: PathBuf,

    /// Where to write: a name ending in .gguf is a GGUF, anything else a folder of safetensors
    #[arg(long, short)]
    pub output: PathBuf,

    /// Cut a GGUF into parts of at most so many bytes of tensors, for example 2GB: OUT-00001-of-00003.gguf and so on, as
    /// llama-gguf-split does; where all fits into one it is a file like any other
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub split_max_size: Option<u64>,

    /// Quantize what is quantized already: it is decoded and quantized again, and what that had cost stays in it
    #[arg(long)]
    pub allow_requantize: bool,

    /// The number format: q4_k_m, q6_k, q8_0, ... or w4a16-g128, w4a16-g128-asym, ...
    #[arg(long, value_parser = parse_scheme, required_unless_present_any = ["target_size", "target_bpw"])]
    pub scheme: Option<Scheme>,

    /// How large the file may be, in place of a scheme.
    #[command(flatten)]
    pub target: TargetArgs,

    /// How the codes are chosen
    #[arg(long, value_enum, default_value_t = Method::Auto, conflicts_with = "sparsity")]
    pub method: Method,

    /// Zeros in the blocks' matrices.
    #[command(flatten)]
    pub zeros: ZerosArgs,

    /// Text to calibrate on; may be given more than once [default: a short English text that comes with attar]
    #[arg(long, value_name = "FILE")]
    pub calib: Vec<PathBuf>,

    /// An importance matrix to choose codes by in place of a text, of attar imatrix or llama-imatrix, GGUF or .dat; errors are then
    /// not fed back (method rtn), as in llama-quantize
    #[arg(long, value_name = "FILE", conflicts_with_all = ["calib", "calib_tokens", "seed", "sparsity"])]
    pub imatrix: Option<PathBuf>,

    /// Calibrate on at most this many tokens
    #[arg(long, value_name = "N", default_value_t = CALIB_TOKENS)]
    pub calib_tokens: usize,

    /// Tokens per window [default: 2048 to calibrate, 512 to evaluate, less where the model was made for less]
    #[arg(long, value_name = "N")]
    pub ctx: Option<usize>,

    /// Draw the windows to calibrate on from all over the texts, by this seed [default: the first windows of each text]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Run the unquantized model beside, so that each matrix makes up for what those before it have lost: three times the work of calibration
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub correct_drift: Correct,

    /// Then tune scales and norms on N tokens of the calibration text by what the whole model predicts, both models in memory
    #[arg(long, value_name = "N")]
    pub tune_tokens: Option<usize>,

    /// Held-out text on which the written file is compared with the original [default: one that comes with attar]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// What attar eval --save-reference kept of the original, which then is not run to be compared with
    #[arg(long, value_name = "CACHE", conflicts_with = "no_eval")]
    pub reference: Option<PathBuf>,

    /// Compare on the first N windows of the text only
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,

    /// Which perplexity to report
    #[arg(long, value_enum, default_value_t = ConventionArg::LlamaCpp)]
    pub convention: ConventionArg,

    /// What matrices are multiplied in, to calibrate and to evaluate
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    pub precision: PrecisionArg,

    /// Do not evaluate the written file (it is still reopened and compared with what was computed)
    #[arg(long, conflicts_with_all = ["text", "chunks", "convention"])]
    pub no_eval: bool,

    /// Tensor type for names that match, for example 'ffn_down=q6_k'; the first match wins
    #[arg(long, value_name = "REGEX=TYPE")]
    pub tensor: Vec<String>,

    /// What else is said of tensor types.
    #[command(flatten)]
    pub types: TypesArgs,

    /// Layout of a safetensors folder [default: compressed-tensors for integers, plain for floats]
    #[arg(long, value_enum)]
    pub format: Option<Layout>,

    /// Name for `tokenizer.ggml.pre`, where attar does not recognise the tokenizer's splitting rule
    #[arg(long, value_name = "NAME")]
    pub pre_tokenizer: Option<String>,
}

/// Which type each tensor of a GGUF file gets.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Types of tensors in a GGUF file")]
pub struct TypesArgs {
    /// Every matrix in the scheme's main type, without llama-quantize's exceptions
    #[arg(long)]
    pub pure: bool,

    /// The type of the output head, also where the embedding serves as the head
    #[arg(long, value_name = "TYPE", value_parser = parse_type)]
    pub output_type: Option<GgmlType>,

    /// The type of the embedding
    #[arg(long, value_name = "TYPE", value_parser = parse_type)]
    pub embedding_type: Option<GgmlType>,

    /// Which type rows get that are no whole number of blocks: llama-quantize's, or the best that takes no more bits
    #[arg(long, value_enum, default_value_t)]
    pub mix: Fallback,

    /// Refuse rows that are no whole number of blocks instead
    #[arg(long)]
    pub no_fallback: bool,
}

/// A GGUF file of a given size.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "A GGUF file of a given size")]
pub struct TargetArgs {
    /// Choose a type for each tensor, by measured damage, so that the file is no larger than this, for example 4.2GB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, conflicts_with_all = ["scheme", "target_bpw", "imatrix", "sparsity", "pure"])]
    pub target_size: Option<u64>,

    /// The same for an average of so many bits per weight, embeddings included, for example 4.5
    #[arg(long, value_name = "BITS", value_parser = parse_bits, conflicts_with_all = ["scheme", "imatrix", "sparsity", "pure"])]
    pub target_bpw: Option<f64>,

    /// Types that may be chosen, for example q4_k,q6_k [default: all from iq2_xxs to f16]
    #[arg(long, value_name = "TYPE", value_parser = parse_type, value_delimiter = ',', conflicts_with = "scheme")]
    pub allow: Vec<GgmlType>,
}

/// Zeros in the matrices of the blocks.
#[derive(Args, Clone, Debug)]
pub struct ZerosArgs {
    /// Weights of the blocks' matrices that become 0: 2:4, 4:8 (of so many in a row so many stay), or a share such as 0.5
    #[arg(long, value_name = "N:M|SHARE", help_heading = "Zeros")]
    pub sparsity: Option<Sparsity>,

    /// Which weights those are: sparsegpt (the others make up for them), wanda (they stay as they are)
    #[arg(
        long,
        value_name = "NAME",
        default_value = "sparsegpt",
        requires = "sparsity",
        help_heading = "Zeros"
    )]
    pub sparsity_criterion: ZerosBy,
}

/// Which weights become 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZerosBy {
    /// Those that cost least by the inverse Hessian; the others make up for them
    #[value(name = "sparsegpt")]
    SparseGpt,
    /// Those of least size times input; the others stay as they are
    Wanda,
}

impl ZerosArgs {
    /// What sets weights to 0, where that was asked for.
    pub fn solver(&self) -> Option<Box<dyn Solver>> {
        let sparsity = self.sparsity?;
        Some(match self.sparsity_criterion {
            ZerosBy::SparseGpt => Box::new(SparseGpt { sparsity }),
            ZerosBy::Wanda => Box::new(Wanda { sparsity }),
        })
    }
}

/// `attar convert`.
#[derive(Args, Clone, Debug)]
pub struct ConvertArgs {
    /// A Hugging Face folder, a .gguf file, or any part of one that is split
    pub model: PathBuf,

    /// Where to write: a name ending in .gguf is a GGUF, anything else a folder of safetensors; out of a GGUF into a GGUF every
    /// tensor is copied as it is, quantized ones too
    #[arg(long, short)]
    pub output: PathBuf,

    /// Round floats to this type; a GGUF keeps vectors in f32 [default: floats as they are; what is quantized is decoded to f32, exactly]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<FloatArg>,

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
    /// A Hugging Face folder (float or compressed-tensors), a .gguf file, or any part of one that is split
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
    /// gptq where there are codes to choose
    #[default]
    Auto,
    /// Round to nearest; needs no text, weighs by it where --calib is given
    Rtn,
    /// Round column by column, each error fed back into the columns that are left
    Gptq,
}

impl Method {
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
        }
    }
}

fn parse_type(name: &str) -> Result<GgmlType, String> {
    written_type(name).map_err(|failure| failure.in_one_line())
}

fn parse_scheme(name: &str) -> Result<Scheme, String> {
    name.parse().map_err(|failure: Failure| failure.in_one_line())
}

fn parse_bits(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(bits) if bits > 0.0 && bits <= 32.0 => Ok(bits),
        _ => Err("bits per weight are a number above 0 and up to 32, for example 4.5".to_owned()),
    }
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
