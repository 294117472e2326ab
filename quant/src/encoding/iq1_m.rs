use std::sync::LazyLock;

use half::f16;

use super::Codebook;
use super::block::{BlockFormat, Group, Rows};
use super::codebook::{RUN, RUNS, Tables};
use super::iq1_s::SCALES;
use super::ternary_search::{Format, Found, SHIFT};
use super::word_search::SUPER;

const BLOCK: usize = 16;
/// The levels of both shifts: even codes are shifted down, odd ones up.
pub(super) const LEVELS: [f32; 6] = [-1.0 - SHIFT, -1.0 + SHIFT, -SHIFT, SHIFT, 1.0 - SHIFT, 1.0 + SHIFT];
const SCALE: usize = RUNS + RUNS / 2;

pub(super) static TABLES: LazyLock<Tables<4>> =
    LazyLock::new(|| Tables::ternary("iq1_m", &LEVELS, 2, &[0, 1]));

/// Super-blocks of 16 x 16 weights, 2048 ternary words of eight weights, each shifted up or down by an eighth, 3-bit scales:
/// 1.75 bits per weight.
#[derive(Debug)]
pub struct Iq1M;

impl BlockFormat for Iq1M {
    const NAME: &'static str = "iq1_m";
    const GGML_ID: u32 = 29;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 8;
    const BYTES: usize = SCALE + Self::HEADER;
    const MAX_CODE: u8 = 5;
    const LEVELS: Option<&'static [f32]> = Some(&LEVELS);

    fn codebook() -> Option<&'static dyn Codebook> {
        Some(&TABLES.halves)
    }

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let format = Format::<BLOCK, { BLOCK / RUN }> {
            pairs: &TABLES.pairs,
            together: false,
            scales: SCALES,
            spread: 2.0,
        };
        format.search(rows, headers, codes, write_header);
    }

    /// Four times: four scales of 3 bits and a quarter of the half-precision number above them, the lowest first.
    fn group(header: &[u8], group: usize) -> Group {
        let quarter = u16::from_le_bytes([header[group / 4 * 2], header[group / 4 * 2 + 1]]);
        let level = quarter >> (3 * (group % 4)) & 7;
        Group { scale: unit(header).to_f32() * f32::from(2 * level + 1), zero: 0.0, min: 0.0 }
    }

    fn rescale(header: &mut [u8], scale: f32, _min: f32) {
        set_unit(header, f16::from_f32(unit(header).to_f32() * scale));
    }

    /// The low bytes of the words, then for each a nibble of its high bits and its shift.
    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        for (r, run) in codes.chunks_exact(RUN).enumerate() {
            let up = run[0] % 2;
            assert!(run.iter().all(|code| code % 2 == up), "a run with both shifts is not in the codebook");
            let word = TABLES.words.find(run.iter().map(|code| code / 2));
            block[r] = word as u8;
            block[RUNS + r / 2] |= ((word >> 8) as u8 | (1 - up) << 3) << (4 * (r % 2));
        }
        block[SCALE..].copy_from_slice(header);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        for (r, run) in codes.chunks_exact_mut(RUN).enumerate() {
            let nibble = block[RUNS + r / 2] >> (4 * (r % 2));
            let word = usize::from(block[r]) | usize::from(nibble & 7) << 8;
            let up = 1 - (nibble >> 3 & 1);
            for (code, place) in run.iter_mut().zip(TABLES.words.places(word)) {
                *code = 2 * place + up;
            }
        }
        header.copy_from_slice(&block[SCALE..]);
    }
}

/// What all scales are multiplied by: its quarters are the highest four bits of each quarter of the header.
fn unit(header: &[u8]) -> f16 {
    f16::from_bits((0..4).fold(0, |unit, i| unit | u16::from(header[2 * i + 1] >> 4) << (4 * i)))
}

fn set_unit(header: &mut [u8], unit: f16) {
    for i in 0..4 {
        let quarter = (unit.to_bits() >> (4 * i) & 15) as u8;
        header[2 * i + 1] = header[2 * i + 1] & 15 | quarter << 4;
    }
}

fn write_header(found: &Found, header: &mut [u8]) {
    for (i, levels) in found.header.levels.as_chunks::<4>().0.iter().enumerate() {
        let scales = levels.iter().rev().fold(0, |scales, &level| scales << 3 | u16::from(level));
        header[2 * i..][..2].copy_from_slice(&scales.to_le_bytes());
    }
    set_unit(header, f16::from_le_bytes(found.header.unit));
}
