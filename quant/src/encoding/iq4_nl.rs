use super::block::{BlockFormat, Group, Rows, half_at, half_bytes};
use super::block32::{BLOCK, read_nibbles, write_nibbles};
use super::iq4::{LEVELS, encode, scales};

/// 32 weights as `scale * LEVELS[code]`, half-precision scale: 4.5 bits per weight.
#[derive(Debug)]
pub struct Iq4Nl;

impl BlockFormat for Iq4Nl {
    const NAME: &'static str = "iq4_nl";
    const GGML_ID: u32 = 20;
    const BLOCK: usize = BLOCK;
    const GROUP: usize = BLOCK;
    const HEADER: usize = 2;
    const BYTES: usize = 18;
    const MAX_CODE: u8 = 15;
    const LEVELS: Option<&'static [f32]> = Some(&LEVELS);

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        let scales = scales(rows, BLOCK);
        for (header, &scale) in headers.chunks_exact_mut(2).zip(&scales) {
            header.copy_from_slice(&half_bytes(scale));
        }
        encode(rows.x, &scales, codes);
    }

    fn group(header: &[u8], _group: usize) -> Group {
        Group { scale: half_at(header, 0), zero: 0.0, min: 0.0 }
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
