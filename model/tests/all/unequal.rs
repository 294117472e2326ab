//! Layers that differ in size, and the GGUF architecture whose files say so.

use crate::checkpoint::{Folder, config, golden};
use crate::device::{distance, on, states};
use crate::gguf::{Read, error_of, set, write};
use crate::machines::on_every_machine;
use attar_checkpoint::gguf::{Array, File, Value};
use attar_model::device::DevicePlace;
use attar_model::{
    Block, Device, Keep, LayerSizes, LoadError, Model, ModelConfig, NextToken, Precision, Role, Step, Tap,
    Weights, Windows, hidden_states,
};
use ndarray::{ArrayBase, ArrayD, Axis, Slice};

/// A golden model's weights, of which the first rows and columns are taken.
struct First<'a>(&'a ModelConfig, Folder);

impl Weights for First<'_> {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        let spec = self.0.tensors().into_iter().find(|spec| spec.name == name).ok_or("no such tensor")?;
        let mut values = self.1.load(name)?;
        for (axis, &size) in spec.shape.iter().enumerate() {
            values = values.slice_axis(Axis(axis), Slice::from(..size)).to_owned();
        }
        Ok(values)
    }

    fn has(&self, name: &str) -> bool {
        self.1.has(name)
    }
}

/// A golden model whose layers have one key head less, and fewer channels, from one to the next.
fn falling(name: &str) -> ModelConfig {
    let config = config(&golden().join(name));
    let each = config.num_attention_heads / config.num_key_value_heads;
    let sizes = (0..config.num_hidden_layers).map(|layer| {
        let num_key_value_heads = config.num_key_value_heads - layer.min(config.num_key_value_heads - 1);
        LayerSizes {
            intermediate_size: config.intermediate_size - 3 * layer,
            num_attention_heads: each * num_key_value_heads,
            num_key_value_heads,
        }
    });
    let sizes = sizes.collect();
    config.with_layer_sizes(sizes)
}

fn windows() -> Windows {
    Windows::new(10, (0..30).collect())
}

#[test]
fn every_layer_has_tensors_taps_and_a_block_of_its_own_sizes() {
    let config = falling("llama-3.1");
    let weights = First(&config, Folder::open(&golden().join("llama-3.1")));
    for layer in 0..config.num_hidden_layers {
        let (own, sizes) = (config.of_layer(layer), config.sizes(layer));
        let shape = |role| config.tensor(role, Some(layer)).unwrap().shape;
        assert_eq!(shape(Role::Down), [config.hidden_size, sizes.intermediate_size]);
        assert_eq!(shape(Role::K), [sizes.num_key_value_heads * config.head_dim, config.hidden_size]);
        let block = Block::load(&config, layer, &weights).unwrap();
        for (role, tap) in [(Role::O, Tap::AttnOut), (Role::Down, Tap::MlpMid)] {
            assert_eq!(block.linear(role).weight.dim().1, own.tap_features(tap));
            assert_eq!(shape(role)[1], own.tap_features(tap));
        }
        assert_eq!(config.attention(layer, 10).kv_heads, sizes.num_key_value_heads);
    }
    assert_ne!(config.sizes(0), config.sizes(1));
    assert_eq!(config.filled_up(), crate::checkpoint::config(&golden().join("llama-3.1")));
}

/// From families that compute as Llama does, whatever they are called and however their GGUF files order rows.
#[test]
fn a_model_of_unequal_layers_survives_deci_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama-1", "llama-3.1", "llama-biased", "llama-linear", "mistral", "qwen2"] {
        let unequal = falling(name);
        let weights = First(&unequal, Folder::open(&golden().join(name)));
        let deci = unequal.as_deci().unwrap();
        let path = folder.path().join(format!("{name}.gguf"));
        write(&deci, &weights, &path);
        let file = File::open(&path).unwrap();
        assert_eq!(file.metadata("general.architecture").and_then(Value::as_str), Some("deci"));
        let reread = ModelConfig::from_gguf(&file).unwrap();
        assert_eq!((reread.family.name, &reread.layer_sizes), ("llama", &unequal.layer_sizes), "{name}");
        let states = |config, weights| {
            hidden_states(config, weights, &windows(), Precision::F32, &mut |_| ()).unwrap()
        };
        assert_eq!(states(&reread, &Read(&reread, &file)), states(&unequal, &weights), "{name}");
        assert_eq!(reread.as_deci().unwrap(), reread, "{name}");
    }
}

/// Equal layers stay a `deci` too.
#[test]
fn what_is_read_from_deci_is_written_as_deci() {
    let equal = config(&golden().join("llama-1")).as_deci().unwrap();
    assert_eq!(equal.layer_sizes.len(), equal.num_hidden_layers);
    let (key, arch) = &equal.gguf_metadata().unwrap()[0];
    assert_eq!((key.as_str(), arch), ("general.architecture", &Value::String("deci".into())));
    assert!(equal.to_hf().unwrap_err().to_string().contains("another number for each layer"));
}

#[test]
fn what_deci_does_not_compute_is_refused() {
    for (name, part) in [
        ("qwen3", "`qwen3`, which norms q and k"),
        ("gemma2", "`gemma2`"),
        ("phi3", "`phi3`"),
        ("olmo2", "norms q and k"),
        ("granite", "`granite`"),
        ("smollm3", "`no_rope_layers`"),
        ("mistral-sliding", "`sliding_window` is a number"),
        ("mixtral", "`num_experts`"),
    ] {
        let error = config(&golden().join(name)).as_deci().unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("architecture `deci`"), "{name}: {error}");
    }
}

/// What is said of a `deci` file in which one key has this value.
fn deci_error(key: &'static str, value: Value) -> String {
    let deci = config(&golden().join("llama-1")).as_deci().unwrap().gguf_metadata().unwrap();
    error_of(move |metadata| {
        *metadata = deci;
        set(key, value)(metadata);
    })
}

#[test]
fn sizes_that_make_no_sense_or_are_not_computed_are_refused() {
    let list = |values: &[u32]| Value::Array(Array::U32(values.to_vec()));
    let layers = config(&golden().join("llama-1")).num_hidden_layers;
    let mut without = vec![4; layers];
    without[1] = 0;
    assert_eq!(
        deci_error("deci.attention.head_count_kv", list(&without)),
        "`deci.attention.head_count_kv` is 0 in layer 1, which is not supported; known are layers that have attention and an MLP"
    );
    assert!(deci_error("deci.feed_forward_length", list(&without)).contains("0 in layer 1"));
    let short = deci_error("deci.feed_forward_length", list(&[8]));
    assert!(short.contains("a list of 1, where a whole number, or a list of"), "{short}");
    without[1] = 3;
    let odd = deci_error("deci.attention.head_count_kv", list(&without));
    assert_eq!(odd, "`num_key_value_heads` is 3, where a divisor of num_attention_heads 4 is needed");
    let wide = deci_error("deci.feed_forward_length", Value::U64(1 << 40));
    assert!(wide.starts_with("`intermediate_size` is 1099511627776"), "{wide}");
    let layers = deci_error("deci.block_count", Value::U64(1 << 40));
    assert!(layers.starts_with("`num_hidden_layers` is 1099511627776"), "{layers}");
}

#[test]
fn unequal_layers_streamed_through_the_device_equal_the_cpus() {
    on_every_machine(|cuda| {
        let config = falling("llama-3.1");
        let weights = First(&config, Folder::open(&golden().join("llama-3.1")));
        let truth = states(&config, &weights, Precision::F32, Device::Cpu);
        for place in [DevicePlace::Device, DevicePlace::Host] {
            let on = on(cuda, &config, place, 2, 1);
            let found = states(&config, &weights, Precision::F32, Device::Cuda(on));
            assert!(distance(&found, &truth) <= 1e-5, "{place:?}: {:e}", distance(&found, &truth));
        }
    });
}

#[test]
fn unequal_layers_go_backward() {
    let config = falling("llama-3.1");
    let weights = First(&config, Folder::open(&golden().join("llama-3.1")));
    let model = Model::load(&config, &weights).unwrap();
    let step = |keep| Step { keep, precision: Precision::F32 };
    let gradients = |keep| {
        let mut shapes = Vec::new();
        let windows = windows();
        model
            .backward(&windows, &NextToken::mean(&windows), step(keep), &|_| true, &mut |layer, gradients| {
                let down = gradients.get(Role::Down).map(ArrayBase::to_owned);
                shapes.extend(layer.zip(down));
            })
            .unwrap();
        shapes
    };
    let (again, kept) = (gradients(Keep::Inputs), gradients(Keep::Activations));
    assert_eq!(again, kept);
    assert_eq!(again.len(), config.num_hidden_layers);
    for (layer, gradient) in again {
        assert_eq!(gradient.shape(), config.tensor(Role::Down, Some(layer)).unwrap().shape);
        assert!(gradient.iter().any(|x| *x != 0.0));
    }
}
