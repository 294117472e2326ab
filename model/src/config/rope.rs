//! Changes to the rotary frequencies that let a model read longer texts.

use super::value;
use crate::Error;
use std::f64::consts::TAU;

/// How a model changes its rotary frequencies. Every kind divides each frequency by a factor.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// All frequencies divided by one factor.
    Linear(f64),
    /// Llama 3.1's: low frequencies divided, high ones kept, those between blended.
    Llama3(Llama3Scaling),
    /// One factor for each pair of features, `[rotary_dim / 2]`, as GGUF files carry them.
    Factors(Vec<f32>),
    /// Phi-3's: one set of factors for short windows, another for long ones.
    LongRope(LongRope),
}

/// Factors that depend on how long a window is.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Factors for windows of up to `original_max_position_embeddings` tokens, `[rotary_dim / 2]`.
    pub short_factor: Vec<f32>,
    /// Factors for longer windows, `[rotary_dim / 2]`.
    pub long_factor: Vec<f32>,
    /// Tokens of the context the model was first trained on.
    pub original_max_position_embeddings: usize,
    /// What turned features are multiplied by, in windows of any length.
    pub attention_factor: f32,
}

impl LongRope {
    /// The attention factor that goes with a context made `factor` times as long.
    ///
    /// # Source
    /// Ding et al., "`LongRoPE`", arXiv:2402.13753, as Phi-3 uses it.
    pub fn attention_factor(factor: f64, original_max_position_embeddings: usize) -> f32 {
        if factor <= 1.0 {
            return 1.0;
        }
        (1.0 + factor.ln() / (original_max_position_embeddings as f64).ln()).sqrt() as f32
    }
}

/// The constants of Llama 3.1's scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// What low frequencies are divided by.
    pub factor: f64,
    /// Frequencies that turn fewer times than this within the original context are low.
    pub low_freq_factor: f64,
    /// Frequencies that turn more often than this within the original context are high.
    pub high_freq_factor: f64,
    /// Tokens of the context the model was first trained on.
    pub original_max_position_embeddings: f64,
}

impl RopeScaling {
    /// What each of the unscaled frequencies is to be divided by in windows of `ctx` tokens.
    pub fn factors(&self, frequencies: &[f32], ctx: usize) -> Vec<f32> {
        match self {
            Self::Linear(factor) => vec![*factor as f32; frequencies.len()],
            Self::Llama3(constants) => {
                frequencies.iter().map(|&f| constants.factor(f.into()) as f32).collect()
            }
            Self::Factors(factors) => factors.clone(),
            Self::LongRope(long) if ctx > long.original_max_position_embeddings => long.long_factor.clone(),
            Self::LongRope(long) => long.short_factor.clone(),
        }
    }

    /// Refuses constants that make no sense and lists of another length than `pairs`.
    pub(super) fn check(&self, pairs: usize) -> Result<(), Error> {
        match self {
            Self::Linear(factor) => positive("factor", *factor),
            Self::Llama3(c) => {
                positive("factor", c.factor)?;
                positive("low_freq_factor", c.low_freq_factor)?;
                positive("original_max_position_embeddings", c.original_max_position_embeddings)?;
                if c.high_freq_factor > c.low_freq_factor && c.high_freq_factor.is_finite() {
                    return Ok(());
                }
                let expected = format!("more than low_freq_factor {}", c.low_freq_factor);
                Err(value("high_freq_factor", c.high_freq_factor, expected))
            }
            Self::Factors(factors) => all_positive("rope_freqs.weight", factors, pairs),
            Self::LongRope(long) => {
                all_positive("short_factor", &long.short_factor, pairs)?;
                all_positive("long_factor", &long.long_factor, pairs)?;
                positive("attention_factor", long.attention_factor.into())
            }
        }
    }
}

fn positive(key: &str, x: f64) -> Result<(), Error> {
    if x > 0.0 && x.is_finite() { Ok(()) } else { Err(value(key, x, "a positive number".into())) }
}

fn all_positive(key: &str, factors: &[f32], pairs: usize) -> Result<(), Error> {
    if factors.len() == pairs {
        return factors.iter().try_for_each(|&x| positive(key, x.into()));
    }
    let found = format!("{} factors", factors.len());
    Err(value(key, found, format!("one factor for each of {pairs} pairs")))
}

impl Llama3Scaling {
    fn factor(&self, frequency: f64) -> f64 {
        let turns = self.original_max_position_embeddings * frequency / TAU;
        if turns < self.low_freq_factor {
            self.factor
        } else if turns > self.high_freq_factor {
            1.0
        } else {
            let kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            ((1.0 - kept) / self.factor + kept).recip()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA31: Llama3Scaling = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };

    #[test]
    fn high_frequencies_are_kept_low_ones_divided_and_the_blend_is_continuous() {
        let frequency = |turns: f64| turns * TAU / 8192.0;
        let near = |turns: f64, factor: f64| (LLAMA31.factor(frequency(turns)) - factor).abs() < 1e-6;
        assert!(near(0.5, 8.0) && near(1.0 + 1e-9, 8.0) && near(4.0 - 1e-9, 1.0) && near(100.0, 1.0));
        assert!(near(2.5, 1.0 / (0.5 / 8.0 + 0.5)));
    }

    #[test]
    fn constants_that_make_no_sense_are_refused() {
        let scaling = RopeScaling::Llama3(Llama3Scaling { high_freq_factor: 1.0, ..LLAMA31 });
        assert!(scaling.check(32).is_err_and(|error| error.to_string().contains("high_freq_factor")));
        assert!(RopeScaling::Linear(0.0).check(32).is_err());
        assert!(RopeScaling::Factors(vec![1.0; 3]).check(32).is_err());
        assert!(RopeScaling::Factors(vec![f32::NAN; 32]).check(32).is_err());
        assert!(RopeScaling::Llama3(LLAMA31).check(32).is_ok());
        let long = LongRope {
            short_factor: vec![1.0; 32],
            long_factor: vec![2.0; 31],
            original_max_position_embeddings: 4096,
            attention_factor: 1.2,
        };
        let short_list = RopeScaling::LongRope(long).check(32);
        assert!(short_list.is_err_and(|error| error.to_string().starts_with("`long_factor` is 31 factors")));
    }

    #[test]
    fn an_attention_factor_grows_with_the_context_from_one_on() {
        assert!((LongRope::attention_factor(1.0, 4096) - 1.0).abs() < f32::EPSILON);
        assert!((LongRope::attention_factor(32.0, 4096) - 1.190_238).abs() < 1e-6);
    }
}
