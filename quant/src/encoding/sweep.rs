//! The best scale of all, for formats of few levels.

use crate::lanes::{Kernel, between, widest};

/// The positive scale of least `sum w (x - scale * level)^2` for levels `lowest..=highest`, whole numbers around 0, and by how
/// much that sum is less than with a scale of 0; both 0 where nothing has weight.
///
/// With the scale falling from infinity each weight passes from level to level away from 0, at scales known beforehand. Between two
/// such events the levels stand still and the best scale is in closed form, so the best of those is the best of all. `events` is
/// room to work in.
pub(super) fn best_scale(
    x: &[f32],
    weight: impl Fn(usize) -> f32,
    (lowest, highest): (i8, i8),
    events: &mut Vec<Event>,
) -> (f32, f64) {
    events.clear();
    for (i, &x) in x.iter().enumerate() {
        let last = if x < 0.0 { -lowest } else { highest };
        let (x, w) = (x.abs(), weight(i));
        if w > 0.0 && x > 0.0 {
            let steps = (1..=last).map(f32::from);
            // From level - 1 to level: `w x level` and `w level^2` grow by this.
            events.extend(steps.map(|level| Event {
                at: x / (level - 0.5),
                xl: w * x,
                ll: w * (2.0 * level - 1.0),
            }));
        }
    }
    events.sort_unstable_by(|a, b| b.at.total_cmp(&a.at));
    let (mut xl, mut ll) = (0.0f64, 0.0f64);
    let (mut best, mut scale) = (0.0f64, 0.0f64);
    for event in &*events {
        xl += f64::from(event.xl);
        ll += f64::from(event.ll);
        if xl * xl > best * ll {
            (best, scale) = (xl * xl / ll, xl / ll);
        }
    }
    (scale as f32, best)
}

/// A weight passes to its next level.
pub(super) struct Event {
    /// The scale at which it does.
    at: f32,
    xl: f32,
    ll: f32,
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
                let found = error(best_scale(&x, |i| w[i], (lowest, highest), &mut Vec::new()).0);
                let tried = (1..10_000u16)
                    .map(|step| error(f32::from(step) / 10_000.0))
                    .fold(f32::INFINITY, f32::min);
                assert!(found <= tried * 1.000_01, "{found} {tried}");
            }
        }
    }

    #[test]
    fn nothing_of_weight_has_no_scale() {
        assert_eq!(best_scale(&[1.0, -2.0], |_| 0.0, (-1, 1), &mut Vec::new()), (0.0, 0.0));
        assert_eq!(best_scale(&[0.0, -0.0], |_| 1.0, (-1, 1), &mut Vec::new()), (0.0, 0.0));
    }
}
