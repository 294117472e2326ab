//! The search for scales and words of the codebook types, sixteen blocks side by side (see [`crate::lanes`]).
//!
//! A word's cost at a scale is the sum of what its two halves cost, so all words of a run are tried exactly: the costs of all
//! halves lie in two small tables, and each word is one addition.
//!
//! # Source
//! `quantize_row_iq2_xxs_impl` and its six siblings in llama.cpp: the importance, the scales tried and the integer scales of the
//! blocks are theirs; that every word is tried, that the scales next to the rounded ones are too, and that the unit of the scales
//! is fitted to the words, is not.

use half::f16;

use super::block::{Rows, half_bytes};
use super::words::Words;
use crate::lanes::{LANES, Lanes, lanes, sums_of_squares};

/// Weights per super-block.
pub(super) const SUPER: usize = 256;
/// Blocks whose largest magnitude is below this are stored as zeros.
const NOTHING: f32 = 1e-15;

/// What an error on each weight costs.
#[derive(Clone, Copy)]
pub(super) struct Costs {
    /// With importance: `importance * sqrt(spread * mean + x^2)`, with the mean square of the super-block.
    pub spread: f32,
    /// Without: `plain * mean + x^2`.
    pub plain: f32,
}

impl Costs {
    #[inline(always)]
    pub fn of(self, rows: &Rows<'_>) -> Vec<f32> {
        if let Some(importance) = rows.importance {
            return rows.costs(importance, SUPER, self.spread);
        }
        let mut costs = vec![0.0; rows.x.len()];
        let blocks = costs.chunks_exact_mut(SUPER).zip(rows.x.chunks_exact(SUPER));
        for ((costs, x), sum) in blocks.zip(sums_of_squares(rows.x, SUPER)) {
            let floor = self.plain * sum / SUPER as f32;
            costs.iter_mut().zip(x).for_each(|(cost, x)| *cost = floor + x * x);
        }
        costs
    }
}

/// Words as pairs of halves, those with the same first half together.
pub(super) struct Pairs {
    heads: Vec<(u16, std::ops::Range<usize>)>, // number of the first half; its tails
    tails: Vec<(u16, u16)>,                    // number of the second half; index of the word
    levels: Vec<[f32; 8]>,                     // of the word's places
}

impl Pairs {
    /// `levels` are what the places stand for.
    pub fn new(words: &Words, levels: &[f32]) -> Self {
        let half = words.len() / 2;
        let number = |places: &[u8]| {
            places.iter().rev().fold(0, |n, &place| n * levels.len() as u16 + u16::from(place))
        };
        let mut all: Vec<(u16, u16, u16)> = (0..words.count())
            .map(|i| (number(&words.places(i)[..half]), number(&words.places(i)[half..]), i as u16))
            .collect();
        all.sort_unstable();
        let mut heads = Vec::new();
        let mut start = 0;
        for run in all.chunk_by(|a, b| a.0 == b.0) {
            heads.push((run[0].0, start..start + run.len()));
            start += run.len();
        }
        let places = |i: usize| words.places(i).iter().map(|&place| levels[usize::from(place)]);
        let levels = (0..words.count())
            .map(|i| {
                let mut word = [0.0; 8];
                word.iter_mut().zip(places(i)).for_each(|(slot, level)| *slot = level);
                word
            })
            .collect();
        Self { heads, tails: all.into_iter().map(|(_, tail, word)| (tail, word)).collect(), levels }
    }

    /// The levels of word `index`.
    #[inline(always)]
    pub fn word(&self, index: u32) -> &[f32; 8] {
        &self.levels[index as usize]
    }

    /// The cheapest word of each lane, given the costs of the halves.
    #[inline(always)]
    pub fn cheapest(&self, head: &[Lanes], tail: &[Lanes]) -> Cheapest {
        let mut best = Cheapest::NONE;
        for (first, tails) in &self.heads {
            let first = head[usize::from(*first)];
            for &(second, word) in &self.tails[tails.clone()] {
                let second = &tail[usize::from(second)];
                best.offer(&lanes(|k| first[k] + second[k]), u32::from(word));
            }
        }
        best
    }

    /// The same with one sign of the word flipped, `flipped` being the costs of halves with the flip in them.
    #[inline(always)]
    pub fn cheapest_flipped(&self, head: [&[Lanes]; 2], tail: [&[Lanes]; 2]) -> Cheapest {
        let mut best = Cheapest::NONE;
        for (first, tails) in &self.heads {
            let first = head.map(|table| table[usize::from(*first)]);
            for &(second, word) in &self.tails[tails.clone()] {
                let second = tail.map(|table| &table[usize::from(second)]);
                let cost = lanes(|k| {
                    let (a, b) = (first[0][k] + second[1][k], first[1][k] + second[0][k]);
                    if b < a { b } else { a }
                });
                best.offer(&cost, u32::from(word));
            }
        }
        best
    }
}

/// The cheapest word of each lane.
#[derive(Clone, Copy)]
pub(super) struct Cheapest {
    pub cost: Lanes,
    pub word: [u32; LANES],
}

impl Cheapest {
    const NONE: Self = Self { cost: [f32::INFINITY; LANES], word: [0; LANES] };

    #[inline(always)]
    fn offer(&mut self, cost: &Lanes, word: u32) {
        for k in 0..LANES {
            let less = cost[k] < self.cost[k];
            self.cost[k] = if less { cost[k] } else { self.cost[k] };
            self.word[k] = if less { word } else { self.word[k] };
        }
    }

    /// Where `other` is chosen, that.
    #[inline(always)]
    pub fn or(&self, other: &Self, chosen: &[bool; LANES]) -> Self {
        Self {
            cost: lanes(|k| if chosen[k] { other.cost[k] } else { self.cost[k] }),
            word: std::array::from_fn(|k| if chosen[k] { other.word[k] } else { self.word[k] }),
        }
    }
}

/// The costs of all halves from those of each place: half `a + b L + c L^2 ..` has its first weight in place `a`.
#[inline(always)]
pub(super) fn sums<const L: usize>(places: &[[Lanes; L]], table: &mut [Lanes]) {
    table[..L].copy_from_slice(&places[0]);
    let mut len = L;
    for costs in &places[1..] {
        for m in (0..L).rev() {
            for i in 0..len {
                table[m * len + i] = lanes(|k| table[i][k] + costs[m][k]);
            }
        }
        len *= L;
    }
}

/// As [`sums`], the smallest in place of the sum.
#[inline(always)]
pub(super) fn minima<const L: usize>(places: &[[Lanes; L]], table: &mut [Lanes]) {
    table[..L].copy_from_slice(&places[0]);
    let mut len = L;
    for costs in &places[1..] {
        for m in (0..L).rev() {
            for i in 0..len {
                table[m * len + i] =
                    lanes(|k| if table[i][k] < costs[m][k] { table[i][k] } else { costs[m][k] });
            }
        }
        len *= L;
    }
}

/// Sixteen blocks of `N` weights, their magnitudes and costs at most 1.
pub(super) struct Blocks<const N: usize> {
    pub x: [Lanes; N],
    pub w: [Lanes; N],
    pub unit: Units,
}

/// What the ones of [`Blocks`] were.
#[derive(Clone, Copy)]
pub(super) struct Units {
    pub x: Lanes, // 1 for a block of zeros
    pub w: Lanes, // 0 where no error costs anything
}

impl<const N: usize> Blocks<N> {
    #[inline(always)]
    pub fn new(mut x: [Lanes; N], mut w: [Lanes; N]) -> Self {
        let mut unit = Units { x: [0.0; LANES], w: [0.0; LANES] };
        for i in 0..N {
            for k in 0..LANES {
                unit.x[k] = if x[i][k].abs() > unit.x[k] { x[i][k].abs() } else { unit.x[k] };
                unit.w[k] = if w[i][k] > unit.w[k] { w[i][k] } else { unit.w[k] };
            }
        }
        let over = unit.x.map(|unit| if unit < NOTHING { 0.0 } else { 1.0 / unit });
        unit.x = lanes(|k| if over[k] == 0.0 { 1.0 } else { unit.x[k] });
        unit.w = unit.w.map(|unit| if unit < f32::MIN_POSITIVE { 0.0 } else { unit });
        for i in 0..N {
            x[i] = lanes(|k| x[i][k] * over[k]);
            w[i] = lanes(|k| if unit.w[k] == 0.0 { 1.0 } else { w[i][k] / unit.w[k] });
        }
        Self { x, w, unit }
    }
}

/// How sixteen blocks find their words at given scales.
pub(super) trait Chooser<const R: usize> {
    /// The cheapest words of the runs at `scale`, and what they cost beyond `sum w x^2`.
    fn choose(&self, scale: &Lanes) -> (Choice<R>, Lanes);

    /// `sum w x v` and `sum w v^2` for the values `v` of the words at scale 1.
    fn products(&self, choice: &Choice<R>) -> (Lanes, Lanes);

    /// The codes of block `k`.
    fn codes(&self, choice: &Choice<R>, k: usize, codes: &mut [u8]);
}

/// The words of `R` runs of each block.
pub(super) type Choice<const R: usize> = [[u32; LANES]; R];

/// The scales tried, as `1 / (top * inverse)` for the largest magnitude 1.
#[derive(Clone, Copy)]
pub(super) struct Trials {
    pub first: f32,
    pub step: f32,
    pub count: u8,
}

/// What a format's header holds besides words.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    /// The largest integer scale: blocks are scaled by `unit * (2 * level + 1)`.
    pub max_level: u8,
    /// `unit` is this times the number stored.
    pub per_unit: f32,
    pub trials: Trials,
    /// The largest level of a word.
    pub top: f32,
}

/// What the search gives for one super-block: the half-precision number and the integer scales of its blocks.
pub(super) struct Header {
    pub unit: [u8; 2],
    pub levels: [u8; LANES],
}

impl Scales {
    /// Searches sixteen blocks, `per_super` of them to a super-block: headers, and words for [`Chooser::codes`].
    #[inline(always)]
    pub fn search<const R: usize, C: Chooser<R>>(
        &self,
        chooser: &C,
        unit: &Units,
        per_super: usize,
    ) -> (Vec<Header>, Choice<R>) {
        let choice = self.first(chooser);
        let choice = chooser.choose(&fitted(chooser, &choice)).0;
        let scale = fitted(chooser, &choice);

        let mut steps = [0.0; LANES]; // the step of each block's super-block, in units of the block
        for first in (0..LANES).step_by(per_super) {
            let blocks = first..first + per_super;
            let largest = blocks.clone().fold(0.0f32, |largest, k| largest.max(scale[k] * unit.x[k]));
            let step = largest / f32::from(2 * self.max_level + 1);
            blocks.for_each(|k| steps[k] = step / unit.x[k]);
        }
        let (levels, choice) = self.round(chooser, &steps, &scale);
        let (xv, vv) = chooser.products(&choice);
        let header = |first: usize| {
            let blocks = first..first + per_super;
            let mut header = Header { unit: [0; 2], levels: [0; LANES] };
            let (mut with_x, mut with_v) = (0.0f64, 0.0f64);
            for (k, slot) in blocks.zip(&mut header.levels) {
                let (weight, factor) = (f64::from(unit.w[k]), f64::from(2 * levels[k] + 1));
                with_x += weight * f64::from(unit.x[k]) * factor * f64::from(xv[k]);
                with_v += weight * factor * factor * f64::from(vv[k]);
                *slot = levels[k];
            }
            let step = if with_x > 0.0 && with_v > 0.0 {
                with_x / with_v
            } else {
                f64::from(steps[first] * unit.x[first])
            };
            header.unit = half_bytes((step as f32 / self.per_unit).min(f16::MAX.to_f32()));
            header
        };
        ((0..LANES).step_by(per_super).map(header).collect(), choice)
    }

    #[inline(always)]
    fn first<const R: usize, C: Chooser<R>>(&self, chooser: &C) -> Choice<R> {
        let mut best = (Cheapest::NONE.cost, [0.0; LANES], [[0; LANES]; R]);
        for i in 0..self.trials.count {
            let inverse = self.trials.first + self.trials.step * f32::from(i);
            let scale = [1.0 / (self.top * inverse); LANES];
            let (choice, cost) = chooser.choose(&scale);
            keep(&mut best.0, &mut best.1, &mut best.2, (&cost, &scale, &choice));
        }
        best.2
    }

    /// The integer scales nearest to `scale`, or their neighbours where words cost less there.
    #[inline(always)]
    fn round<const R: usize, C: Chooser<R>>(
        &self,
        chooser: &C,
        steps: &Lanes,
        scale: &Lanes,
    ) -> ([u8; LANES], Choice<R>) {
        let top = f32::from(self.max_level);
        let nearest = lanes(|k| {
            let level = if steps[k] > 0.0 { 0.5 * (scale[k] / steps[k] - 1.0) } else { 0.0 };
            level.round_ties_even().max(0.0).min(top)
        });
        let mut best = (Cheapest::NONE.cost, nearest, [[0; LANES]; R]);
        for off in [0.0f32, -1.0, 1.0] {
            let level = lanes(|k| (nearest[k] + off).max(0.0).min(top));
            let (choice, cost) = chooser.choose(&lanes(|k| steps[k] * (2.0 * level[k] + 1.0)));
            keep(&mut best.0, &mut best.1, &mut best.2, (&cost, &level, &choice));
        }
        (best.1.map(|level| level as u8), best.2)
    }
}

/// The scale that fits the words best, 0 where they do not fit at all.
#[inline(always)]
fn fitted<const R: usize, C: Chooser<R>>(chooser: &C, choice: &Choice<R>) -> Lanes {
    let (xv, vv) = chooser.products(choice);
    lanes(|k| if xv[k] > 0.0 && vv[k] > 0.0 { xv[k] / vv[k] } else { 0.0 })
}

/// Keeps in each lane what costs less.
#[inline(always)]
fn keep<const R: usize>(
    cost: &mut Lanes,
    at: &mut Lanes,
    choice: &mut Choice<R>,
    new: (&Lanes, &Lanes, &Choice<R>),
) {
    for k in 0..LANES {
        let less = new.0[k] < cost[k];
        cost[k] = if less { new.0[k] } else { cost[k] };
        at[k] = if less { new.1[k] } else { at[k] };
        for (old, new) in choice.iter_mut().zip(new.2) {
            old[k] = if less { new[k] } else { old[k] };
        }
    }
}
