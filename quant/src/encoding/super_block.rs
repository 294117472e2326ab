//! Super-blocks of 8 blocks of 32 weights, each with a 6-bit scale and a 6-bit minimum in units of two
//! half-precision numbers: `q4_k` and `q5_k`, which differ in the bits of a code only.

use super::block::{Group, Rows, half_at, half_bytes};
use super::search::{Candidates, affine, positive};
use crate::lanes::{Kernel, LANES, gather, nearest, sums_of_squares, widest};

/// Weights per super-block.
pub(super) const SUPER: usize = 256;
/// Weights per block.
pub(super) const BLOCK: usize = 32;
/// Blocks per super-block.
const BLOCKS: usize = SUPER / BLOCK;
/// Bytes of scales: unit of the scales, unit of the minima, twelve bytes of 6-bit levels.
pub(super) const HEADER: usize = 16;

/// Headers and codes `0..=max_code`; `plain` are the candidates where there is no importance.
///
/// # Source
/// `quantize_row_q4_K_ref`, `quantize_row_q4_K_impl` and their `q5_K` twins in llama.cpp.
pub(super) fn search(rows: &Rows<'_>, max_code: u8, plain: Candidates, headers: &mut [u8], codes: &mut [u8]) {
    let blocks = rows.x.len() / BLOCK;
    let mut found = Found { scale: vec![0.0; blocks], min: vec![0.0; blocks], weight: vec![0.0; blocks] };
    widest(BlockSearch { rows, max_code, plain, found: &mut found, codes });
    let weighted = rows.importance.is_some();
    for (i, (header, codes)) in
        headers.chunks_exact_mut(HEADER).zip(codes.chunks_exact_mut(SUPER)).enumerate()
    {
        let [scale, min, weight] =
            [&found.scale, &found.min, &found.weight].map(|all| all.as_chunks::<BLOCKS>().0[i]);
        let ((scale_unit, scales), (min_unit, mins)) = if weighted {
            (positive(&scale, &weight, 63), positive(&min, &weight, 63))
        } else {
            (proportional(&scale), proportional(&min))
        };
        header[..2].copy_from_slice(&half_bytes(scale_unit));
        header[2..4].copy_from_slice(&half_bytes(min_unit));
        write_levels(scales, mins, &mut header[4..]);
        widest(Recode { x: &rows.x[i * SUPER..][..SUPER], header, max_code, codes });
    }
}

/// What the search of each block gave.
struct Found {
    scale: Vec<f32>,
    min: Vec<f32>,
    weight: Vec<f32>, // sum of the weights of the block's errors
}

/// 6-bit levels in proportion, the largest becoming 63.
fn proportional(x: &[f32; BLOCKS]) -> (f32, [u8; BLOCKS]) {
    let max = x.iter().fold(0.0f32, |max, &x| if x > max { x } else { max });
    let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
    (max / 63.0, x.map(|x| (nearest(inverse * x) as u8).min(63)))
}

struct BlockSearch<'a> {
    rows: &'a Rows<'a>,
    max_code: u8,
    plain: Candidates,
    found: &'a mut Found,
    codes: &'a mut [u8],
}

impl Kernel for BlockSearch<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rows, max_code, plain, found, codes } = self;
        let (costs, candidates) = match rows.importance {
            Some(importance) => (rows.costs(importance, SUPER, 2.0), Candidates::WEIGHTED),
            None => (plain_costs(rows), plain),
        };
        for first in rows.batches(BLOCK) {
            let (x, w) = (&gather::<BLOCK>(rows.x, first), &gather::<BLOCK>(&costs, first));
            let fit = affine(x, w, i32::from(max_code), candidates);
            fit.write_codes(&rows.x[first * BLOCK..], &mut codes[first * BLOCK..], BLOCK);
            let here = first..(first + LANES).min(found.scale.len());
            found.scale[here.clone()].copy_from_slice(&fit.scale[..here.len()]);
            found.min[here.clone()].copy_from_slice(&fit.min[..here.len()]);
            found.weight[here.clone()].copy_from_slice(&fit.weight[..here.len()]);
        }
    }
}

/// What an error on each weight costs where nothing is known of the inputs: its magnitude and the block's mean one.
#[inline(always)]
fn plain_costs(rows: &Rows<'_>) -> Vec<f32> {
    let mut costs = vec![0.0; rows.x.len()];
    let blocks = costs.chunks_exact_mut(BLOCK).zip(rows.x.chunks_exact(BLOCK));
    for ((costs, x), sum) in blocks.zip(sums_of_squares(rows.x, BLOCK)) {
        let root = (sum / BLOCK as f32).sqrt();
        costs.iter_mut().zip(x).for_each(|(cost, x)| *cost = root + x.abs());
    }
    costs
}

/// Rounds again to the scales as stored; blocks whose scale came out 0 keep the codes of the search.
struct Recode<'a> {
    x: &'a [f32],
    header: &'a [u8],
    max_code: u8,
    codes: &'a mut [u8],
}

impl Kernel for Recode<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let blocks = self.x.as_chunks::<BLOCK>().0.iter().zip(self.codes.as_chunks_mut::<BLOCK>().0);
        for (i, (x, codes)) in blocks.enumerate() {
            let Group { scale, min, .. } = group(self.header, i);
            if scale == 0.0 {
                continue;
            }
            for (code, x) in codes.iter_mut().zip(x) {
                *code = nearest((x + min) / scale).clamp(0, i32::from(self.max_code)) as u8;
            }
        }
    }
}

/// Scale and minimum of block `i`.
pub(super) fn group(header: &[u8], i: usize) -> Group {
    let (scale, min) = level(&header[4..], i);
    Group {
        scale: half_at(header, 0) * f32::from(scale),
        zero: 0.0,
        min: half_at(header, 2) * f32::from(min),
    }
}

/// The 6-bit levels of scale and minimum of block `i`: the first four lie whole in bytes `i` and `i + 4`, the others have
/// their low bits in byte `i + 4` and their high bits above the first four.
fn level(bytes: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (bytes[i] & 63, bytes[i + 4] & 63)
    } else {
        (bytes[i + 4] & 15 | bytes[i - 4] >> 6 << 4, bytes[i + 4] >> 4 | bytes[i] >> 6 << 4)
    }
}

fn write_levels(scales: [u8; BLOCKS], mins: [u8; BLOCKS], bytes: &mut [u8]) {
    for i in 0..4 {
        bytes[i] = scales[i] | scales[i + 4] >> 4 << 6;
        bytes[i + 4] = mins[i] | mins[i + 4] >> 4 << 6;
        bytes[i + 8] = scales[i + 4] & 15 | mins[i + 4] << 4;
    }
}

/// The low four bits of the codes: each 32 bytes hold one block low and the next one high.
pub(super) fn write_nibbles(codes: &[u8], bytes: &mut [u8]) {
    for (pair, bytes) in codes.chunks_exact(2 * BLOCK).zip(bytes.chunks_exact_mut(BLOCK)) {
        for (j, byte) in bytes.iter_mut().enumerate() {
            *byte = pair[j] & 15 | pair[j + BLOCK] << 4;
        }
    }
}

/// The reverse of [`write_nibbles`].
pub(super) fn read_nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (pair, bytes) in codes.chunks_exact_mut(2 * BLOCK).zip(bytes.chunks_exact(BLOCK)) {
        for (j, byte) in bytes.iter().enumerate() {
            (pair[j], pair[j + BLOCK]) = (byte & 15, byte >> 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twelve_bytes_of_levels_hold_any_sixteen_of_them() {
        for seed in 0..64u8 {
            let scales: [u8; BLOCKS] =
                std::array::from_fn(|i| seed.wrapping_mul(37).wrapping_add(i as u8 * 11) & 63);
            let mins: [u8; BLOCKS] =
                std::array::from_fn(|i| seed.wrapping_mul(29).wrapping_add(i as u8 * 23) & 63);
            let mut bytes = [0; 12];
            write_levels(scales, mins, &mut bytes);
            for i in 0..BLOCKS {
                assert_eq!(level(&bytes, i), (scales[i], mins[i]));
            }
        }
    }
}
