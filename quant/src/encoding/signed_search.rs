//! The search of the codebook types whose words are magnitudes with signs: `iq2_xxs` to `iq3_s`.

use super::block::Rows;
use super::word_search::{Blocks, Choice, Chooser, Costs, Header, Pairs, SUPER, Scales, minima, sums};
use super::words::{Signs, signed_code};
use crate::lanes::{Kernel, LANES, Lanes, gather, lanes, widest};

/// The halves of a word of eight weights of three magnitudes; those of four weights of eight magnitudes are fewer.
const HALVES: usize = 81;

/// What sets one format's search apart: blocks of `N` weights in `R` words, `L` magnitudes.
pub(super) struct Format<'a, const N: usize, const R: usize, const L: usize> {
    pub pairs: &'a Pairs,
    pub magnitudes: &'static [f32; L],
    pub signs: Signs,
    pub scales: Scales,
    pub costs: Costs,
}

impl<const N: usize, const R: usize, const L: usize> Format<'_, N, R, L> {
    /// Headers of a half-precision number and a nibble for each block; and codes.
    pub fn search(&self, rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        widest(Search { format: self, rows, headers, codes });
    }
}

struct Search<'a, const N: usize, const R: usize, const L: usize> {
    format: &'a Format<'a, N, R, L>,
    rows: &'a Rows<'a>,
    headers: &'a mut [u8],
    codes: &'a mut [u8],
}

impl<const N: usize, const R: usize, const L: usize> Kernel for Search<'_, N, R, L> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { format, rows, headers, codes } = self;
        let costs = format.costs.of(rows);
        let per_super = SUPER / N;
        let mut headers = headers.chunks_exact_mut(2 + per_super / 2);
        for first in rows.batches(N) {
            let x = gather::<N>(rows.x, first);
            let chooser = Chosen::new(format, &x, gather::<N>(&costs, first));
            let (found, choice) = format.scales.search(&chooser, &chooser.blocks.unit, per_super);
            for (k, codes) in codes[first * N..].chunks_exact_mut(N).take(LANES).enumerate() {
                chooser.codes(&choice, k, codes);
            }
            for (found, header) in found.iter().zip(headers.by_ref()) {
                write_nibbles(found, header);
            }
        }
    }
}

/// A half-precision number and a nibble for each block.
pub(super) fn write_nibbles(found: &Header, header: &mut [u8]) {
    header[..2].copy_from_slice(&found.unit);
    for (byte, levels) in header[2..].iter_mut().zip(found.levels.as_chunks::<2>().0) {
        *byte = levels[0] | levels[1] << 4;
    }
}

/// Sixteen blocks about to get their words: magnitudes, and signs apart.
struct Chosen<'a, const N: usize, const R: usize, const L: usize> {
    format: &'a Format<'a, N, R, L>,
    blocks: Blocks<N>,
    wx: [Lanes; N],
    negative: [[bool; LANES]; N],
    odd: [[bool; LANES]; N], // of each eight weights: whether one sign must flip
}

impl<'a, const N: usize, const R: usize, const L: usize> Chosen<'a, N, R, L> {
    const WORD: usize = N / R;

    #[inline(always)]
    fn new(format: &'a Format<'a, N, R, L>, x: &[Lanes; N], w: [Lanes; N]) -> Self {
        let negative = x.map(|x| x.map(|x| x < 0.0));
        let blocks = Blocks::new(x.map(|x| x.map(f32::abs)), w);
        let wx = std::array::from_fn(|i| lanes(|k| blocks.w[i][k] * blocks.x[i][k]));
        let mut odd = [[false; LANES]; N];
        if format.signs == Signs::Even {
            for (eight, negative) in odd.iter_mut().zip(negative.as_chunks::<8>().0) {
                for negative in negative {
                    (0..LANES).for_each(|k| eight[k] ^= negative[k]);
                }
            }
        }
        Self { format, blocks, wx, negative, odd }
    }

    /// The cheapest words of run `r` with the signs the weights have and, where signs are even, with one flipped.
    #[inline(always)]
    fn words(&self, r: usize, value: &[Lanes; L], square: &[Lanes; L]) -> [super::word_search::Cheapest; 2] {
        let half = Self::WORD / 2;
        let pairs = self.format.pairs;
        let mut tables = [[[0.0; LANES]; HALVES]; 4];
        let [head, tail, head_flipped, tail_flipped] = &mut tables;
        for (part, table, flipped) in [(0, &mut *head, head_flipped), (1, &mut *tail, tail_flipped)] {
            let first = r * Self::WORD + part * half;
            let mut places = [[[0.0; LANES]; L]; 4];
            let mut flips = [[[0.0; LANES]; L]; 4];
            for i in 0..half {
                let (w, wx) = (&self.blocks.w[first + i], &self.wx[first + i]);
                for m in 0..L {
                    let linear = lanes(|k| 2.0 * wx[k] * value[m][k]);
                    places[i][m] = lanes(|k| w[k] * square[m][k] - linear[k]);
                    flips[i][m] = lanes(|k| 2.0 * linear[k]);
                }
            }
            sums(&places[..half], table);
            if self.format.signs == Signs::Even {
                minima(&flips[..half], flipped);
                for (flipped, table) in flipped.iter_mut().zip(table.iter()) {
                    *flipped = lanes(|k| flipped[k] + table[k]);
                }
            }
        }
        let [head, tail, head_flipped, tail_flipped] = &tables;
        let kept = pairs.cheapest(head, tail);
        if self.format.signs == Signs::Free {
            return [kept, kept];
        }
        [kept, pairs.cheapest_flipped([head, head_flipped], [tail, tail_flipped])]
    }

    /// `wx` times the magnitude of the weight whose flip costs least, in the eight weights from `first`: where one flips.
    #[inline(always)]
    fn least_flip(&self, first: usize, v: &[Lanes; N]) -> Lanes {
        let mut least = [f32::INFINITY; LANES];
        for i in first..first + 8 {
            for k in 0..LANES {
                let flip = self.wx[i][k] * v[i][k];
                least[k] = if flip < least[k] { flip } else { least[k] };
            }
        }
        lanes(|k| if self.odd[first / 8][k] { least[k] } else { 0.0 })
    }

    #[inline(always)]
    fn magnitudes(&self, choice: &Choice<R>) -> [Lanes; N] {
        let mut v = [[0.0; LANES]; N];
        for r in 0..R {
            for k in 0..LANES {
                let word = self.format.pairs.word(choice[r][k]);
                for i in 0..Self::WORD {
                    v[r * Self::WORD + i][k] = word[i];
                }
            }
        }
        v
    }
}

impl<const N: usize, const R: usize, const L: usize> Chooser<R> for Chosen<'_, N, R, L> {
    #[inline(always)]
    fn choose(&self, scale: &Lanes) -> (Choice<R>, Lanes) {
        let value: [Lanes; L] = std::array::from_fn(|m| lanes(|k| scale[k] * self.format.magnitudes[m]));
        let square: [Lanes; L] = std::array::from_fn(|m| lanes(|k| value[m][k] * value[m][k]));
        let mut choice = [[0; LANES]; R];
        let mut cost = [0.0; LANES];
        let per_eight = 8 / Self::WORD;
        for r in (0..R).step_by(per_eight) {
            let odd = &self.odd[r / per_eight];
            let mut found = [self.words(r, &value, &square); 2];
            if per_eight == 1 {
                found[0][0] = found[0][0].or(&found[0][1], odd);
                choice[r] = found[0][0].word;
                cost = lanes(|k| cost[k] + found[0][0].cost[k]);
                continue;
            }
            found[1] = self.words(r + 1, &value, &square);
            let [[a, a_flipped], [b, b_flipped]] = found;
            let in_a: [bool; LANES] = std::array::from_fn(|k| {
                odd[k] & (a_flipped.cost[k] + b.cost[k] < a.cost[k] + b_flipped.cost[k])
            });
            let in_b: [bool; LANES] = std::array::from_fn(|k| odd[k] & !in_a[k]);
            let (a, b) = (a.or(&a_flipped, &in_a), b.or(&b_flipped, &in_b));
            (choice[r], choice[r + 1]) = (a.word, b.word);
            cost = lanes(|k| cost[k] + (a.cost[k] + b.cost[k]));
        }
        (choice, cost)
    }

    #[inline(always)]
    fn products(&self, choice: &Choice<R>) -> (Lanes, Lanes) {
        let v = self.magnitudes(choice);
        let (mut xv, mut vv) = ([0.0; LANES], [0.0; LANES]);
        for first in (0..N).step_by(8) {
            for i in first..first + 8 {
                xv = lanes(|k| xv[k] + self.wx[i][k] * v[i][k]);
                vv = lanes(|k| vv[k] + self.blocks.w[i][k] * v[i][k] * v[i][k]);
            }
            let flip = self.least_flip(first, &v);
            xv = lanes(|k| xv[k] - 2.0 * flip[k]);
        }
        (xv, vv)
    }

    fn codes(&self, choice: &Choice<R>, k: usize, codes: &mut [u8]) {
        let word = |i: usize| self.format.pairs.word(choice[i / Self::WORD][k])[i % Self::WORD];
        for (eight, codes) in codes.chunks_exact_mut(8).enumerate() {
            let cost = |i: usize| self.wx[i][k] * word(i);
            let at = 8 * eight..8 * eight + 8;
            let flip = at.clone().reduce(|least, i| if cost(i) < cost(least) { i } else { least });
            for (i, code) in at.zip(codes) {
                let place = self.format.magnitudes.iter().take_while(|&&level| level < word(i)).count();
                let flipped = self.odd[eight][k] && flip == Some(i);
                *code = signed_code(place as u8, self.negative[i][k] ^ flipped, L as u8);
            }
        }
    }
}
