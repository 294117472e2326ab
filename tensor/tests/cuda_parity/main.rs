//! Every operation of the CUDA device against its definition in f64 or its twin on the CPU.
//!
//! The same tests run on two machines: on a GPU, where there is one; and on an emulation that runs the kernels' own texts, compiled by
//! g++, with the same launches, once with the threads of a block in order and once in reverse. What is missing is said on stderr.

#![expect(clippy::unwrap_used, reason = "a test's panic is its answer")]
#![expect(clippy::needless_pass_by_value, reason = "a view is a reference already")]

mod attention;
mod block;
mod descent;
mod feedback;
mod grid;
mod layers;
mod losses;
mod machines;
mod products;
mod stream;
mod training;

use attar_tensor::cuda::{Cuda, Element};
use half::bf16;
use machines::emulator::{Emulator, Order};
use machines::on_every_machine;
use ndarray::{Array2, ArrayView2};
use std::sync::Arc;

/// Reproducible values in about [-1, 1).
fn random(dim: (usize, usize), seed: u64) -> Array2<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    Array2::from_shape_simple_fn(dim, || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    })
}

/// What the device reads of x: rounded to its elements.
fn rounded<T: Element>(x: &Array2<f32>) -> Array2<f32> {
    x.mapv(|x| T::of(x).to_f32())
}

/// How far results stored as `T` may be from the truth, in units of its root mean square.
fn tolerance<T: Element>() -> f64 {
    if T::DEFINITION == bf16::DEFINITION { 1e-2 } else { 1e-5 }
}

/// Asserts a relative error of the whole within `limit`, and of the worst element within ten times that.
#[track_caller]
fn assert_near(found: ArrayView2<'_, f32>, truth: ArrayView2<'_, f64>, limit: f64, what: &str) {
    assert_eq!(found.dim(), truth.dim(), "{what}");
    let size = (truth.iter().map(|x| x * x).sum::<f64>() / truth.len().max(1) as f64).sqrt().max(1e-30);
    let off = |(found, truth): (&f32, &f64)| f64::from(*found) - truth;
    let error =
        (found.iter().zip(truth).map(off).map(|x| x * x).sum::<f64>() / truth.len().max(1) as f64).sqrt();
    assert!(error <= limit * size, "{what}: relative error {:e} above {limit:e}", error / size);
    let worst = found.iter().zip(truth).map(|pair| off(pair).abs()).fold(0.0, f64::max);
    assert!(worst <= 10.0 * limit * size, "{what}: one element is off by {:e} of the mean", worst / size);
}

/// x as f64.
fn wide(x: &Array2<f32>) -> Array2<f64> {
    x.mapv(f64::from)
}

#[test]
fn memory_is_counted_and_what_does_not_fit_is_refused_in_numbers() {
    let Ok(emulator) = Emulator::new(Order::Forward) else { return };
    let cuda = Cuda::over(Arc::new(emulator), Some(10_000)).unwrap();
    let first = cuda.zeros::<f32>((20, 100)).unwrap();
    assert_eq!((cuda.used_bytes(), cuda.limit_bytes()), (8000, 10_000));
    let refusal = cuda.zeros::<f32>((20, 30)).unwrap_err();
    assert_eq!(refusal.to_string(), "an array needs 2400 bytes of device memory, 2000 are free");
    drop(first);
    assert_eq!(cuda.used_bytes(), 0);
    assert_eq!(cuda.zeros::<f32>((25, 100)).unwrap().dim(), (25, 100));
}

#[test]
fn without_a_driver_a_device_is_refused_with_a_hint_and_nothing_panics() {
    match Cuda::open(usize::MAX, None) {
        Ok(cuda) => panic!("{:?} has no such number", cuda.facts()),
        Err(error) => assert!(error.hint().is_some(), "{error}"),
    }
}
