//! What the codebook types share: their tables, and headers of a half-precision number and nibbles.

use super::block::{Group, half_at};
use super::nearest::Halves;
use super::word_search::{Pairs, SUPER};
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
