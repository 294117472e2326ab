use super::block::{BlockFormat, Group, Rows};
use super::search::Candidates;
use super::super_block::{self, BLOCK, HEADER, SUPER, read_nibbles, write_nibbles};

/// Super-blocks of 8 x 32 weights, `scale * code - min`, 6-bit scales and minima: 4.5 bits per weight.
#[derive(Debug)]
pub struct Q4K;

impl BlockFormat for Q4K {
    const NAME: &'static str = "q4_k";
    const GGML_ID: u32 = 12;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = HEADER;
    const BYTES: usize = HEADER + SUPER / 2;
    const MAX_CODE: u8 = 15;
    const MIN_AT: Option<usize> = Some(2);
    const HAS_MIN: bool = true;

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let plain = Candidates { first: -1.0, step: 0.1, steps: 20, by_magnitude: false };
        super_block::search(rows, Self::MAX_CODE, plain, headers, codes);
    }

    fn group(header: &[u8], group: usize) -> Group {
        super_block::group(header, group)
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..HEADER].copy_from_slice(header);
        write_nibbles(codes, &mut block[HEADER..]);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header.copy_from_slice(&block[..HEADER]);
        read_nibbles(&block[HEADER..], codes);
    }
}
