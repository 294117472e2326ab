//! Sixteen independent computations side by side.
//!
//! The reference searches sum in a fixed order inside a block, which no compiler may reorder, so a
//! block alone cannot use vector registers. Sixteen blocks can: lane `k` of every value below belongs to
//! block `k`, each lane does exactly the scalar computation, and plain loops over the lanes
//! become vector instructions.

/// Blocks computed side by side.
pub(crate) const LANES: usize = 16;

/// One number of each block.
pub(crate) type Lanes = [f32; LANES];

/// The nearest integer, ties to even, for magnitudes below 2^22; beyond, what llama.cpp's bit trick gives.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i32 {
    let shifted = x + 12_582_912.0; // 1.5 * 2^23: the integer part is now in the low mantissa bits
    (shifted.to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The same as a float, in fewer instructions.
#[inline(always)]
pub(crate) fn nearest_whole(x: f32) -> f32 {
    (x + 12_582_912.0) - 12_582_912.0
}

/// `x` or the bound it passes: one instruction each, where `clamp` looks for NaN.
#[inline(always)]
pub(crate) fn between(x: f32, lowest: f32, highest: f32) -> f32 {
    let x = if x > lowest { x } else { lowest };
    if x < highest { x } else { highest }
}

/// The first value of largest magnitude, 0 where all are 0.
#[inline(always)]
pub(crate) fn of_largest_magnitude(x: &[f32]) -> f32 {
    let (low, high) = range(x);
    if high > -low {
        high
    } else if -low > high {
        low
    } else {
        let as_large = |x: &f32| high > 0.0 && x.abs().to_bits() == high.to_bits();
        x.iter().copied().find(as_large).unwrap_or(0.0)
    }
}

/// The least and the largest value, of zeros the first.
#[inline(always)]
pub(crate) fn range(x: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::MAX; LANES], [f32::MIN; LANES]);
    for x in x.chunks_exact(LANES) {
        low = lanes(|k| if x[k] < low[k] { x[k] } else { low[k] });
        high = lanes(|k| if x[k] > high[k] { x[k] } else { high[k] });
    }
    let rest = x.chunks_exact(LANES).remainder();
    let low = low.iter().chain(rest).fold(f32::MAX, |low, &x| if x < low { x } else { low });
    let high = high.iter().chain(rest).fold(f32::MIN, |high, &x| if x > high { x } else { high });
    // The lanes may have met a zero of the other sign first.
    let first = |bound: f32| {
        if bound == 0.0 { x.iter().copied().find(|x| *x == 0.0).unwrap_or(bound) } else { bound }
    };
    (first(low), first(high))
}

/// Truncation as x86 does it: out of range and NaN give the smallest integer.
#[inline(always)]
pub(crate) fn truncate(x: f32) -> i32 {
    if x.abs() < 2_147_483_648.0 { x as i32 } else { i32::MIN }
}

/// A computation that gains from wide vectors. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;
    /// The computation itself.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` compiled for the widest vectors this machine has. The result is the same on all: no
/// operation is fused or reordered, only done on more lanes at once.
#[inline]
pub(crate) fn widest<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the features `avx512` is compiled with were all just detected.
            return unsafe { avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 was just detected.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

/// Lane by lane.
#[inline(always)]
pub(crate) fn lanes(mut f: impl FnMut(usize) -> f32) -> Lanes {
    let mut out = [0.0; LANES];
    for (k, slot) in out.iter_mut().enumerate() {
        *slot = f(k);
    }
    out
}

/// Runs `first..first + 16` of `N` values each side by side; lanes past the last run are 0.
#[inline(always)]
pub(crate) fn gather<const N: usize>(values: &[f32], first: usize) -> [Lanes; N] {
    let mut out = [[0.0; LANES]; N];
    gather_into(values, first, &mut out);
    out
}

/// As [`gather`], into as many values a run as `out` is long.
#[inline(always)]
pub(crate) fn gather_into(values: &[f32], first: usize, out: &mut [Lanes]) {
    let len = out.len();
    let runs = (values.len() / len - first).min(LANES);
    if runs < LANES {
        out.fill([0.0; LANES]);
    }
    for k in 0..runs {
        let run = &values[(first + k) * len..][..len];
        for (slot, &value) in out.iter_mut().zip(run) {
            slot[k] = value;
        }
    }
}

/// The sum of squares of each run of `len` values, each summed first to last.
#[inline(always)]
pub(crate) fn sums_of_squares(values: &[f32], len: usize) -> Vec<f32> {
    let mut sums = Vec::with_capacity(values.len() / len);
    for batch in values.chunks(LANES * len) {
        let runs = batch.len() / len;
        let mut sum = [0.0f32; LANES];
        for i in 0..len {
            for (k, sum) in sum.iter_mut().enumerate().take(runs) {
                let x = batch[k * len + i];
                *sum += x * x;
            }
        }
        sums.extend_from_slice(&sum[..runs]);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rounds_ties_to_even() {
        for (x, want) in [(0.5, 0), (1.5, 2), (-0.5, 0), (-1.5, -2), (2.499_999_8, 2), (-31.7, -32)] {
            assert_eq!(nearest(x), want, "{x}");
        }
    }

    #[test]
    fn the_range_and_the_largest_magnitude_are_those_met_first() {
        let mut x: Vec<f32> = (0..37).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
        assert_eq!(range(&x), (-5.0, 5.0));
        assert_eq!(of_largest_magnitude(&x).to_bits(), x[0].to_bits());
        (x[20], x[36]) = (9.0, -8.0);
        assert_eq!((range(&x), of_largest_magnitude(&x).to_bits()), ((-8.0, 9.0), 9.0f32.to_bits()));
        let zeros: Vec<f32> = (0..37).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }).collect();
        let (low, high) = range(&zeros);
        let bits = [low, high, of_largest_magnitude(&zeros)].map(f32::to_bits);
        assert_eq!(bits, [-0.0f32, -0.0, 0.0].map(f32::to_bits));
    }

    #[test]
    fn sums_of_squares_add_first_to_last_whatever_the_number_of_runs() {
        let values: Vec<f32> = (0..37 * 5).map(|i| 1.0 / (i + 1) as f32).collect();
        let one_by_one: Vec<f32> =
            values.chunks(5).map(|run| run.iter().fold(0.0, |s, x| s + x * x)).collect();
        assert_eq!(sums_of_squares(&values, 5), one_by_one);
    }

    #[test]
    fn gather_leaves_missing_lanes_zero() {
        let values: Vec<f32> = (0..18 * 3).map(|i| i as f32).collect();
        let mut out = [[9.0; LANES]; 3];
        gather_into(&values, 16, &mut out);
        assert_eq!(
            [out[0][0], out[2][1], out[1][2], out[2][15]].map(f32::to_bits),
            [48.0f32, 53.0, 0.0, 0.0].map(f32::to_bits)
        );
    }
}
