//! Whole blocks on the device, of random weights in the shape of 8B and 70B models: what a forward pass, a calibration and streaming
//! reach. Rates are beside 790 TFLOP/s, what an H100's best bf16 products reach.

use super::{line, random, seconds};
use attar::pipeline::on_device::DeviceStream;
use attar_model::device::{Aim, AllTurns, Cuda, CudaError, DeviceBlock, OnCuda, OwnParts, Work};
use attar_model::{
    Block, Device, Error, HiddenStates, Keeping, KeptFloat, LoadError, ModelConfig, Precision, Role,
    Streaming, Tap, Weights, Windows, streamed_hidden_states,
};
use attar_tensor::cuda::{Damping, Grid, Matrix, Width, bf16};
use ndarray::{Array2, ArrayD, IxDyn};
use serde_json::json;
use std::collections::HashMap;
use std::time::Instant;

const CTX: usize = 2048;
/// TFLOP/s.
const BEST: f64 = 790.0;

fn config(hidden: usize, intermediate: usize, heads: usize, layers: usize) -> Option<ModelConfig> {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": intermediate,
        "num_attention_heads": heads, "num_key_value_heads": 8, "num_hidden_layers": layers, "vocab_size": 32_000,
        "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "max_position_embeddings": 8192, "tie_word_embeddings": false,
    });
    ModelConfig::from_hf(&json).ok()
}

/// The same random numbers for every matrix, ones for every norm.
struct Random {
    shapes: HashMap<String, Vec<usize>>,
    bytes: Vec<u8>, // of bf16 in about [-0.05, 0.05)
}

impl Random {
    fn of(config: &ModelConfig) -> Self {
        let shapes: HashMap<_, _> =
            config.tensors().into_iter().map(|spec| (spec.name, spec.shape)).collect();
        let most = shapes.values().map(|shape| shape.iter().product()).max().unwrap_or(0);
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bf16::from_f32(((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.05).to_le_bytes()
        };
        let some: Vec<u8> = (0..65_521).flat_map(|_| next()).collect();
        Self { shapes, bytes: some.iter().copied().cycle().take(2 * most).collect() }
    }
}

impl Weights for Random {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        let shape = self.shapes.get(name).ok_or("no such tensor")?;
        if shape.len() == 1 {
            return Ok(ArrayD::ones(IxDyn(shape)));
        }
        let numbers = self.bytes.as_chunks::<2>().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32());
        Ok(ArrayD::from_shape_vec(IxDyn(shape), numbers.take(shape.iter().product()).collect())?)
    }

    fn load_rows(&self, name: &str, rows: &[usize]) -> Result<Array2<f32>, LoadError> {
        let cols = self.shapes.get(name).and_then(|shape| shape.get(1)).ok_or("no such matrix")?;
        Ok(Array2::from_shape_fn((rows.len(), *cols), |(row, col)| {
            ((rows[row] * 31 + col) % 97) as f32 / 97.0 - 0.5
        }))
    }

    fn bf16_bytes(&self, name: &str) -> Option<&[u8]> {
        let shape = self.shapes.get(name).filter(|shape| shape.len() == 2)?;
        self.bytes.get(..2 * shape.iter().product::<usize>())
    }

    fn has(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }
}

/// Tera operations of one block's forward over so many tokens; of attention the half that is seen.
fn block_teraflops(config: &ModelConfig, tokens: usize) -> f64 {
    let weights: usize = config
        .tensors()
        .iter()
        .filter(|spec| spec.layer == Some(0) && spec.is_matrix())
        .map(attar_model::TensorSpec::len)
        .sum();
    2e-12 * tokens as f64 * (weights + CTX * config.query_size()) as f64
}

fn work(tokens: usize, aim: Aim) -> Work {
    Work { tokens: tokens as u64, ctx: CTX as u64, aim, precision: Precision::Bf16 }
}

/// One 8B block: its forward, and all of it a GPTQ at 128 windows does on the device.
fn eight(cuda: &Cuda) -> Result<(), Error> {
    let Some(config) = config(4096, 14_336, 32, 1) else { return Ok(()) };
    let weights = Random::of(&config);
    let block = Block::load(&config, 0, &weights)?;
    let turns = AllTurns::new(cuda, &config, CTX)?;
    {
        let own = OwnParts::<bf16>::of(cuda, &block)?;
        let there = DeviceBlock::of(cuda, &config, 0, &turns, &own);
        let mut hidden: Matrix<bf16> = random(cuda, (8 * CTX, 4096))?;
        let taken = seconds(cuda, || match there.forward(hidden.view_mut()) {
            Err(Error::Device(error)) => Err(error),
            _ => Ok(()),
        })?;
        line("8B block forward, 16384 tokens", taken, block_teraflops(&config, 8 * CTX), "TFLOP/s", BEST);
    }

    let tokens = 128 * CTX;
    let on = OnCuda::plan(cuda, &config, work(tokens, Aim::Quantize))?;
    let hidden =
        Array2::from_shape_fn((tokens, 4096), |(row, col)| ((row * 31 + col * 7) % 97) as f32 / 97.0 - 0.5);
    let mut stream = DeviceStream::<bf16>::new(&on, &config, HiddenStates::from(hidden), CTX)?;
    let start = Instant::now();
    let stages: [(Tap, usize, &[Role]); 4] = [
        (Tap::AttnIn, 4096, &[Role::Q, Role::K, Role::V]),
        (Tap::AttnOut, 4096, &[Role::O]),
        (Tap::MlpIn, 4096, &[Role::Gate, Role::Up]),
        (Tap::MlpMid, 14_336, &[Role::Down]),
    ];
    for (tap, features, roles) in stages {
        stream.observe(&block, tap, Some(features))?;
        roles.iter().try_for_each(|&role| stream.settle(&block, role))?;
    }
    stream.finish()?;
    cuda.wait()?;
    let observed = start.elapsed().as_secs_f64();
    let grams =
        [4096.0f64, 4096.0, 4096.0, 14_336.0].iter().map(|n| n * n).sum::<f64>() * tokens as f64 * 1e-12;
    let amount = block_teraflops(&config, tokens) + grams;
    line("8B block, forward and Gram matrices, 128 windows", observed, amount, "TFLOP/s", BEST);
    drop(stream);

    let solved = solve(cuda)?;
    line("8B block, factors and passes of its matrices", solved, 0.0, "", 1.0);
    line("32 such blocks, of 25 s", 32.0 * (observed + solved), 25.0, "s of the aim", 25.0);
    Ok(())
}

/// Seconds of four factorisations and seven passes in a block's shapes.
fn solve(cuda: &Cuda) -> Result<f64, CudaError> {
    let mut total = 0.0;
    for (cols, outs) in
        [(4096, &[4096, 1024, 1024][..]), (4096, &[4096]), (4096, &[14_336, 14_336]), (14_336, &[4096])]
    {
        let x = random::<bf16>(cuda, (2 * cols, cols))?;
        let mut gram = cuda.zeros::<f32>((cols, cols))?;
        cuda.gram_add(&mut gram, x.view())?;
        cuda.mirror(&mut gram)?;
        drop(x);
        let order: Vec<u32> = (0..cols as u32).collect();
        let damping = Damping { mean: 2.0 * cols as f64 / 3.0, shrinkage: 0.1, damping: 0.01 };
        cuda.wait()?;
        let start = Instant::now();
        let upper = cuda.cholesky_of_inverse(gram.view(), &order, damping, Width::F32)?;
        cuda.wait()?;
        total += start.elapsed().as_secs_f64();
        for &rows in outs {
            let w = random::<f32>(cuda, (rows, cols))?;
            let constant = |x: f32| cuda.upload::<f32>(Array2::from_elem((rows, cols / 128), x).view());
            let (scale, zero, min) = (constant(0.14)?, constant(8.0)?, constant(0.0)?);
            let grid = Grid { scale, zero, min, group_size: 128, max_code: 15 };
            cuda.wait()?;
            let start = Instant::now();
            cuda.round_with_feedback(w.view(), &order, upper.view(), &grid)?;
            cuda.wait()?;
            total += start.elapsed().as_secs_f64();
        }
    }
    Ok(total)
}

/// Four 70B blocks streamed from memory while 16 windows pass through them, within `limit` bytes of the device.
fn seventy(ordinal: usize, limit: u64) -> Result<(), Error> {
    let layers = 4;
    let Some(config) = config(8192, 28_672, 64, layers) else { return Ok(()) };
    let weights = Random::of(&config);
    let cuda = Cuda::open(ordinal, Some(limit))?;
    let tokens = 16 * CTX;
    let on = OnCuda::plan(&cuda, &config, work(tokens, Aim::Evaluate { heads: 1 }))?;
    let windows = Windows::new(CTX, (0..tokens as u32).map(|i| i * 7 % 32_000).collect());
    let streaming = Streaming {
        precision: Precision::Bf16,
        keeping: Keeping { float: KeptFloat::Bf16, ..Keeping::default() },
        device: Device::Cuda(on),
        ..Streaming::default()
    };
    let mut done = Vec::new();
    streamed_hidden_states(&config, &weights, &windows, &streaming, &mut |_| done.push(Instant::now()))?;
    // From the first block's end to the last's: embedding and the first way there are not of it.
    let taken = match (done.first(), done.last()) {
        (Some(first), Some(last)) => (*last - *first).as_secs_f64() / (layers - 1) as f64,
        _ => return Ok(()),
    };
    let name = format!("70B block, streamed, {tokens} tokens, {} GB", limit / 1_000_000_000);
    line(&name, taken, block_teraflops(&config, tokens), "TFLOP/s", BEST);
    Ok(())
}

/// All of it; what a device has too little memory for is said.
///
/// # Errors
/// A device that fails.
pub fn run(ordinal: usize, cuda: &Cuda) -> Result<(), CudaError> {
    let memory = cuda.limit_bytes();
    said("8B block", &eight(cuda))?;
    said("70B streamed", &seventy(ordinal, memory))?;
    said("70B streamed within 24 GB", &seventy(ordinal, memory.min(24_000_000_000)))
}

#[expect(clippy::print_stdout, reason = "a benchmark's output")]
pub fn said(name: &str, result: &Result<(), Error>) -> Result<(), CudaError> {
    let why: &dyn std::error::Error = match result {
        Ok(()) => return Ok(()),
        Err(Error::Device(error @ CudaError::TooLittleMemory { .. })) => error,
        Err(Error::Device(error)) => return Err(error.clone()),
        Err(error) => error,
    };
    println!("{name}: {why}");
    Ok(())
}
