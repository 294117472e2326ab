use super::block::{BlockFormat, Group, Rows, half_at};
use super::block32::{
    BLOCK, read_fifth_bits, read_nibbles, search_symmetric, write_fifth_bits, write_nibbles,
};

/// 32 weights as `scale * (code - 16)`, half-precision scale: 5.5 bits per weight.
///
/// The codes are the search's own, as for [`Q4_0`](super::q4_0::Q4_0).
#[derive(Debug)]
pub struct Q5_0;

impl BlockFormat for Q5_0 {
    const NAME: &'static str = "q5_0";
    const GGML_ID: u32 = 6;
    const BLOCK: usize = BLOCK;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2;
    const BYTES: usize = 22;
    const MAX_CODE: u8 = 31;
    const INTEGER: Option<u8> = Some(5);

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        search_symmetric(rows, 16, headers, codes);
    }

    fn group(header: &[u8], _group: usize) -> Group {
        Group { scale: half_at(header, 0), zero: 16.0, min: 0.0 }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(header);
        write_fifth_bits(codes, &mut block[2..6]);
        write_nibbles(codes, &mut block[6..]);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header.copy_from_slice(&block[..2]);
        read_nibbles(&block[6..], codes);
        read_fifth_bits(&block[2..6], codes);
    }
}
