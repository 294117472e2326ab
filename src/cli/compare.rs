//! `attar compare`, as typed.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::{CALIB_TOKENS, ConventionArg, Method, PrecisionArg};
use crate::diagnostic::Failure;
use crate::scheme::Scheme;

/// `attar compare`.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// A Hugging Face folder or a .gguf file of floats, or hf:owner/name
    pub model: PathBuf,

    /// Schemes to make, with commas between them; a method may follow a scheme: q4_k_m,q4_0:rtn,w4a16-g64
    #[arg(
        long,
        value_name = "SCHEME[:METHOD],...",
        value_delimiter = ',',
        required_unless_present = "files"
    )]
    pub schemes: Vec<Contender>,

    /// Files and folders that are there already, of whatever program, to be measured beside
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    pub files: Vec<PathBuf>,

    /// The folder for what is made, the page (report.html), the table and the plots. What an interrupted comparison left there is gone on with
    #[arg(long, short)]
    pub output: PathBuf,

    /// Whether the calibration text is run through the model once, for all outputs, or for each output through its own quantized
    /// layers, as attar quantize does
    #[arg(long, value_enum, default_value_t = Calibrate::Once)]
    pub calibrate: Calibrate,

    /// Text to calibrate on; may be given more than once [default: a short English text that comes with attar]
    #[arg(long, value_name = "FILE")]
    pub calib: Vec<PathBuf>,

    /// Calibrate on at most this many tokens
    #[arg(long, value_name = "N", default_value_t = CALIB_TOKENS)]
    pub calib_tokens: usize,

    /// Draw the windows to calibrate on from all over the texts, by this seed [default: the first windows of each text]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Held-out text to compare on [default: one that comes with attar]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// Tokens per window [default: 2048 to calibrate, 512 to evaluate, less where the model was made for less]
    #[arg(long, value_name = "N")]
    pub ctx: Option<usize>,

    /// Compare on the first N windows of the text only
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,

    /// Which perplexity to report
    #[arg(long, value_enum, default_value_t = ConventionArg::LlamaCpp)]
    pub convention: ConventionArg,

    /// What matrices are multiplied in, to calibrate and to evaluate
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    pub precision: PrecisionArg,
}

/// How often the calibration text is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Calibrate {
    /// Once, through the layers as they are
    #[default]
    Once,
    /// For each output, through its own layers
    Each,
}

/// One scheme, and how its codes are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Contender {
    /// The scheme.
    pub scheme: Scheme,
    /// The method, where it was named.
    pub method: Option<Method>,
}

impl Contender {
    /// What its output is called after.
    pub fn name(&self) -> String {
        let method = self.method.map(|method| format!("-{}", method.name()));
        format!("{}{}", self.scheme.name(), method.unwrap_or_default())
    }
}

fn method_named(name: &str) -> Result<Method, String> {
    Method::from_str(name, true).map_err(|_| {
        let known = Method::value_variants().iter().filter_map(Method::to_possible_value);
        let known: Vec<_> = known.map(|method| method.get_name().to_owned()).collect();
        format!("there is no method `{name}`, only {}", known.join(", "))
    })
}

impl FromStr for Contender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, method) = match text.split_once(':') {
            Some((scheme, method)) => (scheme, Some(method_named(method.trim())?)),
            None => (text, None),
        };
        let scheme = scheme.trim().parse().map_err(|failure: Failure| failure.in_one_line())?;
        Ok(Self { scheme, method })
    }
}
