//! Checkpoints made from the fixture model, whole ones laid out otherwise and damaged ones.

use std::fs;
use std::path::{Path, PathBuf};

use attar_checkpoint::{Container, gguf};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use crate::place::{Place, fixture};

/// The fixture's only file of weights.
pub const WEIGHTS: &str = "model.safetensors";
/// What its shards are called.
pub const SHARDS: [&str; 3] = [
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
];
/// A matrix of the fixture, bf16, `[256, 256]`.
pub const MATRIX: &str = "model.layers.0.self_attn.q_proj.weight";

/// A copy of the fixture model under `name`, to be changed.
pub fn copy(place: &Place, name: &str) -> PathBuf {
    let copy = place.at(name);
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(fixture("books-2m")).unwrap() {
        let entry = entry.unwrap();
        fs::write(copy.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
    copy
}

/// A copy of the fixture model in three shards behind an index.
pub fn sharded(place: &Place, name: &str) -> PathBuf {
    let copy = copy(place, name);
    let whole = fs::read(copy.join(WEIGHTS)).unwrap();
    fs::remove_file(copy.join(WEIGHTS)).unwrap();
    let mut tensors: Vec<(String, TensorView<'_>)> = SafeTensors::deserialize(&whole).unwrap().tensors();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut weight_map = Map::new();
    for (shard, tensors) in SHARDS.iter().zip(tensors.chunks(tensors.len().div_ceil(SHARDS.len()))) {
        weight_map.extend(tensors.iter().map(|(name, _)| (name.clone(), json!(shard))));
        safetensors::serialize_to_file(tensors.iter().cloned(), None, &copy.join(shard)).unwrap();
    }
    let index = json!({"metadata": {"total_size": whole.len()}, "weight_map": weight_map});
    fs::write(copy.join("model.safetensors.index.json"), index.to_string()).unwrap();
    copy
}

/// A copy of the fixture model whose embedding has `more` rows of zeros behind its own.
pub fn with_more_rows(place: &Place, name: &str, more: usize) -> PathBuf {
    const EMBEDDING: &str = "model.embed_tokens.weight";
    let copy = copy(place, name);
    let file = fs::read(copy.join(WEIGHTS)).unwrap();
    let weights = SafeTensors::deserialize(&file).unwrap();
    let embedding = weights.tensor(EMBEDDING).unwrap();
    let [rows, cols]: [usize; 2] = embedding.shape().try_into().unwrap();
    let padded = [embedding.data(), &vec![0; embedding.data().len() / rows * more]].concat();
    let padded = TensorView::new(embedding.dtype(), vec![rows + more, cols], &padded).unwrap();
    let tensors =
        weights.iter().map(|(name, view)| (name, if name == EMBEDDING { padded.clone() } else { view }));
    safetensors::serialize_to_file(tensors, None, &copy.join(WEIGHTS)).unwrap();
    edit_json(&copy.join("config.json"), |config| config["vocab_size"] = json!(rows + more));
    copy
}

/// A copy of the fixture model whose configuration is as transformers 5 writes it.
pub fn transformers_5(place: &Place, name: &str) -> PathBuf {
    let copy = copy(place, name);
    edit_json(&copy.join("config.json"), |config| {
        let dtype = config.shift_remove("torch_dtype").unwrap();
        let theta = config.shift_remove("rope_theta").unwrap();
        config.shift_remove("rope_scaling");
        config.insert("dtype".to_owned(), dtype);
        config.insert("rope_parameters".to_owned(), json!({"rope_theta": theta, "rope_type": "default"}));
        config.insert("transformers_version".to_owned(), json!("5.0.0"));
    });
    copy
}

/// A copy of the fixture model whose rotary frequencies are stretched as those of Llama 3.1.
pub fn llama_3_1(place: &Place, name: &str) -> PathBuf {
    let copy = copy(place, name);
    edit_json(&copy.join("config.json"), |config| {
        config["rope_scaling"] = json!({
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        });
    });
    copy
}

/// Changes a file that holds a JSON object.
pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let mut object: Map<String, Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut object);
    fs::write(path, Value::Object(object).to_string()).unwrap();
}

/// Changes one tensor's entry in the header of `model`'s weights.
pub fn edit_entry(model: &Path, tensor: &str, edit: impl FnOnce(&mut Value)) {
    edit_weights(model, |header, _| edit(&mut header[tensor]));
}

/// Changes the header and the data of `model`'s weights, and keeps the header's length honest.
pub fn edit_weights(model: &Path, edit: impl FnOnce(&mut Map<String, Value>, &mut [u8])) {
    let path = model.join(WEIGHTS);
    let mut file = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&file[8..8 + header_len]).unwrap();
    edit(&mut header, &mut file[8 + header_len..]);
    let json = Value::Object(header).to_string();
    let parts = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &file[8 + header_len..]];
    fs::write(path, parts.concat()).unwrap();
}

/// Sets one value of a bf16 tensor of `model`.
pub fn set_value(model: &Path, tensor: &str, index: usize, bf16: u16) {
    edit_weights(model, |header, data| {
        assert_eq!(header[tensor]["dtype"], "BF16");
        let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start + 2 * index..][..2].copy_from_slice(&bf16.to_le_bytes());
    });
}

/// Changes the bytes of one tensor of a GGUF file.
pub fn edit_gguf(path: &Path, tensor: &str, edit: impl FnOnce(&mut [u8])) {
    let data = gguf::File::open(path).unwrap().bytes(tensor).unwrap().to_vec();
    let mut file = fs::read(path).unwrap();
    let at = file.windows(data.len()).position(|window| *window == data).unwrap();
    edit(&mut file[at..at + data.len()]);
    fs::write(path, file).unwrap();
}

/// Overwrites bytes of a file from `at` on.
pub fn overwrite(path: &Path, at: usize, bytes: &[u8]) {
    let mut file = fs::read(path).unwrap();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, file).unwrap();
}

/// Cuts a file off after half of it.
pub fn cut_in_half(path: &Path) {
    let file = fs::read(path).unwrap();
    fs::write(path, &file[..file.len() / 2]).unwrap();
}

/// The first bytes of a GGUF file that announces these counts, and nothing behind them but zeros.
pub fn gguf_announcing(tensors: u64, metadata: u64) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(tensors.to_le_bytes());
    file.extend(metadata.to_le_bytes());
    file.resize(4096, 0);
    file
}

/// A safetensors file of zeros: names, types, shapes and bytes; `texts` is its `__metadata__`.
pub fn safetensors_of_zeros(path: &Path, tensors: &[(&str, &str, &[u64], u64)], texts: &Value) {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), texts.clone());
    let mut at = 0;
    for (name, dtype, shape, bytes) in tensors {
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes]});
        header.insert((*name).to_owned(), entry);
        at += bytes;
    }
    let header = Value::Object(header).to_string();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(8 + header.len() as u64 + at).unwrap();
}
