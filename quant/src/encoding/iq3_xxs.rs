use std::sync::LazyLock;

use super::Codebook;
use super::block::{BlockFormat, Group, Rows};
use super::codebook::{RUN, Tables, half_steps, mirrored, nibble, set_nibble};
use super::iq3_s::SCALES;
use super::signed_search::Format;
use super::word_search::{SUPER, Scales};
use super::words::{Signs, even_signs, find_signed, read_signed, sign_bits};

pub(super) const MAGNITUDES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
pub(super) const LEVELS: [f32; 16] = mirrored(&MAGNITUDES);
const MAGNITUDE_COUNT: u8 = MAGNITUDES.len() as u8;
const BLOCK: usize = 32;
/// Weights in a word: half a run.
const WORD: usize = RUN / 2;
const SIGNS: usize = 2 + SUPER / WORD;

pub(super) static TABLES: LazyLock<Tables<WORD>> =
    LazyLock::new(|| Tables::paired("iq3_xxs", include_bytes!("grids/iq3_xxs.bin"), &MAGNITUDES, &LEVELS));

/// Super-blocks of 8 x 32 weights, 256 words of four magnitudes, signs even over two, 4-bit scales: 3.0625 bits per weight.
#[derive(Debug)]
pub struct Iq3Xxs;

impl BlockFormat for Iq3Xxs {
    const NAME: &'static str = "iq3_xxs";
    const GGML_ID: u32 = 18;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2 + SUPER / BLOCK / 2;
    const BYTES: usize = SIGNS + SUPER / 8;
    const MAX_CODE: u8 = 15;
    const LEVELS: Option<&'static [f32]> = Some(&LEVELS);

    fn codebook() -> Option<&'static dyn Codebook> {
        Some(&TABLES.halves)
    }

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let format = Format::<BLOCK, { BLOCK / WORD }, 8> {
            pairs: &TABLES.pairs,
            magnitudes: &MAGNITUDES,
            signs: Signs::Even,
            scales: Scales { per_unit: 0.25, top: MAGNITUDES[7], ..SCALES },
            spread: 2.0,
        };
        format.search(rows, headers, codes);
    }

    fn group(header: &[u8], group: usize) -> Group {
        half_steps(header, group, 0.5)
    }

    /// All words, then for each block seven signs four times and the scale.
    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(&header[..2]);
        for (word, byte) in codes.chunks_exact(WORD).zip(&mut block[2..SIGNS]) {
            *byte = find_signed(&TABLES.words, word, MAGNITUDE_COUNT) as u8;
        }
        let blocks = codes.chunks_exact(BLOCK).zip(block[SIGNS..].chunks_exact_mut(4));
        for (i, (codes, bytes)) in blocks.enumerate() {
            let mut signs = u32::from(nibble(header, i)) << 28;
            for (l, run) in codes.chunks_exact(RUN).enumerate() {
                signs |= u32::from(sign_bits(run, MAGNITUDE_COUNT, Signs::Even) & 127) << (7 * l);
            }
            bytes.copy_from_slice(&signs.to_le_bytes());
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header[..2].copy_from_slice(&block[..2]);
        let (words, signs) = (&block[2..SIGNS], block[SIGNS..].as_chunks::<4>().0);
        for (i, codes) in codes.chunks_exact_mut(BLOCK).enumerate() {
            let signs = u32::from_le_bytes(signs[i]);
            set_nibble(header, i, (signs >> 28) as u8);
            for (l, run) in codes.chunks_exact_mut(RUN).enumerate() {
                let word = |half: usize| usize::from(words[8 * i + 2 * l + half]);
                let signs = even_signs((signs >> (7 * l)) as u8);
                read_signed(&TABLES.words, &[word(0), word(1)], signs, MAGNITUDE_COUNT, run);
            }
        }
    }
}
