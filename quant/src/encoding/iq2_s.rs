use std::sync::LazyLock;

use super::Codebook;
use super::block::{BlockFormat, Group, Rows};
use super::codebook::{RUN, RUNS, Tables, half_steps};
use super::iq2_xxs::{LEVELS, MAGNITUDES, SCALES};
use super::signed_search::Format;
use super::word_search::{SUPER, Scales};
use super::words::{Signs, find_signed, read_signed, sign_bits};

const MAGNITUDE_COUNT: u8 = MAGNITUDES.len() as u8;
const BLOCK: usize = 16;
const SCALE_BYTES: usize = SUPER / BLOCK / 2;
/// Where the bytes of a block are: low bits of the words, signs, high bits of the words, scales.
const LOW: usize = 2;
const SIGNS: usize = LOW + RUNS;
const HIGH: usize = SIGNS + RUNS;
const SCALE: usize = HIGH + RUNS / 4;

pub(super) static TABLES: LazyLock<Tables<4>> = LazyLock::new(|| {
    Tables::signed("iq2_s", include_bytes!("grids/iq2_s.bin"), &MAGNITUDES, &LEVELS, Signs::Free)
});

/// Super-blocks of 16 x 16 weights, 1024 words of eight magnitudes, free signs, 4-bit scales: 2.5625 bits per weight.
#[derive(Debug)]
pub struct Iq2S;

impl BlockFormat for Iq2S {
    const NAME: &'static str = "iq2_s";
    const GGML_ID: u32 = 22;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2 + SCALE_BYTES;
    const BYTES: usize = SCALE + SCALE_BYTES;
    const MAX_CODE: u8 = 5;
    const LEVELS: Option<&'static [f32]> = Some(&LEVELS);

    fn codebook() -> Option<&'static dyn Codebook> {
        Some(&TABLES.halves)
    }

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let format = Format::<BLOCK, { BLOCK / RUN }, 3> {
            pairs: &TABLES.pairs,
            magnitudes: &MAGNITUDES,
            signs: Signs::Free,
            scales: Scales { around: &[1.05], ..SCALES },
            spread: 2.0,
        };
        format.search(rows, headers, codes);
    }

    fn group(header: &[u8], group: usize) -> Group {
        half_steps(header, group, 0.25)
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(&header[..2]);
        block[SCALE..].copy_from_slice(&header[2..]);
        for (r, run) in codes.chunks_exact(RUN).enumerate() {
            let word = find_signed(&TABLES.words, run, MAGNITUDE_COUNT);
            block[LOW + r] = word as u8;
            block[HIGH + r / 4] |= (word >> 8) as u8 * (1 << (2 * (r % 4)));
            block[SIGNS + r] = sign_bits(run, MAGNITUDE_COUNT, Signs::Free);
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header[..2].copy_from_slice(&block[..2]);
        header[2..].copy_from_slice(&block[SCALE..]);
        for (r, run) in codes.chunks_exact_mut(RUN).enumerate() {
            let high = block[HIGH + r / 4] >> (2 * (r % 4)) & 3;
            let word = usize::from(block[LOW + r]) | usize::from(high) << 8;
            read_signed(&TABLES.words, &[word], block[SIGNS + r], MAGNITUDE_COUNT, run);
        }
    }
}
