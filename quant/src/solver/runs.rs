//! Runs of columns whose codes are chosen together, out of a codebook.

use ndarray::{Array2, ArrayView2};

use super::panel::{GroupRows, ROWS};
use crate::Codebook;

/// The runs of a block of columns, and what an error on each costs.
pub(super) struct Runs {
    codebook: &'static dyn Codebook,
    metrics: Vec<Array2<f32>>,  // [run, run] each
    inverses: Vec<Array2<f32>>, // of the metrics, where steps are taken by them
}

impl Runs {
    /// Where each run in turn is followed by columns that make up for it: `triangle`, `[columns, columns]`, is the block's U with
    /// `U^T U` the inverse of the Hessian, and what the later columns cannot make up for costs `e' (U' U)^-1 e` on the run.
    ///
    /// # Source
    /// Tseng et al., "`QuIP`#", arXiv:2402.04396, section 4.1 (`BlockLDLQ`).
    pub fn before_later(codebook: &'static dyn Codebook, triangle: ArrayView2<'_, f32>) -> Self {
        Self::new(codebook, triangle, |block| {
            let inverse = inverse_upper(block);
            let n = inverse.nrows();
            Array2::from_shape_fn((n, n), |(i, j)| {
                (0..n).map(|k| inverse[[i, k]] * inverse[[j, k]]).sum::<f64>() as f32
            })
        })
    }

    /// Where all other columns stay: `h` is the block of the Hessian, `[columns, columns]`.
    pub fn given_others(codebook: &'static dyn Codebook, h: ArrayView2<'_, f32>) -> Self {
        let runs = Self::new(codebook, h, |block| block.to_owned());
        let inverses = runs.metrics.iter().map(|metric| inverse(metric.view()).mapv(|x| x as f32)).collect();
        Self { inverses, ..runs }
    }

    fn new(
        codebook: &'static dyn Codebook,
        block: ArrayView2<'_, f32>,
        metric: impl Fn(ArrayView2<'_, f32>) -> Array2<f32>,
    ) -> Self {
        let run = codebook.run();
        assert!(block.nrows().is_multiple_of(run), "blocks are whole runs");
        let starts = (0..block.nrows()).step_by(run);
        let metrics = starts.map(|i| metric(block.slice(ndarray::s![i..i + run, i..i + run]))).collect();
        Self { codebook, metrics, inverses: Vec::new() }
    }

    /// Columns of a run.
    pub fn run(&self) -> usize {
        self.codebook.run()
    }

    /// The best step from where the gradient is `pull`, `[run][ROWS]`, were all values allowed: [given others](Self::given_others).
    pub fn step(&self, at: usize, pull: &[[f32; ROWS]]) -> Vec<[f32; ROWS]> {
        let inverse = &self.inverses[at];
        let step = |i: usize| {
            let mut step = [0.0f32; ROWS];
            for (j, pull) in pull.iter().enumerate() {
                let factor = inverse[[i, j]];
                step.iter_mut().zip(pull).for_each(|(step, pull)| *step += factor * pull);
            }
            step
        };
        (0..pull.len()).map(step).collect()
    }

    /// Codes of run `at` of the block for each row, `[run][ROWS]`, given what its weights should be.
    pub fn choose(&self, at: usize, group: &GroupRows, x: &[[f32; ROWS]]) -> Vec<[u8; ROWS]> {
        let run = x.len();
        let mut units = vec![0.0; run * ROWS];
        for (j, x) in x.iter().enumerate() {
            for (r, unit) in group.units(x).into_iter().enumerate() {
                units[r * run + j] = unit;
            }
        }
        let mut codes = vec![0; run * ROWS];
        let metric = self.metrics[at].as_slice().expect("standard layout");
        self.codebook.nearest(metric, &units, &mut codes);
        (0..run).map(|j| std::array::from_fn(|r| codes[r * run + j])).collect()
    }
}

/// The inverse of an upper triangle with a positive diagonal.
fn inverse_upper(u: ArrayView2<'_, f32>) -> Array2<f64> {
    let n = u.nrows();
    let mut inverse = Array2::<f64>::zeros((n, n));
    for j in 0..n {
        inverse[[j, j]] = 1.0 / f64::from(u[[j, j]]);
        for i in (0..j).rev() {
            let sum: f64 = (i + 1..=j).map(|k| f64::from(u[[i, k]]) * inverse[[k, j]]).sum();
            inverse[[i, j]] = -sum / f64::from(u[[i, i]]);
        }
    }
    inverse
}

/// The inverse of a small positive definite matrix, by elimination without pivoting.
fn inverse(m: ArrayView2<'_, f32>) -> Array2<f64> {
    let n = m.nrows();
    let mut left = m.mapv(f64::from);
    let mut right = Array2::<f64>::eye(n);
    for col in 0..n {
        let pivot = left[[col, col]];
        left.row_mut(col).mapv_inplace(|x| x / pivot);
        right.row_mut(col).mapv_inplace(|x| x / pivot);
        for row in (0..n).filter(|&row| row != col) {
            let factor = left[[row, col]];
            let (from_left, from_right) = (left.row(col).to_owned(), right.row(col).to_owned());
            left.row_mut(row).scaled_add(-factor, &from_left);
            right.row_mut(row).scaled_add(-factor, &from_right);
        }
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn inverses_are() {
        let u = array![[2.0f32, 0.5, -1.0], [0.0, 1.0, 0.25], [0.0, 0.0, 4.0]];
        let m = u.t().dot(&u);
        for (a, inverse) in [(u.view(), inverse_upper(u.view())), (m.view(), inverse(m.view()))] {
            let product = a.mapv(f64::from).dot(&inverse);
            assert!((product - Array2::<f64>::eye(3)).iter().all(|x| x.abs() < 1e-6));
        }
    }
}
