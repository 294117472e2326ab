//! The blocks of 32 weights with one half-precision scale, alone or with a minimum: `q4_0 q4_1 q5_0 q5_1`.

use super::block::{Rows, half_bytes};
use super::search::{Candidates, affine, symmetric};
use crate::lanes::{Kernel, LANES, gather, of_largest_magnitude, range, truncate, widest};

/// Weights per block.
pub(super) const BLOCK: usize = 32;

/// Headers (the scale) and codes on `scale * (code - half)`.
pub(super) fn search_symmetric(rows: &Rows<'_>, half: u8, headers: &mut [u8], codes: &mut [u8]) {
    match rows.importance {
        Some(importance) => widest(SymmetricSearch { rows, importance, half, headers, codes }),
        None => widest(SymmetricRound { x: rows.x, half, headers, codes }),
    }
}

/// Headers (scale, then minus the minimum) and codes on `scale * code - min`.
pub(super) fn search_affine(rows: &Rows<'_>, max_code: u8, headers: &mut [u8], codes: &mut [u8]) {
    match rows.importance {
        Some(importance) => widest(AffineSearch { rows, importance, max_code, headers, codes }),
        None => widest(AffineRound { x: rows.x, max_code, headers, codes }),
    }
}

/// The largest magnitude becomes the lowest level exactly; the others are rounded on the scale before it is
/// itself rounded to half precision.
///
/// # Source
/// `quantize_row_q4_0_ref` and `quantize_row_q5_0_ref` of llama.cpp.
struct SymmetricRound<'a> {
    x: &'a [f32],
    half: u8,
    headers: &'a mut [u8],
    codes: &'a mut [u8],
}

impl Kernel for SymmetricRound<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (shift, top) = (f32::from(self.half) + 0.5, i32::from(2 * self.half - 1));
        let blocks = self.x.as_chunks::<BLOCK>().0.iter().zip(self.codes.as_chunks_mut::<BLOCK>().0);
        for ((x, codes), header) in blocks.zip(self.headers.as_chunks_mut::<2>().0) {
            let scale = of_largest_magnitude(x) / -f32::from(self.half);
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            *header = half_bytes(scale);
            for (code, x) in codes.iter_mut().zip(x) {
                *code = i32::from(truncate(x * inverse + shift) as i8).min(top) as u8;
            }
        }
    }
}

/// # Source
/// `quantize_row_q4_1_ref` and `quantize_row_q5_1_ref` of llama.cpp.
struct AffineRound<'a> {
    x: &'a [f32],
    max_code: u8,
    headers: &'a mut [u8],
    codes: &'a mut [u8],
}

impl Kernel for AffineRound<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let blocks = self.x.as_chunks::<BLOCK>().0.iter().zip(self.codes.as_chunks_mut::<BLOCK>().0);
        for ((x, codes), header) in blocks.zip(self.headers.as_chunks_mut::<4>().0) {
            let (low, high) = range(x);
            let scale = (high - low) / f32::from(self.max_code);
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            header[..2].copy_from_slice(&half_bytes(scale));
            header[2..].copy_from_slice(&half_bytes(low));
            for (code, x) in codes.iter_mut().zip(x) {
                let code_there = truncate((x - low) * inverse + 0.5) as i8;
                *code = code_there.min(self.max_code as i8) as u8 & self.max_code;
            }
        }
    }
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
