//! The search of the codebook types whose words are magnitudes with signs: `iq2_xxs` to `iq3_s`.

use super::block::Rows;
use super::pairs::{Cheapest, Pairs, minima, sums};
use super::word_search::{Blocks, Choice, Chooser, Header, SUPER, Scales, Scratch, Want, costs};
use super::words::{Signs, signed_code};
use crate::lanes::{LANES, Lanes, gather, lanes};
use crate::vectors::{self, Wide, WideKernel};

/// What sets one format's search apart: blocks of `N` weights in `R` words, `L` magnitudes.
pub(super) struct Format<'a, const N: usize, const R: usize, const L: usize> {
    pub pairs: &'a Pairs,
    pub magnitudes: &'static [f32; L],
    pub signs: Signs,
    pub scales: Scales,
    /// See [`costs`].
    pub spread: f32,
}

impl<const N: usize, const R: usize, const L: usize> Format<'_, N, R, L> {
    /// Headers of a half-precision number and a nibble for each block; and codes.
    pub fn search(&self, rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        vectors::run(Search { format: self, rows, headers, codes });
    }
}

struct Search<'a, const N: usize, const R: usize, const L: usize> {
    format: &'a Format<'a, N, R, L>,
    rows: &'a Rows<'a>,
    headers: &'a mut [u8],
    codes: &'a mut [u8],
}

impl<const N: usize, const R: usize, const L: usize> WideKernel for Search<'_, N, R, L> {
    type Output = ();

    #[inline(always)]
    fn run<V: Wide>(self) {
        let Self { format, rows, headers, codes } = self;
        let costs = costs(rows, format.spread);
        let per_super = SUPER / N;
        let mut headers = headers.chunks_exact_mut(2 + per_super / 2);
        let mut scratch = Scratch::<V>::new();
        for first in rows.batches(N) {
            let x = gather::<N>(rows.x, first);
            let chooser = Chosen::<V, N, R, L>::new(format, &x, &gather::<N>(&costs, first));
            let (found, choice) =
                format.scales.search(&chooser, &chooser.blocks.unit, per_super, &mut scratch);
            chooser.write_codes(&choice, &mut codes[first * N..]);
            for (found, header) in found.iter().zip(headers.by_ref()) {
                write_nibbles(found, header);
            }
        }
    }
}

/// A half-precision number and a nibble for each block.
fn write_nibbles(found: &Header, header: &mut [u8]) {
    header[..2].copy_from_slice(&found.unit);
    for (byte, levels) in header[2..].iter_mut().zip(found.levels.as_chunks::<2>().0) {
        *byte = levels[0] | levels[1] << 4;
    }
}

/// Sixteen blocks about to get their words: magnitudes, and signs apart.
struct Chosen<'a, V, const N: usize, const R: usize, const L: usize> {
    format: &'a Format<'a, N, R, L>,
    blocks: Blocks<V, N>,
    negative: [u16; N], // a bit a lane
    odd: [V; N],        // of each eight weights: -1 where one sign must flip, otherwise 0
}

impl<'a, V: Wide, const N: usize, const R: usize, const L: usize> Chosen<'a, V, N, R, L> {
    const WORD: usize = N / R;
    const PER_EIGHT: usize = 8 / Self::WORD;

    #[inline(always)]
    fn new(format: &'a Format<'a, N, R, L>, x: &[Lanes; N], w: &[Lanes; N]) -> Self {
        let mut negative = [0; N];
        for (bits, x) in negative.iter_mut().zip(x) {
            *bits = (0..LANES).fold(0, |bits, k| bits | u16::from(x[k] < 0.0) << k);
        }
        let mut magnitudes = *x;
        for x in &mut magnitudes {
            *x = lanes(|k| x[k].abs());
        }
        let mut odd = [V::splat(0.0); N];
        if format.signs == Signs::Even {
            for (eight, negative) in odd.iter_mut().zip(negative.as_chunks::<8>().0) {
                let bits = negative.iter().fold(0u16, |parity, bits| parity ^ bits);
                *eight = V::of(&lanes(|k| -f32::from(bits >> k & 1)));
            }
        }
        Self { format, blocks: Blocks::new(&magnitudes, w), negative, odd }
    }

    #[inline(always)]
    fn tables(&self, r: usize, scale: V, scratch: &mut Scratch<V>) {
        let half = Self::WORD / 2;
        let twice = scale + scale;
        let square = scale * scale;
        for part in 0..2 {
            let first = r * Self::WORD + part * half;
            for i in 0..half {
                let (w, wx) = (self.blocks.w[first + i] * square, self.blocks.wx[first + i] * twice);
                for m in 0..L {
                    let level = self.format.magnitudes[m];
                    let linear = wx * V::splat(level);
                    scratch.places[i * L + m] = w * V::splat(level * level) - linear;
                    scratch.flips[i * L + m] = linear + linear;
                }
            }
            sums::<V, L>(&scratch.places[..half * L], &mut scratch.kept[part]);
            if self.format.signs == Signs::Even {
                let flipped = &mut scratch.flipped[part];
                minima::<V, L>(&scratch.flips[..half * L], flipped);
                for i in 0..L.pow(half as u32) {
                    flipped[i] = flipped[i] + scratch.kept[part][i];
                }
            }
        }
    }

    /// The cheapest words of run `r`: with the signs the weights have and, where signs are even, with one flipped.
    #[inline(always)]
    fn cheapest(&self, r: usize, scale: V, want: Want, scratch: &mut Scratch<V>) -> [Cheapest<V>; 2] {
        self.tables(r, scale, scratch);
        let pairs = self.format.pairs;
        let Scratch { kept: [head, tail], flipped: [head_flipped, tail_flipped], .. } = scratch;
        let (heads, tails) = ([&*head, head_flipped], [&*tail, tail_flipped]);
        let mut found = match self.format.signs {
            Signs::Free => [pairs.cheapest(head, tail); 2],
            Signs::Even => pairs.cheapest_flipped(heads, tails),
        };
        if want == Want::Words {
            found[0].word = pairs.words(found[0].word, tail);
            if self.format.signs == Signs::Even {
                found[1].word = pairs.words_flipped(found[1].word, heads, tails);
            }
        }
        found
    }

    /// The cheapest of the two words of eight weights: where one sign must flip, it does so in one of them.
    #[inline(always)]
    fn pair(&self, eight: usize, a: [Cheapest<V>; 2], b: [Cheapest<V>; 2]) -> [Cheapest<V>; 2] {
        let zero = V::splat(0.0);
        let (in_a, in_b) = (a[1].cost + b[0].cost, a[0].cost + b[1].cost);
        let odd = self.odd[eight];
        // Where the flip is in a, `b_less` is not below 0.
        let a_less = V::where_less(in_a, in_b, odd, zero);
        let b_less = V::where_less(in_a, in_b, zero, odd);
        [a[0].or_if(a_less, zero, a[1]), b[0].or_if(b_less, zero, b[1])]
    }

    /// The weight whose flip costs least of eight, and `wx` times its magnitude: where one flips, otherwise weight -1.
    #[inline(always)]
    fn least_flip(&self, eight: usize, v: &[V; N]) -> (V, V) {
        let zero = V::splat(0.0);
        let (mut least, mut at) = (V::splat(f32::INFINITY), zero);
        for i in 0..8 {
            let cost = self.blocks.wx[8 * eight + i] * v[8 * eight + i];
            at = V::where_less(cost, least, V::splat(i as f32), at);
            least = V::min(cost, least);
        }
        let odd = self.odd[eight];
        (V::where_less(odd, zero, at, V::splat(-1.0)), V::where_less(odd, zero, least, zero))
    }

    #[inline(always)]
    fn magnitudes(&self, choice: &Choice<V, R>) -> [V; N] {
        let mut v = [V::splat(0.0); N];
        for r in 0..R {
            let mut levels = [[0.0; LANES]; 8];
            for k in 0..LANES {
                let word = self.format.pairs.word(choice[r].lane(k));
                for i in 0..Self::WORD {
                    levels[i][k] = word[i];
                }
            }
            for i in 0..Self::WORD {
                v[r * Self::WORD + i] = V::of(&levels[i]);
            }
        }
        v
    }

    /// Codes, block after block.
    #[inline(always)]
    fn write_codes(&self, choice: &Choice<V, R>, codes: &mut [u8]) {
        let v = self.magnitudes(choice);
        for eight in 0..N / 8 {
            let (flip, _) = self.least_flip(eight, &v);
            for (k, codes) in codes.chunks_exact_mut(N).take(LANES).enumerate() {
                let codes = &mut codes[8 * eight..8 * eight + 8];
                let flip = flip.lane(k) as i32;
                for i in 0..8 {
                    let word = choice[(8 * eight + i) / Self::WORD].lane(k);
                    let place = self.format.pairs.places(word)[i % Self::WORD];
                    let negative = (self.negative[8 * eight + i] >> k & 1 == 1) ^ (flip == i as i32);
                    codes[i] = signed_code(place, negative, L as u8);
                }
            }
        }
    }
}

impl<V: Wide, const N: usize, const R: usize, const L: usize> Chooser<V, R> for Chosen<'_, V, N, R, L> {
    #[inline(always)]
    fn choose(
        &self,
        scale: V,
        want: Want,
        _like: Option<&Choice<V, R>>,
        scratch: &mut Scratch<V>,
    ) -> (Choice<V, R>, V) {
        let zero = V::splat(0.0);
        let mut found = [[Cheapest { cost: zero, word: zero }; 2]; R];
        for r in 0..R {
            found[r] = self.cheapest(r, scale, want, scratch);
        }
        let mut choice = [zero; R];
        let mut cost = zero;
        for eight in 0..N / 8 {
            let r = eight * Self::PER_EIGHT;
            if Self::PER_EIGHT == 1 {
                let best = found[r][0].or_if(self.odd[eight], zero, found[r][1]);
                (choice[r], cost) = (best.word, cost + best.cost);
            } else {
                let [a, b] = self.pair(eight, found[r], found[r + 1]);
                (choice[r], choice[r + 1]) = (a.word, b.word);
                cost = cost + (a.cost + b.cost);
            }
        }
        (choice, cost)
    }

    #[inline(always)]
    fn free_cost(&self, scale: V) -> V {
        let mut total = V::splat(0.0);
        let twice = scale + scale;
        let square = scale * scale;
        for i in 0..N {
            let (w, wx) = (self.blocks.w[i] * square, self.blocks.wx[i] * twice);
            let mut least = V::splat(f32::INFINITY);
            for &level in self.format.magnitudes {
                least = V::min(w * V::splat(level * level) - wx * V::splat(level), least);
            }
            total = total + least;
        }
        total
    }

    #[inline(always)]
    fn products(&self, choice: &Choice<V, R>) -> (V, V) {
        let v = self.magnitudes(choice);
        let (mut xv, mut vv) = (V::splat(0.0), V::splat(0.0));
        for eight in 0..N / 8 {
            for i in 8 * eight..8 * eight + 8 {
                xv = xv + self.blocks.wx[i] * v[i];
                vv = vv + self.blocks.w[i] * v[i] * v[i];
            }
            let (_, flip) = self.least_flip(eight, &v);
            xv = xv - (flip + flip);
        }
        (xv, vv)
    }
}
