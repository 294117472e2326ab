use super::block::{BlockFormat, Group, Rows, half_at, half_bytes};
use super::search::{NOTHING, symmetric};
use crate::lanes::{Kernel, Lanes, gather, nearest, widest};

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
        for (i, &code) in codes.iter().enumerate() {
            let (half, quarter, j) = (i / 128, i / 32 % 4, i % 32);
            block[64 * half + 32 * (quarter % 2) + j] |= (code & 15) << (4 * (quarter / 2));
            block[LOW + 32 * half + j] |= (code >> 4 & 3) << (2 * quarter);
        }
        block[LOW + HIGH..].copy_from_slice(header);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        for (i, code) in codes.iter_mut().enumerate() {
            let (half, quarter, j) = (i / 128, i / 32 % 4, i % 32);
            let low = block[64 * half + 32 * (quarter % 2) + j] >> (4 * (quarter / 2)) & 15;
            let high = block[LOW + 32 * half + j] >> (2 * quarter) & 3;
            *code = low | high << 4;
        }
        header.copy_from_slice(&block[LOW + HIGH..]);
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
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (nearest(x / scale).clamp(-32, 31) + 32) as u8;
        }
    }
}
