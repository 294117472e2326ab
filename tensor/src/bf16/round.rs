//! The upper half of an f32.

/// The nearest bf16, of two equally near ones the even; too large a number becomes infinite, NaN stays NaN.
#[inline(always)]
pub fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

/// Two neighbours in one word, the first in its lower half.
#[inline(always)]
pub fn pair(even: f32, odd: f32) -> u32 {
    to_bf16(even) | to_bf16(odd) << 16
}

/// The first of a pair.
#[inline(always)]
pub fn even(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

/// The second of a pair.
#[inline(always)]
pub fn odd(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_bf16_holds_are_kept_and_others_go_to_the_nearest() {
        let rounded = |x: f32| even(to_bf16(x));
        for x in [0.0, -0.0, 1.0, -1.5, 255.0, 2.0f32.powi(-126), f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(rounded(x).to_bits(), x.to_bits());
        }
        let step = 2.0f32.powi(-7);
        assert_eq!(rounded(1.0 + 0.49 * step), 1.0);
        assert_eq!(rounded(1.0 + 0.51 * step), 1.0 + step);
        assert_eq!(rounded(1.0 + 0.5 * step), 1.0, "a tie goes to the even one below");
        assert_eq!(rounded(1.0 + 1.5 * step), 1.0 + 2.0 * step, "a tie goes to the even one above");
        assert_eq!(rounded(f32::MAX), f32::INFINITY);
    }

    #[test]
    fn nan_stays_nan_whatever_its_bits() {
        for bits in [0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff, 0x7fc0_0000] {
            assert!(even(to_bf16(f32::from_bits(bits))).is_nan(), "{bits:x}");
        }
    }

    #[test]
    fn a_pair_keeps_both_its_numbers() {
        let pair = pair(3.0, -0.5);
        assert_eq!((even(pair), odd(pair)), (3.0, -0.5));
    }
}
