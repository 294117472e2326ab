//! Coordinate descent and energies against their definitions.

use crate::{on_every_machine, random, wide};
use attar_tensor::cuda::{Grid, Metric, Rows};
use ndarray::Array2;

/// A Gram matrix of correlated columns over their number, and a diagonal to be added.
fn hessian(n: usize) -> (Array2<f32>, Vec<f32>) {
    let x = random((2 * n + 3, n), 17);
    let mixed = Array2::from_shape_fn(x.dim(), |(t, c)| x[[t, c]] + 0.7 * x[[t, c / 4]]);
    let gram = wide(&mixed).t().dot(&wide(&mixed)).mapv(|x| x as f32);
    (gram, (0..n).map(|i| 0.02 + 0.001 * (i % 5) as f32).collect())
}

/// Column by column, nothing put off.
fn one_by_one(w: &Array2<f32>, codes: &mut Array2<u8>, h: &Array2<f64>, scale: &Array2<f32>, sweeps: usize) {
    let n = w.ncols();
    for row in 0..w.nrows() {
        let value = |code: u8| f64::from(scale[[row, 0]]) * (f64::from(code) - 8.0);
        for col in (0..sweeps).flat_map(|_| 0..n) {
            let error = |codes: &Array2<u8>, k: usize| f64::from(w[[row, k]]) - value(codes[[row, k]]);
            let pull: f64 = (0..n).map(|k| error(codes, k) * h[[k, col]]).sum();
            let best = value(codes[[row, col]]) + pull / h[[col, col]];
            let steps = (best / f64::from(scale[[row, 0]])).round_ties_even();
            codes[[row, col]] = (steps.clamp(-8.0, 7.0) + 8.0) as u8;
        }
    }
}

#[test]
fn descent_chooses_the_codes_of_its_definition() {
    on_every_machine(|cuda| {
        for (rows, n) in [(3, 20), (19, 150), (2, 1100)] {
            let (gram, diagonal) = hessian(n);
            let w = random((rows, n), 23);
            let scale = random((rows, 1), 29).mapv(|x| 0.14 + 0.03 * x);
            let h_scale = 1.0 / n as f32;
            let h = Array2::from_shape_fn((n, n), |(i, j)| {
                f64::from(h_scale) * f64::from(gram[[i, j]])
                    + if i == j { f64::from(diagonal[i]) } else { 0.0 }
            });
            let upload = |x: &Array2<f32>| cuda.upload::<f32>(x.view()).unwrap();
            let grid = Grid {
                scale: upload(&scale),
                zero: upload(&Array2::from_elem((rows, 1), 8.0)),
                min: upload(&Array2::zeros((rows, 1))),
                group_size: n,
                max_code: 15,
            };
            let (there, on_gram) = (upload(&w), upload(&gram));
            let diagonal = cuda.vector(&diagonal).unwrap();
            let split = cuda.split(on_gram.view()).unwrap();
            let metric =
                Metric { gram: on_gram.view(), split: &split, scale: h_scale, diagonal: diagonal.view() };
            let mut codes = cuda.nearest_codes(there.view(), &grid).unwrap();
            let host = |codes: Rows<'_, u8>| {
                Array2::from_shape_vec((rows, n), cuda.download_items(codes).unwrap()).unwrap()
            };
            let mut truth = host(codes.view());
            one_by_one(&w, &mut truth, &h, &scale, 2);
            cuda.descend(there.view(), &mut codes, metric, &grid, 2).unwrap();
            let differ = host(codes.view()).iter().zip(&truth).filter(|(a, b)| a != b).count();
            assert!(differ * 200 <= rows * n, "{differ} of {} codes differ", rows * n);
        }
    });
}

#[test]
fn an_energy_is_the_squares_in_the_metric() {
    on_every_machine(|cuda| {
        for (rows, n) in [(1, 1), (20, 33), (5, 1030)] {
            let x = random((rows, n), 37);
            let mixed = random((9, n), 38);
            let h = wide(&mixed).t().dot(&wide(&mixed)).mapv(|x| x as f32);
            let truth: f64 = (&wide(&x) * &wide(&x).dot(&wide(&h))).sum();
            let upload = |x: &Array2<f32>| cuda.upload::<f32>(x.view()).unwrap();
            let (on_x, on_h) = (upload(&x), upload(&h));
            let found = cuda.energy(on_x.view(), &cuda.split(on_h.view()).unwrap()).unwrap();
            assert!((found / truth - 1.0).abs() <= 1e-5, "{rows} x {n}: {found} for {truth}");
            let diagonal = cuda.diagonal(on_h.view()).unwrap();
            assert_eq!(diagonal, h.diag().to_vec());
            assert!(cuda.is_finite(on_x.view()).unwrap());
        }
        let bad = cuda.vector(&[1.0, f32::INFINITY]).unwrap();
        assert!(!cuda.is_finite(bad.view()).unwrap());
    });
}
