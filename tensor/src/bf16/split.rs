//! Products of f32 numbers as three products of bf16 numbers, where that is faster.
//!
//! A number is its nearest bf16 and the nearest bf16 of what is left: 16 to 17 bits in all. Of the four products of two such numbers that
//! of the two rests, below 2^-16 of the whole, is left out. Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence
//! Datatype For Higher-Precision Computations", arXiv:1904.06376.

use super::Bf16Matrix;
use super::kernel::Kernel;
use super::pack::{Panels, Strips};
use super::product::{Held, strips_with};
use super::round::{even, to_bf16};
use crate::precision::Precision;
use crate::product::{general_mat_mul, matmul};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Zip, s};

impl Precision {
    /// `c += alpha * a @ b` for an algorithm that needs more than bf16 factors: in f32, or, where bf16 will do elsewhere and the machine is
    /// several times faster so, with factors of 16 bits. A term is then off by 2^-15 of its size at most; numbers below 2^-117 count as zero.
    ///
    /// # Panics
    /// If the shapes do not fit, or the rows of c are not contiguous.
    pub fn mat_mul_add(
        self,
        alpha: f32,
        a: ArrayView2<'_, f32>,
        b: ArrayView2<'_, f32>,
        c: ArrayViewMut2<'_, f32>,
    ) {
        match self.splitter() {
            Some(kernel) => split_add(kernel, alpha, [a, b], c),
            None => general_mat_mul(alpha, a, b, 1.0, c),
        }
    }

    /// `a @ b`, as exactly as [`mat_mul_add`](Self::mat_mul_add).
    ///
    /// # Panics
    /// If the inner lengths differ.
    pub fn mat_mul(self, a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Array2<f32> {
        let Some(kernel) = self.splitter() else { return matmul(a, b) };
        let mut c = Array2::zeros((a.nrows(), b.ncols()));
        split_add(kernel, 1.0, [a, b], c.view_mut());
        c
    }

    /// The kernel for split factors, where they pay.
    fn splitter(self) -> Option<Kernel> {
        Some(Kernel::best()).filter(|kernel| self == Self::Bf16 && kernel.is_several_times_f32())
    }
}

/// Terms taken at once: three times as many are one chunk of a sum.
const TERMS: usize = 320;

/// `c += alpha * a @ b` as one product three times as deep: of every few terms the rests of a by b, a by the rests of b, and a by b.
pub(super) fn split_add(
    kernel: Kernel,
    alpha: f32,
    [a, b]: [ArrayView2<'_, f32>; 2],
    mut c: ArrayViewMut2<'_, f32>,
) {
    for (a, b) in a.axis_chunks_iter(Axis(1), TERMS).zip(b.axis_chunks_iter(Axis(0), TERMS)) {
        let terms = a.ncols();
        let mut left = Array2::zeros((a.nrows(), 3 * terms));
        left.axis_iter_mut(Axis(0)).into_par_iter().zip(a.axis_iter(Axis(0))).for_each(|(mut left, a)| {
            let (mut rest, mut twice) = left.view_mut().split_at(Axis(0), terms);
            Zip::from(&mut rest).and(a).for_each(|rest, &a| *rest = lost(a));
            twice.slice_mut(s![..terms]).assign(&a);
            twice.slice_mut(s![terms..]).assign(&a);
        });
        let mut right = Array2::zeros((3 * terms, b.ncols()));
        right.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut right)| {
            let is_rest = row / terms == 1;
            Zip::from(&mut right).and(b.row(row % terms)).for_each(|to, &b| {
                let b = alpha * b;
                *to = if is_rest { lost(b) } else { b };
            });
        });
        let right = Bf16Matrix { panels: Panels::of_columns(right.view()) };
        strips_with(kernel, &Strips::of(left.view()), left.dim(), &right, c.view_mut(), Held::AddedTo);
    }
}

/// What rounding to bf16 takes away; nothing of what is not finite.
fn lost(x: f32) -> f32 {
    let lost = x - even(to_bf16(x));
    if lost.is_finite() { lost } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, random};

    #[test]
    fn a_product_of_split_factors_keeps_sixteen_bits_of_every_term() {
        for (m, n, k) in [(1, 1, 1), (33, 50, 31), (70, 100, 1200)] {
            let (a, b) = (random((m, k), 1), random((k, n), 2));
            let start = random((m, n), 3);
            for kernel in Kernel::available() {
                let mut found = start.clone();
                split_add(kernel, -0.5, [a.view(), b.view()], found.view_mut());
                for ((i, j), &found) in found.indexed_iter() {
                    let terms = a.row(i).into_iter().zip(b.column(j));
                    let terms = terms.map(|(&a, &b)| -0.5 * f64::from(a) * f64::from(b));
                    let start = f64::from(start[[i, j]]);
                    let (sum, size) =
                        terms.fold((start, start.abs()), |(sum, size), x| (sum + x, size + x.abs()));
                    let apart = (f64::from(found) - sum).abs();
                    assert!(apart <= 2f64.powi(-15) * size, "{apart:e} of {size} by {kernel:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_reaches_its_row_and_no_other() {
        let (mut a, b) = (random((40, 64), 4), random((64, 20), 5));
        (a[[3, 7]], a[[5, 0]]) = (f32::NAN, f32::INFINITY);
        let c = Precision::Bf16.mat_mul(a.view(), b.view());
        for (row, c) in c.outer_iter().enumerate() {
            assert!(c.iter().all(|x| x.is_finite() != [3, 5].contains(&row)), "row {row}");
        }
    }

    #[test]
    fn in_f32_it_is_the_product_in_f32() {
        let (a, b) = (random((40, 64), 6), random((64, 20), 7));
        assert_eq!(
            bits(&Precision::F32.mat_mul(a.view(), b.view())),
            bits(&crate::matmul(a.view(), b.view()))
        );
    }
}
