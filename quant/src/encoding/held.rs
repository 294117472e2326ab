//! Codes of one format as codes of another, where that has the same values.

use ndarray::{Array2, Axis};
use rayon::prelude::*;

use super::{Encoding, Fit};
use crate::Error;

/// Why a format cannot take values: a scale it has not.
pub(super) const NO_SCALE: &str = "it has not all their scales";
/// The same of one whose blocks say more than codes and a scale.
pub(super) const OTHERWISE: &str = "its blocks are made up otherwise";

/// That a format cannot take values, and why.
pub(super) fn refused(encoding: &(impl Encoding + ?Sized), reason: &'static str) -> Error {
    Error::NotHeld { encoding: encoding.name(), reason }
}

/// What a format offers a group of weights.
pub(super) struct Room {
    /// Consecutive columns that share a scale.
    pub group_size: usize,
    /// The code of 0; `None` where each group has one of its own.
    pub zero: Option<f32>,
    /// The largest code.
    pub max_code: u8,
    /// What codes stand for, where they are not their own levels.
    pub levels: Option<&'static [f32]>,
}

/// Scale and zero of each group, `[rows, groups]`, and the code of each weight, `[rows, cols]`.
pub(super) struct Moved {
    pub scale: Array2<f32>,
    pub zero: Array2<f32>,
    pub codes: Array2<u8>,
}

impl Room {
    /// The values of `fit` in this room.
    ///
    /// # Errors
    /// Why they are not all there.
    pub fn take(&self, fit: &Fit) -> Result<Moved, &'static str> {
        let (grid, (rows, cols)) = (&fit.grid, fit.codes.dim());
        if grid.min.iter().any(|&min| min != 0.0) {
            return Err("they have minima");
        }
        let unit = self.unit(grid.levels)?;
        let shape = (rows, cols.div_ceil(self.group_size));
        let (mut scale, mut zero) = (Array2::zeros(shape), Array2::zeros(shape));
        let mut codes = Array2::zeros((rows, cols));
        scale
            .axis_iter_mut(Axis(0))
            .into_par_iter()
            .zip(zero.axis_iter_mut(Axis(0)))
            .zip(codes.axis_iter_mut(Axis(0)))
            .enumerate()
            .try_for_each(|(row, ((mut scale, mut zero), mut codes))| {
                for group in 0..shape.1 {
                    let columns = group * self.group_size..cols.min((group + 1) * self.group_size);
                    let first = [row, columns.start / grid.group_size];
                    let own_zero = self.zero.unwrap_or(grid.zero[first]);
                    (scale[group], zero[group]) = (grid.scale[first] * unit, own_zero);
                    for col in columns {
                        let at = [row, col / grid.group_size];
                        if grid.scale[at].to_bits() != grid.scale[first].to_bits() {
                            return Err("their scales change where it has one");
                        }
                        let code = f32::from(fit.codes[[row, col]]) - grid.zero[at] + own_zero;
                        if !(0.0..=f32::from(self.max_code)).contains(&code) {
                            return Err("their codes reach further");
                        }
                        codes[col] = code as u8;
                    }
                }
                Ok(())
            })?;
        Ok(Moved { scale, zero, codes })
    }

    /// What scales are to be multiplied by so that the levels are the same.
    #[expect(clippy::float_cmp, reason = "the same numbers are wanted")]
    fn unit(&self, levels: Option<&[f32]>) -> Result<f32, &'static str> {
        const OTHERS: &str = "their levels are others";
        match (levels, self.levels) {
            (None, None) => Ok(1.0),
            (Some(from), Some(to)) if from.len() == to.len() => {
                let unit = from[0] / to[0];
                let same = from.iter().zip(to).all(|(from, to)| *from == to * unit);
                if same { Ok(unit) } else { Err(OTHERS) }
            }
            _ => Err(OTHERS),
        }
    }
}
