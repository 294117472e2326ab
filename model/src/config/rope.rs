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
    /// One factor for each pair of features, `[head_dim / 2]`, as GGUF files carry them.
    Factors(Vec<f32>),
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
    /// What each of the unscaled frequencies is to be divided by.
    pub fn factors(&self, frequencies: &[f32]) -> Vec<f32> {
        match self {
            Self::Linear(factor) => vec![*factor as f32; frequencies.len()],
            Self::Llama3(constants) => {
                frequencies.iter().map(|&f| constants.factor(f.into()) as f32).collect()
            }
            Self::Factors(factors) => factors.clone(),
        }
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<(), Error> {
        let positive = |key: &str, x: f64| {
            if x > 0.0 && x.is_finite() { Ok(()) } else { Err(value(key, x, "a positive number".into())) }
        };
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
            Self::Factors(factors) if factors.len() == head_dim / 2 => {
                factors.iter().try_for_each(|&x| positive("rope_freqs.weight", x.into()))
            }
            Self::Factors(factors) => {
                let found = format!("{} factors", factors.len());
                Err(value(
                    "rope_freqs.weight",
                    found,
                    format!("one factor for each of {} pairs", head_dim / 2),
                ))
            }
        }
    }
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
        assert!(scaling.check(64).is_err_and(|error| error.to_string().contains("high_freq_factor")));
        assert!(RopeScaling::Linear(0.0).check(64).is_err());
        assert!(RopeScaling::Factors(vec![1.0; 3]).check(64).is_err());
        assert!(RopeScaling::Factors(vec![f32::NAN; 32]).check(64).is_err());
        assert!(RopeScaling::Llama3(LLAMA31).check(64).is_ok());
    }
}
