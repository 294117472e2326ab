//! `attar quantize`, as typed.
use std::path::PathBuf;

use attar_checkpoint::GgmlType;
use attar_quant::{Solver, SparseGpt, Sparsity, Wanda};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::{ConventionArg, Layout, Method, PrecisionArg, parse_bytes, parse_scheme};
use crate::mix::Fallback;
use crate::plan::{Correct, written_type};
use crate::scheme::Scheme;

/// Calibration tokens where no number is given.
pub const CALIB_TOKENS: usize = 131_072;

/// `attar quantize`.
#[derive(Args, Clone, Debug)]
pub struct QuantizeArgs {
    /// A Hugging Face folder or a .gguf file of floats, or any part of one that is split; or hf:owner/name
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

    /// The number format: q4_k_m, q6_k, q8_0, ... or w4a16-g128, w4a16-g128-asym, w4a16-channel, fp8, w8a8, nvfp4, ...
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

    /// Then tune scales, norms and (up to 4 bits) codes on N tokens of the calibration text by what the whole model predicts, both models in memory
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

fn parse_type(name: &str) -> Result<GgmlType, String> {
    written_type(name).map_err(|failure| failure.in_one_line())
}

fn parse_bits(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(bits) if bits > 0.0 && bits <= 32.0 => Ok(bits),
        _ => Err("bits per weight are a number above 0 and up to 32, for example 4.5".to_owned()),
    }
}
