//! The scale searches of rows, tiles, whole matrices and runs.

use super::element::{Element, Round, ToE4m3, ToInt8};
use crate::lanes::{Kernel, LANES, widest};

/// Scales worth trying for eight-bit floats, in units of the one that puts the largest magnitude on 448. Relative steps are the same in
/// every octave, so within one of them lies the best; just below 1 the largest is cut off by less than it is rounded by elsewhere.
const OCTAVE: [f32; 18] = [
    1.0, 0.97, 0.985, 1.02, 1.045, 1.09, 1.14, 1.19, 1.245, 1.3, 1.355, 1.415, 1.475, 1.54, 1.61, 1.68,
    1.755, 1.87,
];

/// The same for eight-bit integers, in units of the one that puts it on 127: cutting off more than a third has never paid.
const CUTS: [f32; 16] =
    [1.0, 0.9961, 0.99, 0.98, 0.97, 0.955, 0.94, 0.92, 0.9, 0.88, 0.86, 0.83, 0.8, 0.76, 0.71, 0.65];

/// Weights that one scale multiplies: runs of several rows, in the same columns.
pub(super) struct Shared<'a> {
    pub runs: Vec<&'a [f32]>,
    /// What an error on each column costs, as long as a run.
    pub costs: &'a [f32],
}

impl Shared<'_> {
    /// The largest magnitude.
    pub fn largest(&self) -> f32 {
        self.runs.iter().flat_map(|run| run.iter()).fold(0.0, |largest, x| largest.max(x.abs()))
    }

    /// What `element` loses of them on a scale: `sum cost * (x - scale * level)^2` with the nearest levels.
    pub fn error(&self, element: Element, scale: f32) -> f64 {
        let runs = self.runs.iter();
        match element {
            Element::Int8 => runs.map(|x| widest(Error::new(ToInt8, x, self.costs, scale))).sum(),
            Element::E4m3 => runs.map(|x| widest(Error::new(ToE4m3, x, self.costs, scale))).sum(),
            Element::E2m1 => unreachable!("four-bit floats have a search of their own"),
        }
    }

    /// Of `candidates` the one that loses least, the first of equals; 0 where there are none.
    pub fn best(&self, element: Element, candidates: impl IntoIterator<Item = f32>) -> f32 {
        let mut best = (f64::INFINITY, 0.0);
        for scale in candidates {
            let error = self.error(element, scale);
            if error < best.0 {
                best = (error, scale);
            }
        }
        best.1
    }
}

/// Scales for weights of this largest magnitude, as `rounded` stores them.
pub(super) fn candidates(
    element: Element,
    largest: f32,
    rounded: impl Fn(f32) -> f32,
) -> impl Iterator<Item = f32> {
    let factors: &[f32] = if element == Element::Int8 { &CUTS } else { &OCTAVE };
    factors.iter().map(move |factor| rounded(factor * (largest / element.reach())))
}

struct Error<'a, R> {
    _round: R,
    x: &'a [f32],
    costs: &'a [f32],
    scale: f32,
}

impl<'a, R: Round> Error<'a, R> {
    fn new(round: R, x: &'a [f32], costs: &'a [f32], scale: f32) -> Self {
        Self { _round: round, x, costs, scale }
    }
}

impl<R: Round> Kernel for Error<'_, R> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let scale = self.scale;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let cost = |x: f32, cost: f32| {
            let off = x - scale * R::level(x * inverse);
            cost * (off * off)
        };
        let mut sums = [0.0f32; LANES];
        let (x, last_x) = self.x.as_chunks::<LANES>();
        let (costs, last_costs) = self.costs.as_chunks::<LANES>();
        for (x, costs) in x.iter().zip(costs) {
            for k in 0..LANES {
                sums[k] += cost(x[k], costs[k]);
            }
        }
        for ((sum, &x), &costs) in sums.iter_mut().zip(last_x).zip(last_costs) {
            *sum += cost(x, costs);
        }
        sums.iter().map(|&sum| f64::from(sum)).sum()
    }
}
