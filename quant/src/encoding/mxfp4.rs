use super::block::{BlockFormat, Group, Rows};
use super::fp4::{self, LEVELS, Scales};

const BLOCK: usize = 32;

/// 32 four-bit floats and a power of two: 4.25 bits per weight. The microscaling format of the Open Compute Project.
///
/// Without an importance the scale is that of llama.cpp, the power of two that puts the largest magnitude between 4 and 8.
#[derive(Debug)]
pub struct Mxfp4;

impl BlockFormat for Mxfp4 {
    const NAME: &'static str = "mxfp4";
    const GGML_ID: u32 = 39;
    const BLOCK: usize = BLOCK;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 1;
    const BYTES: usize = 17;
    const MAX_CODE: u8 = 15;
    const SCALE_AT: Option<usize> = None;
    const LEVELS: Option<&'static [f32]> = Some(&LEVELS);

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        SCALES.search::<BLOCK>(rows, headers, codes);
    }

    fn header(scale: f32) -> Option<Vec<u8>> {
        (0..=SCALES.last).find(|&byte| value(byte).to_bits() == scale.to_bits()).map(|byte| vec![byte])
    }

    fn group(header: &[u8], _group: usize) -> Group {
        Group { scale: value(header[0]), zero: 0.0, min: 0.0 }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[0] = header[0];
        fp4::write(codes, &mut block[1..]);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header[0] = block[0];
        fp4::read(&block[1..], codes);
    }
}

/// From the largest magnitude cut off at a quarter to it on half of what it could be on.
pub(super) const SCALES: Scales = Scales { value, plain, steps: -2..=1, last: 254 };

/// Half of `2^(byte - 127)`, levels being twice the floats.
fn value(byte: u8) -> f32 {
    // The two smallest are below the normal numbers.
    let bits = if byte < 2 { 0x0020_0000 << byte } else { u32::from(byte - 1) << 23 };
    f32::from_bits(bits)
}

/// # Source
/// `quantize_row_mxfp4_ref` of llama.cpp. Blocks below the smallest scale get that one; there the reference's cast is undefined.
fn plain(magnitude: f32) -> u8 {
    // The logarithm of a number just below a power of two rounds up to that power's: as an f32 it must be taken.
    let exponent = (f64::from(magnitude).log2() as f32).floor();
    if magnitude > 0.0 { (exponent - 2.0 + 127.0) as u8 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_of_two_down_to_the_smallest() {
        for byte in 0..=254u8 {
            let power = 2.0f64.powi(i32::from(byte) - 128);
            assert_eq!(f64::from(value(byte)).to_bits(), power.to_bits(), "{byte}");
        }
    }

    #[test]
    fn the_largest_magnitude_comes_to_lie_between_4_and_8() {
        for (magnitude, byte) in [(4.0, 127), (7.99, 127), (8.0, 128), (1e-3, 115), (0.0, 0), (1e-40, 0)] {
            assert_eq!(plain(magnitude), byte, "{magnitude}");
        }
    }
}
