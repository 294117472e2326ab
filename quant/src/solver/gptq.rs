use ndarray::ArrayView2;

use super::descent::descend;
use super::feedback::round_with_feedback;
use super::refit::refit;
use super::{DeviceGptq, Judge, Solution, Solver, check, round_to_nearest, with_feedback};
use crate::{Error, Factor, Fit, GridEncoding};

/// Error feedback: column by column, what rounding one input's weights loses is made up for by the inputs not yet rounded.
///
/// Scales are searched for the importance of the columns, rounded to what the file stores, and stay during the pass; so columns
/// can be taken in the order of falling diagonal in any format, and no order need be stored.
///
/// Where the Hessian cannot be factored, or feedback leaves more error than it found, the codes are those of
/// [`Rtn`](super::Rtn) and [`Facts::fallback`](super::Facts::fallback) says why.
///
/// # Source
/// Frantar et al., "GPTQ", arXiv:2210.17323, Algorithm 1, with static groups and activation order, then `sweeps` rounds of
/// coordinate descent on the same objective. A column whose input is always 0 is rounded to nearest rather than set to 0: on
/// the calibration text neither costs anything, on another text only the second can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gptq {
    /// Rounds of coordinate descent after the pass; each costs about two passes and ends early where no code changes.
    pub sweeps: u32,
    /// Rounds of fitting scales to the codes and codes to the scales after that, where few enough weights share a scale;
    /// each costs about as much as the sweeps. None without sweeps.
    pub refits: u32,
}

impl Gptq {
    /// Feedback, two sweeps and two refits: what later ones add is within noise.
    pub const DEFAULT: Self = Self { sweeps: 2, refits: 2 };
}

impl Default for Gptq {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Solver for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }

    fn needs_statistics(&self) -> bool {
        true
    }

    fn on_device(&self) -> Option<DeviceGptq> {
        Some(DeviceGptq { sweeps: self.sweeps })
    }

    fn solve(
        &self,
        w: ArrayView2<'_, f32>,
        factor: Option<&Factor<'_>>,
        encoding: &dyn GridEncoding,
    ) -> Result<Solution, Error> {
        let Some(factor) = factor else {
            return Err(Error::NoStatistics { solver: self.name() });
        };
        check(w, Some(factor), encoding)?;
        let judge = Judge::new(w, Some(factor));
        let rtn = round_to_nearest(w, Some(factor), encoding, &judge);
        Ok(with_feedback(&judge, factor, encoding, rtn, |feedback, grid| {
            let codebook = encoding.codebook();
            let codes = round_with_feedback(w, feedback, &grid, codebook).codes;
            if self.sweeps == 0 {
                return Fit { grid, codes };
            }
            let metric = factor.metric(feedback);
            let codes = descend(w, codes, &metric, &grid, codebook, self.sweeps);
            refit(w, Fit { grid, codes }, &metric, encoding, (self.refits, self.sweeps))
        }))
    }
}
