//! What does the search for scales and codes cost in each format, weighted by the importance of the columns?

mod peak;

use attar_quant::{ENCODINGS, Encoding, IntEncoding};
use criterion::{Criterion, criterion_group, criterion_main};
use peak::{Work, case, random};
use std::hint::black_box;
use std::time::Duration;

fn encodings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encodings");
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(1));
    let w = random((512, 1024), 3);
    let importance: Vec<f32> = (0..w.ncols()).map(|col| 0.1 + ((col * 7919) % 31) as f32).collect();
    let integers = [IntEncoding::symmetric(4, 64), IntEncoding::asymmetric(4, 128)];
    let integers = integers.iter().map(|integer| integer as &dyn Encoding);
    for encoding in ENCODINGS.iter().copied().chain(integers) {
        let amount = (4 * w.len()) as f64 / 1e6;
        let work = Work { amount, unit: "MB/s of f32 weights", flops: None, number_bytes: 4 };
        case(&mut group, &format!("encoding {}", encoding.name()), work, || {
            black_box(encoding.quantize(w.view(), Some(&importance)));
        });
    }
}

criterion_group!(benches, encodings);
criterion_main!(benches);
