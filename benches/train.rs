//! How many tokens a second does a student learn from?
//!
//! The same step as `peers/train_step.py` measures in `PyTorch`: forward, loss, backward and `AdamW` of a student with the shape of
//! books-7m, every next token of each window a target.

mod peak;

use attar_model::{
    Gradients, Keep, LoadError, Model, ModelConfig, NextToken, Precision, Role, Step, Weights, Windows,
};
use attar_tensor::op::{AdamW, Moments};
use criterion::{Criterion, criterion_group, criterion_main};
use ndarray::{Array1, ArrayD};
use peak::{Work, case, random};
use serde_json::json;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Duration;

/// Random weights of every tensor of a model: norms of 1, matrices that keep activations about as large as they are.
struct Random<'a>(&'a ModelConfig);

impl Weights for Random<'_> {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        let spec = self.0.tensors().into_iter().find(|spec| spec.name == name);
        let shape = spec.ok_or_else(|| format!("no tensor {name}"))?.shape;
        Ok(match *shape.as_slice() {
            [rows, cols] => (random((rows, cols), rows as u64) * (3.0 / cols as f32).sqrt()).into_dyn(),
            _ => Array1::ones(shape.iter().product::<usize>()).into_dyn(),
        })
    }

    fn has(&self, name: &str) -> bool {
        self.0.tensors().iter().any(|spec| spec.name == name)
    }
}

/// A model and what its optimizer remembers.
struct Student {
    model: Model,
    moments: BTreeMap<(Option<usize>, Role), Moments>,
    steps: u32,
}

impl Student {
    fn new(config: &ModelConfig) -> Self {
        let moments = config.tensors().into_iter();
        let moments = moments.map(|spec| ((spec.layer, spec.role), Moments::zeros(&spec.shape))).collect();
        let model = Model::load(config, &Random(config)).unwrap_or_else(|error| panic!("{error}"));
        Self { model, moments, steps: 0 }
    }

    fn step(&mut self, windows: &Windows, step: Step) {
        let mut delivered: Vec<(Option<usize>, Gradients)> = Vec::new();
        let loss = self.model.backward(
            windows,
            &NextToken::mean(windows),
            step,
            &|_| true,
            &mut |layer, gradients| {
                delivered.push((layer, gradients));
            },
        );
        black_box(loss.unwrap_or_else(|error| panic!("{error}")));
        self.steps += 1;
        let adamw = AdamW { learning_rate: 1e-4, weight_decay: 0.1, ..AdamW::default() };
        for (layer, gradients) in &delivered {
            for (role, gradient) in gradients.iter() {
                let (Some(weight), Some(moments)) =
                    (self.model.parameter_mut(role, *layer), self.moments.get_mut(&(*layer, role)))
                else {
                    unreachable!("what has a gradient is a parameter");
                };
                adamw.step(self.steps, weight, gradient.view(), 1.0, moments);
            }
        }
    }
}

/// Six operations a token for each weight that multiplies it, and the attention: two products forward, five backward, with the
/// half of the window that a token sees.
fn flops_per_token(config: &ModelConfig, ctx: usize) -> f64 {
    let block = config.hidden_size * 2 * (config.query_size() + config.key_value_size())
        + 3 * config.hidden_size * config.intermediate_size;
    let weights = config.num_hidden_layers * block + config.vocab_size * config.hidden_size;
    let attention = config.num_hidden_layers * config.query_size() * (ctx + 1);
    6.0 * weights as f64 + 7.0 * attention as f64
}

fn train(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("train");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(10));
    // The shape of books-7m.
    let config = ModelConfig::from_hf(&json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
        "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 32, "vocab_size": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
    }));
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    let (batch, ctx) = (8, 512);
    let tokens = batch * ctx;
    let ids = random((1, tokens), 3).mapv(|x| (x.midpoint(1.0) * config.vocab_size as f32) as u32);
    let windows = Windows::new(ctx, ids.into_raw_vec_and_offset().0);
    let flops = Some(tokens as f64 * flops_per_token(&config, ctx));
    for (precision, number_bytes) in [(Precision::F32, 4), (Precision::Bf16, 2)] {
        let work = Work { amount: tokens as f64, unit: "tokens/s", flops, number_bytes };
        for (keep, kept) in [(Keep::Activations, "activations kept"), (Keep::Inputs, "inputs kept")] {
            let student = Mutex::new(Student::new(&config));
            let name = format!("step of a 7M student, {batch} x {ctx}, {}, {kept}", precision.name());
            case(&mut group, &name, work, || {
                if let Ok(mut student) = student.lock() {
                    student.step(&windows, Step { keep, precision });
                }
            });
        }
    }
    group.finish();
}

criterion_group!(benches, train);
criterion_main!(benches);
