//! Blocks and whole models over the CUDA device against the CPU's, on tiny random models of every dense family.

use crate::checkpoint::{Folder, config, golden};
use crate::machines::{machines, on_every_machine};
use attar_model::device::{
    self, Aim, AllTurns, Cuda, DeviceBlock, DeviceHead, DeviceHidden, DevicePlace, OnCuda, OwnParts, Work,
};
use attar_model::{
    Block, Device, Error, FAMILIES, Head, HeadSource, HiddenStates, LoadError, ModelConfig, Streaming, Tap,
    Weights, Windows, embed, streamed_hidden_states,
};
use attar_tensor::Precision;
use attar_tensor::cuda::{Element, bf16};
use attar_tensor::op::log_sum_exp;
use ndarray::{Array2, ArrayD};
use std::collections::{BTreeSet, HashMap};

/// Models without experts, which between them have every option.
pub const NAMES: [&str; 14] = [
    "llama-1",
    "llama-biased",
    "mistral-sliding",
    "qwen2-sliding",
    "qwen3-biased-sliding",
    "gemma2",
    "gemma2-biased",
    "gemma3",
    "phi3",
    "phi3-long",
    "olmo2",
    "smollm3-sliding",
    "granite",
    "granite-biased",
];

pub const CTX: usize = 11;

pub fn windows(count: usize) -> Windows {
    Windows::new(CTX, (0..count * CTX).map(|i| (i * i * 7 + i * 3) as u32 % 64).collect())
}

pub fn on(cuda: &Cuda, config: &ModelConfig, place: DevicePlace, windows_at_once: u64, heads: u64) -> OnCuda {
    let (aim, precision) = (Aim::Evaluate { heads }, Precision::F32);
    let work = Work { tokens: 4 * CTX as u64, ctx: CTX as u64, aim, precision };
    let mut on = OnCuda::plan(cuda, config, work).unwrap();
    (on.plan.hidden, on.plan.windows_at_once) = (place, windows_at_once);
    on
}

/// The distance of two matrices in units of the second's size.
pub fn distance(found: &Array2<f32>, truth: &Array2<f32>) -> f64 {
    assert_eq!(found.dim(), truth.dim());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut found.iter().zip(truth).map(|(a, b)| f64::from(a - b)));
    off / norm(&mut truth.iter().map(|&x| f64::from(x)))
}

#[test]
fn every_family_without_experts_has_a_model_here() {
    let covered: BTreeSet<_> = NAMES.iter().map(|name| config(&golden().join(name)).family.name).collect();
    let dense = FAMILIES.iter().filter(|family| family.experts.is_none());
    assert_eq!(covered, dense.map(|family| family.name).collect());
}

/// Every tap and the output of each block of a model, each from the CPU's hidden states.
fn blocks<T: Element>(cuda: &Cuda, name: &str, limit: f64) {
    let (config, weights) = (config(&golden().join(name)), Folder::open(&golden().join(name)));
    let turns = AllTurns::new(cuda, &config, CTX).unwrap();
    let mut hidden = embed(&config, &weights, windows(3).tokens()).unwrap();
    for layer in 0..config.num_hidden_layers {
        let block = Block::load(&config, layer, &weights).unwrap();
        let own = OwnParts::<T>::of(cuda, &block).unwrap();
        let there = DeviceBlock::of(cuda, &config, layer, &turns, &own);
        let mut stream = cuda.upload::<T>(hidden.view()).unwrap();

        let attn_in = there.attn_in(stream.view()).unwrap();
        let attn_out = there.attn_out(attn_in.view()).unwrap();
        let found_in = cuda.download(attn_in.view()).unwrap();
        there.add_attn(stream.view_mut(), attn_out.view()).unwrap();
        let mlp_in = there.mlp_in(stream.view()).unwrap();
        let mlp_mid = there.mlp_mid(mlp_in.view()).unwrap();
        let found_mlp_in = cuda.download(mlp_in.view()).unwrap();
        there.add_mlp(stream.view_mut(), mlp_mid.view()).unwrap();
        let found = cuda.download(stream.view()).unwrap();

        let truth_in = block.attn_in(hidden.view());
        let truth_out = block.attn_out(truth_in.view(), CTX);
        let before = hidden.clone();
        block.add_attn(hidden.view_mut(), truth_out.view());
        let truth_mlp_in = block.mlp_in(hidden.view());
        let truth_mid = block.mlp_mid(truth_mlp_in.view());
        block.add_mlp(hidden.view_mut(), truth_mid.view());
        let taps = [
            (Tap::AttnIn, &found_in, &truth_in),
            (Tap::AttnOut, &cuda.download(attn_out.view()).unwrap(), &truth_out),
            (Tap::MlpIn, &found_mlp_in, &truth_mlp_in),
            (Tap::MlpMid, &cuda.download(mlp_mid.view()).unwrap(), &truth_mid),
            (Tap::HeadIn, &found, &hidden),
        ];
        for (tap, found, truth) in taps {
            // Half of what a tap may be off by is left of it in the stream.
            let limit = if tap == Tap::HeadIn { limit } else { 2.0 * limit };
            let distance = distance(found, truth);
            assert!(distance <= limit, "{name} {}, layer {layer}, {tap:?}: {distance:e}", T::DEFINITION);
        }

        let mut whole = cuda.upload::<T>(before.view()).unwrap();
        there.forward(whole.view_mut()).unwrap();
        assert_eq!(cuda.download(whole.view()).unwrap(), found, "{name}: stages and the whole");
    }
}

#[test]
fn a_block_of_every_dense_family_over_the_device_equals_the_cpus() {
    on_every_machine(|cuda| {
        for name in NAMES {
            blocks::<f32>(cuda, name, 1e-5);
            blocks::<bf16>(cuda, name, 1e-2);
        }
    });
}

pub fn states(
    config: &ModelConfig,
    weights: &dyn Weights,
    precision: Precision,
    device: Device,
) -> Array2<f32> {
    let streaming = Streaming { precision, device, ..Streaming::default() };
    let hidden = streamed_hidden_states(config, weights, &windows(5), &streaming, &mut |_| ()).unwrap();
    hidden.into_array().unwrap()
}

#[test]
fn a_model_streamed_through_the_device_equals_the_cpus_wherever_hidden_states_stay() {
    on_every_machine(|cuda| {
        for name in NAMES {
            let (config, weights) = (config(&golden().join(name)), Folder::open(&golden().join(name)));
            let truth = states(&config, &weights, Precision::F32, Device::Cpu);
            let run = |precision, place, windows_at_once| {
                let on = on(cuda, &config, place, windows_at_once, 1);
                states(&config, &weights, precision, Device::Cuda(on))
            };
            let found = run(Precision::F32, DevicePlace::Device, 4);
            assert!(distance(&found, &truth) <= 1e-5, "{name}: {:e}", distance(&found, &truth));
            for windows_at_once in [1, 2] {
                let other = run(Precision::F32, DevicePlace::Host, windows_at_once);
                assert!(distance(&other, &found) <= 1e-6, "{name}, {windows_at_once} at once");
            }
            let found = run(Precision::Bf16, DevicePlace::Device, 2);
            assert!(distance(&found, &truth) <= 2e-2, "{name}, bf16: {:e}", distance(&found, &truth));
            assert_eq!(run(Precision::Bf16, DevicePlace::Host, 2), found, "{name}: bf16 survives the way");
        }
    });
}

/// A checkpoint whose blocks' matrices can be had as bf16 bytes only.
struct AsStored {
    folder: Folder,
    bytes: HashMap<String, Vec<u8>>,
}

impl AsStored {
    fn open(config: &ModelConfig, folder: Folder) -> Self {
        let specs = config.tensors().into_iter();
        let matrices = specs.filter(|spec| spec.layer.is_some() && spec.shape.len() == 2);
        let bytes = matrices.map(|spec| {
            let values = folder.load(&spec.name).unwrap();
            (spec.name, values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect())
        });
        Self { bytes: bytes.collect(), folder }
    }
}

impl Weights for AsStored {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        if self.bytes.contains_key(name) {
            Err("there are bytes of it".into())
        } else {
            self.folder.load(name)
        }
    }

    fn bf16_bytes(&self, name: &str) -> Option<&[u8]> {
        self.bytes.get(name).map(Vec::as_slice)
    }

    fn has(&self, name: &str) -> bool {
        self.folder.has(name)
    }
}

#[test]
fn bytes_as_they_are_stored_go_to_the_device_undecoded_where_it_multiplies_in_bf16() {
    on_every_machine(|cuda| {
        let folder = golden().join("phi3");
        let config = config(&folder);
        let stored = AsStored::open(&config, Folder::open(&folder));
        let run = |weights: &dyn Weights, precision| {
            let device = Device::Cuda(on(cuda, &config, DevicePlace::Device, 4, 1));
            let streaming = Streaming { precision, device, ..Streaming::default() };
            let hidden = streamed_hidden_states(&config, weights, &windows(5), &streaming, &mut |_| ());
            hidden.map(|hidden| hidden.into_array().unwrap())
        };
        let decoded = run(&Folder::open(&folder), Precision::Bf16).unwrap();
        assert_eq!(run(&stored, Precision::Bf16).unwrap(), decoded);
        assert!(run(&stored, Precision::F32).is_err(), "f32 reads numbers");
    });
}

#[test]
fn losses_and_divergences_of_a_head_on_the_device_equal_the_cpus() {
    on_every_machine(|cuda| {
        for name in ["gemma2", "granite", "llama-1"] {
            let (config, weights) = (config(&golden().join(name)), Folder::open(&golden().join(name)));
            let hidden = states(&config, &weights, Precision::F32, Device::Cpu);
            let head = Head::load(&config, &weights).unwrap();
            let normed = head.norm(hidden.view());
            let other = &normed * 1.1;
            let targets: Vec<u32> = (0..normed.nrows() as u32).map(|row| row * 5 % 64).collect();
            let log_probs = |normed: &Array2<f32>| {
                let mut logits = head.logits(normed.view()).mapv(f64::from);
                for mut row in logits.outer_iter_mut() {
                    let (largest, rest) = log_sum_exp(row.mapv(|x| x as f32).view());
                    row.mapv_inplace(|x| x - f64::from(largest) - rest);
                }
                logits
            };
            let (p, q) = (log_probs(&normed), log_probs(&other));

            let source = HeadSource::of(&config, &weights).unwrap();
            let there = DeviceHead::load(cuda, &source).unwrap();
            let logits = there.logits(normed.view()).unwrap();
            let losses = there.losses(&logits, &targets).unwrap();
            for (row, (&target, loss)) in targets.iter().zip(&losses.values).enumerate() {
                let truth = -p[[row, target as usize]];
                assert!((loss - truth).abs() <= 1e-5 * truth, "{name}, token {row}: {loss} for {truth}");
            }
            let divergences = there.divergences(&logits, &there.logits(other.view()).unwrap()).unwrap();
            for (row, found) in divergences.values.iter().enumerate() {
                let truth: f64 = p.row(row).iter().zip(q.row(row)).map(|(p, q)| p.exp() * (p - q)).sum();
                // Both differ in the last bits of logits, of which little is left in a divergence.
                assert!((found - truth).abs() <= 1e-4 * truth + 1e-8, "{name}, {row}: {found} for {truth}");
            }
        }
    });
}

#[test]
fn what_the_device_does_not_compute_is_refused_in_words() {
    for (name, what) in [("mixtral", "MLPs made of experts are"), ("qwen3-moe", "MLPs made of experts are")] {
        let error = device::check(&config(&golden().join(name))).unwrap_err();
        assert!(matches!(error, Error::NotOnDevice { .. }) && error.to_string().starts_with(what), "{error}");
    }
    let mut wide = config(&golden().join("llama-1"));
    assert!(device::check(&wide).is_ok());
    wide.head_dim = 512;
    let error = device::check(&wide).unwrap_err().to_string();
    assert_eq!(error, "heads of 512 features, more than 256, are not computed on a CUDA device");
}

#[test]
fn hidden_states_on_the_device_come_back_as_they_went() {
    let Some((_, cuda)) = machines().first() else { return };
    let config = config(&golden().join("llama-1"));
    let values = Array2::from_shape_fn((5 * CTX, 3), |(row, col)| (row * 3 + col) as f32);
    for place in [DevicePlace::Device, DevicePlace::Host] {
        let on = on(cuda, &config, place, 2, 1);
        let mut hidden = DeviceHidden::<f32>::new(&on, HiddenStates::from(values.clone()), CTX).unwrap();
        assert_eq!(hidden.chunks().collect::<Vec<_>>(), [0..22, 22..44, 44..55]);
        let double = |rows: attar_tensor::cuda::RowsMut<'_, f32>| Ok(cuda.scale(rows, 2.0)?);
        hidden.update(22..44, double).unwrap();
        let seen = hidden.read(22..33, |rows| Ok(cuda.download(rows)?)).unwrap();
        assert_eq!(seen, values.slice(ndarray::s![22..33, ..]).mapv(|x| 2.0 * x));
        let back = hidden.into_host().unwrap().into_array().unwrap();
        let expected = |(row, col)| values[[row, col]] * if (22..44).contains(&row) { 2.0 } else { 1.0 };
        assert_eq!(back, Array2::from_shape_fn(values.dim(), expected), "{place:?}");
    }
}
