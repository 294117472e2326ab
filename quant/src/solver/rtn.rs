use ndarray::ArrayView2;

use super::{Judge, Solution, Solver, check, round_to_nearest};
use crate::{Detail, Error, Factor, GridEncoding};

/// Each weight to the nearest value of its block, the block's scales searched for the importance of the columns where there
/// are statistics: what `llama-quantize` does, with `--imatrix` or without, and the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtn;

impl Solver for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }

    fn needs_statistics(&self) -> bool {
        false
    }

    fn reads(&self) -> Detail {
        Detail::Squares
    }

    fn solve(
        &self,
        w: ArrayView2<'_, f32>,
        factor: Option<&Factor<'_>>,
        encoding: &dyn GridEncoding,
    ) -> Result<Solution, Error> {
        check(w, factor, encoding)?;
        Ok(round_to_nearest(w, factor, encoding, &Judge::new(w, factor)))
    }
}
