//! `attar prune`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CALIB_TOKENS, ConventionArg, ZerosArgs};
use crate::pipeline::prune::shape::{Amount, parse_parameters};

/// Architectures that a GGUF file may have in place of its model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArchArg {
    /// Llama with layers that differ in size.
    Deci,
}

/// `attar prune`.
#[derive(Args, Clone, Debug)]
pub struct PruneArgs {
    /// A Hugging Face folder or a .gguf file of floats, or hf:owner/name
    pub model: PathBuf,

    /// Where to write: a name ending in .gguf is a GGUF, anything else a folder of safetensors
    #[arg(long, short)]
    pub output: PathBuf,

    /// The shape that stays.
    #[command(flatten)]
    pub shape: ShapeArgs,

    /// Layers that go, counted from 0, for example 3,7
    #[arg(
        long,
        value_name = "LAYERS",
        value_delimiter = ',',
        conflicts_with_all = ["layers", "target_params"],
        help_heading = "What goes"
    )]
    pub drop: Vec<usize>,

    /// Experts of every layer that stay, those that count for most (REAP)
    #[arg(long, value_name = "N", conflicts_with = "target_params", help_heading = "What goes")]
    pub experts: Option<usize>,

    /// Let layers compete: some keep more channels (--ffn) and key heads (--kv-heads) than others, all together as many. Smaller
    /// layers are filled up with zeros to the largest, so that every program loads what is written
    #[arg(long, conflicts_with_all = ["target_params", "sparsity"], help_heading = "What goes")]
    pub across_layers: bool,

    /// What widths are multiples of [default: 256, or the largest smaller power of two that comes close to what is asked for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "What goes")]
    pub align: Option<u32>,

    /// Zeros in the blocks' matrices.
    #[command(flatten)]
    pub zeros: ZerosArgs,

    /// How heads and channels are chosen: second-order, activation, fluctuation, taylor, magnitude
    #[arg(long, value_name = "NAME", default_value = "second-order", conflicts_with = "sparsity")]
    pub criterion: String,

    /// How layers are chosen: loss, block-influence, angular
    #[arg(long, value_name = "NAME", default_value = "loss", conflicts_with = "sparsity")]
    pub depth_criterion: String,

    /// Leave what stays as it is, in place of letting it take over the work of what goes
    #[arg(long)]
    pub no_repair: bool,

    /// Text to calibrate on; may be given more than once [default: a short English text that comes with attar]
    #[arg(long, value_name = "FILE")]
    pub calib: Vec<PathBuf>,

    /// Calibrate on at most this many tokens
    #[arg(long, value_name = "N", default_value_t = CALIB_TOKENS)]
    pub calib_tokens: usize,

    /// Tokens per window [default: 2048 to calibrate, 512 to evaluate, less where the model was made for less]
    #[arg(long, value_name = "N")]
    pub ctx: Option<usize>,

    /// Held-out text on which the written file is compared with the original [default: one that comes with attar]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// Compare on the first N windows of the text only
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,

    /// Which perplexity to report
    #[arg(long, value_enum, default_value_t = ConventionArg::LlamaCpp)]
    pub convention: ConventionArg,

    /// Do not evaluate the written file (it is still reopened and compared with what was computed)
    #[arg(long, conflicts_with_all = ["text", "chunks", "convention"])]
    pub no_eval: bool,

    /// Write a GGUF of this architecture: deci gives every layer its own sizes, in place of zeros (of models that compute as Llama
    /// does)
    #[arg(long, value_enum, requires = "across_layers")]
    pub arch: Option<ArchArg>,

    /// Name for `tokenizer.ggml.pre`, where attar does not recognise the tokenizer's splitting rule
    #[arg(long, value_name = "NAME")]
    pub pre_tokenizer: Option<String>,
}

/// The shape of what stays.
#[derive(Args, Clone, Debug, Default)]
pub struct ShapeArgs {
    /// Layers that stay
    #[arg(long, value_name = "N", help_heading = "What goes")]
    pub layers: Option<usize>,

    /// Channels of every MLP that stay: a share such as 0.75, or a width
    #[arg(long, value_name = "RATIO|WIDTH", help_heading = "What goes")]
    pub ffn: Option<Amount>,

    /// Query heads that stay, of every key head equally many: a share, or a number
    #[arg(long, value_name = "RATIO|N", help_heading = "What goes")]
    pub heads: Option<Amount>,

    /// Key and value heads that stay, with their query heads: a share, or a number
    #[arg(long, value_name = "RATIO|N", help_heading = "What goes")]
    pub kv_heads: Option<Amount>,

    /// Features of the residual stream that stay: a share, or a width
    #[arg(long, value_name = "RATIO|WIDTH", help_heading = "What goes")]
    pub hidden: Option<Amount>,

    /// Parameters that stay: a share such as 0.6, or a number such as 4M; layers, channels and heads are found that keep no more,
    /// by the KL divergence of each shape on a part of the calibration text. --hidden may be given beside it
    #[arg(
        long,
        value_name = "SHARE|N",
        value_parser = parse_parameters,
        conflicts_with_all = ["layers", "ffn", "heads", "kv_heads"],
        help_heading = "What goes"
    )]
    pub target_params: Option<Amount>,
}
