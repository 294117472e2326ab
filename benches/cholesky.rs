//! What does the factor that error feedback needs cost?

mod peak;

use attar_tensor::{cholesky_of_inverse, gram_add};
use criterion::{Criterion, criterion_group, criterion_main};
use ndarray::Array2;
use peak::{Work, case, random};
use std::hint::black_box;
use std::time::Duration;

fn cholesky(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cholesky");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(2));
    for features in [1024, 4096] {
        let tokens = 512;
        let mut hessian = Array2::eye(features) * (0.01 * tokens as f32);
        gram_add(random((tokens, features), 2).view(), &mut hessian);
        // A factorisation and a triangular inverse, n^3 / 3 each.
        let flops = 2.0 / 3.0 * (features as f64).powi(3);
        let work = Work { amount: flops / 1e9, unit: "GFLOP/s in f64", flops: Some(flops), number_bytes: 8 };
        case(&mut group, &format!("cholesky_of_inverse {features}"), work, || {
            let _ = black_box(cholesky_of_inverse(&hessian));
        });
    }
}

criterion_group!(benches, cholesky);
criterion_main!(benches);
