use super::block::{BlockFormat, Group, Rows, half_at, half_bytes};
use crate::lanes::{Kernel, truncate, widest};

/// 32 weights as signed bytes times a half-precision scale: 8.5 bits per weight. Codes here are the bytes plus 128.
///
/// There is no search and no use of an importance: the largest magnitude becomes 127.
#[derive(Debug)]
pub struct Q8_0;

impl BlockFormat for Q8_0 {
    const NAME: &'static str = "q8_0";
    const GGML_ID: u32 = 8;
    const BLOCK: usize = 32;
    const GROUP: usize = 32;
    const HEADER: usize = 2;
    const BYTES: usize = 34;
    const MAX_CODE: u8 = 255;
    const INTEGER: Option<u8> = Some(8);

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        widest(Round { x: rows.x, headers, codes });
    }

    fn group(header: &[u8], _group: usize) -> Group {
        Group { scale: half_at(header, 0), zero: 128.0, min: 0.0 }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(header);
        for (byte, code) in block[2..].iter_mut().zip(codes) {
            *byte = code ^ 0x80;
        }
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header.copy_from_slice(&block[..2]);
        for (code, byte) in codes.iter_mut().zip(&block[2..]) {
            *code = byte ^ 0x80;
        }
    }
}

struct Round<'a> {
    x: &'a [f32],
    headers: &'a mut [u8],
    codes: &'a mut [u8],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let blocks = self.x.as_chunks::<32>().0.iter().zip(self.codes.as_chunks_mut::<32>().0);
        for ((x, codes), header) in blocks.zip(self.headers.chunks_exact_mut(2)) {
            let mut largest = 0.0f32;
            for x in x {
                largest = if x.abs() > largest { x.abs() } else { largest };
            }
            let scale = largest / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            header.copy_from_slice(&half_bytes(scale));
            for (code, x) in codes.iter_mut().zip(x) {
                // Halves away from zero: adding the largest number below a half never rounds up what lies below one.
                let steps = x * inverse;
                *code = truncate(steps + 0.499_999_97_f32.copysign(steps)) as u8 ^ 0x80;
            }
        }
    }
}
