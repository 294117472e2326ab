//! The words of the codebook types as pairs of halves, to find the cheapest of all of them for sixteen runs side by side.
//!
//! A word's cost at a scale is the sum of what its two halves cost: the costs of all halves lie in two small tables, and each
//! word is one comparison.

use std::ops::Range;

use super::words::Words;
use crate::lanes::LANES;
use crate::vectors::Wide;

/// Room for the costs of all halves of words: 81 of four weights with three levels, 64 of two with eight.
pub(super) const HALVES: usize = 128;

/// Words as pairs of halves, those with the same first half together.
pub(super) struct Pairs {
    heads: Vec<(u8, Range<usize>)>, // number of the first half; its tails, in fours
    tails: Vec<[u8; 4]>,            // numbers of second halves, the last of a head repeated
    words: Vec<[u16; 4]>,           // indices of the words of the tails
    places: Vec<[u8; 8]>,           // of each word
    levels: Vec<[f32; 8]>,          // of each word's places
}

/// The costs of all first and all second halves of a run.
pub(super) type Table<V> = [V; HALVES];

/// The cheapest word of each lane.
#[derive(Clone, Copy)]
pub(super) struct Cheapest<V> {
    pub cost: V,
    /// Its index.
    pub word: V,
}

impl<V: Wide> Cheapest<V> {
    /// The cheaper of both.
    #[inline(always)]
    pub fn or(self, other: Self) -> Self {
        self.or_if(other.cost, self.cost, other)
    }

    /// `other` where `a < b`.
    #[inline(always)]
    pub fn or_if(self, a: V, b: V, other: Self) -> Self {
        Self {
            cost: V::where_less(a, b, other.cost, self.cost),
            word: V::where_less(a, b, other.word, self.word),
        }
    }
}

impl Pairs {
    /// `levels` are what the places stand for.
    pub fn new(words: &Words, levels: &[f32]) -> Self {
        let half = words.len() / 2;
        let number = |places: &[u8]| places.iter().rev().fold(0, |n, &place| n * levels.len() as u8 + place);
        let mut all: Vec<(u8, u8, u16)> = (0..words.count())
            .map(|i| (number(&words.places(i)[..half]), number(&words.places(i)[half..]), i as u16))
            .collect();
        all.sort_unstable();
        let (mut heads, mut tails, mut indices) = (Vec::new(), Vec::new(), Vec::new());
        for run in all.chunk_by(|a, b| a.0 == b.0) {
            let start = tails.len();
            for four in run.chunks(4) {
                let member = |i: usize| four[i.min(four.len() - 1)];
                tails.push(std::array::from_fn(|i| member(i).1));
                indices.push(std::array::from_fn(|i| member(i).2));
            }
            heads.push((run[0].0, start..tails.len()));
        }
        let places: Vec<[u8; 8]> = (0..words.count())
            .map(|i| std::array::from_fn(|j| words.places(i).get(j).copied().unwrap_or(0)))
            .collect();
        let levels = places.iter().map(|places| places.map(|place| levels[usize::from(place)])).collect();
        Self { heads, tails, words: indices, places, levels }
    }

    /// The places of word `index`.
    pub fn places(&self, index: f32) -> &[u8; 8] {
        &self.places[index as usize]
    }

    /// The levels of word `index`.
    #[inline(always)]
    pub fn word(&self, index: f32) -> &[f32; 8] {
        &self.levels[index as usize]
    }

    /// The cheapest word of each lane: its cost, and the place of its first half among the heads.
    #[inline(always)]
    pub fn cheapest<V: Wide>(&self, head: &Table<V>, tail: &Table<V>) -> Cheapest<V> {
        let mut best = Cheapest { cost: V::splat(f32::INFINITY), word: V::splat(0.0) };
        let mut word = V::splat(0.0);
        for (first, tails) in &self.heads {
            let mut least = V::splat(f32::INFINITY);
            for four in &self.tails[tails.clone()] {
                least = V::min(smallest(tail, four), least);
            }
            best = best.or(Cheapest { cost: head[usize::from(*first) % HALVES] + least, word });
            word = word + V::splat(1.0);
        }
        best
    }

    /// The same as [`cheapest`](Self::cheapest), and the cheapest word in which one half has a flip in it: `flipped` tables hold
    /// what halves cost then.
    #[inline(always)]
    pub fn cheapest_flipped<V: Wide>(&self, head: [&Table<V>; 2], tail: [&Table<V>; 2]) -> [Cheapest<V>; 2] {
        let mut best = [Cheapest { cost: V::splat(f32::INFINITY), word: V::splat(0.0) }; 2];
        let mut word = V::splat(0.0);
        for (first, tails) in &self.heads {
            let mut least = [V::splat(f32::INFINITY); 2];
            for four in &self.tails[tails.clone()] {
                least[0] = V::min(smallest(tail[0], four), least[0]);
                least[1] = V::min(smallest(tail[1], four), least[1]);
            }
            let first = usize::from(*first) % HALVES;
            let kept = head[0][first] + least[0];
            let flipped = V::min(head[0][first] + least[1], head[1][first] + least[0]);
            best[0] = best[0].or(Cheapest { cost: kept, word });
            best[1] = best[1].or(Cheapest { cost: flipped, word });
            word = word + V::splat(1.0);
        }
        best
    }

    /// The words behind the heads that [`cheapest`](Self::cheapest) found.
    #[inline(always)]
    pub fn words<V: Wide>(&self, heads: V, tail: &Table<V>) -> V {
        let mut words = [0.0; LANES];
        for k in 0..LANES {
            let (_, tails) = &self.heads[heads.lane(k) as usize];
            words[k] = self.cheapest_tail(tails, |second| tail[second].lane(k)).1;
        }
        V::of(&words)
    }

    /// The words behind the heads that [`cheapest_flipped`](Self::cheapest_flipped) found for words with a flip.
    #[inline(always)]
    pub fn words_flipped<V: Wide>(&self, heads: V, head: [&Table<V>; 2], tail: [&Table<V>; 2]) -> V {
        let mut words = [0.0; LANES];
        for k in 0..LANES {
            let (first, tails) = &self.heads[heads.lane(k) as usize];
            let first = head.map(|table| table[usize::from(*first) % HALVES].lane(k));
            let in_tail = self.cheapest_tail(tails, |second| tail[1][second].lane(k));
            let in_head = self.cheapest_tail(tails, |second| tail[0][second].lane(k));
            words[k] = if first[0] + in_tail.0 < first[1] + in_head.0 { in_tail.1 } else { in_head.1 };
        }
        V::of(&words)
    }

    /// The least cost of `tails` and the index of that word.
    #[inline(always)]
    fn cheapest_tail(&self, tails: &Range<usize>, cost: impl Fn(usize) -> f32) -> (f32, f32) {
        let fours = &self.tails[tails.clone()];
        let mut least = f32::INFINITY;
        for four in fours {
            let [a, b, c, d] = four.map(|second| cost(usize::from(second) % HALVES));
            let (a, c) = (if b < a { b } else { a }, if d < c { d } else { c });
            let a = if c < a { c } else { a };
            least = if a < least { a } else { least };
        }
        let is_least = |second: &u8| cost(usize::from(*second) % HALVES) <= least;
        let place = fours.as_flattened().iter().position(is_least).unwrap_or(0);
        (least, f32::from(self.words[tails.clone()].as_flattened()[place]))
    }
}

/// The smallest of four entries.
#[inline(always)]
fn smallest<V: Wide>(table: &Table<V>, four: &[u8; 4]) -> V {
    let [a, b, c, d] = *four;
    let (a, b) = (table[usize::from(a) % HALVES], table[usize::from(b) % HALVES]);
    let (c, d) = (table[usize::from(c) % HALVES], table[usize::from(d) % HALVES]);
    V::min(V::min(a, b), V::min(c, d))
}

/// The costs of all halves from those of the `L` places of each weight: half `a + b L + c L^2 ..` has its first weight in place
/// `a`.
#[inline(always)]
pub(super) fn sums<V: Wide, const L: usize>(places: &[V], table: &mut Table<V>) {
    table[..L].copy_from_slice(&places[..L]);
    let mut len = L;
    for costs in places[L..].chunks_exact(L) {
        for m in (0..L).rev() {
            for i in 0..len {
                table[m * len + i] = table[i] + costs[m];
            }
        }
        len *= L;
    }
}

/// As [`sums`], the smallest in place of the sum.
#[inline(always)]
pub(super) fn minima<V: Wide, const L: usize>(places: &[V], table: &mut Table<V>) {
    table[..L].copy_from_slice(&places[..L]);
    let mut len = L;
    for costs in places[L..].chunks_exact(L) {
        for m in (0..L).rev() {
            for i in 0..len {
                table[m * len + i] = V::min(costs[m], table[i]);
            }
        }
        len *= L;
    }
}
