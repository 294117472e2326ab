//! What does the Gram matrix of a calibration batch cost?

mod peak;

use attar_tensor::{bf16_gram_add, gram_add};
use criterion::{Criterion, criterion_group, criterion_main};
use ndarray::Array2;
use peak::{Work, case, random};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

fn gram(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gram");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(3));
    let (tokens, features) = (2048, 4096);
    let x = random((tokens, features), 1);
    let sums = Mutex::new(Array2::zeros((features, features)));
    // The triangle that is needed: half of a full product.
    let flops = tokens as f64 * features as f64 * (features + 1) as f64;
    let work = Work { amount: flops / 1e9, unit: "GFLOP/s", flops: Some(flops), number_bytes: 4 };
    case(&mut group, &format!("gram {tokens}x{features}"), work, || {
        gram_add(x.view(), &mut sums.lock().unwrap_or_else(PoisonError::into_inner));
    });
    case(&mut group, &format!("bf16 gram {tokens}x{features}"), Work { number_bytes: 2, ..work }, || {
        bf16_gram_add(x.view(), &mut sums.lock().unwrap_or_else(PoisonError::into_inner));
    });
}

criterion_group!(benches, gram);
criterion_main!(benches);
