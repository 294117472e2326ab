//! Criteria for layers.

use crate::checkpoint::{Model, books_2m, golden, in_pools, logits, windows};
use attar_model::{Loss, ModelConfig, NextToken, Weights, Windows};
use attar_prune::criterion::depth::{Calibrated, Removal};
use attar_prune::criterion::{Depth, Kind, criterion};
use attar_prune::{CRITERIA, Cuts, KeepList, Pruned, hidden};

fn depth(name: &str) -> &'static dyn Depth {
    match criterion(name).unwrap().kind {
        Kind::Depth(depth) => depth,
        _ => panic!("{name} chooses no layers"),
    }
}

/// A model of four layers: the two of a golden one, twice.
struct Doubled(Model);

impl Doubled {
    fn new(name: &str) -> Self {
        let mut model = golden(name);
        model.config.num_hidden_layers *= 2;
        model.config.rope_layers.extend_from_within(..);
        model.config.sliding_windows.extend_from_within(..);
        Self(model)
    }

    fn keep(&self, name: &str, windows: &Windows, count: usize) -> Removal {
        let model = Calibrated::new(&self.0.config, self, windows, &|| ());
        depth(name).keep(&model, count).unwrap()
    }
}

impl Weights for Doubled {
    fn load(&self, name: &str) -> Result<ndarray::ArrayD<f32>, attar_model::LoadError> {
        let layers = self.0.config.num_hidden_layers / 2;
        let Some((layer, rest)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'))
        else {
            return self.0.weights.load(name);
        };
        let layer: usize = layer.parse()?;
        self.0.weights.load(&format!("model.layers.{}.{rest}", layer % layers))
    }

    fn has(&self, _name: &str) -> bool {
        true
    }
}

fn loss(config: &ModelConfig, weights: &dyn Weights, windows: &Windows) -> f64 {
    let mut logits = logits(config, weights, windows);
    NextToken::mean(windows).backward(0..logits.nrows(), logits.view_mut())
}

#[test]
fn the_loss_criterion_drops_the_layer_without_which_the_loss_is_least_again_and_again() {
    let model = Doubled::new("qwen3");
    let config = &model.0.config;
    let windows = windows(12, 3, config.vocab_size);
    let removal = model.keep("loss", &windows, 2);
    let mut gone = Vec::new();
    for step in &removal.steps {
        let without = |layer: usize| {
            let mut cuts = Cuts::none(config);
            cuts.layers = KeepList::without(&[&gone[..], &[layer]].concat(), 4).unwrap();
            let pruned = Pruned::new(config, &cuts, &model).unwrap();
            loss(pruned.config(), &pruned, &windows)
        };
        let losses: Vec<_> =
            (0..4).filter(|layer| !gone.contains(layer)).map(|layer| (layer, without(layer))).collect();
        let (least, expected) = losses.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        assert!((step.score - expected).abs() < 1e-6, "{step:?} of {losses:?}");
        let chosen = losses.iter().find(|(layer, _)| *layer == step.layer).unwrap().1;
        assert!(chosen - expected < 1e-6, "{least} is better than {step:?}");
        gone.push(step.layer);
    }
    assert_eq!(removal.keep, KeepList::without(&gone, 4).unwrap());
}

#[test]
fn every_depth_criterion_keeps_as_many_layers_as_it_is_told_whatever_the_threads() {
    let model = Doubled::new("llama-3.1");
    let windows = windows(12, 3, model.0.config.vocab_size);
    for criterion in CRITERIA.iter().filter(|criterion| matches!(criterion.kind, Kind::Depth(_))) {
        for count in 1..=4 {
            let removal = in_pools(|| model.keep(criterion.name, &windows, count));
            assert_eq!((removal.keep.len(), removal.steps.len()), (count, 4 - count), "{}", criterion.name);
            assert!(
                removal.steps.iter().all(|step| !removal.keep.keeps(step.layer) && step.score.is_finite())
            );
        }
    }
}

#[test]
fn the_angular_criterion_drops_a_run() {
    let model = Doubled::new("llama-3.1");
    let windows = windows(12, 3, model.0.config.vocab_size);
    let dropped = model.keep("angular", &windows, 2).keep.dropped();
    assert_eq!(dropped[1], dropped[0] + 1);
}

/// The same with a third layer that adds nothing to the stream.
struct Idle<'a>(&'a Doubled);
impl Weights for Idle<'_> {
    fn load(&self, name: &str) -> Result<ndarray::ArrayD<f32>, attar_model::LoadError> {
        let mut values = self.0.load(name)?;
        if name.starts_with("model.layers.2.") && (name.contains("o_proj") || name.contains("down_proj")) {
            values.fill(0.0);
        }
        Ok(values)
    }

    fn has(&self, name: &str) -> bool {
        self.0.has(name)
    }
}

/// A layer that does nothing is the one that every criterion drops.
#[test]
fn a_layer_that_does_nothing_goes_first() {
    let model = Doubled::new("qwen3");
    let windows = windows(12, 3, model.0.config.vocab_size);
    let idle = Idle(&model);
    let calibrated = Calibrated::new(&model.0.config, &idle, &windows, &|| ());
    for name in ["block-influence", "angular"] {
        assert_eq!(depth(name).keep(&calibrated, 3).unwrap().keep.dropped(), [2], "{name}");
    }
}

/// With half of the features gone at random, what norms give of the others is closer to what they gave with the factors than
/// without.
#[test]
fn factors_on_norms_bring_a_narrower_stream_back_to_size() {
    let model = books_2m();
    let windows = windows(32, 4, model.config.vocab_size);
    let scores = hidden::scores(&model.config, &model.weights, &windows, &mut |_| ()).unwrap();
    assert_eq!(scores.len(), model.config.hidden_size);
    assert!(scores.iter().all(|score| *score > 0.0 && score.is_finite()));
    let mut cuts = Cuts::none(&model.config);
    cuts.hidden = KeepList::top(&scores, model.config.hidden_size * 3 / 4);
    let factors =
        hidden::norm_factors(&model.config, &model.weights, &windows, &cuts.hidden, &mut |_| ()).unwrap();
    assert_eq!(factors.len(), 2 * model.config.num_hidden_layers + 1);
    let plain = Pruned::new(&model.config, &cuts, &model.weights).unwrap();
    let norm = "model.layers.0.input_layernorm.weight";
    let before = plain.load(norm).unwrap();
    let with = Cuts { norms: factors.clone(), ..cuts.clone() };
    let scaled = Pruned::new(&model.config, &with, &model.weights).unwrap().load(norm).unwrap();
    let factor = factors[&(attar_model::Role::AttnNorm, Some(0))];
    assert_eq!(scaled, before.mapv(|x| x * factor));
}
