use super::block::{BlockFormat, Group, Rows, half_at, half_bytes};
use super::block32::{BLOCK, read_nibbles, write_nibbles};
use super::iq4::{LEVELS, encode, scales};
use crate::lanes::nearest;

const SUPER: usize = 256;
const BLOCKS: usize = SUPER / BLOCK;

/// Super-blocks of 8 x 32 weights, `scale * LEVELS[code]`, signed 6-bit scales: 4.25 bits per weight.
#[derive(Debug)]
pub struct Iq4Xs;

impl BlockFormat for Iq4Xs {
    const NAME: &'static str = "iq4_xs";
    const GGML_ID: u32 = 23;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    /// The unit of the scales, two bytes of their high two bits, four bytes of their low four.
    const HEADER: usize = 8;
    const BYTES: usize = Self::HEADER + SUPER / 2;
    const MAX_CODE: u8 = 15;
    const LEVELS: Option<&'static [f32]> = Some(&LEVELS);

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let mut scales = scales(rows, SUPER);
        for (header, scales) in headers.chunks_exact_mut(Self::HEADER).zip(scales.as_chunks_mut().0) {
            round_scales(scales, header);
        }
        encode(rows.x, &scales, codes);
    }

    fn group(header: &[u8], group: usize) -> Group {
        let low = header[4 + group / 2] >> (4 * (group % 2)) & 15;
        let high = header[2 + group / 4] >> (2 * (group % 4)) & 3;
        let level = f32::from(low | high << 4) - 32.0;
        Group { scale: half_at(header, 0) * level, zero: 0.0, min: 0.0 }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        let (front, nibbles) = block.split_at_mut(Self::HEADER);
        front.copy_from_slice(header);
        for (codes, bytes) in codes.chunks_exact(BLOCK).zip(nibbles.chunks_exact_mut(BLOCK / 2)) {
            write_nibbles(codes, bytes);
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        let (front, nibbles) = block.split_at(Self::HEADER);
        header.copy_from_slice(front);
        for (codes, bytes) in codes.chunks_exact_mut(BLOCK).zip(nibbles.chunks_exact(BLOCK / 2)) {
            read_nibbles(bytes, codes);
        }
    }
}

/// Rounds eight scales to 6 bits in units of the largest, into a header; they become what the codes are chosen for,
/// which is before the unit is rounded to half precision.
fn round_scales(scales: &mut [f32; BLOCKS], header: &mut [u8]) {
    let largest = scales
        .iter()
        .fold(0.0f32, |largest, &scale| if scale.abs() > largest.abs() { scale } else { largest });
    let unit = -largest / 32.0;
    let inverse = if unit == 0.0 { 0.0 } else { 1.0 / unit };
    header[..2].copy_from_slice(&half_bytes(unit));
    for (i, scale) in scales.iter_mut().enumerate() {
        let level = nearest(inverse * *scale).clamp(-32, 31);
        *scale = unit * level as f32;
        let stored = (level + 32) as u8;
        header[4 + i / 2] |= (stored & 15) << (4 * (i % 2));
        header[2 + i / 4] |= (stored >> 4) << (2 * (i % 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_holds_any_eight_scales_of_six_bits() {
        for seed in 0..64i32 {
            // The largest magnitude becomes -32 and is the first.
            let levels: [i32; BLOCKS] =
                std::array::from_fn(|i| if i == 0 { -32 } else { (seed * 37 + 11 * i as i32) % 63 - 31 });
            let mut header = [0; 8];
            round_scales(&mut levels.map(|level| level as f32), &mut header);
            for (i, level) in levels.iter().enumerate() {
                assert_eq!(Iq4Xs::group(&header, i).scale.to_bits(), (*level as f32).to_bits());
            }
        }
    }
}
