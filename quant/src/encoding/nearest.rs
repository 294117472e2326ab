//! The nearest codewords under a full metric, exactly: each run as two halves, the first chosen by a bound.
//!
//! With `M = [[A, B'], [B, C]]` the cost of a codeword is `(x1 - g1)' S (x1 - g1) + (y - g2)' C (y - g2)`, where
//! `S = A - B' C^-1 B` and `y = x2 + C^-1 B (x1 - g1)`: the first term bounds all codewords that begin with `g1` from below.
//! First halves are tried in the order of that bound until it passes the best cost.

use std::fmt;

use super::Codebook;
use super::words::{Signs, Words, signed_code};
use crate::lanes::{LANES, Lanes, lanes};
use crate::vectors::{self, Wide, WideKernel};

/// Halves of codewords that may stand together: each of the first with each of the second.
struct Class<const H: usize> {
    first: Vec<[u8; H]>,
    second: Vec<[u8; H]>,
}

/// All runs of `2 * H` codes that a format stores.
pub(super) struct Halves<const H: usize> {
    name: &'static str,
    first: Patterns<H>,
    class: Vec<usize>, // of each first half
    second: Patterns<H>,
    ranges: Vec<std::ops::Range<usize>>, // of each class, in sixteens of second halves
}

/// Half runs, sixteen side by side; the last of them may be missing.
#[derive(Default)]
struct Patterns<const H: usize> {
    codes: Vec<[u8; H]>,
    levels: Vec<[Lanes; H]>,
    missing: Vec<Lanes>, // infinite where there is none, otherwise 0
}

impl<const H: usize> Patterns<H> {
    /// Adds `codes` and fills the last sixteen with the first of them.
    fn add(&mut self, codes: &[[u8; H]], levels: &[f32]) {
        for sixteen in codes.chunks(LANES) {
            let code = |k: usize| sixteen.get(k).copied().unwrap_or(codes[0]);
            self.codes.extend((0..LANES).map(code));
            self.levels.push(std::array::from_fn(|i| lanes(|k| levels[usize::from(code(k)[i])])));
            self.missing.push(lanes(|k| if k < sixteen.len() { 0.0 } else { f32::INFINITY }));
        }
    }

    /// `g' m g` of each.
    #[inline(always)]
    fn norms<V: Wide>(&self, m: &[[f32; H]; H]) -> Vec<V> {
        let mut norms = Vec::with_capacity(self.levels.len());
        for (missing, g) in self.missing.iter().zip(&self.levels) {
            let mut norm = V::of(missing);
            for i in 0..H {
                let mut inner = V::splat(m[i][i]) * V::of(&g[i]);
                for j in i + 1..H {
                    inner = inner + V::splat(2.0 * m[i][j]) * V::of(&g[j]);
                }
                norm = norm + inner * V::of(&g[i]);
            }
            norms.push(norm);
        }
        norms
    }
}

impl<const H: usize> Halves<H> {
    fn new(name: &'static str, levels: &[f32], classes: &[Class<H>]) -> Self {
        let mut first = Vec::new();
        let mut class = Vec::new();
        let mut second = Patterns::default();
        let mut ranges = Vec::new();
        for (i, Class { first: heads, second: tails }) in classes.iter().enumerate() {
            first.extend_from_slice(heads);
            class.resize(first.len(), i);
            let start = second.levels.len();
            second.add(tails, levels);
            ranges.push(start..second.levels.len());
        }
        let mut patterns = Patterns::default();
        patterns.add(&first, levels);
        class.resize(patterns.codes.len(), 0);
        Self { name, first: patterns, class, second, ranges }
    }

    /// Words of `2 * H` weights with signs of their own.
    pub fn signed(name: &'static str, words: &Words, levels: &[f32], signs: Signs) -> Self {
        let magnitudes = (levels.len() / 2) as u8;
        let classes: Vec<_> = by_head(words)
            .into_iter()
            .flat_map(|(head, tails)| {
                sign_classes::<H>(signs).into_iter().map(move |masks| Class {
                    first: with_signs(&[head], &masks, magnitudes),
                    second: with_signs(&tails, &masks, magnitudes),
                })
            })
            .collect();
        Self::new(name, levels, &classes)
    }

    /// Pairs of words of `H` weights, the signs of both even together.
    pub fn pairs(name: &'static str, words: &Words, levels: &[f32]) -> Self {
        let magnitudes = (levels.len() / 2) as u8;
        let all: Vec<[u8; H]> = (0..words.count()).map(|i| half(words.places(i))).collect();
        let classes: Vec<_> = sign_classes::<H>(Signs::Even)
            .into_iter()
            .map(|masks| {
                let halves = with_signs(&all, &masks, magnitudes);
                Class { first: halves.clone(), second: halves }
            })
            .collect();
        Self::new(name, levels, &classes)
    }

    /// Words whose places become codes by each of `shifts`: `code = factor * place + shift`.
    pub fn shifted(name: &'static str, words: &Words, levels: &[f32], factor: u8, shifts: &[u8]) -> Self {
        let classes: Vec<_> = by_head(words)
            .into_iter()
            .flat_map(|(head, tails)| {
                shifts.iter().map(move |&shift| Class {
                    first: vec![head.map(|place| factor * place + shift)],
                    second: tails.iter().map(|tail| tail.map(|place| factor * place + shift)).collect(),
                })
            })
            .collect();
        Self::new(name, levels, &classes)
    }
}

fn half<const H: usize>(places: &[u8]) -> [u8; H] {
    std::array::from_fn(|i| places[i])
}

/// The first halves of words, each with the second halves that follow it.
fn by_head<const H: usize>(words: &Words) -> Vec<([u8; H], Vec<[u8; H]>)> {
    let mut split: Vec<([u8; H], [u8; H])> =
        (0..words.count()).map(|i| (half(words.places(i)), half(&words.places(i)[H..]))).collect();
    split.sort_unstable();
    split.chunk_by(|a, b| a.0 == b.0).map(|run| (run[0].0, run.iter().map(|pair| pair.1).collect())).collect()
}

/// The signs of half a run, as sets whose members may stand with each other.
fn sign_classes<const H: usize>(signs: Signs) -> Vec<Vec<u8>> {
    let all = 0..1u8 << H;
    match signs {
        Signs::Free => vec![all.collect()],
        Signs::Even => {
            let (odd, even) = all.partition(|mask| mask.count_ones() % 2 == 1);
            vec![even, odd]
        }
    }
}

fn with_signs<const H: usize>(places: &[[u8; H]], masks: &[u8], magnitudes: u8) -> Vec<[u8; H]> {
    let signed = |places: &[u8; H], mask: u8| {
        std::array::from_fn(|i| signed_code(places[i], mask >> i & 1 == 1, magnitudes))
    };
    places.iter().flat_map(|places| masks.iter().map(move |&mask| signed(places, mask))).collect()
}

impl<const H: usize> fmt::Debug for Halves<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "codebook of {}", self.name)
    }
}

impl<const H: usize> Codebook for Halves<H> {
    fn run(&self) -> usize {
        2 * H
    }

    fn nearest(&self, metric: &[f32], x: &[f32], codes: &mut [u8]) {
        let run = 2 * H;
        assert_eq!(metric.len(), run * run, "the metric must be [{run}, {run}]");
        assert!(
            x.len().is_multiple_of(run) && x.len() == codes.len(),
            "{} weights are not whole runs",
            x.len()
        );
        vectors::run(Nearest { halves: self, metric: Metric::new(metric), x, codes });
    }
}

/// A metric taken apart as the module says.
struct Metric<const H: usize> {
    first: [[f32; H]; H],  // S
    second: [[f32; H]; H], // C
    shift: [[f32; H]; H],  // C^-1 B
}

impl<const H: usize> Metric<H> {
    fn new(m: &[f32]) -> Self {
        let at = |i: usize, j: usize| f64::from(m[i * 2 * H + j]);
        // Gauss and Jordan on [C | B]: positive definite, so no pivoting.
        let mut c: [[f64; H]; H] = std::array::from_fn(|i| std::array::from_fn(|j| at(H + i, H + j)));
        let mut shift: [[f64; H]; H] = std::array::from_fn(|i| std::array::from_fn(|j| at(H + i, j)));
        for col in 0..H {
            let pivot = c[col][col];
            c[col] = c[col].map(|x| x / pivot);
            shift[col] = shift[col].map(|x| x / pivot);
            for row in (0..H).filter(|&row| row != col) {
                let factor = c[row][col];
                for j in 0..H {
                    c[row][j] -= factor * c[col][j];
                    shift[row][j] -= factor * shift[col][j];
                }
            }
        }
        let first = |i: usize, j: usize| at(i, j) - (0..H).map(|k| at(i, H + k) * shift[k][j]).sum::<f64>();
        Self {
            first: std::array::from_fn(|i| std::array::from_fn(|j| first(i, j) as f32)),
            second: std::array::from_fn(|i| std::array::from_fn(|j| at(H + i, H + j) as f32)),
            shift: shift.map(|row| row.map(|x| x as f32)),
        }
    }
}

struct Nearest<'a, const H: usize> {
    halves: &'a Halves<H>,
    metric: Metric<H>,
    x: &'a [f32],
    codes: &'a mut [u8],
}

impl<const H: usize> WideKernel for Nearest<'_, H> {
    type Output = ();

    #[inline(always)]
    fn run<V: Wide>(self) {
        let Self { halves, metric, x, codes } = self;
        let norms = halves.first.norms::<V>(&metric.first);
        let tails = Tails { halves, metric: &metric, norms: halves.second.norms::<V>(&metric.second) };
        let mut bounds = vec![[0.0; LANES]; norms.len()];
        let runs = x.as_chunks::<H>().0.chunks_exact(2).zip(codes.as_chunks_mut::<H>().0.chunks_exact_mut(2));
        for (x, codes) in runs {
            let least = bound(&halves.first, &norms, &metric.first, &x[0], &mut bounds);
            let mut best = Best { cost: f32::INFINITY, first: 0, second: 0 };
            // The least of each lane first: they make the cost small before the others are looked at.
            for (bound, first) in least {
                if bound >= best.cost {
                    break;
                }
                tails.visit(first, bound, x, &mut best);
                bounds[first / LANES][first % LANES] = f32::INFINITY;
            }
            for i in 0..bounds.len() {
                let mut below = V::less(V::of(&bounds[i]), V::splat(best.cost));
                while below != 0 {
                    let k = below.trailing_zeros() as usize;
                    tails.visit(i * LANES + k, bounds[i][k], x, &mut best);
                    below &= below - 1;
                }
            }
            codes[0] = halves.first.codes[best.first];
            codes[1] = halves.second.codes[best.second];
        }
    }
}

/// The least cost of each first half; and the least of each lane, in order.
#[inline(always)]
fn bound<V: Wide, const H: usize>(
    patterns: &Patterns<H>,
    norms: &[V],
    m: &[[f32; H]; H],
    x: &[f32; H],
    bounds: &mut [Lanes],
) -> [(f32, usize); LANES] {
    let (twice, own) = expand(m, x);
    let twice = splats::<V, H>(&twice);
    let own = V::splat(own);
    let mut least = Least::new();
    for (i, ((bound, norm), g)) in bounds.iter_mut().zip(norms).zip(&patterns.levels).enumerate() {
        let mut sum = *norm + own;
        for j in 0..H {
            sum = sum - twice[j] * V::of(&g[j]);
        }
        *bound = sum.lanes();
        least.offer(sum, i);
    }
    let mut first = least.places();
    first.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    first
}

/// The smallest seen in each lane, and in which sixteen.
struct Least<V> {
    value: V,
    at: V,
}

impl<V: Wide> Least<V> {
    #[inline(always)]
    fn new() -> Self {
        Self { value: V::splat(f32::INFINITY), at: V::splat(0.0) }
    }

    #[inline(always)]
    fn offer(&mut self, value: V, sixteen: usize) {
        self.at = V::where_less(value, self.value, V::splat(sixteen as f32), self.at);
        self.value = V::min(value, self.value);
    }

    /// Each lane's smallest and its place.
    #[inline(always)]
    fn places(&self) -> [(f32, usize); LANES] {
        let (values, sixteens) = (self.value.lanes(), self.at.lanes());
        let mut all = [(0.0, 0); LANES];
        for k in 0..LANES {
            all[k] = (values[k], sixteens[k] as usize * LANES + k);
        }
        all
    }

    /// The smallest and its place, the first of equals.
    #[inline(always)]
    fn first(&self) -> (f32, usize) {
        let values = self.value.lanes();
        let mut least = values[0];
        for value in values {
            least = if value < least { value } else { least };
        }
        let mut equal = !V::less(V::splat(least), self.value);
        let sixteens = self.at.lanes();
        let mut place = usize::MAX;
        while equal != 0 {
            let k = equal.trailing_zeros() as usize;
            place = place.min(sixteens[k] as usize * LANES + k);
            equal &= equal - 1;
        }
        (least, place)
    }
}

/// `2 m x` and `x' m x`.
#[inline(always)]
fn expand<const H: usize>(m: &[[f32; H]; H], x: &[f32; H]) -> ([f32; H], f32) {
    let mut twice = [0.0; H];
    let mut own = 0.0;
    for i in 0..H {
        let mut sum = 0.0;
        for j in 0..H {
            sum += m[i][j] * x[j];
        }
        twice[i] = 2.0 * sum;
        own += sum * x[i];
    }
    (twice, own)
}

#[inline(always)]
fn splats<V: Wide, const H: usize>(x: &[f32; H]) -> [V; H] {
    let mut all = [V::splat(0.0); H];
    for i in 0..H {
        all[i] = V::splat(x[i]);
    }
    all
}

struct Best {
    cost: f32,
    first: usize,
    second: usize,
}

struct Tails<'a, V, const H: usize> {
    halves: &'a Halves<H>,
    metric: &'a Metric<H>,
    norms: Vec<V>,
}

impl<V: Wide, const H: usize> Tails<'_, V, H> {
    /// Tries all second halves that may follow the first half `first`, whose own cost is `cost`.
    #[inline(always)]
    fn visit(&self, first: usize, cost: f32, x: &[[f32; H]], best: &mut Best) {
        let halves = self.halves;
        let mut y = x[1];
        for j in 0..H {
            let off = x[0][j] - halves.first.levels[first / LANES][j][first % LANES];
            for i in 0..H {
                y[i] += self.metric.shift[i][j] * off;
            }
        }
        let (twice, own) = expand(&self.metric.second, &y);
        let twice = splats::<V, H>(&twice);
        let range = halves.ranges[halves.class[first]].clone();
        let mut least = Least::new();
        let sixteens = halves.second.levels[range.clone()].iter().zip(&self.norms[range.clone()]);
        for (i, (g, norm)) in sixteens.enumerate() {
            let mut sum = *norm;
            for j in 0..H {
                sum = sum - twice[j] * V::of(&g[j]);
            }
            least.offer(sum, i);
        }
        let (tail, second) = least.first();
        let total = cost + (own + tail);
        if total < best.cost {
            *best = Best { cost: total, first, second: range.start * LANES + second };
        }
    }
}
