use super::block::{BlockFormat, Group, Rows};
use super::search::Candidates;
use super::super_block::{
    self, BLOCK, HEADER, SUPER, read_high_bits, read_nibbles, write_high_bits, write_nibbles,
};

/// Bytes of fifth bits: bit `b` of byte `j` is that of weight `32 b + j`.
const FIFTH: usize = SUPER / 8;

/// Super-blocks of 8 x 32 weights, `scale * code - min`, 6-bit scales and minima: 5.5 bits per weight.
#[derive(Debug)]
pub struct Q5K;

impl BlockFormat for Q5K {
    const NAME: &'static str = "q5_k";
    const GGML_ID: u32 = 13;
    const BLOCK: usize = SUPER;
    const GROUP: usize = BLOCK;
    const HEADER: usize = HEADER;
    const BYTES: usize = HEADER + FIFTH + SUPER / 2;
    const MAX_CODE: u8 = 31;
    const MIN_AT: Option<usize> = Some(2);
    const HAS_MIN: bool = true;

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let plain = Candidates { first: -0.5, step: 0.1, steps: 15, by_magnitude: false };
        super_block::search(rows, Self::MAX_CODE, plain, headers, codes);
    }

    fn group(header: &[u8], group: usize) -> Group {
        super_block::group(header, group)
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..HEADER].copy_from_slice(header);
        let (fifth, nibbles) = block[HEADER..].split_at_mut(FIFTH);
        write_high_bits(codes, 4, fifth);
        write_nibbles(codes, nibbles);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header.copy_from_slice(&block[..HEADER]);
        let (fifth, nibbles) = block[HEADER..].split_at(FIFTH);
        read_nibbles(nibbles, codes);
        read_high_bits(fifth, 4, codes);
    }
}
