//! `attar imatrix`.

use std::path::PathBuf;

use clap::Args;

use super::PrecisionArg;
use crate::data::DataFile;

/// `attar imatrix`.
#[derive(Args, Clone, Debug)]
pub struct ImatrixArgs {
    /// A Hugging Face folder or a .gguf file of floats, or hf:owner/name
    #[arg(required_unless_present = "merge")]
    pub model: Option<PathBuf>,

    /// Where to write: a name ending in .dat gets the old layout, any other GGUF
    #[arg(long, short)]
    pub output: PathBuf,

    /// Text to run, or JSON lines of texts and conversations (.jsonl), which the tokenizer's chat template writes out; may be given
    /// more than once, and with =WEIGHT its tokens count so many times [default: a short English text that comes with attar]
    #[arg(long, value_name = "FILE[=WEIGHT]", requires = "model")]
    pub text: Vec<DataFile>,

    /// Importance matrices to add, GGUF or .dat, of attar or llama-imatrix; without a MODEL they are only put together
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub merge: Vec<PathBuf>,

    /// Tokens per chunk [default: 512 as in llama-imatrix, less where the model was made for less]; also of a .dat that is merged, which
    /// does not tell
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..))]
    pub ctx: Option<u32>,

    /// Run the first N chunks of each text only
    #[arg(long, value_name = "N", requires = "model")]
    pub chunks: Option<usize>,

    /// An entry for the head too, where it has a matrix of its own
    #[arg(long, requires = "model")]
    pub process_output: bool,

    /// Read control tokens that are spelled out in a text as such
    #[arg(long, requires = "model")]
    pub parse_special: bool,

    /// What matrices are multiplied in
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    pub precision: PrecisionArg,
}
