use super::block::{BlockFormat, Group, Rows};
use super::fp4::{self, LEVELS, Scales};

const BLOCK: usize = 64;
const GROUP: usize = 16;
const GROUPS: usize = BLOCK / GROUP;

/// 4 x 16 four-bit floats, each 16 with an eight-bit float as scale: 4.5 bits per weight.
///
/// Without an importance the scale is that of llama.cpp, which puts the largest magnitude on 6. There is no scale of the
/// whole matrix: weights far below 1 fall on scales below the normal eight-bit floats.
#[derive(Debug)]
pub struct Nvfp4;

impl BlockFormat for Nvfp4 {
    const NAME: &'static str = "nvfp4";
    const GGML_ID: u32 = 40;
    const BLOCK: usize = BLOCK;
    const GROUP: usize = GROUP;
    const HEADER: usize = GROUPS;
    const BYTES: usize = GROUPS + BLOCK / 2;
    const MAX_CODE: u8 = 15;
    const SCALE_AT: Option<usize> = None;
    const LEVELS: Option<&'static [f32]> = Some(&LEVELS);

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        SCALES.search::<GROUP>(rows, headers, codes);
    }

    fn group(header: &[u8], group: usize) -> Group {
        Group { scale: value(header[group]), zero: 0.0, min: 0.0 }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        let (scales, floats) = block.split_at_mut(GROUPS);
        scales.copy_from_slice(header);
        for (codes, bytes) in codes.chunks_exact(GROUP).zip(floats.chunks_exact_mut(GROUP / 2)) {
            fp4::write(codes, bytes);
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        let (scales, floats) = block.split_at(GROUPS);
        header.copy_from_slice(scales);
        for (codes, bytes) in codes.chunks_exact_mut(GROUP).zip(floats.chunks_exact(GROUP / 2)) {
            fp4::read(bytes, codes);
        }
    }
}

/// From the largest magnitude on twice 6, cut off, to it on 4: an octave is eight steps.
pub(super) const SCALES: Scales = Scales { value, plain, steps: -8..=5, last: LAST };

/// 448, the largest eight-bit float of four exponent bits.
const LAST: u8 = 0x7e;

/// Half the eight-bit float, levels being twice the four-bit ones; its sign is not read, and the pattern of NaN is 0.
fn value(byte: u8) -> f32 {
    let (exponent, mantissa) = (byte >> 3 & 15, f32::from(byte & 7));
    match (byte, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa / 1024.0,
        _ => (8.0 + mantissa) * f32::from_bits(u32::from(exponent + 127 - 7 - 3 - 1) << 23),
    }
}

/// The nearest eight-bit float to a sixth of the magnitude, the upper one where two are as near.
///
/// # Source
/// `quantize_row_nvfp4_ref` of llama.cpp.
fn plain(magnitude: f32) -> u8 {
    let x = magnitude / 6.0;
    let exponent = (x.to_bits() >> 23) as i32 - 127 + 7;
    if exponent <= 0 {
        return ((x * 512.0 + 0.5) as u8).min(7);
    }
    // Exponent and mantissa as one number, so that rounding carries from one into the other.
    let rounded = ((x.to_bits() >> 19) + 1) >> 1;
    (rounded as i32 - ((127 - 7) << 3)).min(i32::from(LAST)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scale_is_the_plain_one_of_six_times_itself_and_ties_go_up() {
        for byte in 1..LAST {
            let (this, next) = (2.0 * value(byte), 2.0 * value(byte + 1));
            assert_eq!(plain(6.0 * this), byte);
            // Below the normal numbers nothing reaches the first of those.
            let tie = if byte == 7 { 7 } else { byte + 1 };
            assert_eq!(plain(3.0 * (this + next)), tie, "{byte}");
        }
        assert_eq!([plain(0.0), plain(6.0 * 448.0), plain(f32::MAX)], [0, LAST, LAST]);
    }
}
