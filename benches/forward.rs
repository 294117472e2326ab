//! How many tokens a second pass through one decoder block?

mod peak;

use attar_model::{Block, LoadError, ModelConfig, Weights};
use criterion::{Criterion, criterion_group, criterion_main};
use ndarray::{Array1, ArrayD};
use peak::{Work, case, random};
use serde_json::json;
use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

/// Random weights by name.
struct Memory(HashMap<String, ArrayD<f32>>);

impl Memory {
    /// Of every tensor of one layer: matrices that keep activations about as large as they are, norms of 1, biases of 0.
    fn of_layer(config: &ModelConfig, layer: usize) -> Self {
        let specs = config.tensors().into_iter().filter(|spec| spec.layer == Some(layer));
        let tensor = |shape: &[usize]| match *shape {
            [rows, cols] => (random((rows, cols), rows as u64) * (3.0 / cols as f32).sqrt()).into_dyn(),
            _ => Array1::ones(shape.iter().product::<usize>()).into_dyn(),
        };
        Self(specs.map(|spec| (spec.name.clone(), tensor(&spec.shape))).collect())
    }
}

impl Weights for Memory {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        self.0.get(name).cloned().ok_or_else(|| format!("no tensor {name}").into())
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// Multiply-adds of a token are twice its operations: those with weights, and those with the half of the window it sees.
fn flops_per_token(config: &ModelConfig, ctx: usize) -> f64 {
    let features = config.hidden_size * 2 * (config.query_size() + config.key_value_size())
        + 3 * config.hidden_size * config.intermediate_size
        + config.query_size() * (ctx + 1);
    2.0 * features as f64
}

fn forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(3));
    // The shape of Qwen2.5-0.5B.
    let config = ModelConfig::from_hf(&json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 1,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 1000,
    }));
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    let block =
        Block::load(&config, 0, &Memory::of_layer(&config, 0)).unwrap_or_else(|error| panic!("{error}"));
    for ctx in [512, 2048] {
        let tokens = 2048;
        let hidden = random((tokens, config.hidden_size), 6);
        let flops = tokens as f64 * flops_per_token(&config, ctx);
        let work = Work { amount: tokens as f64, unit: "tokens/s", flops: Some(flops), number_bytes: 4 };
        case(&mut group, &format!("forward of a block 896/4864/14/2, ctx {ctx}"), work, || {
            let mut hidden = hidden.clone();
            block.forward(&mut hidden, ctx);
            black_box(hidden);
        });
    }
}

criterion_group!(benches, forward);
criterion_main!(benches);
