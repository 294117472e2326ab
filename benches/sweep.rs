//! What does it cost to solve one weight matrix, its statistics factored already?

mod peak;

use attar_quant::{Factor, SOLVERS, Settings, Statistics, encoding};
use criterion::{Criterion, criterion_group, criterion_main};
use peak::{Work, case, random};
use std::hint::black_box;
use std::time::Duration;

fn solvers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sweep");
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(2));
    for (out_features, in_features) in [(1024, 1024), (4096, 1024)] {
        let w = random((out_features, in_features), 4);
        let mut statistics = Statistics::new(in_features);
        statistics.observe(random((8 * in_features, in_features), 5).view());
        let factor = Factor::new(&statistics, Settings::default());
        let refused = factor.feedback().is_err();
        assert!(!refused, "this Hessian is positive definite");
        for name in ["q4_k", "w4-g64"] {
            let encoding = encoding(name);
            let Some(grid_encoding) = encoding.as_ref().and_then(|encoding| encoding.grid()) else {
                unreachable!("{name} has codes");
            };
            for solver in SOLVERS {
                let amount = (4 * w.len()) as f64 / 1e6;
                let work = Work { amount, unit: "MB/s of f32 weights", flops: None, number_bytes: 4 };
                let case_name = format!("{} {out_features}x{in_features} to {name}", solver.name());
                case(&mut group, &case_name, work, || {
                    let solution = solver.solve(w.view(), Some(&factor), grid_encoding);
                    assert!(black_box(solution).is_ok_and(|solution| solution.facts.fallback.is_none()));
                });
            }
        }
    }
}

criterion_group!(benches, solvers);
criterion_main!(benches);
