use super::block::{BlockFormat, Group, Rows, half_at, half_bytes};
use super::sweep::{best_scale, by_magnitude, encode};
use crate::lanes::of_largest_magnitude;

const BLOCK: usize = 64;

/// 64 weights as `scale * (code - 1)`, two bits each, half-precision scale: 2.25 bits per weight.
///
/// Without an importance the scale is the largest magnitude, as llama.cpp has it, and the fourth code is not used. With one it is
/// that of least weighted squared error, of either sign.
#[derive(Debug)]
pub struct Q2_0;

impl BlockFormat for Q2_0 {
    const NAME: &'static str = "q2_0";
    const GGML_ID: u32 = 42;
    const BLOCK: usize = BLOCK;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2;
    const BYTES: usize = 2 + BLOCK / 4;
    const MAX_CODE: u8 = 3;

    /// # Source
    /// `quantize_row_q2_0_ref` of llama.cpp where there is no importance.
    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let blocks = rows.x.as_chunks::<BLOCK>().0.iter().zip(headers.as_chunks_mut::<2>().0);
        for (i, ((x, header), codes)) in blocks.zip(codes.as_chunks_mut::<BLOCK>().0).enumerate() {
            let magnitude = of_largest_magnitude(x).abs();
            let searched = rows.importance.map_or(0.0, |importance| {
                let importance = &importance[i * BLOCK % rows.cols..][..BLOCK];
                let order = by_magnitude(x);
                let best = |levels| best_scale(x, importance, &order, levels);
                let ((up, gain_up), (down, gain_down)) = (best((-1, 2)), best((-2, 1)));
                if gain_up >= gain_down { up } else { -down }
            });
            *header = half_bytes(if searched == 0.0 { magnitude } else { searched });
            // The reference rounds on the scale before that is rounded to half precision.
            let scale = if searched == 0.0 { magnitude } else { half_at(header, 0) };
            encode(x, scale, (-1, 2), codes);
        }
    }

    fn group(header: &[u8], _group: usize) -> Group {
        Group { scale: half_at(header, 0), zero: 1.0, min: 0.0 }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(header);
        for (byte, codes) in block[2..].iter_mut().zip(codes.chunks_exact(4)) {
            *byte = codes.iter().rev().fold(0, |byte, code| byte << 2 | code & 3);
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header.copy_from_slice(&block[..2]);
        for (byte, codes) in block[2..].iter().zip(codes.chunks_exact_mut(4)) {
            for (j, code) in codes.iter_mut().enumerate() {
                *code = byte >> (2 * j) & 3;
            }
        }
    }
}
