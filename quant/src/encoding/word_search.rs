//! The search for scales and words of the codebook types, sixteen blocks side by side (see [`crate::vectors`]).
//!
//! All words of a run are tried exactly (see [`super::pairs`]).
//!
//! # Source
//! `quantize_row_iq2_xxs_impl` and its six siblings in llama.cpp: the importance and the integer scales of the blocks are
//! theirs. That every word is tried, that the scales next to the rounded ones are too, and that the unit of the scales is fitted
//! to the words, is not.

use half::f16;

use super::block::{Rows, half_bytes};
use super::pairs::{HALVES, Table};
use crate::lanes::{Kernel, LANES, Lanes, lanes, sums_of_squares};
use crate::vectors::Wide;

/// Weights per super-block.
pub(super) const SUPER: usize = 256;
/// Blocks whose largest magnitude is below this are stored as zeros.
const NOTHING: f32 = 1e-15;
/// Room for the places of the weights of a half.
const PLACES: usize = 16;

/// What an error on each weight costs, with the mean square of its super-block: with importance
/// `importance * sqrt(spread * mean + x^2)`, without `mean / 2 + x^2`.
pub(super) fn costs(rows: &Rows<'_>, spread: f32) -> Vec<f32> {
    if let Some(importance) = rows.importance {
        return rows.costs(importance, SUPER, spread);
    }
    let mut costs = vec![0.0; rows.x.len()];
    let blocks = costs.chunks_exact_mut(SUPER).zip(rows.x.chunks_exact(SUPER));
    for ((costs, x), sum) in blocks.zip(sums_of_squares(rows.x, SUPER)) {
        let floor = 0.5 * sum / SUPER as f32;
        costs.iter_mut().zip(x).for_each(|(cost, x)| *cost = floor + x * x);
    }
    costs
}

/// Sixteen blocks of `N` weights, their magnitudes and costs at most 1.
pub(super) struct Blocks<V, const N: usize> {
    pub x: [V; N],
    pub w: [V; N],
    /// `w * x`
    pub wx: [V; N],
    pub unit: Units,
}

/// What the ones of [`Blocks`] were.
#[derive(Clone, Copy)]
pub(super) struct Units {
    pub x: Lanes, // 1 for a block of zeros
    pub w: Lanes, // 0 where no error costs anything
}

impl<V: Wide, const N: usize> Blocks<V, N> {
    #[inline(always)]
    pub fn new(x: &[Lanes; N], w: &[Lanes; N]) -> Self {
        let zero = V::splat(0.0);
        let (mut largest, mut heaviest) = (zero, zero);
        for i in 0..N {
            let (x, w) = (V::of(&x[i]), V::of(&w[i]));
            largest = V::where_less(
                largest,
                V::where_less(x, zero, zero - x, x),
                V::where_less(x, zero, zero - x, x),
                largest,
            );
            heaviest = V::where_less(heaviest, w, w, heaviest);
        }
        let (largest, heaviest) = (largest.lanes(), heaviest.lanes());
        let over = V::of(&largest.map(|largest| if largest < NOTHING { 0.0 } else { 1.0 / largest }));
        let per =
            V::of(&heaviest.map(|heaviest| if heaviest < f32::MIN_POSITIVE { 0.0 } else { 1.0 / heaviest }));
        // Where no error costs anything, all cost the same.
        let floor = V::of(&heaviest.map(|heaviest| if heaviest < f32::MIN_POSITIVE { 1.0 } else { 0.0 }));
        let unit = Units {
            x: largest.map(|largest| if largest < NOTHING { 1.0 } else { largest }),
            w: heaviest.map(|heaviest| if heaviest < f32::MIN_POSITIVE { 0.0 } else { heaviest }),
        };
        let mut blocks = Self { x: [zero; N], w: [zero; N], wx: [zero; N], unit };
        for i in 0..N {
            blocks.x[i] = V::of(&x[i]) * over;
            blocks.w[i] = V::of(&w[i]) * per + floor;
            blocks.wx[i] = blocks.w[i] * blocks.x[i];
        }
        blocks
    }
}

/// How sixteen blocks find their words at given scales.
pub(super) trait Chooser<V: Wide, const R: usize> {
    /// The cheapest words of the runs at `scale`, and what they cost beyond `sum w x^2`; the words only if `want` says so. Where
    /// words may be shifted, they are as those `like` them.
    fn choose(
        &self,
        scale: V,
        want: Want,
        like: Option<&Choice<V, R>>,
        scratch: &mut Scratch<V>,
    ) -> (Choice<V, R>, V);

    /// What the nearest levels cost at `scale` as if each weight had its own.
    fn free_cost(&self, scale: V) -> V;

    /// `sum w x v` and `sum w v^2` for the values `v` of the words at scale 1.
    fn products(&self, choice: &Choice<V, R>) -> (V, V);
}

/// What a [`Chooser`] is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Cost,
    Words,
}

/// Room for the costs of halves, as the signs are and with the cheapest flip in them, and of the places of their weights.
pub(super) struct Scratch<V> {
    pub kept: [Table<V>; 2],
    pub flipped: [Table<V>; 2],
    pub places: [V; PLACES],
    pub flips: [V; PLACES],
}

impl<V: Wide> Scratch<V> {
    #[inline(always)]
    pub fn new() -> Self {
        let zero = [V::splat(0.0); HALVES];
        let places = [V::splat(0.0); PLACES];
        Self { kept: [zero; 2], flipped: [zero; 2], places, flips: places }
    }
}

/// [`Chooser::choose`] as a function of its own.
struct Choose<'a, C, V, const R: usize> {
    chooser: &'a C,
    scale: V,
    want: Want,
    like: Option<&'a Choice<V, R>>,
    scratch: &'a mut Scratch<V>,
}

impl<V: Wide, const R: usize, C: Chooser<V, R>> Kernel for Choose<'_, C, V, R> {
    type Output = (Choice<V, R>, V);

    #[inline(always)]
    fn run(self) -> Self::Output {
        self.chooser.choose(self.scale, self.want, self.like, self.scratch)
    }
}

#[inline(always)]
fn cost<V: Wide, const R: usize, C: Chooser<V, R>>(
    chooser: &C,
    scale: V,
    like: Option<&Choice<V, R>>,
    scratch: &mut Scratch<V>,
) -> V {
    V::apart(Choose { chooser, scale, want: Want::Cost, like, scratch }).1
}

#[inline(always)]
fn choose<V: Wide, const R: usize, C: Chooser<V, R>>(
    chooser: &C,
    scale: V,
    like: Option<&Choice<V, R>>,
    scratch: &mut Scratch<V>,
) -> Choice<V, R> {
    V::apart(Choose { chooser, scale, want: Want::Words, like, scratch }).0
}

/// The words of `R` runs of each block.
pub(super) type Choice<V, const R: usize> = [V; R];

/// What sets the scales of one format apart.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    /// The largest integer scale: blocks are scaled by `unit * (2 * level + 1)`.
    pub max_level: u8,
    /// `unit` is this times the number stored.
    pub per_unit: f32,
    /// The scales tried first, as shares of the largest magnitude over the largest level: with each weight's nearest level.
    pub shares: &'static [f32],
    /// The scales tried then, as shares of the best of those: with words.
    pub around: &'static [f32],
    /// How often a scale is fitted to the words found at the one before.
    pub fits: u8,
    /// The largest level of a word.
    pub top: f32,
}

/// What the search gives for one super-block: the half-precision number and the integer scales of its blocks.
pub(super) struct Header {
    pub unit: [u8; 2],
    pub levels: [u8; LANES],
}

impl Scales {
    /// Searches sixteen blocks, `per_super` of them to a super-block: headers, and words.
    #[inline(always)]
    pub fn search<V: Wide, const R: usize, C: Chooser<V, R>>(
        &self,
        chooser: &C,
        unit: &Units,
        per_super: usize,
        scratch: &mut Scratch<V>,
    ) -> (Vec<Header>, Choice<V, R>) {
        let mut scale = self.first(chooser, scratch);
        let mut like = None;
        for _ in 0..self.fits {
            let choice = choose(chooser, scale, like.as_ref(), scratch);
            scale = fitted(chooser, &choice);
            like = Some(choice);
        }
        let scale = scale.lanes();

        let mut steps = [0.0; LANES]; // the step of each block's super-block, in units of the block
        for first in (0..LANES).step_by(per_super) {
            let blocks = first..first + per_super;
            let largest = blocks.clone().fold(0.0f32, |largest, k| largest.max(scale[k] * unit.x[k]));
            let step = largest / f32::from(2 * self.max_level + 1);
            blocks.for_each(|k| steps[k] = step / unit.x[k]);
        }
        let levels = self.round(chooser, &steps, &scale, like.as_ref(), scratch);
        let stored = lanes(|k| steps[k] * (2.0 * levels[k] + 1.0));
        let choice = choose(chooser, V::of(&stored), like.as_ref(), scratch);
        let (xv, vv) = chooser.products(&choice);
        let (xv, vv) = (xv.lanes(), vv.lanes());
        let header = |first: usize| {
            let mut header = Header { unit: [0; 2], levels: [0; LANES] };
            let (mut with_x, mut with_v) = (0.0f64, 0.0f64);
            for (k, slot) in (first..first + per_super).zip(&mut header.levels) {
                let (weight, factor) = (f64::from(unit.w[k]), f64::from(2.0 * levels[k] + 1.0));
                with_x += weight * f64::from(unit.x[k]) * factor * f64::from(xv[k]);
                with_v += weight * factor * factor * f64::from(vv[k]);
                *slot = levels[k] as u8;
            }
            let step = if with_x > 0.0 && with_v > 0.0 {
                (with_x / with_v) as f32
            } else {
                steps[first] * unit.x[first]
            };
            header.unit = half_bytes((step / self.per_unit).min(f16::MAX.to_f32()));
            header
        };
        ((0..LANES).step_by(per_super).map(header).collect(), choice)
    }

    /// The best of the scales tried.
    #[inline(always)]
    fn first<V: Wide, const R: usize, C: Chooser<V, R>>(&self, chooser: &C, scratch: &mut Scratch<V>) -> V {
        let mut free = (V::splat(f32::INFINITY), V::splat(0.0));
        for &share in self.shares {
            let scale = V::splat(share / self.top);
            keep(&mut free, (chooser.free_cost(scale), scale));
        }
        if self.around.is_empty() {
            return free.1;
        }
        let mut best = (V::splat(f32::INFINITY), V::splat(0.0));
        for &share in self.around {
            let scale = free.1 * V::splat(share);
            keep(&mut best, (cost(chooser, scale, None, scratch), scale));
        }
        best.1
    }

    /// The integer scales nearest to `scale`, or the next nearest where words cost less there.
    #[inline(always)]
    fn round<V: Wide, const R: usize, C: Chooser<V, R>>(
        &self,
        chooser: &C,
        steps: &Lanes,
        scale: &Lanes,
        like: Option<&Choice<V, R>>,
        scratch: &mut Scratch<V>,
    ) -> Lanes {
        let top = f32::from(self.max_level);
        let exact = lanes(|k| if steps[k] > 0.0 { 0.5 * (scale[k] / steps[k] - 1.0) } else { 0.0 });
        let nearest = exact.map(|level| level.round_ties_even().max(0.0).min(top));
        let next = lanes(|k| {
            let side = if exact[k] < nearest[k] { -1.0 } else { 1.0 };
            (nearest[k] + side).max(0.0).min(top)
        });
        let mut best = (V::splat(f32::INFINITY), V::splat(0.0));
        for level in [nearest, next] {
            let scale = lanes(|k| steps[k] * (2.0 * level[k] + 1.0));
            keep(&mut best, (cost(chooser, V::of(&scale), like, scratch), V::of(&level)));
        }
        best.1.lanes()
    }
}

/// The scale that fits the words best, 0 where they do not fit at all.
#[inline(always)]
fn fitted<V: Wide, const R: usize, C: Chooser<V, R>>(chooser: &C, choice: &Choice<V, R>) -> V {
    let (xv, vv) = chooser.products(choice);
    let (xv, vv) = (xv.lanes(), vv.lanes());
    V::of(&lanes(|k| if xv[k] > 0.0 && vv[k] > 0.0 { xv[k] / vv[k] } else { 0.0 }))
}

/// Keeps in each lane what costs less.
#[inline(always)]
fn keep<V: Wide>(best: &mut (V, V), new: (V, V)) {
    best.1 = V::where_less(new.0, best.0, new.1, best.1);
    best.0 = V::where_less(new.0, best.0, new.0, best.0);
}
