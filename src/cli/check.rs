//! `attar check`, as typed.

use std::path::PathBuf;

use attar_eval::gate::Limits;
use clap::Args;

use super::{ConventionArg, EvalArgs, PrecisionArg, parse_bytes};
use crate::pipeline::teacher::SaveAs;
use attar_model::teacher::Signal;

/// `attar check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The model to check: a folder or a .gguf file
    #[arg(required_unless_present = "config")]
    pub model: Option<PathBuf>,

    /// A TOML file with a table `[check]`: its keys are these options, its paths start from its folder; what is given here as well
    /// counts instead
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What the model scored before: a report, written by --update-baseline or by attar eval --json. Where no text and no reference
    /// is named, those of the baseline are taken
    #[arg(long, value_name = "FILE.json")]
    pub baseline: Option<PathBuf>,

    /// Write what the model scores now to --baseline, and pass
    #[arg(long, conflicts_with_all = ["junit", "markdown"])]
    pub update_baseline: bool,

    /// The text to score; may be given more than once [default: those of the baseline, or one that comes with attar]
    #[arg(long, value_name = "FILE")]
    pub text: Vec<PathBuf>,

    /// Questions to answer, as attar eval --task has them; may be given more than once [default: those of the baseline]
    #[arg(long, value_name = "FILE")]
    pub task: Vec<PathBuf>,

    /// Answer the first N items of each task only
    #[arg(long, value_name = "N", requires = "task", value_parser = clap::value_parser!(u32).range(1..))]
    pub items: Option<u32>,

    /// Tokens per window [default: as in the baseline, or 512, less where the model was made for less]
    #[arg(long, value_name = "N")]
    pub ctx: Option<usize>,

    /// Score the first N windows of each text only
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,

    /// Which perplexity to take [default: as in the baseline, or llama.cpp]
    #[arg(long, value_enum)]
    pub convention: Option<ConventionArg>,

    /// The original, to measure KL divergence and agreement against: a model or what was kept of one
    #[arg(long, value_name = "MODEL|CACHE|FILE")]
    pub reference: Option<PathBuf>,

    /// What matrices are multiplied in [default: f32]
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,

    /// What passes and what fails.
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Write the limits and what became of them as JUnit XML
    #[arg(long, value_name = "FILE.xml", help_heading = "For CI")]
    pub junit: Option<PathBuf>,

    /// Write a short report in Markdown, for a pull request
    #[arg(long, value_name = "FILE.md", help_heading = "For CI")]
    pub markdown: Option<PathBuf>,
}

/// Limits; a share is written as 1% or 0.01.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Perplexity may rise by this share above the baseline's, or without one the reference's [default, if no limit is given and there
    /// is a baseline: 1%]
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub max_perplexity_increase: Option<f64>,

    /// Mean KL divergence may rise by this share above the baseline's [default, likewise: 25%]
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    pub max_kl_increase: Option<f64>,

    /// Mean KL divergence from the reference may be so many nats at most
    #[arg(long, value_name = "NATS", value_parser = parse_nats)]
    pub max_kl: Option<f64>,

    /// 99 of 100 tokens may diverge by so many nats at most
    #[arg(long, value_name = "NATS", value_parser = parse_nats)]
    pub max_kl_p99: Option<f64>,

    /// Reference and model have to put the same token first in so many places at least
    #[arg(long, value_name = "SHARE", value_parser = parse_part)]
    pub min_top1: Option<f64>,

    /// The model's files may be so large at most, for example 5GB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub max_bytes: Option<u64>,

    /// Accuracy of each task may fall by so much: 2% is from 60% to 58%
    #[arg(long, value_name = "SHARE", value_parser = parse_part)]
    pub max_accuracy_drop: Option<f64>,

    /// Accuracy of each task has to be so high at least
    #[arg(long, value_name = "SHARE", value_parser = parse_part)]
    pub min_accuracy: Option<f64>,
}

impl LimitArgs {
    /// What is given here, and where nothing is what is given there.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            max_perplexity_increase: self.max_perplexity_increase.or(other.max_perplexity_increase),
            max_kl_increase: self.max_kl_increase.or(other.max_kl_increase),
            max_kl: self.max_kl.or(other.max_kl),
            max_kl_p99: self.max_kl_p99.or(other.max_kl_p99),
            min_top1: self.min_top1.or(other.min_top1),
            max_bytes: self.max_bytes.or(other.max_bytes),
            max_accuracy_drop: self.max_accuracy_drop.or(other.max_accuracy_drop),
            min_accuracy: self.min_accuracy.or(other.min_accuracy),
        }
    }
}

impl From<LimitArgs> for Limits {
    fn from(args: LimitArgs) -> Self {
        let LimitArgs {
            max_perplexity_increase,
            max_kl_increase,
            max_kl,
            max_kl_p99,
            min_top1,
            max_bytes,
            max_accuracy_drop,
            min_accuracy,
        } = args;
        Self {
            max_perplexity_increase,
            max_kl_increase,
            max_kl,
            max_kl_p99,
            min_top1,
            max_bytes,
            max_accuracy_drop,
            min_accuracy,
        }
    }
}

impl CheckArgs {
    /// What is measured before anything is judged.
    pub fn eval(&self, model: PathBuf) -> EvalArgs {
        EvalArgs {
            model,
            text: self.text.clone(),
            task: self.task.clone(),
            items: self.items,
            ctx: self.ctx,
            chunks: self.chunks,
            convention: self.convention.unwrap_or(ConventionArg::LlamaCpp),
            reference: self.reference.clone(),
            save_reference: None,
            save_as: SaveAs::Cache(Signal::HiddenF32),
            precision: self.precision.unwrap_or_default(),
        }
    }
}

/// `1%` or `0.01`; a share above the whole is written with its %, since 5 may have been meant to be one.
fn parse_share(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent.trim(), 100.0),
        None => (text.trim(), 1.0),
    };
    let number = number.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    match number {
        Some(number) if scale > 1.0 || number <= 1.0 => Ok(number / scale),
        Some(number) => Err(format!("a share is written as 1% or as 0.01: is {number}% meant?")),
        None => Err("a share is written as 1% or as 0.01".to_owned()),
    }
}

/// The same of a whole.
fn parse_part(text: &str) -> Result<f64, String> {
    let share = parse_share(text)?;
    if share <= 1.0 { Ok(share) } else { Err("more than 100 % there is not".to_owned()) }
}

/// A divergence.
fn parse_nats(text: &str) -> Result<f64, String> {
    let nats = text.trim().parse::<f64>().ok().filter(|nats| nats.is_finite() && *nats >= 0.0);
    nats.ok_or_else(|| "a divergence is a number of nats, for example 0.02".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_written_in_either_way() {
        for (text, share) in
            [("1%", 0.01), ("0.01", 0.01), ("2.5 %", 0.025), ("0", 0.0), ("150%", 1.5), ("1", 1.0)]
        {
            assert!(parse_share(text).is_ok_and(|found| (found - share).abs() < 1e-12), "{text}");
        }
        for text in ["", "%", "-1%", "inf", "one", "5"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
        assert!(parse_part("99%").is_ok() && parse_part("99").is_err() && parse_part("101%").is_err());
    }
}
