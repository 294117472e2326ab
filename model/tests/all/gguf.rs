//! A model written as GGUF and read back is the same model.

use crate::checkpoint::{Folder, config, golden};
use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::gguf::{File, Value, Writer};
use attar_checkpoint::{Container, Dtype, TensorInfo, decode_floats};
use attar_model::{LoadError, ModelConfig, Weights, Windows, hidden_states};
use ndarray::{ArrayD, Axis};
use std::path::Path;

/// All golden models that llama.cpp could run.
const NAMES: [&str; 10] = [
    "llama-1",
    "llama-3.1",
    "llama-biased",
    "llama-linear",
    "llama-transformers-5",
    "mistral",
    "mistral-sliding",
    "qwen2",
    "qwen2-sliding",
    "qwen3",
];

fn write(config: &ModelConfig, weights: &dyn Weights, path: &Path) {
    let mut infos = Vec::new();
    let mut data = Vec::new();
    for spec in config.tensors() {
        infos.push(TensorInfo::new(&spec.gguf_name, Dtype::F32, &spec.shape));
        let values = weights.load(&spec.name).unwrap();
        data.push((spec.gguf_name, values.select(Axis(0), &spec.row_order.to_gguf(spec.shape[0]))));
    }
    if let Some(factors) = config.rope_freqs() {
        infos.push(TensorInfo::new("rope_freqs.weight", Dtype::F32, &[factors.len()]));
        data.push((
            "rope_freqs.weight".to_owned(),
            ArrayD::from_shape_vec(vec![factors.len()], factors).unwrap(),
        ));
    }
    let mut writer = Writer::create(path, Overwrite::No, &config.gguf_metadata().unwrap(), &infos).unwrap();
    for (name, values) in data {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write(&name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// A GGUF file under Hugging Face's names and in its order of rows.
struct Read<'a>(&'a ModelConfig, &'a File);

impl Weights for Read<'_> {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        let spec = self.0.tensors().into_iter().find(|spec| spec.name == name).ok_or("no such tensor")?;
        let values = decode_floats(Dtype::F32, self.1.bytes(&spec.gguf_name)?)?;
        let array = ArrayD::from_shape_vec(spec.shape.clone(), values)?;
        Ok(array.select(Axis(0), &spec.row_order.from_gguf(spec.shape[0])))
    }

    fn has(&self, name: &str) -> bool {
        self.0.tensors().iter().any(|spec| spec.name == name)
    }
}

#[test]
fn a_model_survives_gguf_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for name in NAMES {
        let (mut config, weights) = (config(&golden().join(name)), Folder::open(&golden().join(name)));
        // GGUF files of these architectures cannot say that a window slides.
        config.sliding_windows.fill(None);
        let path = folder.path().join(format!("{name}.gguf"));
        write(&config, &weights, &path);
        let file = File::open(&path).unwrap();
        let reread = ModelConfig::from_gguf(&file).unwrap();

        assert_eq!(reread.family.gguf_arch, config.family.gguf_arch);
        assert_eq!(reread.rope_frequencies(), config.rope_frequencies());
        let both_equal = ModelConfig {
            family: config.family,
            rope_scaling: config.rope_scaling.clone(),
            bos_token_id: config.bos_token_id,
            eos_token_ids: config.eos_token_ids.clone(),
            ..reread.clone()
        };
        assert_eq!(both_equal, config, "{name}");

        let windows = Windows::new(10, (0..30).collect());
        let states = |config, weights| hidden_states(config, weights, &windows, &mut |_| ()).unwrap();
        assert_eq!(states(&reread, &Read(&reread, &file)), states(&config, &weights), "{name}");
    }
}

#[test]
fn what_llama_cpp_does_not_compute_is_refused_before_writing() {
    let refusal = |name: &str, change: fn(&mut ModelConfig)| {
        let mut config = config(&golden().join(name));
        change(&mut config);
        config.gguf_metadata().unwrap_err().to_string()
    };
    let biased = refusal("qwen3-biased-sliding", |_| ());
    assert_eq!(
        biased,
        "`attention_bias` is true, which is not supported; known are false in GGUF files of architecture `qwen3`"
    );
    assert!(refusal("qwen2", |config| config.head_dim = 6).starts_with("`head_dim` is 6"));
    let llama3 = config(&golden().join("llama-3.1")).rope_scaling;
    let mut qwen3 = config(&golden().join("qwen3"));
    qwen3.rope_scaling = llama3;
    assert!(qwen3.gguf_metadata().unwrap_err().to_string().starts_with("`rope_scaling` is `llama3`"));
}

/// What `from_gguf` says of a file with these metadata and an embedding of 64 tokens.
fn error_of(change: impl FnOnce(&mut Vec<(String, Value)>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut metadata = config(&golden().join("llama-1")).gguf_metadata().unwrap();
    change(&mut metadata);
    let mut writer = Writer::create(
        &path,
        Overwrite::No,
        &metadata,
        &[TensorInfo::new("token_embd.weight", Dtype::F32, &[64, 32])],
    )
    .unwrap();
    writer.write("token_embd.weight", &[0; 64 * 32 * 4]).unwrap();
    writer.finish().unwrap();
    ModelConfig::from_gguf(&File::open(&path).unwrap()).unwrap_err().to_string()
}

fn set(key: &'static str, value: Value) -> impl FnOnce(&mut Vec<(String, Value)>) {
    move |metadata| {
        metadata.retain(|(found, _)| found != key);
        metadata.push((key.to_owned(), value));
    }
}

#[test]
fn an_unknown_architecture_is_refused_with_those_that_are_known() {
    let error = error_of(set("general.architecture", Value::String("mamba".into())));
    assert_eq!(error, "unknown architecture `mamba`; known are `llama`, `qwen2`, `qwen3`");
}

#[test]
fn metadata_that_lack_a_key_or_make_no_sense_are_refused() {
    let missing = error_of(|metadata| metadata.retain(|(key, _)| key != "llama.block_count"));
    assert_eq!(missing, "the configuration has no `llama.block_count`");
    let text = error_of(set("llama.block_count", Value::String("two".into())));
    assert_eq!(
        text,
        "`llama.block_count` is String(\"two\"), where one whole number for all layers is needed"
    );
    let heads = error_of(set("llama.attention.head_count_kv", Value::U32(3)));
    assert_eq!(heads, "`num_key_value_heads` is 3, where a divisor of num_attention_heads 4 is needed");
    let layers = error_of(set("llama.block_count", Value::U64(1 << 40)));
    assert!(layers.starts_with("`num_hidden_layers` is 1099511627776"), "{layers}");
    assert!(error_of(set("llama.attention.head_count", Value::U32(0))).contains("is 0, where"));
}

#[test]
fn options_that_are_not_computed_are_refused() {
    let yarn = error_of(set("llama.rope.scaling.type", Value::String("yarn".into())));
    assert_eq!(
        yarn,
        "`llama.rope.scaling.type` is `yarn`, which is not supported; known are `none`, `linear`"
    );
    let experts = error_of(set("llama.expert_count", Value::U32(8)));
    assert_eq!(experts, "`llama.expert_count` is 8, which is not supported; known are 0");
    let partial = error_of(set("llama.rope.dimension_count", Value::U32(4)));
    assert_eq!(partial, "`llama.rope.dimension_count` is 4, which is not supported; known are 8");
}
