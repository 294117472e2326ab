use std::sync::LazyLock;

use super::Codebook;
use super::block::{BlockFormat, Group, Rows, half_at};
use super::codebook::{RUN, RUNS, Tables, nibble, set_nibble};
use super::ternary_search::{Format, Found, SHIFT};
use super::word_search::{SUPER, Scales};

const BLOCK: usize = 32;
pub(super) const LEVELS: [f32; 3] = [-1.0, 0.0, 1.0];
const HIGH: usize = 2 + RUNS;

/// How the searches of both ternary formats go.
pub(super) const SCALES: Scales = Scales {
    max_level: 7,
    per_unit: 1.0,
    shares: &[0.35, 0.39, 0.43, 0.48, 0.53, 0.59, 0.65, 0.72, 0.8, 0.9],
    around: &[],
    fits: 1,
    top: 1.0,
};

pub(super) static TABLES: LazyLock<Tables<4>> = LazyLock::new(|| Tables::ternary("iq1_s", &LEVELS, 1, &[0]));

/// Super-blocks of 8 x 32 weights, 2048 ternary words of eight weights, a block's levels shifted up or down by an eighth,
/// 3-bit scales: 1.5625 bits per weight.
#[derive(Debug)]
pub struct Iq1S;

impl BlockFormat for Iq1S {
    const NAME: &'static str = "iq1_s";
    const GGML_ID: u32 = 19;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2 + SUPER / BLOCK / 2;
    const BYTES: usize = HIGH + 2 * SUPER / BLOCK;
    const MAX_CODE: u8 = 2;
    const LEVELS: Option<&'static [f32]> = Some(&LEVELS);

    fn codebook() -> Option<&'static dyn Codebook> {
        Some(&TABLES.halves)
    }

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let format = Format::<BLOCK, { BLOCK / RUN }> {
            pairs: &TABLES.pairs,
            together: true,
            scales: SCALES,
            spread: 2.0,
        };
        format.search(rows, headers, codes, write_header);
    }

    /// The highest bit of a block's nibble shifts its levels down.
    fn group(header: &[u8], group: usize) -> Group {
        let nibble = nibble(header, group);
        let scale = half_at(header, 0) * f32::from(2 * (nibble & 7) + 1);
        Group { scale, zero: if nibble < 8 { -SHIFT } else { SHIFT }, min: 0.0 }
    }

    /// The low bytes of the words, then for each block the high bits of four of them and the nibble.
    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(&header[..2]);
        for (i, codes) in codes.chunks_exact(BLOCK).enumerate() {
            let mut high = u16::from(nibble(header, i)) << 12;
            for (l, run) in codes.chunks_exact(RUN).enumerate() {
                let word = TABLES.words.find(run.iter().copied());
                block[2 + 4 * i + l] = word as u8;
                high |= (word >> 8 << (3 * l)) as u16;
            }
            block[HIGH + 2 * i..][..2].copy_from_slice(&high.to_le_bytes());
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header[..2].copy_from_slice(&block[..2]);
        for (i, codes) in codes.chunks_exact_mut(BLOCK).enumerate() {
            let high = u16::from_le_bytes([block[HIGH + 2 * i], block[HIGH + 2 * i + 1]]);
            set_nibble(header, i, (high >> 12) as u8);
            for (l, run) in codes.chunks_exact_mut(RUN).enumerate() {
                let word = usize::from(block[2 + 4 * i + l]) | usize::from(high >> (3 * l) & 7) << 8;
                run.copy_from_slice(TABLES.words.places(word));
            }
        }
    }
}

fn write_header(found: &Found, header: &mut [u8]) {
    header[..2].copy_from_slice(&found.header.unit);
    for i in 0..SUPER / BLOCK {
        set_nibble(header, i, found.header.levels[i] | ((found.down >> i & 1) as u8) << 3);
    }
}
