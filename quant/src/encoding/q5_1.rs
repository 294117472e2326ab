use super::block::{BlockFormat, Group, Rows, half_at};
use super::block32::{BLOCK, read_fifth_bits, read_nibbles, search_affine, write_fifth_bits, write_nibbles};

/// 32 weights as `scale * code - min`, both in half precision: 6 bits per weight.
///
/// The codes are the search's own, as for [`Q4_0`](super::q4_0::Q4_0).
#[derive(Debug)]
pub struct Q5_1;

impl BlockFormat for Q5_1 {
    const NAME: &'static str = "q5_1";
    const GGML_ID: u32 = 7;
    const BLOCK: usize = BLOCK;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 4;
    const BYTES: usize = 24;
    const MAX_CODE: u8 = 31;
    const MIN_AT: Option<usize> = Some(2);
    const HAS_MIN: bool = true;

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        search_affine(rows, Self::MAX_CODE, headers, codes);
    }

    fn group(header: &[u8], _group: usize) -> Group {
        Group { scale: half_at(header, 0), zero: 0.0, min: -half_at(header, 2) }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..4].copy_from_slice(header);
        write_fifth_bits(codes, &mut block[4..8]);
        write_nibbles(codes, &mut block[8..]);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header.copy_from_slice(&block[..4]);
        read_nibbles(&block[8..], codes);
        read_fifth_bits(&block[4..8], codes);
    }
}
