use super::block::{BlockFormat, Group, Rows, half_at};
use super::block32::{BLOCK, read_nibbles, search_symmetric, write_nibbles};

/// 32 weights as `scale * (code - 8)`, half-precision scale: 4.5 bits per weight.
///
/// With an importance the codes are the search's own, chosen before its scale was refitted and rounded; without,
/// they are rounded on the scale before it is rounded. Both as llama.cpp writes them.
#[derive(Debug)]
pub struct Q4_0;

impl BlockFormat for Q4_0 {
    const NAME: &'static str = "q4_0";
    const GGML_ID: u32 = 2;
    const BLOCK: usize = BLOCK;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2;
    const BYTES: usize = 18;
    const MAX_CODE: u8 = 15;
    const INTEGER: Option<u8> = Some(4);

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        search_symmetric(rows, 8, headers, codes);
    }

    fn group(header: &[u8], _group: usize) -> Group {
        Group { scale: half_at(header, 0), zero: 8.0, min: 0.0 }
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        block[..2].copy_from_slice(header);
        write_nibbles(codes, &mut block[2..]);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        header.copy_from_slice(&block[..2]);
        read_nibbles(&block[2..], codes);
    }
}
