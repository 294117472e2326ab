use std::sync::LazyLock;

use super::Codebook;
use super::block::{BlockFormat, Group, Rows};
use super::codebook::{RUN, Tables, half_steps, mirrored, nibble, set_nibble};
use super::pairs::Pairs;
use super::signed_search::Format;
use super::word_search::{SUPER, Scales};
use super::words::{Signs, even_signs, find_signed, read_signed, sign_bits};

/// The magnitudes of all formats of about two bits.
pub(super) const MAGNITUDES: [f32; 3] = [8.0, 25.0, 43.0];
/// Their levels.
pub(super) const LEVELS: [f32; 6] = mirrored(&MAGNITUDES);
/// What their integer scales are multiplied by.
pub(super) const SCALES: Scales = Scales {
    max_level: 15,
    per_unit: 0.125,
    shares: &[0.55, 0.62, 0.69, 0.77, 0.86, 0.96, 1.07, 1.19],
    around: &[1.0, 1.07, 1.15],
    fits: 1,
    top: MAGNITUDES[2],
};

/// The search of the formats of even signs, in blocks of `N` weights with `R` words.
pub(super) fn even<const N: usize, const R: usize>(pairs: &Pairs) -> Format<'_, N, R, 3> {
    Format { pairs, magnitudes: &MAGNITUDES, signs: Signs::Even, scales: SCALES, spread: 1.0 }
}

const MAGNITUDE_COUNT: u8 = MAGNITUDES.len() as u8;
const BLOCK: usize = 32;

pub(super) static TABLES: LazyLock<Tables<4>> = LazyLock::new(|| {
    Tables::signed("iq2_xxs", include_bytes!("grids/iq2_xxs.bin"), &MAGNITUDES, &LEVELS, Signs::Even)
});

/// Super-blocks of 8 x 32 weights, 256 words of eight magnitudes, even signs, 4-bit scales: 2.0625 bits per weight.
#[derive(Debug)]
pub struct Iq2Xxs;

impl BlockFormat for Iq2Xxs {
    const NAME: &'static str = "iq2_xxs";
    const GGML_ID: u32 = 16;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2 + SUPER / BLOCK / 2;
    const BYTES: usize = 2 + SUPER / 4;
    const MAX_CODE: u8 = 5;
    const LEVELS: Option<&'static [f32]> = Some(&LEVELS);

    fn codebook() -> Option<&'static dyn Codebook> {
        Some(&TABLES.halves)
    }

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        even::<BLOCK, { BLOCK / RUN }>(&TABLES.pairs).search(rows, headers, codes);
    }

    fn group(header: &[u8], group: usize) -> Group {
        half_steps(header, group, 0.25)
    }

    /// Each block: four bytes of words, then seven signs four times and the scale.
    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(&header[..2]);
        let blocks = codes.chunks_exact(BLOCK).zip(block[2..].chunks_exact_mut(8));
        for (i, (codes, bytes)) in blocks.enumerate() {
            let mut signs = u32::from(nibble(header, i)) << 28;
            for (l, run) in codes.chunks_exact(RUN).enumerate() {
                bytes[l] = find_signed(&TABLES.words, run, MAGNITUDE_COUNT) as u8;
                signs |= u32::from(sign_bits(run, MAGNITUDE_COUNT, Signs::Even) & 127) << (7 * l);
            }
            bytes[4..].copy_from_slice(&signs.to_le_bytes());
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header[..2].copy_from_slice(&block[..2]);
        let blocks = codes.chunks_exact_mut(BLOCK).zip(block[2..].as_chunks::<8>().0);
        for (i, (codes, &[words @ .., a, b, c, d])) in blocks.enumerate() {
            let signs = u32::from_le_bytes([a, b, c, d]);
            set_nibble(header, i, (signs >> 28) as u8);
            for (l, run) in codes.chunks_exact_mut(RUN).enumerate() {
                let signs = even_signs((signs >> (7 * l)) as u8);
                read_signed(&TABLES.words, &[usize::from(words[l])], signs, MAGNITUDE_COUNT, run);
            }
        }
    }
}
