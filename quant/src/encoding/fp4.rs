//! Blocks of four-bit floats (sign, two bits of exponent, one of mantissa), each block with an eight-bit scale: `mxfp4` and
//! `nvfp4`.

use std::ops::RangeInclusive;

use super::block::Rows;
use crate::lanes::{Kernel, LANES, Lanes, gather, lanes, of_largest_magnitude, widest};

/// Twice the four-bit floats, which are whole numbers. There are two zeros; the reference writes the second.
pub(super) const LEVELS: [f32; 16] =
    [-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

/// Those that are not negative.
const MAGNITUDES: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

/// The code of the zero that is written.
const ZERO: u8 = 8;

/// The scales that a format has: what each byte says, and how a reference without a search chooses one.
pub(super) struct Scales {
    /// What a level of 1 stands for.
    pub value: fn(u8) -> f32,
    /// The byte for the largest magnitude of a block.
    pub plain: fn(f32) -> u8,
    /// Bytes around the plain one that are worth trying.
    pub steps: RangeInclusive<i16>,
    /// The largest byte that is a scale.
    pub last: u8,
}

impl Scales {
    /// The byte of each block of `N` weights and the codes on it: the plain one, with an importance the one of least weighted
    /// squared error.
    pub fn search<const N: usize>(&self, rows: &Rows<'_>, bytes: &mut [u8], codes: &mut [u8]) {
        self.choose::<N>(rows, bytes);
        widest(Encode::<N> { scales: self, x: rows.x, bytes, codes });
    }

    /// The byte of each block of `N` weights alone.
    pub fn choose<const N: usize>(&self, rows: &Rows<'_>, bytes: &mut [u8]) {
        for (byte, x) in bytes.iter_mut().zip(rows.x.chunks_exact(N)) {
            *byte = (self.plain)(of_largest_magnitude(x).abs());
        }
        if let Some(importance) = rows.importance {
            widest(Search::<N> { scales: self, rows, importance, bytes });
        }
    }
}

struct Search<'a, const N: usize> {
    scales: &'a Scales,
    rows: &'a Rows<'a>,
    importance: &'a [f32],
    bytes: &'a mut [u8],
}

impl<const N: usize> Kernel for Search<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { scales, rows, importance, bytes } = self;
        let costs: Vec<f32> = importance.iter().copied().cycle().take(rows.x.len()).collect();
        for (first, bytes) in rows.batches(N).zip(bytes.chunks_mut(LANES)) {
            let (x, w) = (&gather::<N>(rows.x, first), &gather::<N>(&costs, first));
            let mut plain = [0; LANES];
            plain[..bytes.len()].copy_from_slice(bytes);
            let mut least = squared_error(x, w, &plain.map(scales.value));
            for step in scales.steps.clone() {
                let candidate =
                    plain.map(|byte| (i16::from(byte) + step).clamp(0, i16::from(scales.last)) as u8);
                let error = squared_error(x, w, &candidate.map(scales.value));
                for (k, byte) in bytes.iter_mut().enumerate() {
                    if error[k] < least[k] {
                        (least[k], *byte) = (error[k], candidate[k]);
                    }
                }
            }
        }
    }
}

/// `sum w (x - scale * level)^2` with the nearest levels.
#[inline(always)]
fn squared_error<const N: usize>(x: &[Lanes; N], w: &[Lanes; N], scale: &Lanes) -> Lanes {
    let mut error = [0.0f32; LANES];
    for i in 0..N {
        let at = lanes(|k| x[i][k].abs());
        let mut level = [0.0f32; LANES];
        for (lower, upper) in MAGNITUDES.iter().zip(&MAGNITUDES[1..]) {
            for k in 0..LANES {
                level[k] += if at[k] > 0.5 * (lower + upper) * scale[k] { upper - lower } else { 0.0 };
            }
        }
        for k in 0..LANES {
            let off = at[k] - scale[k] * level[k];
            error[k] += w[i][k] * (off * off);
        }
    }
    error
}

/// The codes nearest to the weights on the scales chosen, the smaller magnitude where two are as near.
struct Encode<'a, const N: usize> {
    scales: &'a Scales,
    x: &'a [f32],
    bytes: &'a [u8],
    codes: &'a mut [u8],
}

impl<const N: usize> Kernel for Encode<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let blocks = self.x.as_chunks::<N>().0.iter().zip(self.codes.as_chunks_mut::<N>().0);
        for ((x, codes), &byte) in blocks.zip(self.bytes) {
            let scale = (self.scales.value)(byte);
            let mut above = [0u32; N];
            // On a scale of 0 all levels are as near.
            if scale > 0.0 {
                for (lower, upper) in MAGNITUDES.iter().zip(&MAGNITUDES[1..]) {
                    for (above, x) in above.iter_mut().zip(x) {
                        *above += u32::from(x.abs() > 0.5 * (lower + upper) * scale);
                    }
                }
            }
            for ((code, above), x) in codes.iter_mut().zip(above).zip(x) {
                let negative = above > 0 && *x < 0.0;
                *code = if negative { ZERO - 1 - above as u8 } else { ZERO + above as u8 };
            }
        }
    }
}

/// Byte `j` holds weight `j` low and weight `j + len / 2` high: the sign above the magnitude.
pub(super) fn write(codes: &[u8], bytes: &mut [u8]) {
    let nibble = |code: u8| if code < ZERO { 15 - code } else { code - ZERO };
    let (low, high) = codes.split_at(codes.len() / 2);
    for ((byte, &low), &high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = nibble(low) | nibble(high) << 4;
    }
}

/// The reverse of [`write`].
pub(super) fn read(bytes: &[u8], codes: &mut [u8]) {
    let code = |nibble: u8| if nibble < 8 { ZERO + nibble } else { 15 - nibble };
    let (low, high) = codes.split_at_mut(codes.len() / 2);
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (code(byte & 15), code(byte >> 4));
    }
}
