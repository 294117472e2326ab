//! What the tests of this crate share: the golden models' weights, and models run over a few tokens.

use attar_checkpoint::{Dtype, decode_floats};
use attar_model::{Head, LoadError, ModelConfig, Precision, Weights, Windows, hidden_states};
use ndarray::{Array2, ArrayD};
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Everything in one file, decoded.
pub struct File(HashMap<String, ArrayD<f32>>);

impl Weights for File {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        self.0.get(name).cloned().ok_or_else(|| format!("there is no `{name}`").into())
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// A golden model.
pub struct Model {
    pub name: String,
    pub config: ModelConfig,
    pub weights: File,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

fn open(folder: &Path) -> Model {
    let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            other => panic!("{other:?}"),
        };
        (name, ArrayD::from_shape_vec(view.shape(), decode_floats(dtype, view.data()).unwrap()).unwrap())
    });
    Model {
        name: folder.file_name().unwrap().to_string_lossy().into_owned(),
        config: ModelConfig::from_hf(&config).unwrap(),
        weights: File(tensors.collect()),
    }
}

/// The golden model of a name.
pub fn golden(name: &str) -> Model {
    open(&fixtures().join("golden/model").join(name))
}

/// The trained fixture model.
pub fn books_2m() -> Model {
    open(&fixtures().join("books-2m"))
}

/// All golden models; norms add next to nothing to the mean square, so that a mean over fewer features differs by a factor only.
pub fn golden_models() -> Vec<Model> {
    let entries =
        std::fs::read_dir(fixtures().join("golden/model")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.join("config.json").exists()).collect();
    folders.sort();
    let mut models: Vec<_> = folders.iter().map(|folder| open(folder)).collect();
    for model in &mut models {
        model.config.rms_norm_eps = 1e-20;
    }
    models
}

/// Tokens of no meaning, below `vocab_size`.
pub fn windows(ctx: usize, count: usize, vocab_size: usize) -> Windows {
    let tokens = (0..ctx * count).map(|i| ((i * i * 31 + i * 17 + 5) % vocab_size) as u32);
    Windows::new(ctx, tokens.collect())
}

/// `[tokens, vocab_size]`.
pub fn logits(config: &ModelConfig, weights: &dyn Weights, windows: &Windows) -> Array2<f32> {
    let hidden = hidden_states(config, weights, windows, Precision::F32, &mut |_| ()).unwrap();
    let head = Head::load(config, weights).unwrap();
    head.logits(head.norm(hidden.view()).view())
}

/// What `compute` gives, once it has been the same in pools of several sizes.
#[track_caller]
pub fn in_pools<T: PartialEq + std::fmt::Debug + Send>(compute: impl Fn() -> T + Sync) -> T {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(&compute)
    };
    let one = run(1);
    for threads in [2, 5] {
        assert_eq!(run(threads), one, "{threads} threads");
    }
    one
}
