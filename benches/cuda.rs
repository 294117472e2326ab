//! What a CUDA device does of what it could: products, Gram matrices, attention, the pass of error feedback, norms and streaming, each
//! beside the rate that this same device reaches in the best product or copy measured here; then whole blocks of models, see
//! [`model`], and steps of a student, see [`train`]. Without a device it says so and ends.
//!
//! `cargo bench --bench cuda`. Sizes are those of an 8B model's block; `ATTAR_CUDA_DEVICE=N` names another device. With the
//! argument `train` it measures steps of a student alone.

#[path = "cuda/model.rs"]
mod model;
#[path = "cuda/train.rs"]
mod train;

use attar_tensor::cuda::{
    BlockStream, Cuda, CudaError, Damping, Gate, Grid, Keep, Matrix, Norm, Width, bf16, slot_bytes,
};
use attar_tensor::op::Attention;
use ndarray::Array2;
use std::time::Instant;

const TOKENS: usize = 16_384;
const HIDDEN: usize = 4096;
const INTERMEDIATE: usize = 14_336;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const CTX: usize = 2048;

/// Seconds of one run: the shortest of five, each long enough that waiting does not count.
fn seconds(cuda: &Cuda, mut run: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    run()?; // compiles
    cuda.wait()?;
    let mut best = f64::INFINITY;
    let mut repeats = 1;
    for _ in 0..5 {
        let start = Instant::now();
        for _ in 0..repeats {
            run()?;
        }
        cuda.wait()?;
        let taken = start.elapsed().as_secs_f64();
        best = best.min(taken / f64::from(repeats));
        repeats = (0.1 / best).clamp(1.0, 100.0) as u32;
    }
    Ok(best)
}

/// Reproducible values in about [-1, 1), repeated: filling a device must not take longer than timing it.
fn random<T: attar_tensor::cuda::Element>(cuda: &Cuda, dim: (usize, usize)) -> Result<Matrix<T>, CudaError> {
    let mut state = 1u64;
    let values: Vec<T> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::of((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    })
    .take(65_521)
    .collect();
    let all: Vec<T> = values.iter().copied().cycle().take(dim.0 * dim.1).collect();
    cuda.upload_items(&all, dim)
}

#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn line(name: &str, seconds: f64, amount: f64, unit: &str, peak: f64) {
    let rate = amount / seconds;
    println!("{name:<44} {:>9.3} ms {rate:>9.1} {unit}  {:>5.1} %", seconds * 1e3, 100.0 * rate / peak);
}

/// The best rates measured on this device: TFLOP/s of bf16 and f32 products, GB/s of a sum.
struct Peak {
    bf16: f64,
    f32: f64,
    memory: f64,
}

fn product<T: attar_tensor::cuda::Element>(
    cuda: &Cuda,
    [m, n, k]: [usize; 3],
) -> Result<(f64, f64), CudaError> {
    let (x, w) = (random::<T>(cuda, (m, k))?, random::<T>(cuda, (n, k))?);
    let mut out = cuda.zeros::<T>((m, n))?;
    let taken = seconds(cuda, || cuda.linear(out.view_mut(), x.view(), w.view(), Keep::Nothing))?;
    Ok((taken, 2e-12 * m as f64 * n as f64 * k as f64))
}

fn peak(cuda: &Cuda) -> Result<Peak, CudaError> {
    let rate = |(taken, amount): (f64, f64)| amount / taken;
    let (bf16, f32) = (rate(product::<bf16>(cuda, [8192; 3])?), rate(product::<f32>(cuda, [4096; 3])?));
    let x = random::<f32>(cuda, (1 << 14, 1 << 14))?;
    let mut out = cuda.zeros::<f32>(x.dim())?;
    let taken = seconds(cuda, || cuda.add(out.view_mut(), x.view()))?;
    Ok(Peak { bf16, f32, memory: 12e-9 * (1u64 << 28) as f64 / taken })
}

fn products(cuda: &Cuda, peak: &Peak) -> Result<(), CudaError> {
    for shape in [[TOKENS, HIDDEN, HIDDEN], [TOKENS, INTERMEDIATE, HIDDEN], [TOKENS, HIDDEN, INTERMEDIATE]] {
        let (taken, amount) = product::<bf16>(cuda, shape)?;
        line(
            &format!("product bf16 {}x{}x{}", shape[0], shape[1], shape[2]),
            taken,
            amount,
            "TFLOP/s",
            peak.bf16,
        );
    }
    for features in [HIDDEN, INTERMEDIATE] {
        let x = random::<bf16>(cuda, (TOKENS, features))?;
        let mut gram = cuda.zeros::<f32>((features, features))?;
        let taken = seconds(cuda, || cuda.gram_add(&mut gram, x.view()))?;
        // Counted as the half that is asked for.
        let amount = 1e-12 * TOKENS as f64 * (features * features) as f64;
        line(&format!("Gram bf16 {TOKENS}x{features}, half counted"), taken, amount, "TFLOP/s", peak.bf16);
    }
    Ok(())
}

fn attention(cuda: &Cuda, peak: &Peak) -> Result<(), CudaError> {
    let shape = Attention {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        ctx: CTX,
        sliding_window: None,
        scale: Attention::per_head_dim(HEAD_DIM),
        soft_cap: None,
    };
    let q = random::<bf16>(cuda, (TOKENS, HEADS * HEAD_DIM))?;
    let (k, v) =
        (random::<bf16>(cuda, (TOKENS, KV_HEADS * HEAD_DIM))?, random(cuda, (TOKENS, KV_HEADS * HEAD_DIM))?);
    let mut out = cuda.zeros::<bf16>(q.dim())?;
    let qkv = [q.view(), k.view(), v.view()];
    // Two products over the half of each window that is seen.
    let amount = 2e-12 * (TOKENS * CTX * HEADS * HEAD_DIM) as f64;
    let taken = seconds(cuda, || cuda.attention(out.view_mut(), qkv, shape))?;
    line("attention bf16, half counted", taken, amount, "TFLOP/s", peak.bf16);
    let taken = seconds(cuda, || cuda.attention_plain(out.view_mut(), qkv, shape))?;
    line("attention plain bf16, half counted", taken, amount, "TFLOP/s", peak.f32);
    let d_out = random::<bf16>(cuda, q.dim())?;
    let taken = seconds(cuda, || cuda.attention_backward(qkv, d_out.view(), shape).map(drop))?;
    line("attention backward bf16, half counted", taken, 2.5 * amount, "TFLOP/s", peak.bf16);
    Ok(())
}

fn feedback(cuda: &Cuda, peak: &Peak) -> Result<(), CudaError> {
    for (rows, cols) in [(HIDDEN, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)] {
        let x = random::<bf16>(cuda, (2 * cols, cols))?;
        let mut gram = cuda.zeros::<f32>((cols, cols))?;
        cuda.gram_add(&mut gram, x.view())?;
        cuda.mirror(&mut gram)?;
        let order: Vec<u32> = (0..cols as u32).collect();
        let damping = Damping { mean: 2.0 * cols as f64 / 3.0, shrinkage: 0.1, damping: 0.01 };
        let mut upper = None;
        let amount = 2e-12 / 3.0 * (cols as f64).powi(3);
        for width in [Width::F64, Width::F32] {
            let taken = seconds(cuda, || {
                upper = Some(cuda.cholesky_of_inverse(gram.view(), &order, damping, width)?);
                Ok(())
            })?;
            line(&format!("factor {cols} {width:?}"), taken, amount, "TFLOP/s", peak.f32);
        }
        let w = random::<f32>(cuda, (rows, cols))?;
        let groups = (rows, cols / 128);
        let constant = |x: f32| cuda.upload::<f32>(Array2::from_elem(groups, x).view());
        let grid = Grid {
            scale: constant(0.14)?,
            zero: constant(8.0)?,
            min: constant(0.0)?,
            group_size: 128,
            max_code: 15,
        };
        let Some(upper) = upper else { continue };
        let taken =
            seconds(cuda, || cuda.round_with_feedback(w.view(), &order, upper.view(), &grid).map(drop))?;
        line(
            &format!("pass {rows}x{cols}"),
            taken,
            1e-12 * rows as f64 * (cols as f64).powi(2),
            "TFLOP/s",
            peak.f32,
        );
    }
    Ok(())
}

fn memory(cuda: &Cuda, peak: &Peak) -> Result<(), CudaError> {
    let x = random::<bf16>(cuda, (TOKENS, HIDDEN))?;
    let mut out = cuda.zeros::<bf16>(x.dim())?;
    let weight = cuda.vector(&vec![1.0; HIDDEN])?;
    let norm = Norm { eps: 1e-5, offset: 0.0 };
    let bytes = 2.0 * (TOKENS * HIDDEN) as f64;
    let taken = seconds(cuda, || cuda.rms_norm(out.view_mut(), x.view(), weight.view(), norm))?;
    line("norm bf16", taken, 2e-9 * bytes, "GB/s", peak.memory);
    let taken = seconds(cuda, || cuda.gate(out.view_mut(), x.view(), Gate::Silu))?;
    line("gate bf16", taken, 3e-9 * bytes, "GB/s", peak.memory);
    let vocab_size = 128_256;
    let (reference, other) =
        (random::<f32>(cuda, (1024, vocab_size))?, random::<f32>(cuda, (1024, vocab_size))?);
    let taken = seconds(cuda, || cuda.token_divergences(reference.view(), other.view()).map(drop))?;
    line(
        "divergence of 1024 tokens, one reading counted",
        taken,
        8e-9 * (1024 * vocab_size) as f64,
        "GB/s",
        peak.memory,
    );
    let block = vec![1u8; 436 << 20];
    let mut stream = BlockStream::new(cuda, slot_bytes([block.len()]), 64 << 20)?;
    let taken = seconds(cuda, || {
        stream.load(&[&block])?;
        stream.block()?;
        stream.finish()
    })?;
    line("streaming of a block", taken, 1e-9 * block.len() as f64, "GB/s", peak.memory);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn run() -> Result<(), CudaError> {
    let ordinal = std::env::var("ATTAR_CUDA_DEVICE").ok().and_then(|number| number.parse().ok()).unwrap_or(0);
    let cuda = match Cuda::open(ordinal, None) {
        Ok(cuda) => cuda,
        Err(error @ (CudaError::NoDriver | CudaError::NoSuchDevice { .. })) => {
            println!("no CUDA device: {error}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if std::env::args().any(|argument| argument == "train") {
        return train::run(&cuda);
    }
    let peak = peak(&cuda)?;
    let facts = cuda.facts();
    println!(
        "{}, sm_{}{}, {} processors",
        facts.name, facts.capability.0, facts.capability.1, facts.processors
    );
    println!(
        "100 % is: products {:.0} TFLOP/s in bf16 (8192 cubed), {:.1} in f32 (4096 cubed); memory {:.0} GB/s",
        peak.bf16, peak.f32, peak.memory
    );
    products(&cuda, &peak)?;
    attention(&cuda, &peak)?;
    feedback(&cuda, &peak)?;
    memory(&cuda, &peak)?;
    model::run(ordinal, &cuda)?;
    train::run(&cuda)
}

#[expect(clippy::print_stderr, reason = "why there is no output")]
fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            std::process::ExitCode::FAILURE
        }
    }
}
