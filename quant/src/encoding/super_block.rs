//! Super-blocks of 256 weights: what `q2_k` to `q5_k` share, and the 8 blocks of 32 weights, each with a 6-bit scale and a 6-bit
//! minimum in units of two half-precision numbers, of `q4_k` and `q5_k`, which differ in the bits of a code only.

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
    let found = search_blocks::<BLOCK>(rows, &Search { max_code, spread: 2.0, plain, plain_costs }, codes);
    let weighted = rows.importance.is_some();
    for (i, (header, codes)) in
        headers.chunks_exact_mut(HEADER).zip(codes.chunks_exact_mut(SUPER)).enumerate()
    {
        let [scale, min, weight] =
            [&found.scale, &found.min, &found.weight].map(|all| all.as_chunks::<BLOCKS>().0[i]);
        let ((scale_unit, scales), (min_unit, mins)) = if weighted {
            (positive(&scale, &weight, 63), positive(&min, &weight, 63))
        } else {
            (proportional(&scale, 63), proportional(&min, 63))
        };
        header[..2].copy_from_slice(&half_bytes(scale_unit));
        header[2..4].copy_from_slice(&half_bytes(min_unit));
        write_levels(scales, mins, &mut header[4..]);
        let groups: [Group; BLOCKS] = std::array::from_fn(|i| group(header, i));
        widest(Recode { x: &rows.x[i * SUPER..][..SUPER], groups: &groups, max_code, codes });
    }
}

/// How the scales and minima of blocks are searched for.
pub(super) struct Search {
    pub max_code: u8,
    /// Mean squares of the super-block that [`Rows::costs`] adds.
    pub spread: f32,
    /// Candidates where there is no importance.
    pub plain: Candidates,
    /// What errors cost there.
    pub plain_costs: fn(&Rows<'_>) -> Vec<f32>,
}

/// What the search of each block gave.
pub(super) struct Found {
    pub scale: Vec<f32>,
    pub min: Vec<f32>,
    pub weight: Vec<f32>, // sum of the weights of the block's errors
}

/// Scale and minimum of every block of `N` weights, and the codes of the candidates that won.
pub(super) fn search_blocks<const N: usize>(rows: &Rows<'_>, search: &Search, codes: &mut [u8]) -> Found {
    let blocks = rows.x.len() / N;
    let mut found = Found { scale: vec![0.0; blocks], min: vec![0.0; blocks], weight: vec![0.0; blocks] };
    widest(BlockSearch::<N> { rows, search, found: &mut found, codes });
    found
}

/// Levels in proportion, the largest becoming `top`.
pub(super) fn proportional<const N: usize>(x: &[f32; N], top: u8) -> (f32, [u8; N]) {
    let max = x.iter().fold(0.0f32, |max, &x| if x > max { x } else { max });
    let inverse = if max > 0.0 { f32::from(top) / max } else { 0.0 };
    (max / f32::from(top), x.map(|x| (nearest(inverse * x) as u8).min(top)))
}

struct BlockSearch<'a, const N: usize> {
    rows: &'a Rows<'a>,
    search: &'a Search,
    found: &'a mut Found,
    codes: &'a mut [u8],
}

impl<const N: usize> Kernel for BlockSearch<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rows, search, found, codes } = self;
        let (costs, candidates) = match rows.importance {
            Some(importance) => (rows.costs(importance, SUPER, search.spread), Candidates::WEIGHTED),
            None => ((search.plain_costs)(rows), search.plain),
        };
        for first in rows.batches(N) {
            let (x, w) = (&gather::<N>(rows.x, first), &gather::<N>(&costs, first));
            let fit = affine(x, w, i32::from(search.max_code), candidates);
            fit.write_codes(&rows.x[first * N..], &mut codes[first * N..], N);
            let here = first..(first + LANES).min(found.scale.len());
            found.scale[here.clone()].copy_from_slice(&fit.scale[..here.len()]);
            found.min[here.clone()].copy_from_slice(&fit.min[..here.len()]);
            found.weight[here.clone()].copy_from_slice(&fit.weight[..here.len()]);
        }
    }
}

/// What an error on each weight costs where nothing is known of the inputs: its magnitude and the block's mean one.
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
pub(super) struct Recode<'a> {
    pub x: &'a [f32],
    pub groups: &'a [Group],
    pub max_code: u8,
    pub codes: &'a mut [u8],
}

impl Kernel for Recode<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let len = self.x.len() / self.groups.len();
        let blocks = self.x.chunks_exact(len).zip(self.codes.chunks_exact_mut(len));
        for ((x, codes), &Group { scale, min, zero }) in blocks.zip(self.groups) {
            if scale == 0.0 {
                continue;
            }
            let low = nearest(zero);
            for (code, x) in codes.iter_mut().zip(x) {
                let level = nearest((x + min) / scale).clamp(-low, i32::from(self.max_code) - low);
                *code = (level + low) as u8;
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

/// The two low bits of the codes: each 32 bytes hold four runs of 32 weights, the first one lowest.
pub(super) fn write_pairs(codes: &[u8], bytes: &mut [u8]) {
    for (runs, bytes) in codes.chunks_exact(4 * 32).zip(bytes.chunks_exact_mut(32)) {
        for (j, byte) in bytes.iter_mut().enumerate() {
            *byte = (0..4).fold(0, |byte, run| byte | (runs[32 * run + j] & 3) << (2 * run));
        }
    }
}

/// The reverse of [`write_pairs`].
pub(super) fn read_pairs(bytes: &[u8], codes: &mut [u8]) {
    for (runs, bytes) in codes.chunks_exact_mut(4 * 32).zip(bytes.chunks_exact(32)) {
        for (j, byte) in bytes.iter().enumerate() {
            (0..4).for_each(|run| runs[32 * run + j] = byte >> (2 * run) & 3);
        }
    }
}

/// Bit `bit` of the codes: bit `b` of byte `j` is that of weight `32 b + j`.
pub(super) fn write_high_bits(codes: &[u8], bit: u8, bytes: &mut [u8]) {
    for (i, code) in codes.iter().enumerate() {
        bytes[i % 32] |= (code >> bit & 1) << (i / 32);
    }
}

/// The reverse of [`write_high_bits`]: the bits are added to the codes.
pub(super) fn read_high_bits(bytes: &[u8], bit: u8, codes: &mut [u8]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (bytes[i % 32] >> (i / 32) & 1) << bit;
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
