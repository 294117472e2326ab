//! What `attar distill` is told.

use std::path::PathBuf;

use attar_distill::LayerMap;
use clap::{Args, ValueEnum};

use super::{PrecisionArg, ShapeArgs, parse_scheme};
use crate::data::DataFile;
use crate::scheme::Scheme;

/// `attar distill`.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct DistillArgs {
    /// What is to be learned from: a model, or a folder that attar eval --save-reference made of one (then of its text)
    #[arg(long, value_name = "MODEL|CACHE")]
    pub teacher: PathBuf,

    /// The model that learns, with the teacher's vocabulary: a pruned one or a smaller sibling
    #[arg(
        long,
        value_name = "MODEL",
        required_unless_present = "init_from_teacher",
        conflicts_with_all = ["init_from_teacher", "ShapeArgs"]
    )]
    pub student: Option<PathBuf>,

    /// Where to write the student: a name ending in .gguf is a GGUF, anything else a folder of safetensors
    #[arg(long, short)]
    pub output: PathBuf,

    /// Text to learn from, plain or JSON lines (.jsonl) with a `text` or, for the chat template, `messages` each; may be
    /// given more than once, with a weight: FILE=2
    #[arg(long, value_name = "FILE[=WEIGHT]")]
    pub data: Vec<DataFile>,

    /// Learn from about this many tokens, the data over and over if need be [default: the data once]
    #[arg(long, value_name = "N")]
    pub tokens: Option<u64>,

    /// Tokens per window [default: 512, less where a model was made for less; a teacher cache's own]
    #[arg(long, value_name = "N")]
    pub ctx: Option<usize>,

    /// Windows per step
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: u16,

    /// What is minimised: the divergence of the student's predictions from the teacher's
    #[arg(long, value_enum, default_value_t = LossArg::ForwardKl)]
    pub loss: LossArg,

    /// What the teacher counts in the mixture of --loss jsd, between 0 (as forward-kl) and 1 (as reverse-kl)
    #[arg(long, value_name = "B", default_value_t = 0.5, value_parser = parse_open_share)]
    pub beta: f64,

    /// Divide logits of both by this
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = parse_positive)]
    pub temperature: f64,

    /// The share of cross-entropy with the text itself, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    pub cross_entropy: f64,

    /// Add the error of the residual stream after the student's layers, relative to the teacher's, times this
    #[arg(long, value_name = "WEIGHT", group = "by_layer", value_parser = parse_positive)]
    pub hidden_loss: Option<f64>,

    /// Teach one layer after another instead, each to turn the student's stream into the teacher's: one layer in memory at a time,
    /// --tokens for each
    #[arg(long, group = "by_layer", conflicts_with_all = ["loss", "beta", "temperature", "cross_entropy", "scheme"])]
    pub local: bool,

    /// Which layer of the teacher each layer of the student is compared with, counted from 0: 0:1,1:3
    /// [default: all, each as far as the teacher's layers reach that a cut left it the work of; evenly spread where it is no cut of the
    /// teacher, or has learned since]
    #[arg(long, value_name = "STUDENT:TEACHER,...", requires = "by_layer", value_parser = parse_layer_map)]
    pub layer_map: Option<LayerMap>,

    /// The highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 3e-4, value_parser = parse_positive)]
    pub learning_rate: f64,

    /// How the learning rate falls, to a tenth
    #[arg(long, value_enum, default_value_t = DecayArg::Cosine)]
    pub decay: DecayArg,

    /// Steps in which the learning rate rises [default: a twentieth of all, at most 100]
    #[arg(long, value_name = "STEPS")]
    pub warmup: Option<u64>,

    /// How much of a matrix is taken away per step and unit of learning rate
    #[arg(long, value_name = "X", default_value_t = 0.01, value_parser = parse_not_negative)]
    pub weight_decay: f64,

    /// Make gradients of a larger norm as small as this
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = parse_positive)]
    pub clip: f64,

    /// Decides the order in which windows are seen
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// The share of the data that is never learned from and scored on the way, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = parse_share)]
    pub held_out: f64,

    /// What the factors of matrix products are rounded to while learning; weights are f32
    #[arg(long, value_enum, default_value_t = PrecisionArg::F32)]
    pub precision: PrecisionArg,

    /// Let the student see its weights as this scheme stores them, and write it so: q4_k_m, w4a16-g64, ...
    #[arg(long, value_parser = parse_scheme)]
    pub scheme: Option<Scheme>,

    /// Keep the run every so many minutes in the folder OUTPUT.training
    #[arg(long, value_name = "MINUTES", default_value_t = 10.0, value_parser = parse_not_negative)]
    pub save_every: f64,

    /// Go on with the run that OUTPUT.training keeps: the result is that of a run never interrupted, to the bit
    #[arg(long)]
    pub resume: bool,

    /// Write every step into this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// Held-out text on which the written student is compared with the teacher [default: one that comes with attar]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// Compare on the first N windows of the text only
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,

    /// Do not evaluate the written student
    #[arg(long, conflicts_with_all = ["text", "chunks"])]
    pub no_eval: bool,

    /// Cut the student out of the teacher first, in place of --student: to the shape that is named, as attar prune does where it is
    /// told no more
    #[arg(long, requires = "ShapeArgs", help_heading = "What goes")]
    pub init_from_teacher: bool,

    /// The shape that stays.
    #[command(flatten)]
    pub shape: ShapeArgs,

    /// Plain text by which the student is cut; may be given more than once [default: that of --data]
    #[arg(long, value_name = "FILE", requires = "init_from_teacher", help_heading = "What goes")]
    pub calib: Vec<PathBuf>,
}

/// What a student minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossArg {
    /// KL(teacher || student): cover all that the teacher finds possible
    ForwardKl,
    /// KL(student || teacher): say nothing that the teacher finds impossible
    ReverseKl,
    /// Generalised Jensen-Shannon divergence, between the two
    Jsd,
}

/// How a learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DecayArg {
    /// As half a cosine
    Cosine,
    /// On a straight line in the last fifth of the steps
    Wsd,
    /// Not at all
    Constant,
}

impl LossArg {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::ForwardKl => "forward-kl",
            Self::ReverseKl => "reverse-kl",
            Self::Jsd => "jsd",
        }
    }
}

fn number(text: &str, what: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    let number = text.parse().ok().filter(|&x: &f64| x.is_finite() && fits(x));
    number.ok_or_else(|| format!("it must be {what}"))
}

fn parse_positive(text: &str) -> Result<f64, String> {
    number(text, "a number above 0", |x| x > 0.0)
}

fn parse_not_negative(text: &str) -> Result<f64, String> {
    number(text, "a number not below 0", |x| x >= 0.0)
}

fn parse_share(text: &str) -> Result<f64, String> {
    number(text, "a share from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

fn parse_layer_map(text: &str) -> Result<LayerMap, String> {
    let pair = |pair: &str| {
        let (student, teacher) = pair.split_once(':')?;
        Some((student.trim().parse().ok()?, teacher.trim().parse().ok()?))
    };
    let pairs = text.split(',').map(|text| {
        pair(text)
            .ok_or_else(|| format!("`{text}` is not a student's layer, a colon and a teacher's: 0:1,1:3"))
    });
    LayerMap::new(pairs.collect::<Result<Vec<_>, _>>()?).map_err(|error| error.to_string())
}

fn parse_open_share(text: &str) -> Result<f64, String> {
    number(text, "between 0 and 1; at its ends are forward-kl and reverse-kl", |x| x > 0.0 && x < 1.0)
}
