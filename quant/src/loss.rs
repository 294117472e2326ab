use crate::Sums;
use attar_tensor::matmul;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};

use crate::lanes::{Kernel, LANES, widest};

/// Columns per product.
const BLOCK: usize = 256;
/// Rows per product.
const ROWS: usize = 4096;

/// `tr(E H E^T)`: the sum over the rows of `e`, `[rows, n]`, of their squares in the metric `h`, `[n, n]` and symmetric.
///
/// With the Gram matrix for `h` and a weight's rounding errors for `e` it is the squared error of the layer's output,
/// summed over the tokens.
///
/// # Panics
/// Where `h` is not square in the columns of `e`.
#[must_use]
pub fn weighted_energy(e: ArrayView2<'_, f32>, h: ArrayView2<'_, f32>) -> f64 {
    assert_eq!(h.dim(), (e.ncols(), e.ncols()), "the metric must be square in the columns");
    e.axis_chunks_iter(Axis(0), ROWS).map(|e| chunk_energy(e, h)).sum()
}

/// [`weighted_energy`] in a metric that is 0 off its diagonal `h`, `[n]`.
///
/// # Panics
/// Where `h` has not a value for each column of `e`.
#[must_use]
pub fn energy_by_column(e: ArrayView2<'_, f32>, h: ArrayView1<'_, f32>) -> f64 {
    assert_eq!(h.len(), e.ncols(), "the metric must have a value for each column");
    let mut rows = vec![0.0; e.nrows()];
    e.axis_iter(Axis(0))
        .into_par_iter()
        .zip(rows.par_iter_mut())
        .for_each(|(e, sum)| *sum = summed(e, h, |e, h| h * e * e));
    rows.iter().sum()
}

/// The sum of `of` each pair of numbers.
fn summed(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>, of: impl Fn(f64, f64) -> f64) -> f64 {
    let (a, b) = (a.as_standard_layout(), b.as_standard_layout());
    let (a, b) = (a.as_slice().expect("standard layout"), b.as_slice().expect("standard layout"));
    widest(Sum { a, b, of })
}

/// [`summed`], in [`LANES`] sums of which none waits for another.
struct Sum<'a, F> {
    a: &'a [f32],
    b: &'a [f32],
    of: F,
}

impl<F: Fn(f64, f64) -> f64> Kernel for Sum<'_, F> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut sums = [0.0; LANES];
        for (a, b) in self.a.chunks(LANES).zip(self.b.chunks(LANES)) {
            for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                *sum += (self.of)(f64::from(a), f64::from(b));
            }
        }
        sums.iter().sum()
    }
}

/// The energy of `e`, `[rows, n]`, in the metric of the inputs that `sums` are of: the squares alone where there are none.
///
/// # Panics
/// Where the sums are not of as many inputs as `e` has columns.
#[must_use]
pub fn energy(e: ArrayView2<'_, f32>, sums: Option<&Sums>) -> f64 {
    match sums {
        Some(Sums::Gram(gram)) => weighted_energy(e, gram.view()),
        Some(Sums::Squares(squares)) => energy_by_column(e, squares.view()),
        None => e.iter().map(|&x| f64::from(x) * f64::from(x)).sum(),
    }
}

/// By blocks on the diagonal and twice those left of it.
fn chunk_energy(e: ArrayView2<'_, f32>, h: ArrayView2<'_, f32>) -> f64 {
    let n = e.ncols();
    let mut energy = 0.0;
    for start in (0..n).step_by(BLOCK) {
        let here = start..(start + BLOCK).min(n);
        let block = e.slice(s![.., here.clone()]);
        energy += inner(block, matmul(block, h.slice(s![here.clone(), here.clone()])));
        if start > 0 {
            let left = matmul(e.slice(s![.., ..start]), h.slice(s![..start, here]));
            energy += 2.0 * inner(block, left);
        }
    }
    energy
}

fn inner(a: ArrayView2<'_, f32>, b: Array2<f32>) -> f64 {
    let mut rows = vec![0.0; a.nrows()];
    let products = a.axis_iter(Axis(0)).into_par_iter().zip(b.axis_iter(Axis(0)));
    products.zip(rows.par_iter_mut()).for_each(|((a, b), sum)| *sum = summed(a, b, |a, b| a * b));
    rows.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn energy_is_the_squared_output_whatever_the_blocks() {
        for n in [1, 255, 256, 700] {
            let x = Array2::from_shape_fn((9, n), |(t, c)| ((t * 37 + c * 11) % 29) as f32 / 14.0 - 1.0);
            let e = Array2::from_shape_fn((5, n), |(r, c)| ((r * 13 + c * 7) % 31) as f32 / 15.0 - 1.0);
            let mut gram = Array2::zeros((n, n));
            attar_tensor::gram_add(x.view(), &mut gram);
            let output = matmul(e.view(), x.t());
            let want: f64 = output.iter().map(|y| f64::from(y * y)).sum();
            let got = weighted_energy(e.view(), gram.view());
            assert!((got / want - 1.0).abs() < 1e-5, "{n} columns: {got} for {want}");
            let by_column = energy_by_column(e.view(), gram.diag());
            let diagonal = weighted_energy(e.view(), Array2::from_diag(&gram.diag()).view());
            assert!((by_column / diagonal - 1.0).abs() < 1e-5, "{n} columns: {by_column} for {diagonal}");
        }
    }
}
