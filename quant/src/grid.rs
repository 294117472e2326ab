use attar_tensor::cuda::{self, Cuda, CudaError};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis, Zip};

use crate::lanes::nearest;

/// The values each weight of one matrix may take: `scale * (level - zero) - min`, in f32 and in that
/// order of operations, one triple per row and group of columns. The level is the code itself, or what a table holds for it.
///
/// Scales are already rounded to what the file stores, so the error a solver minimises is the error
/// the reader of the file gets, to the last bit.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Distance of neighbouring values, `[rows, groups]`; may be negative.
    pub scale: Array2<f32>,
    /// The code that decodes to `-min`, integer valued, `[rows, groups]`.
    pub zero: Array2<f32>,
    /// What is subtracted at the end, `[rows, groups]`.
    pub min: Array2<f32>,
    /// Consecutive columns that share one triple.
    pub group_size: usize,
    /// The largest code.
    pub max_code: u8,
    /// What the codes stand for, rising, `max_code + 1` of them; `None` where each is its own level.
    pub levels: Option<&'static [f32]>,
    /// The scales as the encoding stores them, block after block; only the encoding reads it.
    pub header: Vec<u8>,
}

impl Grid {
    /// The value of one code.
    #[must_use]
    pub fn decode(&self, row: usize, col: usize, code: u8) -> f32 {
        let at = [row, col / self.group_size];
        decode_one(self.level(code), self.scale[at], self.zero[at], self.min[at])
    }

    /// The code whose value is nearest to `x`.
    #[must_use]
    pub fn encode(&self, row: usize, col: usize, x: f32) -> u8 {
        let at = [row, col / self.group_size];
        let (scale, zero, min) = (self.scale[at], self.zero[at], self.min[at]);
        match self.levels {
            None => encode_one(x, scale, zero, min, f32::from(self.max_code)),
            Some(levels) => encode_level(x, scale, zero, min, levels),
        }
    }

    /// The nearest code of every weight: `w` is `[rows, cols]`, and so are the codes.
    ///
    /// # Panics
    /// Where `w` has other rows or another number of groups than the grid.
    #[must_use]
    pub fn round(&self, w: ArrayView2<'_, f32>) -> Array2<u8> {
        self.assert_fits(w.dim());
        let max_code = f32::from(self.max_code);
        let mut codes = Array2::zeros(w.dim());
        match self.levels {
            None => {
                self.each_row(w, &mut codes, |x, scale, zero, min| encode_one(x, scale, zero, min, max_code));
            }
            Some(levels) => {
                self.each_row(w, &mut codes, |x, scale, zero, min| encode_level(x, scale, zero, min, levels));
            }
        }
        codes
    }

    /// The values of all codes, `[rows, cols]`.
    ///
    /// # Panics
    /// Where `codes` has other rows or another number of groups than the grid.
    #[must_use]
    pub fn decode_all(&self, codes: ArrayView2<'_, u8>) -> Array2<f32> {
        self.assert_fits(codes.dim());
        let mut decoded = Array2::zeros(codes.dim());
        let by = |code, scale, zero, min| decode_one(f32::from(code), scale, zero, min);
        match self.levels {
            None => self.each_row(codes, &mut decoded, by),
            Some(levels) => self.each_row(codes, &mut decoded, |code: u8, scale, zero, min| {
                decode_one(levels[usize::from(code)], scale, zero, min)
            }),
        }
        decoded
    }

    /// Adds the rows of another grid of the same columns below its own.
    ///
    /// # Panics
    /// Where it is of other columns.
    pub fn append(&mut self, below: &Self) {
        for (own, below) in
            [(&mut self.scale, &below.scale), (&mut self.zero, &below.zero), (&mut self.min, &below.min)]
        {
            own.append(Axis(0), below.view()).expect("grids of the same columns");
        }
        self.header.extend_from_slice(&below.header);
    }

    fn level(&self, code: u8) -> f32 {
        self.levels.map_or(f32::from(code), |levels| levels[usize::from(code)])
    }

    /// A copy on a device.
    ///
    /// # Errors
    /// If its memory is short.
    ///
    /// # Panics
    /// Where codes are not their own levels: devices know no others.
    pub fn upload(&self, cuda: &Cuda) -> Result<cuda::Grid, CudaError> {
        assert!(self.levels.is_none(), "no device kernel reads a table of levels");
        Ok(cuda::Grid {
            scale: cuda.upload(self.scale.view())?,
            zero: cuda.upload(self.zero.view())?,
            min: cuda.upload(self.min.view())?,
            group_size: self.group_size,
            max_code: self.max_code,
        })
    }

    fn each_row<A: Copy + Sync, B: Send>(
        &self,
        from: ArrayView2<'_, A>,
        to: &mut Array2<B>,
        f: impl Fn(A, f32, f32, f32) -> B + Sync,
    ) {
        Zip::indexed(to.rows_mut()).and(from.rows()).par_for_each(|row, to, from: ArrayView1<'_, A>| {
            let (to, from) = (to.into_slice().expect("standard layout"), from.as_standard_layout());
            let from = from.as_slice().expect("standard layout");
            let groups = to.chunks_mut(self.group_size).zip(from.chunks(self.group_size));
            for (group, (to, from)) in groups.enumerate() {
                let at = [row, group];
                let (scale, zero, min) = (self.scale[at], self.zero[at], self.min[at]);
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = f(from, scale, zero, min));
            }
        });
    }

    fn assert_fits(&self, (rows, cols): (usize, usize)) {
        let groups = cols.div_ceil(self.group_size);
        assert_eq!(self.scale.dim(), (rows, groups), "the grid is for another shape than [{rows}, {cols}]");
    }
}

/// The value of a level; no fused operation, as the files' readers compute it.
#[inline]
pub(crate) fn decode_one(level: f32, scale: f32, zero: f32, min: f32) -> f32 {
    scale * (level - zero) - min
}

/// The nearest code; a grid of one value (scale 0) takes the code that decodes to `-min`.
#[inline]
pub(crate) fn encode_one(x: f32, scale: f32, zero: f32, min: f32, max_code: f32) -> u8 {
    let steps = if scale == 0.0 { 0.0 } else { (x + min) / scale };
    // Bounded before it becomes an integer: the bounds are integers, so the nearest code is the same.
    (nearest(steps.max(-zero).min(max_code - zero)) + nearest(zero)) as u8
}

/// So many levels are all looked at, side by side; in more the place is searched for by halves.
const FEW: usize = 16;

/// The code of the nearest of `levels`, the upper one where two are as near.
#[inline]
pub(crate) fn encode_level(x: f32, scale: f32, zero: f32, min: f32, levels: &[f32]) -> u8 {
    let at = if scale == 0.0 { 0.0 } else { (x + min) / scale } + zero;
    let reaches = |code: usize| at >= 0.5 * (levels[code - 1] + levels[code]);
    if levels.len() <= FEW {
        return (1..levels.len()).map(|code| u8::from(reaches(code))).sum();
    }
    let mut code = 0;
    let mut step = levels.len().next_power_of_two() / 2;
    while step > 0 {
        let next = code + step;
        if next < levels.len() && reaches(next) {
            code = next;
        }
        step /= 2;
    }
    code as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The search by halves against looking at every level, at the levels, at the middles between them and beside both.
    #[test]
    fn many_levels_are_searched_to_the_same_codes_as_few() {
        let mut levels: Vec<f32> = (0..254).map(|i| (i as f32 - 126.5).powi(3) / 4096.0).collect();
        levels[126] = -0.0;
        levels[127] = 0.0;
        let middles: Vec<f32> = levels.iter().zip(&levels[1..]).map(|(a, b)| 0.5 * (a + b)).collect();
        let all = levels.iter().chain(&middles).flat_map(|x| [*x, x.next_up(), x.next_down()]);
        for x in all.chain([f32::MAX, f32::MIN, 1e9]) {
            let one_by_one = middles.iter().filter(|middle| x >= **middle).count();
            assert_eq!(usize::from(encode_level(x, 1.0, 0.0, 0.0, &levels)), one_by_one, "{x}");
        }
    }
}
