//! Stored floating-point values to `f32` and back.

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::{Dtype, Error};

/// Values one task converts: large enough that the scheduling is lost in it.
const CHUNK_LEN: usize = 1 << 16;

/// Decodes little-endian floats of any width to `f32`.
///
/// Widening is exact; `f64` is rounded to the nearest `f32`.
///
/// # Errors
/// [`Error::NotFloats`] for integers and ggml's block types, [`Error::OddBytes`] where `bytes` ends within a value.
pub fn decode_floats(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, Error> {
    let decode: fn(&[u8], &mut [f32]) = match dtype {
        Dtype::F64 => |bytes, out| each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::F32 => |bytes, out| each(bytes, out, f32::from_le_bytes),
        Dtype::Bf16 => {
            |bytes, out| each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
        }
        Dtype::F16 => decode_f16,
        Dtype::F8E4m3 => |bytes, out| each_byte(bytes, out, e4m3_to_f32),
        Dtype::F8E5m2 => |bytes, out| each_byte(bytes, out, e5m2_to_f32),
        _ => return Err(Error::NotFloats { dtype }),
    };
    let unit_bytes = dtype.block_bytes();
    if !bytes.len().is_multiple_of(unit_bytes) {
        return Err(Error::OddBytes { dtype, unit_bytes, bytes: bytes.len() });
    }
    let mut out = vec![0.0; bytes.len() / unit_bytes];
    out.par_chunks_mut(CHUNK_LEN)
        .zip(bytes.par_chunks(CHUNK_LEN * unit_bytes))
        .for_each(|(out, bytes)| decode(bytes, out));
    Ok(out)
}

/// What is left of `values` once they are stored as `dtype`.
///
/// # Errors
/// As [`encode_floats`].
pub fn round_floats(dtype: Dtype, values: &[f32]) -> Result<Vec<f32>, Error> {
    decode_floats(dtype, &encode_floats(dtype, values)?)
}

/// Encodes `values` as little-endian floats, rounded to the nearest value the type has, ties to even.
///
/// What is too large for the type becomes infinite.
///
/// # Errors
/// [`Error::NotFloats`] for types other than f64, f32, f16 and bf16.
pub fn encode_floats(dtype: Dtype, values: &[f32]) -> Result<Vec<u8>, Error> {
    let encode: fn(&[f32], &mut [u8]) = match dtype {
        Dtype::F64 => |values, out| put_each(values, out, |x| f64::from(x).to_le_bytes()),
        Dtype::F32 => |values, out| put_each(values, out, f32::to_le_bytes),
        Dtype::Bf16 => |values, out| put_each(values, out, |x| half::bf16::from_f32(x).to_le_bytes()),
        Dtype::F16 => encode_f16,
        _ => return Err(Error::NotFloats { dtype }),
    };
    let unit_bytes = dtype.block_bytes();
    let mut out = vec![0; values.len() * unit_bytes];
    out.par_chunks_mut(CHUNK_LEN * unit_bytes)
        .zip(values.par_chunks(CHUNK_LEN))
        .for_each(|(out, values)| encode(values, out));
    Ok(out)
}

fn put_each<const N: usize>(values: &[f32], out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    for (out, &value) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *out = encode(value);
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    let (values, _) = bytes.as_chunks::<N>();
    for (out, value) in out.iter_mut().zip(values) {
        *out = decode(*value);
    }
}

/// Of 256 possible values a table is made once per chunk.
fn each_byte(bytes: &[u8], out: &mut [f32], decode: fn(u8) -> f32) {
    let table: [f32; 256] = std::array::from_fn(|byte| decode(byte as u8));
    for (out, &byte) in out.iter_mut().zip(bytes) {
        *out = table[usize::from(byte)];
    }
}

/// `half`'s slice conversion uses the CPU's own instruction, but wants aligned `f16`s.
fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let mut aligned = [half::f16::ZERO; 512];
    for (out, bytes) in out.chunks_mut(aligned.len()).zip(bytes.chunks(aligned.len() * 2)) {
        let halves = &mut aligned[..out.len()];
        for (half, pair) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = half::f16::from_le_bytes(*pair);
        }
        halves.convert_to_f32_slice(out);
    }
}

fn encode_f16(values: &[f32], out: &mut [u8]) {
    let mut halves = [half::f16::ZERO; 512];
    for (values, out) in values.chunks(halves.len()).zip(out.chunks_mut(halves.len() * 2)) {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        for (pair, half) in out.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
            *pair = half.to_le_bytes();
        }
    }
}

/// One `e5m2` value: the upper half of an `f16`.
fn e5m2_to_f32(byte: u8) -> f32 {
    half::f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// One `e4m3fn` value: bias 7, no infinities, only the all-ones pattern is NaN.
fn e4m3_to_f32(byte: u8) -> f32 {
    let sign = u32::from(byte >> 7) << 31;
    let exponent = u32::from(byte >> 3) & 0xf;
    let mantissa = u32::from(byte) & 7;
    let magnitude = match (exponent, mantissa) {
        (0xf, 7) => f32::NAN,
        (0, _) => mantissa as f32 / 512.0, // subnormal: mantissa / 8 * 2^-6
        _ => f32::from_bits(((exponent + 120) << 23) | (mantissa << 20)),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    fn f64_truth(sign: f64, exponent: i32, bias: i32, mantissa: u32, mantissa_bits: i32) -> f64 {
        let fraction = f64::from(mantissa) / 2f64.powi(mantissa_bits);
        if exponent == 0 {
            sign * fraction * 2f64.powi(1 - bias)
        } else {
            sign * (1.0 + fraction) * 2f64.powi(exponent - bias)
        }
    }

    #[test]
    fn every_e4m3_byte_has_its_ocp_value() {
        for byte in 0..=255u8 {
            let got = decode_floats(Dtype::F8E4m3, &[byte]).unwrap()[0];
            if byte & 0x7f == 0x7f {
                assert!(got.is_nan());
                continue;
            }
            let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
            let truth = f64_truth(sign, i32::from(byte >> 3 & 15), 7, u32::from(byte & 7), 3);
            assert_eq!(got.to_bits(), (truth as f32).to_bits(), "{byte:#x}");
        }
    }

    #[test]
    fn every_e5m2_byte_has_its_ocp_value() {
        for byte in 0..=255u8 {
            let got = decode_floats(Dtype::F8E5m2, &[byte]).unwrap()[0];
            let (exponent, mantissa) = (byte >> 2 & 31, byte & 3);
            let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
            match (exponent, mantissa) {
                (31, 0) => assert!(got.is_infinite() && got.is_sign_negative() == (sign < 0.0)),
                (31, _) => assert!(got.is_nan()),
                _ => {
                    let truth = f64_truth(sign, i32::from(exponent), 15, u32::from(mantissa), 2);
                    assert_eq!(got.to_bits(), (truth as f32).to_bits(), "{byte:#x}");
                }
            }
        }
    }

    #[test]
    fn halves_of_every_bit_pattern_widen_exactly_at_any_alignment() {
        let bytes: Vec<u8> = std::iter::once(0).chain((0..=u16::MAX).flat_map(u16::to_le_bytes)).collect();
        let f16 = decode_floats(Dtype::F16, &bytes[1..]).unwrap();
        let bf16 = decode_floats(Dtype::Bf16, &bytes[1..]).unwrap();
        for bits in 0..=u16::MAX {
            let (a, b) = (f16[usize::from(bits)], half::f16::from_bits(bits).to_f32());
            assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "{bits:#x}");
            assert_eq!(bf16[usize::from(bits)].to_bits(), u32::from(bits) << 16);
        }
    }

    #[test]
    fn long_inputs_keep_their_order_across_chunks() {
        let values: Vec<f32> = (0..CHUNK_LEN * 3 + 5).map(|i| i as f32).collect();
        let f32_bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let f64_bytes: Vec<u8> = values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
        assert_eq!(decode_floats(Dtype::F32, &f32_bytes).unwrap(), values);
        assert_eq!(decode_floats(Dtype::F64, &f64_bytes).unwrap(), values);
    }

    #[test]
    fn what_the_type_holds_encodes_to_the_bytes_it_came_from() {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let values = decode_floats(dtype, &bytes).unwrap();
            let back = encode_floats(dtype, &values).unwrap();
            for (i, x) in values.iter().enumerate().filter(|(_, x)| !x.is_nan()) {
                assert_eq!(back[2 * i..2 * i + 2], bytes[2 * i..2 * i + 2], "{x} in {dtype}");
            }
        }
        let values = [0.1, -3.4e38, f32::MIN_POSITIVE, -0.0];
        for dtype in [Dtype::F32, Dtype::F64] {
            let bytes = encode_floats(dtype, &values).unwrap();
            assert_eq!(decode_floats(dtype, &bytes).unwrap(), values, "{dtype}");
        }
    }

    #[test]
    fn rounding_goes_to_the_nearest_with_ties_to_even_and_overflow_to_infinity() {
        let round = |dtype, x| decode_floats(dtype, &encode_floats(dtype, &[x]).unwrap()).unwrap()[0];
        for (dtype, x, expected) in [
            (Dtype::F16, 1.0 + 1.0 / 2048.0, 1.0),
            (Dtype::F16, 1.0 + 3.0 / 2048.0, 1.0 + 2.0 / 1024.0),
            (Dtype::Bf16, 1.0 + 1.0 / 256.0, 1.0),
            (Dtype::Bf16, 1.0 + 3.0 / 256.0, 1.0 + 2.0 / 128.0),
            (Dtype::F16, 65519.0, 65504.0),
            (Dtype::F16, 65520.0, f32::INFINITY),
        ] {
            assert_eq!(round(dtype, x).to_bits(), f32::to_bits(expected), "{x} in {dtype}");
        }
        assert!(matches!(encode_floats(Dtype::F8E4m3, &[1.0]), Err(Error::NotFloats { .. })));
    }

    #[test]
    fn integers_blocks_and_half_a_value_are_refused() {
        for dtype in [Dtype::I8, Dtype::Bool, Dtype::F8E8m0, Dtype::Ggml(crate::GgmlType::Q4K)] {
            assert!(matches!(decode_floats(dtype, &[0; 8]), Err(Error::NotFloats { .. })), "{dtype}");
        }
        assert!(matches!(decode_floats(Dtype::F32, &[0; 7]), Err(Error::OddBytes { bytes: 7, .. })));
    }
}
