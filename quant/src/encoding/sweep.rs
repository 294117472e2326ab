//! The best scale of all, for formats of few levels.

use crate::lanes::{Kernel, between, widest};

/// The places of weights by falling magnitude.
pub(super) fn by_magnitude(x: &[f32]) -> Vec<usize> {
    // Magnitudes compare as their bits do, so that place and magnitude are one number to sort.
    let key = |(i, x): (usize, &f32)| u64::from(x.abs().to_bits()) << 32 | i as u64;
    let mut keys: Vec<u64> = x.iter().enumerate().map(key).collect();
    keys.sort_unstable_by(|a, b| b.cmp(a));
    keys.into_iter().map(|key| key as u32 as usize).collect()
}

/// Levels to either side of 0 at most.
const LEVELS: usize = 2;

/// The positive scale of least `sum w (x - scale * level)^2` for levels `lowest..=highest`, whole numbers around 0, and by how
/// much that sum is less than with a scale of 0; both 0 where nothing has weight. `order` is that of [`by_magnitude`].
///
/// With the scale falling from infinity each weight passes from level to level away from 0, at scales known beforehand. Between two
/// such steps the levels stand still and the best scale is in closed form, so the best of those is the best of all.
pub(super) fn best_scale(x: &[f32], w: &[f32], order: &[usize], (lowest, highest): (i8, i8)) -> (f32, f64) {
    let last = |i: usize| usize::from(if x[i] < 0.0 { -lowest } else { highest }.unsigned_abs());
    // For each level where in `order` those stand that have not passed to it.
    let mut waiting = [order; LEVELS];
    let (mut xl, mut ll) = (0.0f64, 0.0f64);
    let (mut best_xl, mut best_ll) = (0.0f64, 1.0f64);
    loop {
        let (mut scale, mut level) = (0.0f32, 0);
        for (below, waiting) in waiting.iter_mut().enumerate() {
            while waiting.first().is_some_and(|&i| last(i) <= below) {
                *waiting = &waiting[1..];
            }
            let passes = waiting.first().map_or(0.0, |&i| x[i].abs() / (below as f32 + 0.5));
            if passes > scale {
                (scale, level) = (passes, below);
            }
        }
        if scale == 0.0 {
            return ((best_xl / best_ll) as f32, best_xl * best_xl / best_ll);
        }
        let i = waiting[level][0];
        waiting[level] = &waiting[level][1..];
        // From `level` to the next, `w x level` and `w level^2` grow by this.
        xl += f64::from(w[i]) * f64::from(x[i].abs());
        ll += f64::from(w[i]) * (2 * level + 1) as f64;
        if xl * xl * best_ll > best_xl * best_xl * ll {
            (best_xl, best_ll) = (xl, ll);
        }
    }
}

/// The nearest codes, counted from the lowest level, halves away from 0.
pub(super) fn encode(x: &[f32], scale: f32, levels: (i8, i8), codes: &mut [u8]) {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    widest(Encode { x, inverse, levels, codes });
}

struct Encode<'a> {
    x: &'a [f32],
    inverse: f32,
    levels: (i8, i8),
    codes: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (lowest, highest) = (f32::from(self.levels.0), f32::from(self.levels.1));
        for (code, x) in self.codes.iter_mut().zip(self.x) {
            *code = (between((x * self.inverse).round(), lowest, highest) - lowest) as i32 as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against ten thousand scales.
    #[test]
    fn no_other_scale_is_better() {
        for seed in 0..20u16 {
            let noise = |i: usize, salt: usize| {
                ((i * 7919 + usize::from(seed) * 104_729 + salt) % 1013) as f32 / 1013.0
            };
            let x: Vec<f32> = (0..64).map(|i| (noise(i, 0) - 0.5) * (0.2 + noise(i, 5).powi(3))).collect();
            let w: Vec<f32> = (0..64).map(|i| (4.0 * noise(i, 77)).exp()).collect();
            for (lowest, highest) in [(-1i8, 1i8), (-1, 2), (-2, 1)] {
                let error = |scale: f32| -> f32 {
                    let level = |x: f32| (x / scale).round().clamp(f32::from(lowest), f32::from(highest));
                    x.iter().zip(&w).map(|(&x, w)| w * (x - scale * level(x)).powi(2)).sum()
                };
                let found = error(best_scale(&x, &w, &by_magnitude(&x), (lowest, highest)).0);
                let tried = (1..10_000u16)
                    .map(|step| error(f32::from(step) / 10_000.0))
                    .fold(f32::INFINITY, f32::min);
                assert!(found <= tried * 1.000_01, "{found} {tried}");
            }
        }
    }

    #[test]
    fn nothing_of_weight_has_no_scale() {
        for (x, w) in [([1.0, -2.0], [0.0, 0.0]), ([0.0, -0.0], [1.0, 1.0])] {
            assert_eq!(best_scale(&x, &w, &by_magnitude(&x), (-1, 1)), (0.0, 0.0));
        }
    }
}
