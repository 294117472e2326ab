//! Whole blocks on the device, of random weights in the shape of 8B and 70B models: what a forward pass, a calibration and streaming
//! reach. Rates are beside 790 TFLOP/s, what an H100's best bf16 products reach.

use super::{line, random, seconds};
use attar::pipeline::on_device::DeviceStream;
use attar::source::hash_floats;
use attar_model::device::{
    Aim, AllTurns, Cuda, CudaError, DeviceBlock, OnCuda, OwnParts, Work, stored_matrix,
};
use attar_model::{
    Block, Device, Error, HiddenStates, Keeping, KeptFloat, LoadError, ModelConfig, Precision, Role,
    Streaming, Tap, Weights, Windows, streamed_hidden_states,
};
use attar_quant::{
    DeviceFactor, DeviceSolution, Gptq, GridEncoding as _, IntEncoding, Settings, Solver as _, Step,
};
use attar_tensor::cuda::{Matrix, Width, bf16};
use ndarray::{Array2, ArrayD, IxDyn};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

const CTX: usize = 2048;
/// TFLOP/s.
const BEST: f64 = 790.0;

fn config(hidden: usize, intermediate: usize, heads: usize, layers: usize) -> Result<ModelConfig, Error> {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": intermediate,
        "num_attention_heads": heads, "num_key_value_heads": 8, "num_hidden_layers": layers, "vocab_size": 32_000,
        "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "max_position_embeddings": 8192, "tie_word_embeddings": false,
    });
    ModelConfig::from_hf(&json)
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

/// 8B blocks: the forward, then all of a GPTQ at 128 windows in w4a16-g128, as the pipeline does it but for the files; the first two warm up.
fn eight(cuda: &Cuda) -> Result<(), Error> {
    let config = config(4096, 14_336, 32, 4)?;
    let weights = Random::of(&config);
    let turns = AllTurns::new(cuda, &config, CTX)?;
    {
        let block = Block::load(&config, 0, &weights)?;
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
    let grams =
        [4096.0f64, 4096.0, 4096.0, 14_336.0].iter().map(|n| n * n).sum::<f64>() * tokens as f64 * 1e-12;
    let amount = block_teraflops(&config, tokens) + grams;
    std::thread::scope(|scope| {
        let (to, solved) = sync_channel(4);
        scope.spawn(move || write_nowhere(solved));
        for (layer, width) in [Width::F64, Width::F32, Width::F64, Width::F32].into_iter().enumerate() {
            let spent = coded(&mut stream, &config, (&weights, layer), width, &to)?;
            if layer < 2 {
                continue;
            }
            for name in PARTS {
                share(&format!("8B block, factored in {width:?}: {name}"), spent.part(name), 25.0 / 32.0);
            }
            let observed = spent.part(OBSERVE) + spent.part(FINISH);
            line("8B block, forward and Gram matrices, 128 windows", observed, amount, "TFLOP/s", BEST);
            share(&format!("8B block, factored in {width:?}: all of it"), spent.total(), 25.0 / 32.0);
            share(&format!("32 such blocks, factored in {width:?}"), 32.0 * spent.total(), 25.0);
        }
        Ok(())
    })
}

/// Packs and hashes what would be written, as the pipeline does beside the device's work.
fn write_nowhere(solved: Receiver<Solved>) {
    let encoding = IntEncoding::symmetric(4, 128);
    for (grid, codes) in solved {
        let hash = || {
            let mut hash = Sha256::new();
            hash_floats(&mut hash, grid.decode_all(codes.view()).as_slice().unwrap_or_default());
            hash.finalize()
        };
        black_box(rayon::join(hash, || encoding.pack(&grid, codes.view())));
    }
}

/// What comes back of a matrix.
type Solved = (attar_quant::Grid, Array2<u8>);

#[expect(clippy::print_stdout, reason = "a benchmark's output")]
fn share(name: &str, seconds: f64, of: f64) {
    println!("{name:<58} {:>9.1} ms {:>5.1} % of {of:.2} s", seconds * 1e3, 100.0 * seconds / of);
}

const OBSERVE: &str = "observe";
const FINISH: &str = "finish";
const BEHIND: &str = "waiting for what is written";
const PARTS: [&str; 10] = [
    OBSERVE,
    "weights to the device",
    "factor",
    "search",
    "pass",
    "descent",
    "facts",
    "codes to the host",
    FINISH,
    BEHIND,
];

/// Where the time goes, by the name of the part.
struct Spent(Vec<(&'static str, f64)>, Instant);

impl Spent {
    fn mark(&mut self, cuda: &Cuda, name: &'static str) -> Result<(), CudaError> {
        cuda.wait()?;
        self.0.push((name, self.1.elapsed().as_secs_f64()));
        self.1 = Instant::now();
        Ok(())
    }

    fn part(&self, name: &str) -> f64 {
        self.0.iter().filter(|(part, _)| *part == name).map(|(_, taken)| taken).sum()
    }

    fn total(&self) -> f64 {
        self.0.iter().map(|(_, taken)| taken).sum()
    }
}

/// All of one block but the disk.
fn coded(
    stream: &mut DeviceStream<bf16>,
    config: &ModelConfig,
    (weights, layer): (&Random, usize),
    width: Width,
    to: &SyncSender<Solved>,
) -> Result<Spent, Error> {
    let (cuda, encoding) = (stream.on().cuda.clone(), IntEncoding::symmetric(4, 128));
    let Some(solver) = Gptq::DEFAULT.on_device() else { unreachable!("gptq has a twin there") };
    let stages: [(Tap, &[Role]); 4] = [
        (Tap::AttnIn, &[Role::Q, Role::K, Role::V]),
        (Tap::AttnOut, &[Role::O]),
        (Tap::MlpIn, &[Role::Gate, Role::Up]),
        (Tap::MlpMid, &[Role::Down]),
    ];
    cuda.wait()?;
    let mut spent = Spent(Vec::new(), Instant::now());
    stream.enter_next(weights)?;
    for (tap, roles) in stages {
        let Some(seen) = stream.observe(tap, Some(config.tap_features(tap)))? else { continue };
        spent.mark(&cuda, OBSERVE)?;
        let factor = DeviceFactor::new(&cuda, &seen, Settings::default(), width)?;
        for &role in roles {
            let Some(spec) = config.tensor(role, Some(layer)) else { continue };
            let w = stored_matrix(&cuda, &spec, weights)?;
            spent.mark(&cuda, "weights to the device")?;
            let mut done = |step| {
                let name = match step {
                    Step::Factor => "factor",
                    Step::Search => "search",
                    Step::Pass => "pass",
                    Step::Descent => "descent",
                    Step::Facts => "facts",
                    Step::Codes => "codes to the host",
                };
                spent.mark(&cuda, name)
            };
            let solution = solver.solve(w.view(), &factor, &encoding, &mut done);
            let DeviceSolution { grid, codes, decoded, .. } = solution.map_err(|error| match error {
                attar_quant::Error::Device(error) => error,
                other => unreachable!("random weights: {other}"),
            })?;
            stream.take(role, decoded);
            let _ = to.send((grid, codes));
            spent.mark(&cuda, BEHIND)?;
        }
    }
    stream.finish()?;
    spent.mark(&cuda, FINISH)?;
    Ok(spent)
}

/// Seconds in which 16 windows pass through so many 70B blocks streamed from memory, within `limit` bytes of the device.
fn streamed(ordinal: usize, limit: u64, layers: usize) -> Result<(f64, ModelConfig), Error> {
    let config = config(8192, 28_672, 64, layers)?;
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
    let start = Instant::now();
    streamed_hidden_states(&config, &weights, &windows, &streaming, &mut |_| ())?;
    Ok((start.elapsed().as_secs_f64(), config))
}

/// A 70B block: what eight take beyond two, which leaves out the embedding, the first way there and the last one back.
fn seventy(ordinal: usize, limit: u64) -> Result<(), Error> {
    let tokens = 16 * CTX;
    streamed(ordinal, limit, 2)?; // compiles, and takes the host's memory once
    let [few, many] = [2, 8].map(|layers| streamed(ordinal, limit, layers));
    let ((few, config), (many, _)) = (few?, many?);
    let name = format!("70B block, streamed, {tokens} tokens, {} GB", limit / 1_000_000_000);
    line(&name, (many - few) / 6.0, block_teraflops(&config, tokens), "TFLOP/s", BEST);
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
