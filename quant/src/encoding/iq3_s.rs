use std::sync::LazyLock;

use super::Codebook;
use super::block::{BlockFormat, Group, Rows, half_at};
use super::codebook::{RUN, RUNS, Tables, mirrored, nibble};
use super::signed_search::Format;
use super::word_search::{SUPER, Scales};
use super::words::{Signs, find_signed, read_signed, sign_bits};

pub(super) const MAGNITUDES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
pub(super) const LEVELS: [f32; 16] = mirrored(&MAGNITUDES);
/// How the searches of both formats of about three bits go.
pub(super) const SCALES: Scales = Scales {
    max_level: 15,
    per_unit: 1.0,
    shares: &[0.7, 0.76, 0.82, 0.88, 0.94, 1.0, 1.06, 1.12],
    around: &[0.94, 1.0, 1.06],
    fits: 1,
    top: MAGNITUDES[7],
};
const MAGNITUDE_COUNT: u8 = MAGNITUDES.len() as u8;
const BLOCK: usize = 32;
const WORD: usize = 4;
const SCALE_BYTES: usize = SUPER / BLOCK / 2;
/// Where the bytes of a block are: low bits of the words, high bits of the words, signs, scales.
const LOW: usize = 2;
const HIGH: usize = LOW + SUPER / WORD;
const SIGNS: usize = HIGH + SUPER / WORD / 8;
const SCALE: usize = SIGNS + RUNS;

pub(super) static TABLES: LazyLock<Tables<{ WORD / 2 }>> = LazyLock::new(|| {
    Tables::signed("iq3_s", include_bytes!("grids/iq3_s.bin"), &MAGNITUDES, &LEVELS, Signs::Free)
});

/// Super-blocks of 8 x 32 weights, 512 words of four magnitudes, free signs, 4-bit scales: 3.4375 bits per weight.
#[derive(Debug)]
pub struct Iq3S;

impl BlockFormat for Iq3S {
    const NAME: &'static str = "iq3_s";
    const GGML_ID: u32 = 21;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2 + SCALE_BYTES;
    const BYTES: usize = SCALE + SCALE_BYTES;
    const MAX_CODE: u8 = 15;
    const LEVELS: Option<&'static [f32]> = Some(&LEVELS);

    fn codebook() -> Option<&'static dyn Codebook> {
        Some(&TABLES.halves)
    }

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let format = Format::<BLOCK, { BLOCK / WORD }, 8> {
            pairs: &TABLES.pairs,
            magnitudes: &MAGNITUDES,
            signs: Signs::Free,
            scales: SCALES,
            spread: 2.0,
        };
        format.search(rows, headers, codes);
    }

    fn group(header: &[u8], group: usize) -> Group {
        let scale = half_at(header, 0) * f32::from(1 + 2 * nibble(header, group));
        Group { scale, zero: 0.0, min: 0.0 }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(&header[..2]);
        block[SCALE..].copy_from_slice(&header[2..]);
        for (i, word) in codes.chunks_exact(WORD).enumerate() {
            let word = find_signed(&TABLES.words, word, MAGNITUDE_COUNT);
            block[LOW + i] = word as u8;
            block[HIGH + i / 8] |= u8::from(word >> 8 == 1) << (i % 8);
        }
        for (run, signs) in codes.chunks_exact(RUN).zip(&mut block[SIGNS..SCALE]) {
            *signs = sign_bits(run, MAGNITUDE_COUNT, Signs::Free);
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header[..2].copy_from_slice(&block[..2]);
        header[2..].copy_from_slice(&block[SCALE..]);
        let word =
            |i: usize| usize::from(block[LOW + i]) | usize::from(block[HIGH + i / 8] >> (i % 8) & 1) << 8;
        for (r, run) in codes.chunks_exact_mut(RUN).enumerate() {
            read_signed(
                &TABLES.words,
                &[word(2 * r), word(2 * r + 1)],
                block[SIGNS + r],
                MAGNITUDE_COUNT,
                run,
            );
        }
    }
}
