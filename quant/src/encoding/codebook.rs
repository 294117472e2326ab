//! What the codebook types share: their tables, and headers of a half-precision number and nibbles.

use super::block::{Group, half_at};
use super::nearest::Halves;
use super::pairs::Pairs;
use super::word_search::SUPER;
use super::words::{Signs, Words};

/// Weights in a run that share signs or a word of eight.
pub(super) const RUN: usize = 8;
/// Runs in a super-block.
pub(super) const RUNS: usize = SUPER / RUN;

/// The words of a format, as its bytes, its search and its solver need them.
pub(super) struct Tables<const H: usize> {
    pub words: Words,
    pub pairs: Pairs,
    pub halves: Halves<H>,
}

impl<const H: usize> Tables<H> {
    /// Words of `2 * H` magnitudes.
    pub fn signed(
        name: &'static str,
        packed: &[u8],
        magnitudes: &[f32],
        levels: &[f32],
        signs: Signs,
    ) -> Self {
        let words = Words::new(packed, 2 * H);
        let pairs = Pairs::new(&words, magnitudes);
        let halves = Halves::signed(name, &words, levels, signs);
        Self { words, pairs, halves }
    }

    /// Words of `H` magnitudes, two of which share even signs.
    pub fn paired(name: &'static str, packed: &[u8], magnitudes: &[f32], levels: &[f32]) -> Self {
        let words = Words::new(packed, H);
        let pairs = Pairs::new(&words, magnitudes);
        let halves = Halves::pairs(name, &words, levels);
        Self { words, pairs, halves }
    }

    /// Ternary words that become codes by each of `shifts`: `code = factor * place + shift`.
    pub fn ternary(name: &'static str, levels: &[f32], factor: u8, shifts: &[u8]) -> Self {
        let words = Words::new(include_bytes!("grids/iq1.bin"), 2 * H);
        let pairs = Pairs::new(&words, &[-1.0, 0.0, 1.0]);
        let halves = Halves::shifted(name, &words, levels, factor, shifts);
        Self { words, pairs, halves }
    }
}

/// The negative levels of `magnitudes`, then themselves.
pub(super) const fn mirrored<const L: usize, const LEVELS: usize>(magnitudes: &[f32; L]) -> [f32; LEVELS] {
    let mut levels = [0.0; LEVELS];
    let mut i = 0;
    while i < L {
        levels[L - 1 - i] = -magnitudes[i];
        levels[L + i] = magnitudes[i];
        i += 1;
    }
    levels
}

/// The nibble of block `i` behind a half-precision number.
pub(super) fn nibble(header: &[u8], i: usize) -> u8 {
    header[2 + i / 2] >> (4 * (i % 2)) & 15
}

/// Writes what [`nibble`] reads.
pub(super) fn set_nibble(header: &mut [u8], i: usize, nibble: u8) {
    let byte = &mut header[2 + i / 2];
    *byte = *byte & !(15 << (4 * (i % 2))) | nibble << (4 * (i % 2));
}

/// The group of block `i` where scales are `factor * (0.5 + nibble)` times the number.
pub(super) fn half_steps(header: &[u8], i: usize, factor: f32) -> Group {
    let scale = half_at(header, 0) * (0.5 + f32::from(nibble(header, i))) * factor;
    Group { scale, zero: 0.0, min: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::words::{even_signs, find_signed, sign_bits};
    use super::super::{Codebook, iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs};
    use super::*;

    /// Numbers between -1 and 1, from a seed.
    fn uniform(seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// Metrics from none to strong correlation; the first two are diagonal.
    fn metrics(run: usize) -> Vec<Vec<f32>> {
        let factor = uniform(5, run * run);
        let metric = |own: f32, shared: f32| {
            let at = |i: usize| {
                let (row, col) = (i / run, i % run);
                let dot: f32 = (0..run).map(|k| factor[row * run + k] * factor[col * run + k]).sum();
                shared * dot + if row == col { own * (1.0 + row as f32 / 4.0) } else { 0.0 }
            };
            (0..run * run).map(at).collect()
        };
        vec![metric(1.0, 0.0), metric(1e-4, 0.0), metric(1.0, 0.5), metric(0.3, 1.0), metric(0.05, 1.0)]
    }

    fn cost(metric: &[f32], x: &[f32], g: impl Fn(usize) -> f32) -> f64 {
        let off: Vec<f64> = x.iter().enumerate().map(|(i, &x)| f64::from(x - g(i))).collect();
        let row = |i: usize| (0..x.len()).map(|j| f64::from(metric[i * x.len() + j]) * off[j]).sum::<f64>();
        (0..x.len()).map(|i| off[i] * row(i)).sum()
    }

    /// The codewords found cost no more than the cheapest of `all`, and are among what the format stores.
    fn assert_cheapest<const H: usize>(
        halves: &Halves<H>,
        levels: &[f32],
        reach: f32,
        runs: usize,
        all: &[Vec<f32>],
        stored: impl Fn(&[u8]),
    ) {
        let run = 2 * H;
        for (m, metric) in metrics(run).iter().enumerate() {
            let x: Vec<f32> = uniform(m as u64, runs * run).iter().map(|x| reach * x).collect();
            let mut codes = vec![0; x.len()];
            halves.nearest(metric, &x, &mut codes);
            for (x, codes) in x.chunks_exact(run).zip(codes.chunks_exact(run)) {
                stored(codes);
                let found = cost(metric, x, |i| levels[usize::from(codes[i])]);
                let least = all.iter().map(|g| cost(metric, x, |i| g[i])).fold(f64::INFINITY, f64::min);
                assert!(found <= least * (1.0 + 1e-4) + 1e-6, "{halves:?}, metric {m}: {found} for {least}");
            }
        }
    }

    fn all_signed(words: &Words, magnitudes: &[f32], signs: Signs) -> Vec<Vec<f32>> {
        let masks: Vec<u8> = match signs {
            Signs::Free => (0..=(u8::MAX >> (8 - words.len()))).collect(),
            Signs::Even => (0..128).map(even_signs).collect(),
        };
        let word = |i: usize, mask: u8| {
            let sign = |j: usize| if mask >> j & 1 == 1 { -1.0 } else { 1.0 };
            words.places(i).iter().enumerate().map(|(j, &p)| sign(j) * magnitudes[usize::from(p)]).collect()
        };
        (0..words.count()).flat_map(|i| masks.iter().map(move |&mask| word(i, mask))).collect()
    }

    fn assert_signed(tables: &Tables<4>, signs: Signs, runs: usize) {
        let all = all_signed(&tables.words, &iq2_xxs::MAGNITUDES, signs);
        assert_cheapest(&tables.halves, &iq2_xxs::LEVELS, 50.0, runs, &all, |codes| {
            find_signed(&tables.words, codes, 3);
            sign_bits(codes, 3, signs);
        });
    }

    #[test]
    fn the_nearest_codewords_of_two_bits_are_the_cheapest_of_all() {
        assert_signed(&iq2_xxs::TABLES, Signs::Even, 12);
        assert_signed(&iq2_xs::TABLES, Signs::Even, 6);
        assert_signed(&iq2_s::TABLES, Signs::Free, 2);
    }

    #[test]
    fn the_nearest_codewords_of_three_bits_are_the_cheapest_of_all() {
        let tables = &iq3_s::TABLES;
        let all = all_signed(&tables.words, &iq3_s::MAGNITUDES, Signs::Free);
        assert_cheapest(&tables.halves, &iq3_s::LEVELS, 17.0, 100, &all, |codes| {
            find_signed(&tables.words, codes, 8);
        });
    }

    /// Two words and seven signs are too many to try together: each half is tried given the other, which the cheapest must stand.
    #[test]
    fn no_word_of_a_pair_can_be_exchanged_for_a_cheaper_one() {
        let tables = &iq3_xxs::TABLES;
        let levels =
            |codes: &[u8]| codes.iter().map(|&c| iq3_xxs::LEVELS[usize::from(c)]).collect::<Vec<_>>();
        for (m, metric) in metrics(8).iter().enumerate() {
            let x: Vec<f32> = uniform(m as u64, 8 * 20).iter().map(|x| 70.0 * x).collect();
            let mut codes = vec![0; x.len()];
            tables.halves.nearest(metric, &x, &mut codes);
            for (x, codes) in x.chunks_exact(8).zip(codes.chunks_exact(8)) {
                let signs = sign_bits(codes, 8, Signs::Even);
                let kept = levels(codes);
                let found = cost(metric, x, |i| kept[i]);
                for half in 0..2 {
                    let odd = (signs >> (4 * half) & 15).count_ones() % 2;
                    for word in 0..tables.words.count() {
                        for mask in (0..16u8).filter(|mask| mask.count_ones() % 2 == odd) {
                            let places = tables.words.places(word);
                            let other = |i: usize| {
                                let magnitude = iq3_xxs::MAGNITUDES[usize::from(places[i % 4])];
                                if mask >> (i % 4) & 1 == 1 { -magnitude } else { magnitude }
                            };
                            let exchanged = |i: usize| if i / 4 == half { other(i) } else { kept[i] };
                            assert!(found <= cost(metric, x, exchanged) * (1.0 + 1e-4), "metric {m}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_nearest_ternary_codewords_are_the_cheapest_of_all() {
        let words = &iq1_s::TABLES.words;
        let shifted = |shift: f32| {
            let word = move |i: usize| words.places(i).iter().map(|&p| f32::from(p) - 1.0 + shift).collect();
            (0..words.count()).map(word).collect::<Vec<Vec<f32>>>()
        };
        assert_cheapest(&iq1_s::TABLES.halves, &iq1_s::LEVELS, 1.5, 60, &shifted(0.0), |codes| {
            words.find(codes.iter().copied());
        });
        let both = [shifted(0.125), shifted(-0.125)].concat();
        assert_cheapest(&iq1_m::TABLES.halves, &iq1_m::LEVELS, 1.5, 60, &both, |codes| {
            assert!(codes.iter().all(|code| code % 2 == codes[0] % 2));
            words.find(codes.iter().map(|code| code / 2));
        });
    }

    #[test]
    fn what_is_not_a_number_still_gets_a_codeword() {
        for book in [&iq2_xs::TABLES.halves as &dyn Codebook, &iq3_s::TABLES.halves, &iq1_m::TABLES.halves] {
            let run = book.run();
            let mut codes = vec![99; 2 * run];
            let x: Vec<f32> = (0..2 * run).map(|i| if i < run { f32::NAN } else { f32::INFINITY }).collect();
            book.nearest(&metrics(run)[2], &x, &mut codes);
            assert!(codes.iter().all(|&code| code < 16), "{book:?}: {codes:?}");
        }
    }
}
