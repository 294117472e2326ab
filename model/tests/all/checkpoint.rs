//! What the tests of this crate share: weights out of safetensors files, and random ones.

use attar_checkpoint::{Dtype, decode_floats};
use attar_model::{LoadError, ModelConfig, Weights};
use ndarray::ArrayD;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Everything in one folder's safetensors files, decoded.
pub struct Folder(HashMap<String, ArrayD<f32>>);

pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn config(folder: &Path) -> ModelConfig {
    let json = serde_json::from_slice(&read(&folder.join("config.json"))).unwrap();
    ModelConfig::from_hf(&json).unwrap()
}

pub fn floats(view: &safetensors::tensor::TensorView<'_>) -> ArrayD<f32> {
    let dtype = match view.dtype() {
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::BF16 => Dtype::Bf16,
        other => panic!("{other:?}"),
    };
    ArrayD::from_shape_vec(view.shape(), decode_floats(dtype, view.data()).unwrap()).unwrap()
}

impl Folder {
    pub fn open(folder: &Path) -> Self {
        let mut tensors = HashMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("model") && path.extension().is_some_and(|end| end == "safetensors") {
                let bytes = read(&path);
                let file = SafeTensors::deserialize(&bytes).unwrap();
                tensors.extend(file.tensors().iter().map(|(name, view)| (name.clone(), floats(view))));
            }
        }
        Self(tensors)
    }

    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.0.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

impl Weights for Folder {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        self.0.get(name).cloned().ok_or_else(|| format!("there is no `{name}`").into())
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// The golden vectors' folder.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/golden/model")
}
