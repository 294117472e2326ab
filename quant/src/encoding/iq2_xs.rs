use std::sync::LazyLock;

use super::Codebook;
use super::block::{BlockFormat, Group, Rows};
use super::codebook::{RUN, RUNS, Tables, half_steps};
use super::iq2_xxs::{LEVELS, MAGNITUDES, even};
use super::word_search::SUPER;
use super::words::{Signs, even_signs, find_signed, read_signed, sign_bits};

const MAGNITUDE_COUNT: u8 = MAGNITUDES.len() as u8;
const BLOCK: usize = 16;
const SCALE_BYTES: usize = SUPER / BLOCK / 2;

pub(super) static TABLES: LazyLock<Tables<4>> = LazyLock::new(|| {
    Tables::signed("iq2_xs", include_bytes!("grids/iq2_xs.bin"), &MAGNITUDES, &LEVELS, Signs::Even)
});

/// Super-blocks of 16 x 16 weights, 512 words of eight magnitudes, even signs, 4-bit scales: 2.3125 bits per weight.
#[derive(Debug)]
pub struct Iq2Xs;

impl BlockFormat for Iq2Xs {
    const NAME: &'static str = "iq2_xs";
    const GGML_ID: u32 = 17;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2 + SCALE_BYTES;
    const BYTES: usize = 2 + 2 * RUNS + SCALE_BYTES;
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

    /// Each run: nine bits of the word, seven signs.
    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(&header[..2]);
        block[2 + 2 * RUNS..].copy_from_slice(&header[2..]);
        for (run, bytes) in codes.chunks_exact(RUN).zip(block[2..].chunks_exact_mut(2)) {
            let word = find_signed(&TABLES.words, run, MAGNITUDE_COUNT) as u16;
            let signs = u16::from(sign_bits(run, MAGNITUDE_COUNT, Signs::Even) & 127);
            bytes.copy_from_slice(&(word | signs << 9).to_le_bytes());
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header[..2].copy_from_slice(&block[..2]);
        header[2..].copy_from_slice(&block[2 + 2 * RUNS..]);
        for (run, &bytes) in codes.chunks_exact_mut(RUN).zip(block[2..].as_chunks::<2>().0) {
            let both = u16::from_le_bytes(bytes);
            let signs = even_signs((both >> 9) as u8);
            read_signed(&TABLES.words, &[usize::from(both & 511)], signs, MAGNITUDE_COUNT, run);
        }
    }
}
