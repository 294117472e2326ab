//! The scale search of grouped integers.

use super::IntEncoding;
use crate::lanes::{Kernel, LANES, Lanes, gather_into, lanes, nearest};

/// How far the largest magnitude reaches in units of half the range: from a little wider than the range itself to
/// 2.4 times past its end, where all that lies beyond is clipped. At few bits clipping pays.
pub(super) const REACHES: [f32; 22] = [
    0.88, 0.92, 0.96, 1.0, 1.03, 1.06, 1.09, 1.12, 1.15, 1.19, 1.23, 1.28, 1.33, 1.39, 1.46, 1.54, 1.63,
    1.74, 1.87, 2.03, 2.2, 2.4,
];

/// Finds scale and zero of each group of whole rows: the least `sum importance * (x - scale * (code - zero))^2` over many
/// ranges, each with the scale fitted to its codes in closed form, and then over the stored scales around the fitted one.
pub(super) struct GroupSearch<'a> {
    /// `[rows, cols]`.
    pub x: &'a [f32],
    pub cols: usize,
    pub importance: Option<&'a [f32]>,
    pub encoding: &'a IntEncoding,
    /// One per group, to be filled.
    pub scale: &'a mut [f32],
    /// One per group, holding the middle code; filled where the encoding stores zeros.
    pub zero: &'a mut [f32],
}

impl Kernel for GroupSearch<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let len = self.encoding.group_size;
        let mut x = vec![[0.0; LANES]; len];
        let mut w = vec![[1.0; LANES]; len];
        for first in (0..self.scale.len()).step_by(LANES) {
            gather_into(self.x, first, &mut x);
            if let Some(importance) = self.importance {
                for k in 0..LANES {
                    let col = (first + k) * len % self.cols;
                    w.iter_mut().zip(&importance[col..]).for_each(|(w, &importance)| w[k] = importance);
                }
            }
            let top = f32::from(self.encoding.max_code());
            let mut best = Best::new(self.encoding.middle());
            if self.encoding.symmetric {
                best.try_symmetric(&x, &w, top);
            } else {
                best.try_asymmetric(&x, &w, top);
            }
            let scale = stored(&x, &w, self.encoding, &best);
            let here = (self.scale.len() - first).min(LANES);
            self.scale[first..][..here].copy_from_slice(&scale[..here]);
            self.zero[first..][..here].copy_from_slice(&best.zero[..here]);
        }
    }
}

/// The best range so far.
struct Best {
    score: Lanes, // by how much the weighted squared error lies below that of all zeros
    scale: Lanes,
    zero: Lanes,
}

impl Best {
    fn new(middle: f32) -> Self {
        Self { score: [0.0; LANES], scale: [0.0; LANES], zero: [middle; LANES] }
    }

    /// The zero stays in the middle; the largest magnitude goes to either end, one level longer than the other.
    #[inline(always)]
    fn try_symmetric(&mut self, x: &[Lanes], w: &[Lanes], top: f32) {
        let mut largest = [0.0f32; LANES];
        for x in x {
            for k in 0..LANES {
                largest[k] = if x[k].abs() > largest[k].abs() { x[k] } else { largest[k] };
            }
        }
        let zero = self.zero;
        for reach in REACHES {
            for sign in [-1.0, 1.0] {
                let inverse = lanes(|k| sign * reach * zero[k] / largest[k]);
                self.consider(x, w, top, &inverse, &zero);
            }
        }
    }

    /// The range between the ends of the group (0 always within), narrowed about 0, with the nearest three zeros.
    #[inline(always)]
    fn try_asymmetric(&mut self, x: &[Lanes], w: &[Lanes], top: f32) {
        let (mut low, mut high) = ([0.0f32; LANES], [0.0f32; LANES]);
        for x in x {
            for k in 0..LANES {
                low[k] = if x[k] < low[k] { x[k] } else { low[k] };
                high[k] = if x[k] > high[k] { x[k] } else { high[k] };
            }
        }
        for reach in REACHES {
            let inverse = lanes(|k| reach * top / (high[k] - low[k]));
            for shift in [0.0, -1.0, 1.0] {
                // The clipped range is centred as the whole one is.
                let zero = lanes(|k| {
                    let zero = -low[k] * inverse[k] / reach;
                    (nearest(zero) as f32 + shift).clamp(0.0, top)
                });
                self.consider(x, w, top, &inverse, &zero);
            }
        }
    }

    /// Takes the range over where its codes, with the scale fitted to them, leave a smaller error.
    #[inline(always)]
    fn consider(&mut self, x: &[Lanes], w: &[Lanes], top: f32, inverse: &Lanes, zero: &Lanes) {
        let mut xl = [0.0f32; LANES];
        let mut ll = [0.0f32; LANES];
        for (x, w) in x.iter().zip(w) {
            for k in 0..LANES {
                let level = level(x[k] * inverse[k], zero[k], top);
                xl[k] += w[k] * x[k] * level;
                ll[k] += w[k] * level * level;
            }
        }
        for k in 0..LANES {
            let fitted = xl[k] / ll[k];
            let score = fitted * xl[k];
            let better = (ll[k] > 0.0) & (score > self.score[k]);
            self.score[k] = if better { score } else { self.score[k] };
            self.scale[k] = if better { fitted } else { self.scale[k] };
            self.zero[k] = if better { zero[k] } else { self.zero[k] };
        }
    }
}

/// `code - zero` of the code nearest to `steps`.
#[inline(always)]
fn level(steps: f32, zero: f32, top: f32) -> f32 {
    nearest(steps.max(-zero).min(top - zero)) as f32
}

/// Of the stored scales around the fitted one, that of least error with codes rounded to it.
#[inline(always)]
fn stored(x: &[Lanes], w: &[Lanes], encoding: &IntEncoding, best: &Best) -> Lanes {
    let top = f32::from(encoding.max_code());
    let around = best.scale.map(|scale| encoding.scale.around(scale));
    let mut least = [f32::INFINITY; LANES];
    let mut chosen = [0.0; LANES];
    for candidate in 0..3 {
        let scale = lanes(|k| around[k][candidate]);
        let inverse = lanes(|k| if scale[k] == 0.0 { 0.0 } else { 1.0 / scale[k] });
        let mut error = [0.0f32; LANES];
        for (x, w) in x.iter().zip(w) {
            for k in 0..LANES {
                let off = x[k] - scale[k] * level(x[k] * inverse[k], best.zero[k], top);
                error[k] += w[k] * off * off;
            }
        }
        for k in 0..LANES {
            let better = error[k] < least[k];
            least[k] = if better { error[k] } else { least[k] };
            chosen[k] = if better { scale[k] } else { chosen[k] };
        }
    }
    chosen
}
