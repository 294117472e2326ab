use std::fmt;
use std::str::FromStr;

/// How many weights become 0, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sparsity {
    /// Of every `of` consecutive weights of a row at most `kept` are not 0: `2:4` is what sparse tensor cores multiply by.
    Pattern {
        /// Weights that stay.
        kept: usize,
        /// Of how many.
        of: usize,
    },
    /// This share of the weights, anywhere.
    Share(f64),
}

/// What cannot be read as a [`Sparsity`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no sparsity\n  hint: write N:M with N below M and M a power of two up to 32, such as 2:4, or a share such as 0.5"
)]
pub struct NoSparsity(String);

impl Sparsity {
    /// Consecutive inputs that are decided on together.
    #[must_use]
    pub fn together(self) -> usize {
        match self {
            Self::Pattern { of, .. } => of,
            Self::Share(_) => 1,
        }
    }

    /// The share of weights that become 0.
    #[must_use]
    pub fn share(self) -> f64 {
        match self {
            Self::Pattern { kept, of } => 1.0 - kept as f64 / of as f64,
            Self::Share(share) => share,
        }
    }
}

impl FromStr for Sparsity {
    type Err = NoSparsity;

    fn from_str(text: &str) -> Result<Self, NoSparsity> {
        let refused = || NoSparsity(text.to_owned());
        if let Some((kept, of)) = text.split_once(':') {
            let [kept, of] = [kept, of].map(str::parse::<usize>);
            let (kept, of) = (kept.map_err(|_| refused())?, of.map_err(|_| refused())?);
            let fits = of.is_power_of_two() && of <= 32 && (1..of).contains(&kept);
            return if fits { Ok(Self::Pattern { kept, of }) } else { Err(refused()) };
        }
        let share: f64 = text.parse().map_err(|_| refused())?;
        if share > 0.0 && share < 1.0 { Ok(Self::Share(share)) } else { Err(refused()) }
    }
}

impl fmt::Display for Sparsity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern { kept, of } => write!(f, "{kept}:{of}"),
            Self::Share(share) => write!(f, "{share}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_shares_are_read_and_written_alike_and_nothing_else_is() {
        for text in ["2:4", "4:8", "1:2", "0.5", "0.75"] {
            assert_eq!(text.parse::<Sparsity>().map(|sparsity| sparsity.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "4:4", "0:4", "2:3", "3:64", "1", "0", "-0.5", "nan", "2:4:8"] {
            assert!(text.parse::<Sparsity>().is_err(), "{text}");
        }
        assert!("1:4".parse::<Sparsity>().is_ok_and(|sparsity| (sparsity.share() - 0.75).abs() < 1e-12));
    }
}
