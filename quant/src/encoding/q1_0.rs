use super::block::{BlockFormat, Group, Rows, half_at, half_bytes};

const BLOCK: usize = 128;

/// 128 weights as `scale` or `-scale`, half-precision scale: 1.125 bits per weight.
///
/// The scale is the mean magnitude, weighted where there is an importance: of all scales the one of least squared error.
#[derive(Debug)]
pub struct Q1_0;

impl BlockFormat for Q1_0 {
    const NAME: &'static str = "q1_0";
    const GGML_ID: u32 = 41;
    const BLOCK: usize = BLOCK;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2;
    const BYTES: usize = 2 + BLOCK / 8;
    const MAX_CODE: u8 = 1;
    const LEVELS: Option<&'static [f32]> = Some(&[-1.0, 1.0]);

    /// # Source
    /// `quantize_row_q1_0_ref` of llama.cpp, which knows no importance.
    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let blocks = rows.x.as_chunks::<BLOCK>().0.iter().zip(headers.as_chunks_mut::<2>().0);
        for (i, ((x, header), codes)) in blocks.zip(codes.as_chunks_mut::<BLOCK>().0).enumerate() {
            let weighted = rows.importance.map_or(0.0, |importance| {
                let importance = &importance[i * BLOCK % rows.cols..][..BLOCK];
                let sum = x.iter().zip(importance).fold(0.0, |sum, (x, w)| sum + w * x.abs());
                let weight = importance.iter().fold(0.0, |sum, w| sum + w);
                if weight > 0.0 { sum / weight } else { 0.0 }
            });
            let mean = x.iter().fold(0.0, |sum, x| sum + x.abs()) / BLOCK as f32;
            *header = half_bytes(if weighted > 0.0 { weighted } else { mean });
            for (code, x) in codes.iter_mut().zip(x) {
                *code = u8::from(*x >= 0.0);
            }
        }
    }

    fn group(header: &[u8], _group: usize) -> Group {
        Group { scale: half_at(header, 0), zero: 0.0, min: 0.0 }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(header);
        for (byte, codes) in block[2..].iter_mut().zip(codes.chunks_exact(8)) {
            *byte = codes.iter().rev().fold(0, |byte, code| byte << 1 | code & 1);
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header.copy_from_slice(&block[..2]);
        for (byte, codes) in block[2..].iter().zip(codes.chunks_exact_mut(8)) {
            for (j, code) in codes.iter_mut().enumerate() {
                *code = byte >> j & 1;
            }
        }
    }
}
