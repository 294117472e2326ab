//! Scales moved to where codes as they are cost least.

use ndarray::parallel::prelude::*;
use ndarray::{Array2, Array3, ArrayView1, ArrayView2, Axis, s};

use super::descent::descend;
use crate::factor::Metric;
use crate::{Fit, Grid, GridEncoding};

/// Numbers in the equations of the rows that are solved together.
const EQUATIONS: usize = 1 << 22;

/// The longest unit that is refitted. Where 256 weights share a scale it changes nothing: on books-7m the divergence of `q4_0` falls by 4 %, those of
/// `q4_k_m`, `q2_k` and `iq3_xxs` move by 0, 2 and -1 %.
const LONGEST: usize = 128;

/// How strongly scales are held where they are, in units of each equation's diagonal.
const RIDGE: f64 = 1e-3;

/// Scales by least squares for the codes, then codes by [`descend`] for the scales, `rounds` times; a row is changed only where it
/// loses less afterwards. `w` is `[out_features, in_features]`.
///
/// As in [`super::feedback`], the result does not depend on the number of threads.
pub(super) fn refit(
    w: ArrayView2<'_, f32>,
    fit: Fit,
    h: &Metric<'_>,
    encoding: &dyn GridEncoding,
    (rounds, sweeps): (u32, u32),
) -> Fit {
    let Some(unit) = encoding.unit().filter(|&unit| unit <= LONGEST) else { return fit };
    let Fit { mut grid, mut codes } = fit;
    let (mut losses, mut pull) = losses_and_pull(w, &grid, &codes, h);
    for _ in 0..rounds {
        let [mut scale, mut min] = factors(codes.view(), pull.view(), h, &grid, unit);
        let moved = encoding.rescaled(&grid, scale.view(), min.view());
        let other = descend(w, codes.clone(), h, &moved, encoding.codebook(), sweeps);
        let mut changed = false;
        let (other_losses, other_pull) = losses_and_pull(w, &moved, &other, h);
        for (row, loss) in other_losses.into_iter().enumerate() {
            if loss < losses[row] {
                (losses[row], changed) = (loss, true);
                codes.row_mut(row).assign(&other.row(row));
                pull.column_mut(row).assign(&other_pull.column(row));
            } else {
                scale.row_mut(row).fill(1.0);
                min.row_mut(row).fill(1.0);
            }
        }
        if !changed {
            break;
        }
        grid = encoding.rescaled(&grid, scale.view(), min.view());
    }
    Fit { grid, codes }
}

/// `e H e^T` of each row's error, and `H E^T`, `[in_features, rows]`.
fn losses_and_pull(
    w: ArrayView2<'_, f32>,
    grid: &Grid,
    codes: &Array2<u8>,
    h: &Metric<'_>,
) -> (Vec<f32>, Array2<f32>) {
    let error = &w - &grid.decode_all(codes.view());
    let pull = h.times(error.t());
    (by_row(error.t(), pull.view()), pull)
}

/// What the scales and the minima of each unit are to be multiplied by, `[rows, units]` each, for the codes to come nearest to the weights
/// before anything is rounded to what a file stores; `pull` is `H E^T` of their errors, `[in_features, rows]`.
///
/// A value is `scale * (level - zero) - min`, linear in the factors of both. With `u_k` what unit `k` contributes to a row and
/// `e` the row's error, the least `e H e^T` is where `sum_l (u_k' H u_l) d_l = u_k' H e` for the changes `d`.
fn factors(
    codes: ArrayView2<'_, u8>,
    pull: ArrayView2<'_, f32>,
    h: &Metric<'_>,
    grid: &Grid,
    unit: usize,
) -> [Array2<f32>; 2] {
    let (rows, cols) = codes.dim();
    let units = cols / unit;
    let has_min = grid.min.iter().any(|&min| min != 0.0);
    let unknowns = if has_min { 2 * units } else { units };
    let decoded = grid.decode_all(codes);
    let mut factors = [(); 2].map(|()| Array2::ones((rows, units)));
    let columns = |k: usize| (k % units) * unit..(k % units + 1) * unit;
    let step = (EQUATIONS / unknowns.pow(2)).clamp(1, 256);
    for start in (0..rows).step_by(step) {
        let some = start..rows.min(start + step);
        let count = some.len();
        let minima = Array2::from_shape_fn((cols, count), |(col, row)| {
            -grid.min[[start + row, col / grid.group_size]]
        });
        // [in_features, rows] each: what scales contribute, then what minima do.
        let parts = [&decoded.slice(s![some.clone(), ..]).t() - &minima, minima];
        let pull = pull.slice(s![.., some]);
        let mut equations = Array3::<f32>::zeros((count, unknowns, unknowns));
        let mut right = Array2::<f32>::zeros((count, unknowns));
        for k in 0..unknowns {
            let part = parts[k / units].slice(s![columns(k), ..]);
            let through = h.columns_times(columns(k), part);
            let pull = by_row(part, pull.slice(s![columns(k), ..]));
            right.column_mut(k).assign(&ArrayView1::from(&pull));
            for l in 0..=k {
                let other = parts[l / units].slice(s![columns(l), ..]);
                let coupling = by_row(other, through.slice(s![columns(l), ..]));
                equations.slice_mut(s![.., k, l]).assign(&ArrayView1::from(&coupling));
            }
        }
        let equations = equations.axis_iter(Axis(0)).into_par_iter().zip(right.axis_iter(Axis(0)));
        let changes: Vec<_> = equations.map(|(equations, right)| solve(equations, right)).collect();
        for (row, changes) in changes.into_iter().enumerate() {
            for (k, change) in changes.into_iter().enumerate() {
                factors[k / units][[start + row, k % units]] += change as f32;
            }
        }
    }
    factors
}

/// The products of the columns of `a` with those of `b`, `[n, rows]` both.
fn by_row(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Vec<f32> {
    let mut sums = vec![0.0; a.ncols()];
    for (a, b) in a.rows().into_iter().zip(b.rows()) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums
}

/// Solves symmetric equations of which the lower triangle is given, with [`RIDGE`] on their diagonal; what has no diagonal stays 0.
fn solve(lower: ArrayView2<'_, f32>, right: ArrayView1<'_, f32>) -> Vec<f64> {
    let n = right.len();
    let mut l = lower.mapv(f64::from);
    let mut x: Vec<f64> = right.iter().map(|&x| f64::from(x)).collect();
    for j in 0..n {
        let diagonal = l[[j, j]];
        let pivot = diagonal * (1.0 + RIDGE) - (0..j).map(|k| l[[j, k]].powi(2)).sum::<f64>();
        let is_known = pivot > 0.5 * RIDGE * diagonal; // rounding can take more than the ridge gives
        l[[j, j]] = if is_known { pivot.sqrt() } else { f64::INFINITY };
        for i in j + 1..n {
            l[[i, j]] = (l[[i, j]] - (0..j).map(|k| l[[i, k]] * l[[j, k]]).sum::<f64>()) / l[[j, j]];
        }
        x[j] = (x[j] - (0..j).map(|k| l[[j, k]] * x[k]).sum::<f64>()) / l[[j, j]];
    }
    for j in (0..n).rev() {
        x[j] = (x[j] - (j + 1..n).map(|k| l[[k, j]] * x[k]).sum::<f64>()) / l[[j, j]];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Factor, Settings, Statistics};
    use ndarray::array;

    fn wave(a: usize, b: usize) -> f32 {
        ((a * 7919 + b * 104_729) % 1009) as f32 / 504.0 - 1.0
    }

    #[test]
    fn equations_are_solved_and_what_has_no_diagonal_stays() {
        let lower = array![[4.0f32, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]];
        let x = solve(lower.view(), array![9.0f32, 0.0, 4.0].view());
        assert!((x[0] - 2.0).abs() < 4e-3 && x[1] == 0.0 && (x[2] - 1.0).abs() < 4e-3, "{x:?}");
    }

    /// Scales and minima put off by a few percent come back, for codes of which they are right.
    #[test]
    fn the_scales_that_made_the_codes_are_found_again() {
        let (rows, features, unit) = (5, 96, 32);
        let x = Array2::from_shape_fn((400, features), |(t, c)| wave(t, c / 5) + 0.3 * wave(t + 77, c * 3));
        let mut statistics = Statistics::new(features);
        statistics.observe(x.view());
        let factor = Factor::new(&statistics, Settings::default());
        let feedback = factor.feedback().expect("positive definite");
        let codes = Array2::from_shape_fn((rows, features), |(r, c)| ((r * 13 + c * c) % 16) as u8);
        let grid = Grid {
            scale: Array2::from_shape_fn((rows, features / unit), |(r, g)| 0.1 + 0.02 * (r + g) as f32),
            zero: Array2::zeros((rows, features / unit)),
            min: Array2::from_elem((rows, features / unit), 0.7),
            group_size: unit,
            max_code: 15,
            levels: None,
            header: Vec::new(),
        };
        let w = grid.decode_all(codes.view());
        let off = Grid { scale: &grid.scale * 1.04, min: &grid.min * 0.97, ..grid };
        let metric = factor.metric(feedback);
        let (_, pull) = losses_and_pull(w.view(), &off, &codes, &metric);
        let [scale, min] = factors(codes.view(), pull.view(), &metric, &off, unit);
        assert!(scale.iter().all(|by| (by * 1.04 - 1.0).abs() < 5e-3), "{scale}");
        assert!(min.iter().all(|by| (by * 0.97 - 1.0).abs() < 5e-3), "{min}");
    }
}
