use super::block::{BlockFormat, Group, Rows, half_at, half_bytes};
use super::search::{Candidates, positive};
use super::super_block::{Recode, SUPER, Search, proportional, read_pairs, search_blocks, write_pairs};
use crate::lanes::widest;

const BLOCK: usize = 16;
const BLOCKS: usize = SUPER / BLOCK;
const CODES: usize = SUPER / 4;

/// Super-blocks of 16 x 16 weights, `scale * code - min`, 4-bit scales and minima: 2.625 bits per weight.
#[derive(Debug)]
pub struct Q2K;

impl BlockFormat for Q2K {
    const NAME: &'static str = "q2_k";
    const GGML_ID: u32 = 10;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = BLOCKS + 4;
    const BYTES: usize = CODES + Self::HEADER;
    const MAX_CODE: u8 = 3;
    const SCALE_AT: Option<usize> = Some(BLOCKS);
    const MIN_AT: Option<usize> = Some(BLOCKS + 2);
    const HAS_MIN: bool = true;

    /// # Source
    /// `quantize_row_q2_K_ref` and `quantize_row_q2_K_impl` of llama.cpp.
    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let plain = Candidates { first: -0.5, step: 0.1, steps: 15, by_magnitude: true };
        let plain_costs = |rows: &Rows<'_>| rows.x.iter().map(|x| x.abs()).collect();
        let search = Search { max_code: Self::MAX_CODE, spread: 1.0, plain, plain_costs };
        let found = search_blocks::<BLOCK>(rows, &search, codes);
        let blocks = headers.chunks_exact_mut(Self::HEADER).zip(codes.chunks_exact_mut(SUPER));
        for (i, (header, codes)) in blocks.enumerate() {
            let [scale, min, weight] =
                [&found.scale, &found.min, &found.weight].map(|all| all.as_chunks::<BLOCKS>().0[i]);
            let ((scale_unit, scales), (min_unit, mins)) = if rows.importance.is_some() {
                (positive(&scale, &weight, 15), positive(&min, &weight, 15))
            } else {
                (proportional(&scale, 15), proportional(&min, 15))
            };
            for ((level, scale), min) in header.iter_mut().zip(scales).zip(mins) {
                *level = scale | min << 4;
            }
            header[BLOCKS..][..2].copy_from_slice(&half_bytes(scale_unit));
            header[BLOCKS + 2..].copy_from_slice(&half_bytes(min_unit));
            let groups: [Group; BLOCKS] = std::array::from_fn(|i| Self::group(header, i));
            let x = &rows.x[i * SUPER..][..SUPER];
            widest(Recode { x, groups: &groups, max_code: Self::MAX_CODE, codes });
        }
    }

    fn group(header: &[u8], group: usize) -> Group {
        let level = header[group];
        Group {
            scale: half_at(header, BLOCKS) * f32::from(level & 15),
            zero: 0.0,
            min: half_at(header, BLOCKS + 2) * f32::from(level >> 4),
        }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..BLOCKS].copy_from_slice(&header[..BLOCKS]);
        write_pairs(codes, &mut block[BLOCKS..][..CODES]);
        block[BLOCKS + CODES..].copy_from_slice(&header[BLOCKS..]);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header[..BLOCKS].copy_from_slice(&block[..BLOCKS]);
        read_pairs(&block[BLOCKS..][..CODES], codes);
        header[BLOCKS..].copy_from_slice(&block[BLOCKS + CODES..]);
    }
}
