//! How near do products in f32 and in bf16 come to what the machine's multipliers can do?

mod peak;

use attar_tensor::{Bf16Matrix, bf16_linear, linear};
use criterion::{Criterion, criterion_group, criterion_main};
use peak::{Work, case, random};
use std::hint::black_box;
use std::time::Duration;

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("product");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(2));
    for (tokens, out_features, in_features) in [(2048, 1024, 1024), (2048, 4096, 4096)] {
        let (x, w) = (random((tokens, in_features), 7), random((out_features, in_features), 8));
        let flops = 2.0 * tokens as f64 * out_features as f64 * in_features as f64;
        let work = Work { amount: flops / 1e9, unit: "GFLOP/s", flops: Some(flops), number_bytes: 4 };
        case(&mut group, &format!("product {tokens}x{out_features}x{in_features}"), work, || {
            black_box(linear(x.view(), w.view()));
        });
        let work = Work { number_bytes: 2, ..work };
        let packed = Bf16Matrix::from_f32(w.view());
        case(&mut group, &format!("bf16 product {tokens}x{out_features}x{in_features}"), work, || {
            black_box(bf16_linear(x.view(), &packed));
        });
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
