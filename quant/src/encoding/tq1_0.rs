use super::block::{BlockFormat, Group, Rows};
use super::ternary::{self, SUPER};

const BYTES: usize = 52;

/// 256 weights as `scale * (code - 1)`, five in a byte: 1.6875 bits per weight.
///
/// Five weights have 243 cases and a byte 256; bytes that nobody writes read as one of the cases, and are written as that.
#[derive(Debug)]
pub struct Tq1_0;

impl BlockFormat for Tq1_0 {
    const NAME: &'static str = "tq1_0";
    const GGML_ID: u32 = 34;
    const BLOCK: usize = SUPER;
    const GROUP: usize = SUPER;
    const HEADER: usize = 2;
    const BYTES: usize = BYTES + 2;
    const MAX_CODE: u8 = 2;

    fn search(rows: &Rows<'_>, headers: &mut [u8], codes: &mut [u8]) {
        ternary::search(rows, headers, codes);
    }

    fn group(header: &[u8], _group: usize) -> Group {
        ternary::group(header)
    }

    fn write(header: &[u8], codes: &[u8], block: &mut [u8]) {
        let (mut codes, mut bytes) = (codes, &mut block[..BYTES]);
        for Part { len, digits } in PARTS {
            let (here, after) = codes.split_at(len * digits);
            let (out, rest) = bytes.split_at_mut(len);
            for (j, byte) in out.iter_mut().enumerate() {
                let digit = |n| if n < digits { u16::from(here[n * len + j]) } else { 0 };
                let number = (0..5).fold(0, |number, n| 3 * number + digit(n));
                // A fraction of 243 as one of 256, rounded up so that the digits come out again.
                *byte = (number * 256).div_ceil(243) as u8;
            }
            (codes, bytes) = (after, rest);
        }
        block[BYTES..].copy_from_slice(header);
    }

    fn read(block: &[u8], header: &mut [u8], codes: &mut [u8]) {
        let (mut codes, mut bytes) = (codes, &block[..BYTES]);
        for Part { len, digits } in PARTS {
            let (here, after) = codes.split_at_mut(len * digits);
            let (from, rest) = bytes.split_at(len);
            for (j, &byte) in from.iter().enumerate() {
                let mut fraction = byte;
                for n in 0..digits {
                    // The digit before the point of three times the fraction; what is behind it goes on.
                    let tripled = 3 * u16::from(fraction);
                    here[n * len + j] = (tripled >> 8) as u8;
                    fraction = tripled as u8;
                }
            }
            (codes, bytes) = (after, rest);
        }
        header.copy_from_slice(&block[BYTES..]);
    }
}

/// Bytes of a run, whose weights `j`, `j + len`, `j + 2 len`, ... are the digits of byte `j`, first digit first.
struct Part {
    len: usize,
    digits: usize,
}

const PARTS: [Part; 3] =
    [Part { len: 32, digits: 5 }, Part { len: 16, digits: 5 }, Part { len: 4, digits: 4 }];
