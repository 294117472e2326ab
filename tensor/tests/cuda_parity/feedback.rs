//! The factor of a Hessian and the pass over a weight's columns, against the CPU's.

use crate::{assert_near, on_every_machine, random, wide};
use attar_tensor::cholesky_of_inverse;
use attar_tensor::cuda::{CudaError, Damping, Grid, Width};
use ndarray::{Array2, s};

/// A Gram matrix of correlated columns.
fn gram(n: usize) -> Array2<f32> {
    let x = random((3 * n + 5, n), 7);
    let mixed =
        Array2::from_shape_fn(x.dim(), |(t, c)| x[[t, c]] * (1.0 + c as f32 / 40.0) + 0.5 * x[[t, c / 3]]);
    let gram = wide(&mixed).t().dot(&wide(&mixed));
    gram.mapv(|x| x as f32)
}

/// Columns by falling diagonal.
fn order(gram: &Array2<f32>) -> Vec<u32> {
    let mut order: Vec<u32> = (0..gram.nrows() as u32).collect();
    order.sort_by(|&a, &b| gram[[b as usize, b as usize]].total_cmp(&gram[[a as usize, a as usize]]));
    order
}

fn damping(gram: &Array2<f32>) -> Damping {
    let mean = gram.diag().iter().map(|&h| f64::from(h)).sum::<f64>() / gram.nrows() as f64;
    Damping { mean, shrinkage: 0.1, damping: 0.01 }
}

/// The Hessian as the CPU solver prepares it.
fn hessian(gram: &Array2<f32>, order: &[u32], damping: Damping) -> Array2<f32> {
    let off_diagonal = ((1.0 - damping.shrinkage) / damping.mean) as f32;
    Array2::from_shape_fn(gram.dim(), |(i, j)| {
        let value = gram[[order[i] as usize, order[j] as usize]];
        if i == j { (f64::from(value) / damping.mean + damping.damping) as f32 } else { value * off_diagonal }
    })
}

#[test]
fn the_factor_equals_the_cpus() {
    on_every_machine(|cuda| {
        for n in [1, 7, 40, 131] {
            let gram = gram(n);
            let (order, damping) = (order(&gram), damping(&gram));
            let truth = cholesky_of_inverse(&hessian(&gram, &order, damping)).unwrap();
            let on_device = cuda.upload::<f32>(gram.view()).unwrap();
            for (width, limit) in [(Width::F64, 1e-6), (Width::F32, 1e-4)] {
                let found = cuda.cholesky_of_inverse(on_device.view(), &order, damping, width).unwrap();
                let found = cuda.download(found.view()).unwrap();
                assert!(
                    found.indexed_iter().all(|((i, j), &x)| i <= j || x == 0.0),
                    "below the diagonal of {n}"
                );
                assert_near(found.view(), wide(&truth).view(), limit, &format!("{n} {width:?}"));
            }
        }
    });
}

#[test]
fn an_indefinite_matrix_is_refused_with_its_column() {
    on_every_machine(|cuda| {
        let mut gram = Array2::eye(50);
        gram[[17, 17]] = -1.0;
        let on_device = cuda.upload::<f32>(gram.view()).unwrap();
        let order: Vec<u32> = (0..50).collect();
        let damping = Damping { mean: 1.0, shrinkage: 0.0, damping: 0.0 };
        let found = cuda.cholesky_of_inverse(on_device.view(), &order, damping, Width::F64);
        assert_eq!(found.err(), Some(CudaError::NotPositiveDefinite { column: 17, size: 50 }));
    });
}

/// The values of a grid, on the host.
struct HostGrid {
    scale: Array2<f32>,
    zero: Array2<f32>,
    min: Array2<f32>,
    group_size: usize,
    max_code: f32,
}

impl HostGrid {
    /// Asymmetric in even rows, symmetric around a zero in odd ones; one group of scale 0.
    fn new(rows: usize, cols: usize, group_size: usize) -> Self {
        let dim = (rows, cols.div_ceil(group_size));
        let mut scale = random(dim, 21).mapv(|x| 0.15 + 0.05 * x);
        scale[[0, 0]] = 0.0;
        let even = |(row, _): (usize, usize)| row % 2 == 0;
        let zero = Array2::from_shape_fn(dim, |at| if even(at) { 0.0 } else { 8.0 });
        let min = Array2::from_shape_fn(dim, |at| if even(at) { 1.1 } else { 0.0 });
        Self { scale, zero, min, group_size, max_code: 15.0 }
    }

    fn at(&self, row: usize, col: usize) -> (f32, f32, f32) {
        let at = [row, col / self.group_size];
        (self.scale[at], self.zero[at], self.min[at])
    }

    fn encode(&self, row: usize, col: usize, x: f32) -> u8 {
        let (scale, zero, min) = self.at(row, col);
        let steps = if scale == 0.0 { 0.0 } else { (x + min) / scale };
        (steps.max(-zero).min(self.max_code - zero).round_ties_even() + zero) as u8
    }

    fn decode(&self, row: usize, col: usize, code: u8) -> f32 {
        let (scale, zero, min) = self.at(row, col);
        scale * (f32::from(code) - zero) - min
    }
}

/// Algorithm 1 of arXiv:2210.17323 without lazy updates: codes, and each row's loss.
fn one_by_one(
    w: &Array2<f32>,
    order: &[u32],
    upper: &Array2<f32>,
    grid: &HostGrid,
) -> (Array2<u8>, Vec<f64>) {
    let mut codes = Array2::zeros(w.dim());
    let losses = (0..w.nrows()).map(|row| {
        let mut x: Vec<f32> = order.iter().map(|&col| w[[row, col as usize]]).collect();
        let mut loss = 0.0;
        for (j, &col) in order.iter().enumerate() {
            let code = grid.encode(row, col as usize, x[j]);
            codes[[row, col as usize]] = code;
            let error = (x[j] - grid.decode(row, col as usize, code)) / upper[[j, j]];
            loss += f64::from(error * error);
            for (k, x) in x.iter_mut().enumerate().skip(j + 1) {
                *x -= error * upper[[j, k]];
            }
        }
        loss
    });
    let losses = losses.collect();
    (codes, losses)
}

#[test]
fn a_pass_over_the_columns_chooses_the_codes_of_the_algorithm() {
    on_every_machine(|cuda| {
        for (rows, cols, group_size) in
            [(3, 20, 8), (37, 128, 32), (18, 300, 64), (5, 257, 300), (3, 1100, 50)]
        {
            let gram = gram(cols);
            let (order, damping) = (order(&gram), damping(&gram));
            let upper = cholesky_of_inverse(&hessian(&gram, &order, damping)).unwrap();
            let (w, grid) = (random((rows, cols), 5), HostGrid::new(rows, cols, group_size));
            let (codes, losses) = one_by_one(&w, &order, &upper, &grid);

            let upload = |x: &Array2<f32>| cuda.upload::<f32>(x.view()).unwrap();
            let on_grid = Grid {
                scale: upload(&grid.scale),
                zero: upload(&grid.zero),
                min: upload(&grid.min),
                group_size,
                max_code: 15,
            };
            let (on_w, on_upper) = (upload(&w), upload(&upper));
            let pass = cuda.round_with_feedback(on_w.view(), &order, on_upper.view(), &on_grid).unwrap();
            let found = Array2::from_shape_vec((rows, cols), cuda.download_items(pass.codes.view()).unwrap())
                .unwrap();
            // Sums of another order turn the odd weight that lies between two codes, and what follows it.
            let differ = found.iter().zip(&codes).filter(|(a, b)| a != b).count();
            assert!(differ * 100 <= found.len(), "{differ} of {} codes differ", found.len());
            if cols <= 128 {
                assert_eq!(differ, 0, "within one block every operation is the same");
            }
            for (found, truth) in pass.losses.iter().zip(&losses) {
                assert!((found - truth).abs() <= 0.02 * truth.abs(), "{found} for {truth}");
            }
        }
    });
}

#[test]
fn with_a_diagonal_factor_a_pass_rounds_to_the_nearest() {
    on_every_machine(|cuda| {
        let (w, grid) = (random((20, 150), 6), HostGrid::new(20, 150, 50));
        let upper = Array2::eye(150);
        let order: Vec<u32> = (0..150).rev().collect();
        let upload = |x: &Array2<f32>| cuda.upload::<f32>(x.view()).unwrap();
        let on_grid = Grid {
            scale: upload(&grid.scale),
            zero: upload(&grid.zero),
            min: upload(&grid.min),
            group_size: 50,
            max_code: 15,
        };
        let pass =
            cuda.round_with_feedback(upload(&w).view(), &order, upload(&upper).view(), &on_grid).unwrap();
        let found =
            Array2::from_shape_vec((20, 150), cuda.download_items(pass.codes.view()).unwrap()).unwrap();
        let nearest = Array2::from_shape_fn(w.dim(), |(row, col)| grid.encode(row, col, w[[row, col]]));
        assert_eq!(found, nearest);
        assert_eq!(found.slice(s![0, ..50]), nearest.slice(s![0, ..50]), "a group of one value");
    });
}
