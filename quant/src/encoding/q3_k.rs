use super::block::{BlockFormat, Group, Rows, half_at, half_bytes};
use super::search::{NOTHING, symmetric};
use super::super_block::{Recode, SUPER, read_high_bits, read_pairs, write_high_bits, write_pairs};
use crate::lanes::{Kernel, LANES, gather, lanes, nearest, widest};

const BLOCK: usize = 16;
const BLOCKS: usize = SUPER / BLOCK;
const THIRD: usize = SUPER / 8; // bytes of third bits
const CODES: usize = SUPER / 4;
const LEVELS: usize = 12; // bytes of 6-bit levels

/// Super-blocks of 16 x 16 weights, `scale * (code - 4)`, signed 6-bit scales: 3.4375 bits per weight.
#[derive(Debug)]
pub struct Q3K;

impl BlockFormat for Q3K {
    const NAME: &'static str = "q3_k";
    const GGML_ID: u32 = 11;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = LEVELS + 2;
    const BYTES: usize = THIRD + CODES + Self::HEADER;
    const MAX_CODE: u8 = 7;
    const SCALE_AT: Option<usize> = Some(LEVELS);

    /// # Source
    /// `quantize_row_q3_K_ref` and `quantize_row_q3_K_impl` of llama.cpp.
    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let blocks = rows.x.len() / BLOCK;
        let mut units = vec![0.0; blocks / BLOCKS];
        let mut levels = vec![0; blocks];
        match rows.importance {
            Some(importance) => {
                widest(Weighted { rows, importance, units: &mut units, levels: &mut levels, codes });
            }
            None => plain(rows, &mut units, &mut levels, codes),
        }
        let blocks = headers.chunks_exact_mut(Self::HEADER).zip(codes.chunks_exact_mut(SUPER));
        for (i, (header, codes)) in blocks.enumerate() {
            write_levels(levels.as_chunks::<BLOCKS>().0[i], &mut header[..LEVELS]);
            header[LEVELS..].copy_from_slice(&half_bytes(units[i]));
            let groups: [Group; BLOCKS] = std::array::from_fn(|i| Self::group(header, i));
            let x = &rows.x[i * SUPER..][..SUPER];
            widest(Recode { x, groups: &groups, max_code: Self::MAX_CODE, codes });
        }
    }

    fn group(header: &[u8], group: usize) -> Group {
        let level = f32::from(level(header, group)) - 32.0;
        Group { scale: half_at(header, LEVELS) * level, zero: 4.0, min: 0.0 }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        write_high_bits(codes, 2, &mut block[..THIRD]);
        write_pairs(codes, &mut block[THIRD..][..CODES]);
        block[THIRD + CODES..].copy_from_slice(header);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        read_pairs(&block[THIRD..][..CODES], codes);
        read_high_bits(&block[..THIRD], 2, codes);
        header.copy_from_slice(&block[THIRD + CODES..]);
    }
}

/// The 6-bit level of block `i`: its low four bits in nibble `i / 8` of byte `i % 8`, its high two in pair `i / 4` of byte `8 + i % 4`.
fn level(bytes: &[u8], i: usize) -> u8 {
    (bytes[i % 8] >> (4 * (i / 8)) & 15) | (bytes[8 + i % 4] >> (2 * (i / 4)) & 3) << 4
}

fn write_levels(levels: [u8; BLOCKS], bytes: &mut [u8]) {
    bytes.fill(0);
    for (i, level) in levels.into_iter().enumerate() {
        bytes[i % 8] |= (level & 15) << (4 * (i / 8));
        bytes[8 + i % 4] |= (level >> 4) << (2 * (i / 4));
    }
}

/// Scales by the importance of their weights' errors, then units and levels by the weight of the blocks.
struct Weighted<'a> {
    rows: &'a Rows<'a>,
    importance: &'a [f32],
    units: &'a mut [f32],
    levels: &'a mut [u8],
    codes: &'a mut [u8],
}

impl Kernel for Weighted<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rows, importance, units, levels, codes } = self;
        let costs = rows.costs(importance, SUPER, 2.0);
        let mut scales = vec![0.0; rows.x.len() / BLOCK];
        let mut weights = vec![0.0; rows.x.len() / BLOCK];
        for first in rows.batches(BLOCK) {
            let (x, w) = (&gather::<BLOCK>(rows.x, first), &gather::<BLOCK>(&costs, first));
            let found = symmetric(x, w, 4);
            found.write_codes(&rows.x[first * BLOCK..], &mut codes[first * BLOCK..], BLOCK);
            // Sixteen blocks are exactly one super-block.
            scales[first..][..BLOCKS].copy_from_slice(&found.scale);
            let mut weight = [0.0; LANES];
            for w in w {
                weight = lanes(|k| weight[k] + w[k]);
            }
            weights[first..][..BLOCKS].copy_from_slice(&weight);
        }
        for first in (0..units.len()).step_by(LANES) {
            let found = symmetric(&gather::<BLOCKS>(&scales, first), &gather::<BLOCKS>(&weights, first), 32);
            found.write_codes(&scales[first * BLOCKS..], &mut levels[first * BLOCKS..], BLOCKS);
            let here = LANES.min(units.len() - first);
            units[first..][..here].copy_from_slice(&found.scale[..here]);
        }
    }
}

/// The same where nothing is known of the inputs: the square of a weight stands in for the importance of its error.
fn plain(rows: &Rows<'_>, units: &mut [f32], levels: &mut [u8], codes: &mut [u8]) {
    let supers = rows.x.as_chunks::<SUPER>().0.iter().zip(codes.as_chunks_mut::<SUPER>().0);
    let levels = levels.as_chunks_mut::<BLOCKS>().0;
    for ((x, codes), (unit, levels)) in supers.zip(units.iter_mut().zip(levels)) {
        let mut scales = [0.0f32; BLOCKS];
        let blocks = x.as_chunks::<BLOCK>().0.iter().zip(codes.as_chunks_mut::<BLOCK>().0);
        for (scale, (x, codes)) in scales.iter_mut().zip(blocks) {
            *scale = refined(x, codes);
        }
        let largest =
            scales.iter().fold(0.0f32, |largest, &x| if x.abs() > largest.abs() { x } else { largest });
        if largest != 0.0 {
            let inverse = -32.0 / largest;
            *levels = scales.map(|scale| (nearest(inverse * scale).clamp(-32, 31) + 32) as u8);
            *unit = 1.0 / inverse;
        }
    }
}

/// The scale of one block, and codes that are moved one at a time while that helps.
///
/// # Source
/// `make_q3_quants` of llama.cpp's ggml-quants.c.
fn refined(x: &[f32; BLOCK], codes: &mut [u8; BLOCK]) -> f32 {
    let largest = x.iter().fold(0.0f32, |largest, &x| if x.abs() > largest.abs() { x } else { largest });
    if largest.abs() < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -4.0 / largest;
    let mut levels = x.map(|x| nearest(inverse * x).clamp(-4, 3) as f32);
    let (mut xl, mut ll) = (0.0f32, 0.0f32);
    for (x, level) in x.iter().zip(levels) {
        let w = x * x;
        xl += w * x * level;
        ll += w * level * level;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (x, level) in x.iter().zip(&mut levels) {
            let w = x * x;
            let mut rest_xl = xl - w * x * *level;
            if rest_xl <= 0.0 {
                continue;
            }
            let mut rest_ll = ll - w * *level * *level;
            let new = nearest(x * rest_ll / rest_xl).clamp(-4, 3) as f32;
            if new.to_bits() == level.to_bits() {
                continue;
            }
            rest_xl += w * x * new;
            rest_ll += w * new * new;
            if rest_ll > 0.0 && rest_xl * rest_xl * ll > xl * xl * rest_ll {
                (*level, xl, ll) = (new, rest_xl, rest_ll);
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    codes.iter_mut().zip(levels).for_each(|(code, level)| *code = (level as i32 + 4) as u8);
    if ll > 0.0 { xl / ll } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twelve_bytes_hold_any_sixteen_levels() {
        for seed in 0..64u8 {
            let levels = std::array::from_fn(|i| seed.wrapping_mul(37).wrapping_add(i as u8 * 11) & 63);
            let mut bytes = [0; LEVELS];
            write_levels(levels, &mut bytes);
            assert_eq!(std::array::from_fn(|i| level(&bytes, i)), levels);
        }
    }
}
