//! The search of the codebook types whose words are ternary, all of a word shifted up or down: `iq1_s` and `iq1_m`.

use super::block::Rows;
use super::pairs::{Cheapest, Pairs, sums};
use super::word_search::{Blocks, Choice, Chooser, Header, SUPER, Scales, Scratch, Want, costs};
use crate::lanes::{LANES, gather};
use crate::vectors::{self, Wide, WideKernel};

/// By how much the levels -1, 0 and 1 are shifted.
pub(super) const SHIFT: f32 = 0.125;
/// Weights in a word.
const WORD: usize = 8;
/// What a word's number has besides its index where it is shifted down.
const DOWN: f32 = 4096.0;

/// What sets one format's search apart: blocks of `N` weights in `R` words.
pub(super) struct Format<'a, const N: usize, const R: usize> {
    pub pairs: &'a Pairs,
    /// Whether the words of a block are all shifted the same way.
    pub together: bool,
    pub scales: Scales,
    /// See [`costs`].
    pub spread: f32,
}

/// What the search gives for a super-block besides its codes.
pub(super) struct Found {
    pub header: Header,
    /// Bit `b` for block `b`: whether its first word is shifted down.
    pub down: u16,
}

impl<const N: usize, const R: usize> Format<'_, N, R> {
    /// Codes, `2 * place` and one more where the word is shifted up, or the places alone where a block's words are shifted
    /// together; and headers by `write`.
    pub fn search(
        &self,
        rows: &Rows<'_>,
        headers: &mut [u8],
        codes: &mut [u8],
        write: fn(&Found, &mut [u8]),
    ) {
        let header = headers.len() / (rows.x.len() / SUPER).max(1);
        let headers = headers.chunks_exact_mut(header.max(1));
        vectors::run(Search { format: self, rows, headers, codes, write });
    }
}

struct Search<'a, const N: usize, const R: usize> {
    format: &'a Format<'a, N, R>,
    rows: &'a Rows<'a>,
    headers: std::slice::ChunksExactMut<'a, u8>,
    codes: &'a mut [u8],
    write: fn(&Found, &mut [u8]),
}

impl<const N: usize, const R: usize> WideKernel for Search<'_, N, R> {
    type Output = ();

    #[inline(always)]
    fn run<V: Wide>(self) {
        let Self { format, rows, mut headers, codes, write } = self;
        let costs = costs(rows, format.spread);
        let per_super = SUPER / N;
        let mut scratch = Scratch::<V>::new();
        for first in rows.batches(N) {
            let blocks = Blocks::<V, N>::new(&gather(rows.x, first), &gather(&costs, first));
            let chooser = Chosen { format, blocks };
            let (found, choice) =
                format.scales.search(&chooser, &chooser.blocks.unit, per_super, &mut scratch);
            chooser.write_codes(&choice, &mut codes[first * N..]);
            let lowered = choice[0].lanes();
            for (i, (header, bytes)) in found.into_iter().zip(headers.by_ref()).enumerate() {
                let down = (0..per_super)
                    .fold(0, |down, k| down | u16::from(lowered[i * per_super + k] >= DOWN) << k);
                write(&Found { header, down }, bytes);
            }
        }
    }
}

struct Chosen<'a, V, const N: usize, const R: usize> {
    format: &'a Format<'a, N, R>,
    blocks: Blocks<V, N>,
}

impl<V: Wide, const N: usize, const R: usize> Chosen<'_, V, N, R> {
    /// The cheapest word of run `r` with levels shifted by `shift`.
    #[inline(always)]
    fn cheapest(&self, r: usize, scale: V, shift: V, want: Want, scratch: &mut Scratch<V>) -> Cheapest<V> {
        let twice = scale + scale;
        let square = scale * scale;
        let levels = [shift - V::splat(1.0), shift, shift + V::splat(1.0)];
        for (part, table) in scratch.kept.iter_mut().enumerate() {
            let first = r * WORD + part * WORD / 2;
            for i in 0..WORD / 2 {
                let (w, wx) = (self.blocks.w[first + i] * square, self.blocks.wx[first + i] * twice);
                for m in 0..3 {
                    scratch.places[3 * i + m] = w * (levels[m] * levels[m]) - wx * levels[m];
                }
            }
            sums::<V, 3>(&scratch.places[..3 * WORD / 2], table);
        }
        let mut found = self.format.pairs.cheapest(&scratch.kept[0], &scratch.kept[1]);
        if want == Want::Words {
            found.word = self.format.pairs.words(found.word, &scratch.kept[1]);
        }
        found
    }
}

impl<V: Wide, const N: usize, const R: usize> Chooser<V, R> for Chosen<'_, V, N, R> {
    #[inline(always)]
    fn choose(
        &self,
        scale: V,
        want: Want,
        like: Option<&Choice<V, R>>,
        scratch: &mut Scratch<V>,
    ) -> (Choice<V, R>, V) {
        let zero = V::splat(0.0);
        let shifts = [V::splat(SHIFT), V::splat(-SHIFT)];
        let tries = if like.is_some() { 1 } else { 2 };
        let mut found = [[Cheapest { cost: zero, word: zero }; 2]; R]; // shifted up, and down
        let mut costs = [zero; 2];
        for r in 0..R {
            for i in 0..tries {
                let shift = match like {
                    Some(like) => V::where_less(like[r], V::splat(DOWN), shifts[0], shifts[1]),
                    None => shifts[i],
                };
                found[r][i] = self.cheapest(r, scale, shift, want, scratch);
                found[r][i].word = found[r][i].word + V::where_less(shift, zero, V::splat(DOWN), zero);
                costs[i] = costs[i] + found[r][i].cost;
            }
        }
        let mut choice = [zero; R];
        let mut total = zero;
        for r in 0..R {
            let [mut best, down] = found[r];
            if like.is_none() {
                let [a, b] = if self.format.together { costs } else { [best.cost, down.cost] };
                best = best.or_if(b, a, down);
            }
            (choice[r], total) = (best.word, total + best.cost);
        }
        (choice, total)
    }

    #[inline(always)]
    fn free_cost(&self, scale: V) -> V {
        let mut total = V::splat(0.0);
        let mut costs = [total; 2];
        let twice = scale + scale;
        let square = scale * scale;
        for i in 0..N {
            let (w, wx) = (self.blocks.w[i] * square, self.blocks.wx[i] * twice);
            for (cost, shift) in costs.iter_mut().zip([SHIFT, -SHIFT]) {
                let mut least = V::splat(f32::INFINITY);
                for level in [shift - 1.0, shift, shift + 1.0] {
                    least = V::min(w * V::splat(level * level) - wx * V::splat(level), least);
                }
                *cost = *cost + least;
            }
            if i % WORD == WORD - 1 && (i == N - 1 || !self.format.together) {
                total = total + V::min(costs[0], costs[1]);
                costs = [V::splat(0.0); 2];
            }
        }
        total
    }

    #[inline(always)]
    fn products(&self, choice: &Choice<V, R>) -> (V, V) {
        let (mut xv, mut vv) = (V::splat(0.0), V::splat(0.0));
        for r in 0..R {
            let mut levels = [[0.0; LANES]; WORD];
            for k in 0..LANES {
                let index = choice[r].lane(k);
                let shift = if index >= DOWN { -SHIFT } else { SHIFT };
                let word = self.format.pairs.word(if index >= DOWN { index - DOWN } else { index });
                for i in 0..WORD {
                    levels[i][k] = word[i] + shift;
                }
            }
            for i in 0..WORD {
                let v = V::of(&levels[i]);
                xv = xv + self.blocks.wx[r * WORD + i] * v;
                vv = vv + self.blocks.w[r * WORD + i] * v * v;
            }
        }
        (xv, vv)
    }
}

impl<V: Wide, const N: usize, const R: usize> Chosen<'_, V, N, R> {
    /// Codes, block after block.
    fn write_codes(&self, choice: &Choice<V, R>, codes: &mut [u8]) {
        for (k, codes) in codes.chunks_exact_mut(N).take(LANES).enumerate() {
            for (choice, codes) in choice.iter().zip(codes.chunks_exact_mut(WORD)) {
                let index = choice.lane(k);
                let up = u8::from(index < DOWN);
                let word = if index < DOWN { index } else { index - DOWN };
                for (code, &place) in codes.iter_mut().zip(self.format.pairs.places(word)) {
                    *code = if self.format.together { place } else { 2 * place + up };
                }
            }
        }
    }
}
