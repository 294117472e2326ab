//! Sixteen numbers in the registers of this machine, for inner loops that the compiler leaves scalar when written with
//! [`crate::lanes`].
//!
//! No operation is fused: each lane gets the same bits on all machines.

use std::ops::{Add, Mul, Sub};

use crate::lanes::{Kernel, LANES, Lanes, lanes};

/// Sixteen numbers.
pub(crate) trait Wide: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    /// The same number sixteen times.
    fn splat(x: f32) -> Self;
    /// The numbers of `lanes`.
    fn of(lanes: &Lanes) -> Self;
    /// The numbers.
    fn lanes(self) -> Lanes;
    /// One of them.
    fn lane(&self, k: usize) -> f32;
    /// `x` where `a < b`, otherwise `y`.
    fn where_less(a: Self, b: Self, x: Self, y: Self) -> Self;
    /// A bit for each lane, set where `a < b`.
    fn less(a: Self, b: Self) -> u16;
    /// The smaller of both; `b` where either is not a number.
    fn min(a: Self, b: Self) -> Self;
    /// Runs `kernel`, written with this type, as a function of its own. `run` must be `#[inline(always)]`.
    fn apart<K: Kernel>(kernel: K) -> K::Output;
}

/// A computation written with [`Wide`]. `run` must be `#[inline(always)]`, and no closure in it may compute with registers:
/// closures are functions of their own, which the instructions are not in.
pub(crate) trait WideKernel {
    /// What it computes.
    type Output;
    /// The computation itself.
    fn run<V: Wide>(self) -> Self::Output;
}

/// Runs `kernel` with the widest registers this machine has.
#[inline]
pub(crate) fn run<K: WideKernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512F was just detected.
            return unsafe { x86::avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 was just detected.
            return unsafe { x86::avx2(kernel) };
        }
    }
    kernel.run::<Plain>()
}

/// The truth: an array.
#[derive(Clone, Copy)]
pub(crate) struct Plain(Lanes);

impl Add for Plain {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(lanes(|k| self.0[k] + other.0[k]))
    }
}

impl Sub for Plain {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(lanes(|k| self.0[k] - other.0[k]))
    }
}

impl Mul for Plain {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(lanes(|k| self.0[k] * other.0[k]))
    }
}

impl Wide for Plain {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    fn of(lanes: &Lanes) -> Self {
        Self(*lanes)
    }

    #[inline(always)]
    fn lanes(self) -> Lanes {
        self.0
    }

    #[inline(always)]
    fn where_less(a: Self, b: Self, x: Self, y: Self) -> Self {
        Self(lanes(|k| if a.0[k] < b.0[k] { x.0[k] } else { y.0[k] }))
    }

    #[inline(always)]
    fn less(a: Self, b: Self) -> u16 {
        (0..LANES).fold(0, |bits, k| bits | u16::from(a.0[k] < b.0[k]) << k)
    }

    #[inline(always)]
    fn min(a: Self, b: Self) -> Self {
        Self::where_less(a, b, a, b)
    }

    #[inline(always)]
    fn lane(&self, k: usize) -> f32 {
        self.0[k]
    }

    fn apart<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64 as arch;

    use super::{Add, Kernel, LANES, Lanes, Mul, Sub, Wide, WideKernel};

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512<K: WideKernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2<K: WideKernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }

    #[target_feature(enable = "avx512f")]
    #[inline(never)]
    fn avx512_apart<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }

    #[target_feature(enable = "avx2")]
    #[inline(never)]
    fn avx2_apart<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }

    /// Made in [`avx512`] alone, so the instructions are there.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(arch::__m512);

    impl Add for Avx512 {
        type Output = Self;

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: an `Avx512` exists.
            Self(unsafe { arch::_mm512_add_ps(self.0, other.0) })
        }
    }

    impl Sub for Avx512 {
        type Output = Self;

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: an `Avx512` exists.
            Self(unsafe { arch::_mm512_sub_ps(self.0, other.0) })
        }
    }

    impl Mul for Avx512 {
        type Output = Self;

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: an `Avx512` exists.
            Self(unsafe { arch::_mm512_mul_ps(self.0, other.0) })
        }
    }

    impl Wide for Avx512 {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: `avx512` alone names this type.
            Self(unsafe { arch::_mm512_set1_ps(x) })
        }

        #[inline(always)]
        fn of(lanes: &Lanes) -> Self {
            // SAFETY: `avx512` alone names this type; sixteen numbers are read.
            Self(unsafe { arch::_mm512_loadu_ps(lanes.as_ptr()) })
        }

        #[inline(always)]
        fn lanes(self) -> Lanes {
            let mut lanes = [0.0; LANES];
            // SAFETY: an `Avx512` exists; sixteen numbers are written.
            unsafe { arch::_mm512_storeu_ps(lanes.as_mut_ptr(), self.0) };
            lanes
        }

        #[inline(always)]
        fn where_less(a: Self, b: Self, x: Self, y: Self) -> Self {
            // SAFETY: an `Avx512` exists.
            Self(unsafe {
                let less = arch::_mm512_cmp_ps_mask::<{ arch::_CMP_LT_OQ }>(a.0, b.0);
                arch::_mm512_mask_blend_ps(less, y.0, x.0)
            })
        }

        #[inline(always)]
        fn less(a: Self, b: Self) -> u16 {
            // SAFETY: an `Avx512` exists.
            unsafe { arch::_mm512_cmp_ps_mask::<{ arch::_CMP_LT_OQ }>(a.0, b.0) }
        }

        #[inline(always)]
        fn min(a: Self, b: Self) -> Self {
            // SAFETY: an `Avx512` exists.
            Self(unsafe { arch::_mm512_min_ps(a.0, b.0) })
        }

        #[inline(always)]
        fn lane(&self, k: usize) -> f32 {
            // SAFETY: the register's copy in memory is sixteen numbers.
            unsafe { *std::ptr::from_ref(self).cast::<f32>().add(k % LANES) }
        }

        #[inline(always)]
        fn apart<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: `avx512` alone names this type.
            unsafe { avx512_apart(kernel) }
        }
    }

    /// Made in [`avx2`] alone, so the instructions are there.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2([arch::__m256; 2]);

    impl Add for Avx2 {
        type Output = Self;

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: an `Avx2` exists.
            Self(unsafe {
                [arch::_mm256_add_ps(self.0[0], other.0[0]), arch::_mm256_add_ps(self.0[1], other.0[1])]
            })
        }
    }

    impl Sub for Avx2 {
        type Output = Self;

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: an `Avx2` exists.
            Self(unsafe {
                [arch::_mm256_sub_ps(self.0[0], other.0[0]), arch::_mm256_sub_ps(self.0[1], other.0[1])]
            })
        }
    }

    impl Mul for Avx2 {
        type Output = Self;

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: an `Avx2` exists.
            Self(unsafe {
                [arch::_mm256_mul_ps(self.0[0], other.0[0]), arch::_mm256_mul_ps(self.0[1], other.0[1])]
            })
        }
    }

    impl Wide for Avx2 {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: `avx2` alone names this type.
            Self([unsafe { arch::_mm256_set1_ps(x) }; 2])
        }

        #[inline(always)]
        fn of(lanes: &Lanes) -> Self {
            // SAFETY: `avx2` alone names this type; eight numbers are read, twice.
            Self(unsafe {
                [arch::_mm256_loadu_ps(lanes.as_ptr()), arch::_mm256_loadu_ps(lanes[8..].as_ptr())]
            })
        }

        #[inline(always)]
        fn lanes(self) -> Lanes {
            let mut lanes = [0.0; LANES];
            for (half, eight) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
                // SAFETY: an `Avx2` exists; eight numbers are written.
                unsafe { arch::_mm256_storeu_ps(half.as_mut_ptr(), eight) };
            }
            lanes
        }

        #[inline(always)]
        fn where_less(a: Self, b: Self, x: Self, y: Self) -> Self {
            // SAFETY: an `Avx2` exists.
            Self(unsafe {
                let low = arch::_mm256_cmp_ps::<{ arch::_CMP_LT_OQ }>(a.0[0], b.0[0]);
                let high = arch::_mm256_cmp_ps::<{ arch::_CMP_LT_OQ }>(a.0[1], b.0[1]);
                [arch::_mm256_blendv_ps(y.0[0], x.0[0], low), arch::_mm256_blendv_ps(y.0[1], x.0[1], high)]
            })
        }

        #[inline(always)]
        fn less(a: Self, b: Self) -> u16 {
            // SAFETY: an `Avx2` exists.
            unsafe {
                let low = arch::_mm256_cmp_ps::<{ arch::_CMP_LT_OQ }>(a.0[0], b.0[0]);
                let high = arch::_mm256_cmp_ps::<{ arch::_CMP_LT_OQ }>(a.0[1], b.0[1]);
                (arch::_mm256_movemask_ps(low) | arch::_mm256_movemask_ps(high) << 8) as u16
            }
        }

        #[inline(always)]
        fn min(a: Self, b: Self) -> Self {
            // SAFETY: an `Avx2` exists.
            Self(unsafe { [arch::_mm256_min_ps(a.0[0], b.0[0]), arch::_mm256_min_ps(a.0[1], b.0[1])] })
        }

        #[inline(always)]
        fn lane(&self, k: usize) -> f32 {
            // SAFETY: the registers' copy in memory is sixteen numbers.
            unsafe { *std::ptr::from_ref(self).cast::<f32>().add(k % LANES) }
        }

        #[inline(always)]
        fn apart<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: `avx2` alone names this type.
            unsafe { avx2_apart(kernel) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All operations, with ties, zeros of both signs and what is not a number.
    struct All([Lanes; 3]);

    impl WideKernel for All {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run<V: Wide>(self) -> Vec<u32> {
            let [a, b, c] = [0, 1, 2].map(|i| V::of(&self.0[i]));
            let less = lanes(|k| f32::from(V::less(a, b) >> k & 1) + c.lane(k));
            [a + b, a - b, a * b, V::where_less(a, b, c, a), V::min(a, b), V::splat(0.1) * c, V::of(&less)]
                .iter()
                .flat_map(|v| v.lanes().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }))
                .collect()
        }
    }

    #[test]
    fn registers_compute_what_arrays_do() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NAN, 1e-40, 1.0, 1.0, -3.5];
        let a = lanes(|k| special[k % 8]);
        let b = lanes(|k| special[(k * 3 + k / 8) % 8]);
        let c = lanes(|k| k as f32 / 7.0 - 1.0);
        let plain = All([a, b, c]).run::<Plain>();
        assert_eq!(run(All([a, b, c])), plain);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 was just detected.
            assert_eq!(unsafe { x86::avx2(All([a, b, c])) }, plain);
        }
    }
}
