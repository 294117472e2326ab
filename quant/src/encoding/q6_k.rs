use super::block::{BlockFormat, Group, Rows, half_at, half_bytes};
use super::search::{NOTHING, symmetric};
use crate::lanes::{Kernel, Lanes, between, gather, lanes, nearest, nearest_whole, widest};

const SUPER: usize = 256;
const BLOCK: usize = 16;
const BLOCKS: usize = SUPER / BLOCK;
const LOW: usize = SUPER / 2;
const HIGH: usize = SUPER / 4;

/// Super-blocks of 16 x 16 weights, `scale * (code - 32)`, signed 8-bit scales: 6.5625 bits per weight.
#[derive(Debug)]
pub struct Q6K;

impl BlockFormat for Q6K {
    const NAME: &'static str = "q6_k";
    const GGML_ID: u32 = 14;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = BLOCKS + 2;
    const BYTES: usize = LOW + HIGH + Self::HEADER;
    const MAX_CODE: u8 = 63;
    const SCALE_AT: Option<usize> = Some(BLOCKS);

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        widest(Search { rows, headers, codes });
    }

    fn group(header: &[u8], group: usize) -> Group {
        let level = f32::from(header[group].cast_signed());
        Group { scale: half_at(header, BLOCKS) * level, zero: 32.0, min: 0.0 }
    }

    /// Each half of the super-block: 64 bytes of low four bits, later 32 bytes of high two bits. Quarter `q` of the half has
    /// its low bits in nibble `q / 2` of bytes `32 (q % 2)..`, its high bits at `2 q`.
    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        let (bits, front) = block.split_at_mut(LOW + HIGH);
        let (low, high) = bits.split_at_mut(LOW);
        for (half, codes) in codes.as_chunks::<128>().0.iter().enumerate() {
            let (low, high) = (&mut low[64 * half..][..64], &mut high[32 * half..][..32]);
            for j in 0..32 {
                let quarters = [0, 1, 2, 3].map(|quarter| codes[32 * quarter + j]);
                low[j] = quarters[0] & 15 | quarters[2] << 4;
                low[32 + j] = quarters[1] & 15 | quarters[3] << 4;
                high[j] = quarters.iter().rev().fold(0, |byte, code| byte << 2 | (code >> 4 & 3));
            }
        }
        front.copy_from_slice(header);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        let (bits, front) = block.split_at(LOW + HIGH);
        let (low, high) = bits.split_at(LOW);
        for (half, codes) in codes.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            let (low, high) = (&low[64 * half..][..64], &high[32 * half..][..32]);
            for j in 0..32 {
                codes[j] = low[j] & 15 | (high[j] & 3) << 4;
                codes[32 + j] = low[32 + j] & 15 | (high[j] >> 2 & 3) << 4;
                codes[64 + j] = low[j] >> 4 | (high[j] >> 4 & 3) << 4;
                codes[96 + j] = low[32 + j] >> 4 | (high[j] >> 6) << 4;
            }
        }
        header.copy_from_slice(front);
    }
}

/// # Source
/// `quantize_row_q6_K_ref` and `quantize_row_q6_K_impl` of llama.cpp: the squares of the weights stand in for a missing importance.
struct Search<'a> {
    rows: &'a Rows<'a>,
    headers: &'a mut [u8],
    codes: &'a mut [u8],
}

impl Kernel for Search<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rows, headers, codes } = self;
        let costs: Vec<f32> = match rows.importance {
            Some(importance) => importance.iter().copied().cycle().take(rows.x.len()).collect(),
            None => rows.x.iter().map(|x| x * x).collect(),
        };
        for first in rows.batches(BLOCK) {
            let (x, w) = (&gather::<BLOCK>(rows.x, first), &gather::<BLOCK>(&costs, first));
            let found = symmetric(x, w, 32);
            found.write_codes(&rows.x[first * BLOCK..], &mut codes[first * BLOCK..], BLOCK);
            // Sixteen blocks are exactly one super-block.
            let i = first / BLOCKS;
            let header = &mut headers[i * Q6K::HEADER..][..Q6K::HEADER];
            finish(&rows.x[i * SUPER..][..SUPER], &found.scale, header, &mut codes[i * SUPER..][..SUPER]);
        }
    }
}

/// Rounds the sixteen scales to signed bytes in units of the largest, and the weights again to those.
#[inline(always)]
fn finish(x: &[f32], scales: &Lanes, header: &mut [u8], codes: &mut [u8]) {
    let largest = scales
        .iter()
        .fold(0.0f32, |largest, &scale| if scale.abs() > largest.abs() { scale } else { largest });
    if largest.abs() < NOTHING {
        header.fill(0);
        codes.fill(0);
        return;
    }
    let inverse = -128.0 / largest;
    for (level, scale) in header.iter_mut().zip(scales) {
        *level = (nearest(inverse * scale).min(127) as i8).cast_unsigned();
    }
    header[BLOCKS..].copy_from_slice(&half_bytes(1.0 / inverse));
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(codes.as_chunks_mut::<BLOCK>().0);
    for (i, (x, codes)) in blocks.enumerate() {
        let scale = Q6K::group(header, i).scale;
        if scale == 0.0 {
            continue;
        }
        let levels = lanes(|k| between(nearest_whole(x[k] / scale), -32.0, 31.0) + 32.0);
        *codes = levels.map(|level| level as i32 as u8);
    }
}
