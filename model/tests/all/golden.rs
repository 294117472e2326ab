//! The forward pass against transformers, on tiny random models of every family and on trained ones.

use crate::checkpoint::{Folder, config, floats, golden, read};
use attar_model::{
    AttentionScale, FAMILIES, Head, ModelConfig, RopeScaling, Weights, Windows, hidden_states,
};
use attar_tensor::Precision;
use attar_tensor::op::log_sum_exp;
use ndarray::{Array2, ArrayD};
use safetensors::SafeTensors;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How far a log-probability may be from transformers', both in f32.
const ALLOWED: f32 = 1e-4;

/// Tokens and log-probabilities as the script stored them.
fn expected(path: &Path) -> (Windows, ArrayD<f32>) {
    let bytes = read(path);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    let ids = tokens.data().as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
    (Windows::new(tokens.shape()[1], ids), floats(&file.tensor("log_probs").unwrap()))
}

/// Log-probabilities of all tokens at all positions, `[tokens, vocab_size]`.
fn log_probs(config: &ModelConfig, weights: &dyn Weights, windows: &Windows) -> Array2<f32> {
    let hidden = hidden_states(config, weights, windows, Precision::F32, &mut |_| ()).unwrap();
    let head = Head::load(config, weights).unwrap();
    let mut logits = head.logits(head.norm(hidden.view()).view());
    for mut row in logits.outer_iter_mut() {
        let (largest, rest) = log_sum_exp(row.view());
        row.mapv_inplace(|x| (f64::from(x - largest) - rest) as f32);
    }
    logits
}

fn random_models() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.join("config.json").exists()).collect();
    folders.sort();
    folders
}

#[test]
fn every_family_has_a_golden_model() {
    let covered: BTreeSet<_> = random_models().iter().map(|folder| config(folder).family.name).collect();
    assert_eq!(covered, FAMILIES.iter().map(|family| family.name).collect());
}

#[test]
fn random_models_agree_with_transformers() {
    for folder in random_models() {
        let (windows, expected) = expected(&folder.join("expected.safetensors"));
        let found = log_probs(&config(&folder), &Folder::open(&folder), &windows);
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < ALLOWED, "{}: {worst:e}", folder.display());
    }
}

/// A golden model that an option does not change could not show that the option is computed.
#[test]
fn every_option_of_a_golden_model_matters() {
    type Forget = (&'static str, fn(&mut ModelConfig));
    let options: [Forget; 18] = [
        ("rope_theta", |config| config.rope_theta *= 2.0),
        ("rms_norm_eps", |config| config.rms_norm_eps += 1e-2),
        ("rope_scaling", |config| config.rope_scaling = None),
        ("sliding_window", |config| config.sliding_windows.fill(None)),
        ("attention_bias", |config| config.attention_bias = false),
        ("mlp_bias", |config| config.mlp_bias = false),
        ("partial_rotary_factor", |config| {
            if config.rope_scaling.is_none() {
                config.rotary_dim = config.head_dim;
            }
        }),
        ("rope_local_base_freq", |config| config.local_rope_theta = None),
        ("no_rope_layers", |config| config.rope_layers.fill(true)),
        ("attention_scale", |config| config.attention_scale = AttentionScale::InverseRoot(config.head_dim)),
        ("attn_logit_softcapping", |config| config.attention_cap = None),
        ("final_logit_softcapping", |config| config.logit_cap = None),
        ("embedding_multiplier", |config| config.embedding_multiplier = 1.0),
        ("residual_multiplier", |config| config.residual_multiplier = 1.0),
        ("logits_scaling", |config| config.logits_scaling = 1.0),
        ("norm_topk_prob", |config| {
            config.experts.iter_mut().for_each(|e| e.norm_topk_prob = !e.norm_topk_prob);
        }),
        ("num_experts_per_tok", |config| {
            config.experts.iter_mut().for_each(|e| e.num_experts_per_tok -= 1);
        }),
        ("attention_factor", |config| {
            if let Some(RopeScaling::LongRope(long)) = &mut config.rope_scaling {
                long.attention_factor = 1.0;
            }
        }),
    ];
    for folder in random_models() {
        let (windows, expected) = expected(&folder.join("expected.safetensors"));
        for (option, forget) in options {
            let mut config = config(&folder);
            let before = config.clone();
            forget(&mut config);
            if config == before {
                continue;
            }
            let found = log_probs(&config, &Folder::open(&folder), &windows);
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst > 20.0 * ALLOWED, "{} does not depend on {option}: {worst:e}", folder.display());
        }
    }
}

#[test]
fn the_list_of_tensors_is_what_a_checkpoint_holds() {
    for folder in random_models() {
        let specs = config(&folder).tensors();
        let mut names: Vec<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
        names.sort_unstable();
        let weights = Folder::open(&folder);
        assert_eq!(names, weights.names(), "{}", folder.display());
        for spec in &specs {
            assert_eq!(weights.load(&spec.name).unwrap().shape(), spec.shape, "{}", spec.name);
        }
    }
}

#[test]
fn trained_models_agree_with_transformers() {
    let shared = std::env::var_os("ATTAR_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    for name in ["stories260K", "books-7m", "books-7m-sharded"] {
        let folder = shared.join("models").join(name);
        if !folder.exists() {
            skipped(&format!("{} is not there", folder.display()));
            continue;
        }
        let (windows, expected) = expected(&golden().join("trained").join(format!("{name}.safetensors")));
        let found = log_probs(&config(&folder), &Folder::open(&folder), &windows);
        let ctx = windows.ctx();
        let targets = (0..found.nrows()).filter(|position| (position + 1) % ctx != 0);
        let found: Vec<_> =
            targets.map(|position| found[[position, windows.tokens()[position + 1] as usize]]).collect();
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < ALLOWED, "{name}: {worst:e}");
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test must be seen to be skipped")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
