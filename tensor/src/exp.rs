//! The exponential function, in plain f32 steps: none is fused, so every machine computes the same bits at a like speed.

/// e^x to within 2 units in the last place; 0 below -87.33, where only denormal numbers would be left, infinity from 88.73.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its series; every step is one that compilers turn into vector code. A NaN
/// passes both limits and every step.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: a number added to it is rounded, and its integer is in the low bits
    let clamped = if x < LEAST { LEAST } else { x };
    let clamped = if clamped > 89.0 { 89.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p: f32 = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        p = p * r + c;
    }
    let p = (p * r * r + r) + 1.0;
    // 2^n in two halves: n reaches 128, whose power of two alone would be infinite.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let e = p * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    if x < LEAST { 0.0 } else { e }
}

/// The hyperbolic tangent to within 4 units in the last place; exact at its limits, and of NaN a NaN.
///
/// Near zero its series, where `1 - 2 / (e^2x + 1)` would lose digits; that elsewhere.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let square = x * x;
    let mut p: f32 = -1382.0 / 155_925.0;
    for c in [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0] {
        p = p * square + c;
    }
    let near = size + size * (square * p);
    let far = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
    let found = if size < 0.35 { near } else { far };
    found.copysign(x)
}

/// Below it only denormal numbers would be left.
const LEAST: f32 = -87.336_54;

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use super::{exp, tanh};

    #[test]
    fn exp_is_within_two_units_in_the_last_place_everywhere() {
        let mut worst = 0.0f64;
        for i in 0..=2_000_000 {
            let x = -87.3 + f64::from(i) * (176.0 / 2e6);
            let x = x as f32;
            let truth = f64::from(x).exp();
            let unit = f64::from((truth as f32).to_bits() & 0x7f80_0000).max(1.0);
            let spacing = f64::from(f32::from_bits(unit as u32)) * f64::from(f32::EPSILON);
            worst = worst.max((f64::from(exp(x)) - truth).abs() / spacing);
        }
        assert!(worst < 2.0, "{worst} units in the last place");
    }

    #[test]
    fn exp_meets_its_special_values() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_four_units_in_the_last_place_everywhere() {
        let mut worst = 0.0f64;
        for i in -1_000_000..=1_000_000 {
            let x = (f64::from(i) * 1.2e-5) as f32;
            let truth = f64::from(x).tanh();
            let spacing = f64::from(f32::EPSILON) * truth.abs().max(1e-30);
            worst = worst.max((f64::from(tanh(x)) - truth).abs() / spacing);
        }
        assert!(worst < 4.0, "{worst} units in the last place");
    }

    #[test]
    fn tanh_meets_its_special_values() {
        assert_eq!(tanh(0.0).to_bits(), 0.0f32.to_bits());
        assert_eq!(tanh(-0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!((tanh(1e30), tanh(-1e30)), (1.0, -1.0));
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan());
    }
}
