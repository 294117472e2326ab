//! The search of the codebook types whose words are ternary, all of a word shifted up or down: `iq1_s` and `iq1_m`.

use super::block::Rows;
use super::word_search::{Blocks, Cheapest, Choice, Chooser, Costs, Header, Pairs, SUPER, Scales, sums};
use crate::lanes::{Kernel, LANES, Lanes, gather, lanes, widest};

/// By how much the levels -1, 0 and 1 are shifted.
pub(super) const SHIFT: f32 = 0.125;
/// Weights in a word.
const WORD: usize = 8;
/// The halves of a word.
const HALVES: usize = 81;
/// What a word's number has besides its index where it is shifted down.
const DOWN: u32 = 1 << 16;

/// What sets one format's search apart: blocks of `N` weights in `R` words.
pub(super) struct Format<'a, const N: usize, const R: usize> {
    pub pairs: &'a Pairs,
    /// Whether the words of a block are all shifted the same way.
    pub together: bool,
    pub scales: Scales,
    pub costs: Costs,
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
        widest(Search { format: self, rows, headers: headers.chunks_exact_mut(header), codes, write });
    }
}

struct Search<'a, const N: usize, const R: usize> {
    format: &'a Format<'a, N, R>,
    rows: &'a Rows<'a>,
    headers: std::slice::ChunksExactMut<'a, u8>,
    codes: &'a mut [u8],
    write: fn(&Found, &mut [u8]),
}

impl<const N: usize, const R: usize> Kernel for Search<'_, N, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { format, rows, mut headers, codes, write } = self;
        let costs = format.costs.of(rows);
        let per_super = SUPER / N;
        for first in rows.batches(N) {
            let blocks = Blocks::new(gather::<N>(rows.x, first), gather::<N>(&costs, first));
            let wx = std::array::from_fn(|i| lanes(|k| blocks.w[i][k] * blocks.x[i][k]));
            let chooser = Chosen { format, blocks, wx };
            let (found, choice) = format.scales.search(&chooser, &chooser.blocks.unit, per_super);
            for (k, codes) in codes[first * N..].chunks_exact_mut(N).take(LANES).enumerate() {
                chooser.codes(&choice, k, codes);
            }
            for (i, (header, bytes)) in found.into_iter().zip(headers.by_ref()).enumerate() {
                let down = (0..per_super)
                    .fold(0, |down, k| down | u16::from(choice[0][i * per_super + k] >= DOWN) << k);
                write(&Found { header, down }, bytes);
            }
        }
    }
}

struct Chosen<'a, const N: usize, const R: usize> {
    format: &'a Format<'a, N, R>,
    blocks: Blocks<N>,
    wx: [Lanes; N],
}

impl<const N: usize, const R: usize> Chosen<'_, N, R> {
    /// The cheapest word of run `r` for three values and their squares.
    #[inline(always)]
    fn word(&self, r: usize, value: &[Lanes; 3], square: &[Lanes; 3]) -> Cheapest {
        let mut tables = [[[0.0; LANES]; HALVES]; 2];
        for (part, table) in tables.iter_mut().enumerate() {
            let first = r * WORD + part * WORD / 2;
            let places: [[Lanes; 3]; WORD / 2] = std::array::from_fn(|i| {
                let (w, wx) = (&self.blocks.w[first + i], &self.wx[first + i]);
                std::array::from_fn(|m| lanes(|k| w[k] * square[m][k] - 2.0 * wx[k] * value[m][k]))
            });
            sums(&places, table);
        }
        self.format.pairs.cheapest(&tables[0], &tables[1])
    }
}

impl<const N: usize, const R: usize> Chooser<R> for Chosen<'_, N, R> {
    #[inline(always)]
    fn choose(&self, scale: &Lanes) -> (Choice<R>, Lanes) {
        let mut found = [[Cheapest { cost: [0.0; LANES], word: [0; LANES] }; R]; 2];
        let mut costs = [[0.0; LANES]; 2];
        for (i, (found, cost)) in found.iter_mut().zip(&mut costs).enumerate() {
            let shift = if i == 0 { SHIFT } else { -SHIFT };
            let value: [Lanes; 3] = std::array::from_fn(|m| lanes(|k| scale[k] * (m as f32 - 1.0 + shift)));
            let square = value.map(|value| value.map(|value| value * value));
            for (r, found) in found.iter_mut().enumerate() {
                *found = self.word(r, &value, &square);
                *cost = lanes(|k| cost[k] + found.cost[k]);
            }
        }
        let [up, mut down] = found;
        down.iter_mut().for_each(|down| down.word = down.word.map(|word| word + DOWN));
        let mut choice = [[0; LANES]; R];
        let mut total = [0.0; LANES];
        for r in 0..R {
            let (a, b) =
                if self.format.together { (&costs[0], &costs[1]) } else { (&up[r].cost, &down[r].cost) };
            let lower: [bool; LANES] = std::array::from_fn(|k| b[k] < a[k]);
            let best = up[r].or(&down[r], &lower);
            choice[r] = best.word;
            total = lanes(|k| total[k] + best.cost[k]);
        }
        (choice, total)
    }

    #[inline(always)]
    fn products(&self, choice: &Choice<R>) -> (Lanes, Lanes) {
        let mut v = [[0.0; LANES]; N];
        for r in 0..R {
            for k in 0..LANES {
                let word = self.format.pairs.word(choice[r][k] % DOWN);
                let shift = if choice[r][k] >= DOWN { -SHIFT } else { SHIFT };
                for i in 0..WORD {
                    v[r * WORD + i][k] = word[i] + shift;
                }
            }
        }
        let (mut xv, mut vv) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..N {
            xv = lanes(|k| xv[k] + self.wx[i][k] * v[i][k]);
            vv = lanes(|k| vv[k] + self.blocks.w[i][k] * v[i][k] * v[i][k]);
        }
        (xv, vv)
    }

    fn codes(&self, choice: &Choice<R>, k: usize, codes: &mut [u8]) {
        for (choice, codes) in choice.iter().zip(codes.chunks_exact_mut(WORD)) {
            let up = u8::from(choice[k] < DOWN);
            for (code, level) in codes.iter_mut().zip(self.format.pairs.word(choice[k] % DOWN)) {
                let place = (*level + 1.0) as u8;
                *code = if self.format.together { place } else { 2 * place + up };
            }
        }
    }
}
