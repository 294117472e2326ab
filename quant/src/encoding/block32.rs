//! The blocks of 32 weights with one half-precision scale, alone or with a minimum: `q4_0 q4_1 q5_0 q5_1`.

use super::block::{Rows, half_bytes};
use super::search::{Candidates, affine, symmetric};
use crate::lanes::{Kernel, LANES, gather, truncate, widest};

/// Weights per block.
pub(super) const BLOCK: usize = 32;

/// Headers (the scale) and codes on `scale * (code - half)`.
pub(super) fn search_symmetric(rows: &Rows<'_>, half: u8, headers: &mut [u8], codes: &mut [u8]) {
    match rows.importance {
        Some(importance) => widest(SymmetricSearch { rows, importance, half, headers, codes }),
        None => {
            for ((x, header), codes) in
                rows.x.chunks_exact(BLOCK).zip(headers.chunks_exact_mut(2)).zip(codes.chunks_exact_mut(BLOCK))
            {
                let scale = round_symmetric(x, half, codes);
                header.copy_from_slice(&half_bytes(scale));
            }
        }
    }
}

/// Headers (scale, then minus the minimum) and codes on `scale * code - min`.
pub(super) fn search_affine(rows: &Rows<'_>, max_code: u8, headers: &mut [u8], codes: &mut [u8]) {
    match rows.importance {
        Some(importance) => widest(AffineSearch { rows, importance, max_code, headers, codes }),
        None => {
            for ((x, header), codes) in
                rows.x.chunks_exact(BLOCK).zip(headers.chunks_exact_mut(4)).zip(codes.chunks_exact_mut(BLOCK))
            {
                let (scale, low) = round_affine(x, max_code, codes);
                header[..2].copy_from_slice(&half_bytes(scale));
                header[2..].copy_from_slice(&half_bytes(low));
            }
        }
    }
}

/// The largest magnitude becomes the lowest level exactly; the others are rounded on the scale before it is
/// itself rounded to half precision.
///
/// # Source
/// `quantize_row_q4_0_ref` and `quantize_row_q5_0_ref` of llama.cpp.
fn round_symmetric(x: &[f32], half: u8, codes: &mut [u8]) -> f32 {
    let largest = x.iter().fold(0.0f32, |largest, &x| if largest.abs() < x.abs() { x } else { largest });
    let scale = largest / -f32::from(half);
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (shift, top) = (f32::from(half) + 0.5, (2 * half - 1) as i8);
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = (truncate(x * inverse + shift) as i8).min(top) as u8;
    }
    scale
}

/// # Source
/// `quantize_row_q4_1_ref` and `quantize_row_q5_1_ref` of llama.cpp.
fn round_affine(x: &[f32], max_code: u8, codes: &mut [u8]) -> (f32, f32) {
    let low = x.iter().fold(f32::MAX, |low, &x| if x < low { x } else { low });
    let high = x.iter().fold(f32::MIN, |high, &x| if x > high { x } else { high });
    let scale = (high - low) / f32::from(max_code);
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = (truncate((x - low) * inverse + 0.5) as i8).min(max_code as i8) as u8 & max_code;
    }
    (scale, low)
}

struct SymmetricSearch<'a> {
    rows: &'a Rows<'a>,
    importance: &'a [f32],
    half: u8,
    headers: &'a mut [u8],
    codes: &'a mut [u8],
}

impl Kernel for SymmetricSearch<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let costs = self.rows.costs(self.importance, self.rows.cols, 1.0);
        for first in self.rows.batches(BLOCK) {
            let (x, w) = (&gather::<BLOCK>(self.rows.x, first), &gather::<BLOCK>(&costs, first));
            let found = symmetric(x, w, i32::from(self.half));
            found.write_codes(&self.rows.x[first * BLOCK..], &mut self.codes[first * BLOCK..], BLOCK);
            for (header, &scale) in self.headers.chunks_exact_mut(2).skip(first).zip(&found.scale) {
                header.copy_from_slice(&half_bytes(scale));
            }
        }
    }
}

struct AffineSearch<'a> {
    rows: &'a Rows<'a>,
    importance: &'a [f32],
    max_code: u8,
    headers: &'a mut [u8],
    codes: &'a mut [u8],
}

impl Kernel for AffineSearch<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let costs = self.rows.costs(self.importance, self.rows.cols, 1.0);
        for first in self.rows.batches(BLOCK) {
            let (x, w) = (&gather::<BLOCK>(self.rows.x, first), &gather::<BLOCK>(&costs, first));
            let found = affine(x, w, i32::from(self.max_code), Candidates::WEIGHTED);
            found.write_codes(&self.rows.x[first * BLOCK..], &mut self.codes[first * BLOCK..], BLOCK);
            for (k, header) in self.headers.chunks_exact_mut(4).skip(first).take(LANES).enumerate() {
                header[..2].copy_from_slice(&half_bytes(found.scale[k]));
                header[2..].copy_from_slice(&half_bytes(-found.min[k]));
            }
        }
    }
}

/// The low four bits of the codes: byte `j` holds weight `j` low and weight `j + 16` high.
pub(super) fn write_nibbles(codes: &[u8], bytes: &mut [u8]) {
    let (low, high) = codes.split_at(BLOCK / 2);
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = (low & 15) | (high & 15) << 4;
    }
}

/// The reverse of [`write_nibbles`].
pub(super) fn read_nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(BLOCK / 2);
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// The fifth bits: bit `j` of a little-endian 32-bit word is that of weight `j`.
pub(super) fn write_fifth_bits(codes: &[u8], bytes: &mut [u8]) {
    let word = codes.iter().enumerate().fold(0u32, |word, (j, code)| word | u32::from(code >> 4 & 1) << j);
    bytes.copy_from_slice(&word.to_le_bytes());
}

/// The reverse of [`write_fifth_bits`]: adds 16 to the codes whose bit is set.
pub(super) fn read_fifth_bits(bytes: &[u8], codes: &mut [u8]) {
    for (j, code) in codes.iter_mut().enumerate() {
        *code |= (bytes[j / 8] >> (j % 8) & 1) << 4;
    }
}
