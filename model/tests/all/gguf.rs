//! A model written as GGUF and read back is the same model.

use crate::checkpoint::{Folder, config, golden};
use attar_checkpoint::atomic::Overwrite;
use attar_checkpoint::gguf::{File, Value, Writer};
use attar_checkpoint::{Container, Dtype, TensorInfo, decode_floats};
use attar_model::family::GgufWindow;
use attar_model::{AttentionScale, ExpertNumbers, LoadError, ModelConfig, Weights, Windows, hidden_states};
use attar_tensor::Precision;
use ndarray::{ArrayD, Axis};
use std::path::Path;

/// All golden models that llama.cpp could run.
const NAMES: [&str; 24] = [
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
    "gemma2",
    "gemma3",
    "gemma3-transformers-5",
    "phi3",
    "phi3-long",
    "phi3-short",
    "olmo2",
    "smollm3",
    "smollm3-sliding",
    "granite",
    "granite-biased",
    "mixtral",
    "mixtral-sliding",
    "qwen3-moe",
];

pub fn write(config: &ModelConfig, weights: &dyn Weights, path: &Path) {
    let mut infos = Vec::new();
    let mut data = Vec::new();
    for spec in config.tensors() {
        if spec.expert.is_none_or(|expert| expert.index == 0) {
            infos.push(TensorInfo::new(&spec.gguf_name, Dtype::F32, &spec.gguf_place().shape));
        }
        let mut values = weights.load(&spec.name).unwrap();
        spec.gguf_adds.to_gguf(values.as_slice_mut().unwrap());
        data.push((spec.gguf_name, values.select(Axis(0), &spec.row_order.to_gguf(spec.shape[0]))));
    }
    for (name, factors) in config.gguf_tensors() {
        infos.push(TensorInfo::new(name, Dtype::F32, &[factors.len()]));
        data.push((name.to_owned(), ArrayD::from_shape_vec(vec![factors.len()], factors).unwrap()));
    }
    let mut writer = Writer::create(path, Overwrite::No, &config.gguf_metadata().unwrap(), &infos).unwrap();
    for (name, values) in data {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write(&name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// Leaves out what llama.cpp has no place for.
fn adapt(config: &mut ModelConfig) {
    match config.family.name {
        "gemma2" | "gemma3" => config.attention_scale = AttentionScale::InverseRoot(config.head_dim),
        "smollm3" => {
            let every_fourth = (1..=config.num_hidden_layers).map(|nth| nth % 4 != 0);
            config.rope_layers = every_fourth.collect();
            config.output_bias = false;
            config.mlp_bias = false;
        }
        _ => {}
    }
}

/// A GGUF file under Hugging Face's names and in its order of rows.
pub struct Read<'a>(pub &'a ModelConfig, pub &'a File);

impl Weights for Read<'_> {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        let spec = self.0.tensors().into_iter().find(|spec| spec.name == name).ok_or("no such tensor")?;
        let values = decode_floats(Dtype::F32, self.1.bytes(&spec.gguf_name)?)?;
        let at = spec.gguf_place().first_row * spec.shape.get(1).unwrap_or(&1);
        let mut values = values[at..at + spec.len()].to_vec();
        spec.gguf_adds.from_gguf(&mut values);
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
        if config.family.gguf_window == GgufWindow::Unsaid {
            config.sliding_windows.fill(None);
        }
        adapt(&mut config);
        let path = folder.path().join(format!("{name}.gguf"));
        write(&config, &weights, &path);
        let file = File::open(&path).unwrap();
        let reread = ModelConfig::from_gguf(&file).unwrap();

        assert_eq!(reread.family.gguf_arch, config.family.gguf_arch);
        for (layer, ctx) in (0..config.num_hidden_layers).flat_map(|layer| [(layer, 10), (layer, 30)]) {
            assert_eq!(reread.rope_frequencies(layer, ctx), config.rope_frequencies(layer, ctx), "{name}");
        }
        let both_equal = ModelConfig {
            family: config.family,
            rope_scaling: config.rope_scaling.clone(),
            bos_token_id: config.bos_token_id,
            eos_token_ids: config.eos_token_ids.clone(),
            ..reread.clone()
        };
        assert_eq!(both_equal, config, "{name}");
        assert_eq!(reread.gguf_tensors(), config.gguf_tensors(), "{name}");

        let windows = Windows::new(10, (0..30).collect());
        let states =
            |config, weights| hidden_states(config, weights, &windows, Precision::F32, &mut |_| ()).unwrap();
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
    qwen3.rope_scaling = config(&golden().join("phi3-long")).rope_scaling;
    assert!(qwen3.gguf_metadata().unwrap_err().to_string().starts_with("`rope_scaling` is `longrope`"));
    assert_eq!(
        refusal("gemma3", |_| ()),
        "`query_pre_attn_scalar` is 20, which is not supported; known are 12 in GGUF files of architecture `gemma3`"
    );
    let uncapped = |config: &mut ModelConfig| {
        adapt(config);
        config.logit_cap = None;
    };
    assert!(refusal("gemma2", uncapped).starts_with("`final_logit_softcapping` is null"));
    assert!(
        refusal("gemma2", |config| config.sliding_windows.fill(None)).starts_with("`sliding_window` is null")
    );
    assert!(
        refusal("olmo2", |config| config.tie_word_embeddings = true).starts_with("`tie_word_embeddings`")
    );
    assert!(refusal("smollm3", |config| config.rope_layers.fill(true)).starts_with("`no_rope_layers` is"));
    assert!(refusal("smollm3", |config| config.mlp_bias = true).starts_with("`mlp_bias` is true"));
}

#[test]
fn experts_as_llama_cpp_does_not_compute_them_are_refused_before_writing() {
    let refusal = |change: fn(&mut ExpertNumbers)| {
        let mut config = config(&golden().join("qwen3-moe"));
        config.experts.iter_mut().for_each(change);
        config.gguf_metadata().unwrap_err().to_string()
    };
    assert!(refusal(|experts| experts.norm_topk_prob = false).starts_with("`norm_topk_prob` is false"));
    assert!(refusal(|experts| experts.layers[1] = false).contains("known are experts in every layer"));
}

/// What `from_gguf` says of a file with these metadata and an embedding of 64 tokens.
pub fn error_of(change: impl FnOnce(&mut Vec<(String, Value)>)) -> String {
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

pub fn set(key: &'static str, value: Value) -> impl FnOnce(&mut Vec<(String, Value)>) {
    move |metadata| {
        metadata.retain(|(found, _)| found != key);
        metadata.push((key.to_owned(), value));
    }
}

const KNOWN: &str = "`llama`, `qwen2`, `qwen3`, `gemma2`, `gemma3`, `phi3`, `olmo2`, `smollm3`, `granite`, `qwen3moe`, `deci`";

#[test]
fn an_unknown_architecture_is_refused_with_those_that_are_known() {
    let error = error_of(set("general.architecture", Value::String("mamba".into())));
    assert_eq!(error, format!("unknown architecture `mamba`; known are {KNOWN}"));
}

#[test]
fn experts_where_the_architecture_has_none_or_none_where_it_has_some_are_refused() {
    let dense = error_of(|metadata| {
        set("general.architecture", Value::String("qwen3".into()))(metadata);
        set("qwen3.expert_count", Value::U32(8))(metadata);
    });
    assert_eq!(dense, "`qwen3.expert_count` is 8, which is not supported; known are 0");
    let sparse = error_of(set("general.architecture", Value::String("qwen3moe".into())));
    assert_eq!(sparse, "`qwen3moe.expert_count` is 0, which is not supported; known are a number of experts");
}

#[test]
fn numbers_of_experts_that_make_no_sense_are_refused() {
    let with = |count: u32, used: u32| {
        error_of(move |metadata| {
            set("llama.expert_count", Value::U32(count))(metadata);
            set("llama.expert_used_count", Value::U32(used))(metadata);
        })
    };
    assert_eq!(with(4, 5), "`num_experts_per_tok` is 5, where a number from 1 to 4 is needed");
    assert_eq!(with(4, 0), "`num_experts_per_tok` is 0, where a number from 1 to 4 is needed");
    assert!(with(1 << 30, 2).starts_with("`num_experts` is 1073741824"));
    let missing = error_of(set("llama.expert_count", Value::U32(8)));
    assert_eq!(missing, "the configuration has no `llama.expert_used_count`");
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
    let partial = error_of(set("llama.rope.dimension_count", Value::U32(4)));
    assert_eq!(partial, "`llama.rope.dimension_count` is 4, which is not supported; known are 8");
}
