//! The solver on a CUDA device against the one on the processor: on a GPU where there is one, and on the tests' emulator.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../../tensor/tests/cuda_parity/machines.rs"]
mod machines;

use attar_quant::{
    DeviceFactor, DeviceSolution, DeviceStatistics, Error, Factor, Gptq, Settings, Solver, Statistics, Sums,
    encoding,
};
use attar_tensor::cuda::{Cuda, Width};
use machines::on_every_machine;
use ndarray::{Array2, s};

/// Reproducible values in about [-1, 1).
fn random(dim: (usize, usize), seed: u64) -> Array2<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    Array2::from_shape_simple_fn(dim, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    })
}

/// Statistics of correlated inputs, of which a few are much larger than the others.
fn statistics(features: usize) -> Statistics {
    let x = random((3 * features, features), 7);
    let size = |c: usize| if c % 37 == 5 { 6.0 } else { 1.0 };
    let mixed = Array2::from_shape_fn(x.dim(), |(t, c)| size(c) * (x[[t, c]] + 0.6 * x[[t, c / 5]]));
    let mut statistics = Statistics::new(features);
    statistics.observe(mixed.view());
    statistics
}

fn there(cuda: &Cuda, statistics: &Statistics) -> DeviceStatistics {
    let gram = cuda.upload(statistics.gram().unwrap().view()).unwrap();
    DeviceStatistics::new(cuda, gram, statistics.tokens).unwrap()
}

fn solve(
    cuda: &Cuda,
    w: &Array2<f32>,
    statistics: &DeviceStatistics,
    name: &str,
) -> Result<DeviceSolution<f32>, Error> {
    let factor = DeviceFactor::new(cuda, statistics, Settings::default(), Width::F64)?;
    let (w, encoding) = (cuda.upload(w.view()).unwrap(), encoding(name).unwrap());
    let solver = Gptq::DEFAULT.on_device().unwrap();
    solver.solve(w.view(), &factor, encoding.grid().unwrap(), &mut |_| Ok(()))
}

fn assert_ratio(found: f64, truth: f64, limit: f64, what: &str) {
    assert!((found - truth).abs() <= limit * truth.abs(), "{what}: {found} for {truth}");
}

#[test]
fn the_device_chooses_the_processors_codes_but_for_ties_and_knows_the_same_facts() {
    on_every_machine(|cuda| {
        for (name, rows, features) in
            [("w4-g32", 40, 160), ("w3-g64-asym", 33, 192), ("q4_0", 20, 160), ("q4_k", 9, 256)]
        {
            let (w, mut statistics) = (random((rows, features), 11), statistics(features));
            if name == "w4-g32" {
                // No token reaches the first group: it gets a scale all the same, and feedback leaves it alone.
                let Sums::Gram(gram) = &mut statistics.sums else { panic!("no Gram matrix") };
                gram.slice_mut(s![..32, ..]).fill(0.0);
                gram.slice_mut(s![.., ..32]).fill(0.0);
            }
            let factor = Factor::new(&statistics, Settings::default());
            let encoding = encoding(name).unwrap();
            let truth = Gptq { refits: 0, ..Gptq::DEFAULT }
                .solve(w.view(), Some(&factor), encoding.grid().unwrap())
                .unwrap();
            let found = solve(cuda, &w, &there(cuda, &statistics), name).unwrap();

            assert_eq!(found.grid, truth.grid, "{name}");
            let differ = found.codes.iter().zip(&truth.codes).filter(|(a, b)| a != b).count();
            assert!(differ * 1000 <= w.len(), "{name}: {differ} of {} codes differ", w.len());
            assert_eq!(
                cuda.download(found.decoded.view()).unwrap(),
                found.grid.decode_all(found.codes.view()),
                "{name}: what the device goes on with is what the file's reader gets"
            );
            let (facts, truth) = (&found.facts, &truth.facts);
            assert_ratio(facts.relative_error, truth.relative_error, 1e-3, name);
            assert_ratio(facts.rtn_relative_error, truth.rtn_relative_error, 1e-5, name);
            assert_ratio(facts.energy, truth.energy, 1e-5, name);
            assert!(facts.relative_error < facts.rtn_relative_error, "{name}");
            assert_eq!(facts.tokens_per_column, truth.tokens_per_column);
            assert_eq!((facts.damping, facts.shrinkage), (truth.damping, truth.shrinkage));
            assert_eq!((facts.dead_columns, facts.retries), (truth.dead_columns, truth.retries));
            assert_eq!(facts.fallback, truth.fallback);
        }
    });
}

#[test]
fn what_the_processor_does_not_factor_the_device_rounds_to_nearest_for_the_same_reason() {
    on_every_machine(|cuda| {
        let w = random((5, 64), 3);
        let indefinite = Array2::from_shape_fn((64, 64), |(i, j)| if i == j { 1.0 } else { 9.0 });
        let unknown = Array2::from_elem((64, 64), f32::NAN);
        for (gram, tokens) in [(indefinite, 1 << 20), (unknown, 9), (Array2::zeros((64, 64)), 9)] {
            let statistics = Statistics { sums: Sums::Gram(gram), tokens };
            let factor = Factor::new(&statistics, Settings::default());
            let encoding = encoding("w4-g32").unwrap();
            let truth = Gptq { refits: 0, ..Gptq::DEFAULT }
                .solve(w.view(), Some(&factor), encoding.grid().unwrap())
                .unwrap();
            let found = solve(cuda, &w, &there(cuda, &statistics), "w4-g32").unwrap();
            assert!(truth.facts.fallback.is_some());
            assert_eq!(
                (&found.facts.fallback, found.facts.retries),
                (&truth.facts.fallback, truth.facts.retries)
            );
            assert_eq!(found.codes, truth.codes);
        }
    });
}

#[test]
fn what_cannot_be_solved_is_refused_in_the_processors_words() {
    on_every_machine(|cuda| {
        let seen = there(cuda, &statistics(64));
        let mut w = random((5, 64), 3);
        w[[2, 7]] = f32::INFINITY;
        let error = solve(cuda, &w, &seen, "w4-g32").unwrap_err();
        assert_eq!(error, Error::NotFinite { count: 1, total: 320, row: 2, col: 7 });
        let error = solve(cuda, &random((5, 96), 3), &seen, "w4-g32").unwrap_err();
        assert_eq!(error, Error::Features { statistics: 64, in_features: 96 });
    });
}

#[test]
fn statistics_on_the_device_come_back_whole_from_their_upper_triangle() {
    on_every_machine(|cuda| {
        let truth = statistics(70);
        let mut upper = truth.gram().unwrap().clone();
        upper.indexed_iter_mut().filter(|((i, j), _)| i > j).for_each(|(_, x)| *x = 0.0);
        let seen = DeviceStatistics::new(cuda, cuda.upload(upper.view()).unwrap(), truth.tokens).unwrap();
        assert_eq!(seen.download(cuda).unwrap(), truth);
        assert_eq!(seen.squares().importance(), truth.importance());
    });
}
