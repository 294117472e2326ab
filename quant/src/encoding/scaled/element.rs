use crate::lanes::{between, nearest_whole};

/// A number of four or eight bits that a scale multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// -128 to 127.
    Int8,
    /// Sign, four bits of exponent, three of mantissa, no infinities: up to 448.
    E4m3,
    /// Sign, two bits of exponent, one of mantissa: up to 6. Two to a byte, the first of them low.
    E2m1,
}

/// The pattern of an E4M3 number without its sign that is none.
const NOT_A_NUMBER: u8 = 0x7f;

/// Codes of the E4M3 numbers below +0: those with a sign bit.
const BELOW: u8 = 127;

/// The E4M3 numbers, rising; code `BELOW - 1` is the negative zero, `BELOW` the other.
static E4M3: [f32; 254] = {
    let mut levels = [0.0; 254];
    let mut code = 0;
    while code < 254 {
        levels[code] = e4m3(e4m3_byte(code as u8));
        code += 1;
    }
    levels
};

/// The E2M1 numbers, rising.
static E2M1: [f32; 16] =
    [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// What an E4M3 byte says; the two that are no number, taken as if they were one, 480.
pub(super) const fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = ((byte >> 3 & 15) as u32, (byte & 7) as f32);
    let magnitude = match exponent {
        0 => mantissa / 512.0,
        _ => (8.0 + mantissa) * f32::from_bits((exponent + 127 - 7 - 3) << 23),
    };
    if byte < 0x80 { magnitude } else { -magnitude }
}

/// Whether an E4M3 byte is a number.
pub(super) const fn is_number(byte: u8) -> bool {
    byte & 0x7f != NOT_A_NUMBER
}

const fn e4m3_byte(code: u8) -> u8 {
    if code < BELOW { 0xfe - code } else { code - BELOW }
}

impl Element {
    /// Bits of a code in the file.
    pub const fn bits(self) -> usize {
        match self {
            Self::Int8 | Self::E4m3 => 8,
            Self::E2m1 => 4,
        }
    }

    /// The largest magnitude that both signs have.
    pub const fn reach(self) -> f32 {
        match self {
            Self::Int8 => 127.0,
            Self::E4m3 => 448.0,
            Self::E2m1 => 6.0,
        }
    }

    pub const fn max_code(self) -> u8 {
        match self {
            Self::Int8 => 255,
            Self::E4m3 => 253,
            Self::E2m1 => 15,
        }
    }

    /// The code of 0 where codes are their own levels, as [`crate::Grid::zero`] has it.
    pub const fn zero(self) -> f32 {
        match self {
            Self::Int8 => 128.0,
            Self::E4m3 | Self::E2m1 => 0.0,
        }
    }

    /// What codes stand for where they are not their own levels.
    pub fn levels(self) -> Option<&'static [f32]> {
        match self {
            Self::Int8 => None,
            Self::E4m3 => Some(&E4M3),
            Self::E2m1 => Some(&E2M1),
        }
    }

    /// The bytes of one row of codes.
    pub fn write(self, codes: &[u8], bytes: &mut [u8]) {
        match self {
            Self::Int8 => bytes.iter_mut().zip(codes).for_each(|(byte, code)| *byte = code ^ 0x80),
            Self::E4m3 => bytes.iter_mut().zip(codes).for_each(|(byte, &code)| *byte = e4m3_byte(code)),
            Self::E2m1 => {
                let nibble = |code: u8| if code < 8 { 15 - code } else { code - 8 };
                for (byte, pair) in bytes.iter_mut().zip(codes.chunks_exact(2)) {
                    *byte = nibble(pair[0]) | nibble(pair[1]) << 4;
                }
            }
        }
    }

    /// The reverse of [`write`](Self::write); whether all are numbers.
    #[must_use]
    pub fn read(self, bytes: &[u8], codes: &mut [u8]) -> bool {
        match self {
            Self::Int8 => codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte ^ 0x80),
            Self::E4m3 => {
                let code = |byte: u8| if byte < 0x80 { byte + BELOW } else { 0xfe - byte.min(0xfe) };
                codes.iter_mut().zip(bytes).for_each(|(to, &byte)| *to = code(byte));
                return bytes.iter().all(|&byte| is_number(byte));
            }
            Self::E2m1 => {
                let code = |nibble: u8| if nibble < 8 { nibble + 8 } else { 15 - nibble };
                for (pair, byte) in codes.chunks_exact_mut(2).zip(bytes) {
                    (pair[0], pair[1]) = (code(byte & 15), code(byte >> 4));
                }
            }
        }
        true
    }
}

/// Rounds to a level, by arithmetic that runs in lanes: what a search for scales needs.
pub(super) trait Round: Copy + Sync {
    /// The level nearest to `x`.
    fn level(x: f32) -> f32;
}

#[derive(Clone, Copy)]
pub(super) struct ToInt8;
#[derive(Clone, Copy)]
pub(super) struct ToE4m3;

impl Round for ToInt8 {
    #[inline(always)]
    fn level(x: f32) -> f32 {
        nearest_whole(between(x, -128.0, 127.0))
    }
}

impl Round for ToE4m3 {
    #[inline(always)]
    fn level(x: f32) -> f32 {
        let x = between(x, -448.0, 448.0);
        // To nearest in the last of the three bits of the mantissa that stay; a carry goes into the exponent.
        let normal = f32::from_bits((x.to_bits() + 0x0008_0000) & 0xfff0_0000);
        let small = nearest_whole(x * 512.0) / 512.0;
        if x.abs() < 1.0 / 64.0 { small } else { normal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers by their definition, `(-1)^s 2^(e - 7) (1 + m / 8)`, below the normal ones `(-1)^s 2^-6 m / 8`.
    #[test]
    fn eight_bit_floats_are_those_of_the_open_compute_project() {
        for byte in (0..=255u8).filter(|&byte| is_number(byte)) {
            let (e, m) = (i32::from(byte >> 3 & 15), f64::from(byte & 7) / 8.0);
            let magnitude = if e == 0 { 2f64.powi(-6) * m } else { 2f64.powi(e - 7) * (1.0 + m) };
            let want = if byte < 0x80 { magnitude } else { -magnitude };
            assert_eq!(f64::from(e4m3(byte)).to_bits(), want.to_bits(), "{byte:#x}");
        }
        assert_eq!(e4m3(0x7e).to_bits(), 448f32.to_bits());
    }

    #[test]
    fn levels_rise_and_every_code_has_a_byte_that_leads_back() {
        for element in [Element::Int8, Element::E4m3, Element::E2m1] {
            let codes: Vec<u8> = (0..=element.max_code()).collect();
            let mut bytes = vec![0; codes.len() * element.bits() / 8];
            element.write(&codes, &mut bytes);
            let mut back = vec![0; codes.len()];
            assert!(element.read(&bytes, &mut back) && back == codes, "{element:?}");
            let Some(levels) = element.levels() else { continue };
            assert_eq!(levels.len(), codes.len());
            assert!(levels.is_sorted() && levels.last() == Some(&element.reach()));
        }
        let mut code = [0];
        assert!(Element::Int8.read(&[0xff], &mut code) && code == [127], "-1 is one below the middle");
        for byte in [0x7f, 0xff] {
            assert!(!Element::E4m3.read(&[byte], &mut code), "{byte:#x} is no number");
        }
    }

    /// By trying them all.
    #[test]
    fn rounding_by_arithmetic_finds_a_nearest_level() {
        for i in 0..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(0x9e37_79b9) % 0x4480_0000); // up to 1024
            for x in [x, -x] {
                let distance = |level: &f32| (x - level).abs();
                let least = E4M3.iter().map(distance).fold(f32::INFINITY, f32::min);
                assert_eq!(distance(&ToE4m3::level(x)).to_bits(), least.to_bits(), "{x}");
                let off = ToInt8::level(x) - x.clamp(-128.0, 127.0).round_ties_even();
                assert!(off.abs() <= 0.0, "{x}");
            }
        }
    }
}
