//! What the forward pass promises whatever the numbers are.

use crate::checkpoint::{Folder, config, golden};
use attar_model::{Block, Error, LoadError, ModelConfig, Role, Tap, Weights, Windows, embed, hidden_states};
use attar_tensor::Precision;
use ndarray::{Array2, ArrayD, Ix2, s};

/// Models that between them have every option.
const NAMES: [&str; 9] = [
    "llama-biased",
    "mistral-sliding",
    "qwen2",
    "qwen3-biased-sliding",
    "gemma2-biased",
    "phi3-long",
    "olmo2",
    "smollm3-sliding",
    "granite",
];

/// Models whose MLPs are experts, in all layers or in some.
const WITH_EXPERTS: [&str; 3] = ["mixtral", "mixtral-sliding", "qwen3-moe-mixed"];

const CTX: usize = 11;

fn windows(count: usize) -> Windows {
    Windows::new(CTX, (0..count * CTX).map(|i| (i * i * 7 + i * 3) as u32 % 64).collect())
}

fn states(config: &ModelConfig, weights: &dyn Weights, windows: &Windows) -> Vec<u32> {
    let hidden = hidden_states(config, weights, windows, Precision::F32, &mut |_| ()).unwrap();
    hidden.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn stages_called_one_by_one_equal_the_whole_block() {
    for name in NAMES {
        let (config, weights) = (config(&golden().join(name)), Folder::open(&golden().join(name)));
        let mut whole = embed(&config, &weights, windows(3).tokens()).unwrap();
        let mut staged = whole.clone();
        for layer in 0..config.num_hidden_layers {
            let block = Block::load(&config, layer, &weights).unwrap();
            block.forward(&mut whole, CTX);
            let attn_in = block.attn_in(staged.view());
            let attn_out = block.attn_out(attn_in.view(), CTX);
            block.add_attn(staged.view_mut(), attn_out.view());
            let mlp_in = block.mlp_in(staged.view());
            let mlp_mid = block.mlp_mid(mlp_in.view());
            block.add_mlp(staged.view_mut(), mlp_mid.view());
            assert_eq!(whole, staged, "{name}, layer {layer}");
            let taps = [
                (Tap::AttnIn, &attn_in),
                (Tap::AttnOut, &attn_out),
                (Tap::MlpIn, &mlp_in),
                (Tap::MlpMid, &mlp_mid),
            ];
            for (tap, activation) in taps {
                assert_eq!(activation.ncols(), config.tap_features(tap), "{name}, {tap:?}");
            }
        }
    }
}

#[test]
fn a_window_does_not_depend_on_the_windows_beside_it() {
    for name in NAMES.into_iter().chain(WITH_EXPERTS) {
        let (config, weights) = (config(&golden().join(name)), Folder::open(&golden().join(name)));
        // More windows than are taken through a block at a time.
        let all = windows(500);
        let together = states(&config, &weights, &all);
        for window in [0, 1, 250, 499] {
            let tokens = all.tokens()[window * CTX..(window + 1) * CTX].to_vec();
            let alone = states(&config, &weights, &Windows::new(CTX, tokens));
            let at = window * CTX * config.hidden_size;
            assert_eq!(alone, together[at..at + alone.len()], "{name}, window {window}");
        }
    }
}

#[test]
fn a_token_does_not_depend_on_the_tokens_after_it() {
    let (config, weights) = (config(&golden().join("qwen3")), Folder::open(&golden().join("qwen3")));
    let mut tokens = windows(1).tokens().to_vec();
    let before = states(&config, &weights, &Windows::new(CTX, tokens.clone()));
    tokens[7] += 1;
    let after = states(&config, &weights, &Windows::new(CTX, tokens));
    assert_eq!(before[..7 * config.hidden_size], after[..7 * config.hidden_size]);
    assert_ne!(before[7 * config.hidden_size..], after[7 * config.hidden_size..]);
}

#[test]
fn threads_never_change_a_bit_of_the_hidden_states() {
    for name in NAMES.into_iter().chain(WITH_EXPERTS) {
        let (config, weights) = (config(&golden().join(name)), Folder::open(&golden().join(name)));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| states(&config, &weights, &windows(300)))
        };
        assert!((2..4).all(|threads| run(threads) == run(1)), "{name}");
    }
}

#[test]
fn a_changed_weight_is_used_from_its_stage_on() {
    let (config, weights) = (config(&golden().join("qwen2")), Folder::open(&golden().join("qwen2")));
    let hidden = embed(&config, &weights, windows(2).tokens()).unwrap();
    let mut block = Block::load(&config, 0, &weights).unwrap();
    let attn_in = block.attn_in(hidden.view());
    let before = block.attn_out(attn_in.view(), CTX);
    block.weight_mut(Role::V).fill(0.0);
    let after = block.attn_out(attn_in.view(), CTX);
    assert_ne!(before, after);
    // With v's weight gone its bias alone is left, the same for all tokens.
    let mut bias = Array2::zeros(after.raw_dim());
    for head in 0..config.num_attention_heads {
        let kv = head / (config.num_attention_heads / config.num_key_value_heads);
        let values = block
            .linear(Role::V)
            .bias
            .as_ref()
            .unwrap()
            .slice(s![kv * config.head_dim..(kv + 1) * config.head_dim])
            .to_owned();
        bias.slice_mut(s![.., head * config.head_dim..(head + 1) * config.head_dim]).assign(&values);
    }
    assert!((after - bias).iter().all(|x| x.abs() < 1e-6));
}

#[test]
fn a_stored_matrix_is_its_parts_one_below_the_other() {
    let (config, weights) = (config(&golden().join("phi3")), Folder::open(&golden().join("phi3")));
    let mut block = Block::load(&config, 1, &weights).unwrap();
    for role in [Role::Qkv, Role::GateUp, Role::O, Role::Down] {
        let name = config.tensor(role, Some(1)).unwrap().name;
        let stored = weights.load(&name).unwrap().into_dimensionality::<Ix2>().unwrap();
        assert_eq!(block.stored(role), stored, "{name}");
        block.set_stored(role, (&stored * 2.0).view());
        assert_eq!(block.stored(role), stored * 2.0, "{name}");
    }
    let keys = s![config.query_size()..config.query_size() + config.key_value_size(), ..];
    assert_eq!(block.linear(Role::K).weight.view(), block.stored(Role::Qkv).slice(keys));
}

/// A checkpoint with one tensor missing or of another shape.
struct Damaged {
    folder: Folder,
    name: &'static str,
    shape: Option<&'static [usize]>,
}

impl Weights for Damaged {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        match self.shape {
            Some(shape) if name == self.name => Ok(ArrayD::zeros(shape)),
            None if name == self.name => Err("there is no such tensor".into()),
            _ => self.folder.load(name),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.folder.has(name)
    }
}

fn error_with(name: &'static str, shape: Option<&'static [usize]>) -> Error {
    let folder = golden().join("qwen2");
    let damaged = Damaged { folder: Folder::open(&folder), name, shape };
    hidden_states(&config(&folder), &damaged, &windows(1), Precision::F32, &mut |_| ()).unwrap_err()
}

#[test]
fn a_missing_tensor_is_named() {
    let error = error_with("model.layers.1.mlp.up_proj.weight", None);
    assert_eq!(error.to_string(), "cannot load tensor `model.layers.1.mlp.up_proj.weight`");
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    for shape in [&[32, 48][..], &[48 * 32], &[48, 32, 1]] {
        let error = error_with("model.layers.0.mlp.up_proj.weight", Some(shape));
        let expected = format!(
            "tensor `model.layers.0.mlp.up_proj.weight` has shape {shape:?}, the configuration says [48, 32]"
        );
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_before_anything_is_loaded() {
    let folder = golden().join("qwen2");
    let damaged = Damaged { folder: Folder::open(&folder), name: "model.embed_tokens.weight", shape: None };
    let error = embed(&config(&folder), &damaged, &[3, 64]).unwrap_err();
    assert_eq!(error.to_string(), "token 64 at position 1 is not below 64, the vocabulary size");
}

/// In bf16 every stage takes the rounded weight, and what is left is close to f32: the stream, the norms, the attention and
/// all sums are.
#[test]
fn a_packed_block_stays_near_the_one_it_was_packed_from() {
    for name in NAMES {
        let (config, weights) = (config(&golden().join(name)), Folder::open(&golden().join(name)));
        let exact = hidden_states(&config, &weights, &windows(3), Precision::F32, &mut |_| ()).unwrap();
        let rounded = hidden_states(&config, &weights, &windows(3), Precision::Bf16, &mut |_| ()).unwrap();
        let norm = |x: &Array2<f32>| x.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        let lost = norm(&(&rounded - &exact)) / norm(&exact);
        assert!(lost > 0.0 && lost < 1e-2, "{name}: {lost:e}");
    }
}

#[test]
fn threads_and_windows_beside_it_never_change_a_bit_of_a_packed_block() {
    let (config, weights) = (config(&golden().join("qwen3")), Folder::open(&golden().join("qwen3")));
    let states = |windows: &Windows| {
        let hidden = hidden_states(&config, &weights, windows, Precision::Bf16, &mut |_| ()).unwrap();
        hidden.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    let all = windows(300);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| states(&all))
    };
    let one = run(1);
    assert!((2..4).all(|threads| run(threads) == one));
    for window in [0, 150, 299] {
        let tokens = all.tokens()[window * CTX..(window + 1) * CTX].to_vec();
        let alone = states(&Windows::new(CTX, tokens));
        let at = window * CTX * config.hidden_size;
        assert_eq!(alone, one[at..at + alone.len()], "window {window}");
    }
}
