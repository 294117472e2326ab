use super::block::{BlockFormat, Group, Rows};
use super::ternary::{self, SUPER};

const CODES: usize = SUPER / 4;

/// 256 weights as `scale * (code - 1)`, two bits each: 2.0625 bits per weight.
///
/// The fourth code has bytes and is read as `2 * scale`, but no weight is rounded to it: the format is ternary.
#[derive(Debug)]
pub struct Tq2_0;

impl BlockFormat for Tq2_0 {
    const NAME: &'static str = "tq2_0";
    const GGML_ID: u32 = 35;
    const BLOCK: usize = SUPER;
    const GROUP: usize = SUPER;
    const HEADER: usize = 2;
    const BYTES: usize = CODES + 2;
    const MAX_CODE: u8 = 2;

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        ternary::search(rows, headers, codes);
    }

    fn group(header: &[u8], _group: usize) -> Group {
        ternary::group(header)
    }

    /// Each half: 32 bytes for 4 x 32 weights, the first 32 lowest.
    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        for (i, &code) in codes.iter().enumerate() {
            block[i / 128 * 32 + i % 32] |= (code & 3) << (2 * (i / 32 % 4));
        }
        block[CODES..].copy_from_slice(header);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        for (i, code) in codes.iter_mut().enumerate() {
            *code = block[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3;
        }
        header.copy_from_slice(&block[CODES..]);
    }
}
