//! What is cut away is what was masked out, and nothing else.

use crate::checkpoint::{Model, golden, golden_models, logits, windows};
use attar_model::family::{QkNorm, Scales};
use attar_model::{LoadError, ModelConfig, Role, Weights};
use attar_prune::{Cuts, Error, KeepList, Pools, Pruned};
use ndarray::{Array2, ArrayD, Axis};

/// A model in its old shape in which all that goes gives zeros.
struct Masked<'a> {
    of: &'a ModelConfig,
    cuts: &'a Cuts,
    weights: &'a dyn Weights,
}

impl Weights for Masked<'_> {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        let mut values = self.weights.load(name)?;
        let spec = self.of.tensors().into_iter().find(|spec| spec.name == name).unwrap();
        let (hidden, head_dim) = (self.cuts.hidden.dropped(), self.of.head_dim);
        let of_heads = |heads: &KeepList| heads.in_parts(head_dim).dropped();
        let block = spec.layer.map(|layer| &self.cuts.blocks[layer]);
        let gone = spec.layer.is_some_and(|layer| !self.cuts.layers.keeps(layer));
        let mut zero = |axis: usize, features: &[usize]| {
            for &feature in features {
                values.index_axis_mut(Axis(axis), feature).fill(0.0);
            }
        };
        match (spec.role, block) {
            (Role::Embedding, _) => zero(1, &hidden),
            (Role::O | Role::Down, _) if gone => zero(1, &(0..spec.shape[1]).collect::<Vec<_>>()),
            (Role::OBias | Role::DownBias, _) if gone => zero(0, &(0..spec.shape[0]).collect::<Vec<_>>()),
            (Role::OBias | Role::DownBias, _) => zero(0, &hidden),
            (Role::Q | Role::QBias, Some(block)) => zero(0, &of_heads(&block.query_heads)),
            (Role::K | Role::KBias, Some(block)) => zero(0, &of_heads(&block.kv_heads)),
            (Role::O, Some(block)) => {
                zero(0, &hidden);
                zero(1, &of_heads(&block.query_heads));
            }
            (Role::Down, Some(block)) => {
                zero(0, &hidden);
                if spec.expert.is_none() {
                    zero(1, &block.ffn.dropped());
                }
            }
            _ => {}
        }
        Ok(values)
    }

    fn has(&self, name: &str) -> bool {
        self.weights.has(name)
    }
}

/// Scores in no order.
fn scores(count: usize, seed: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729 + 13) % 1009) as f64).collect()
}

/// Half of the query heads of every key head.
fn cut_query_heads(model: &Model, cuts: &mut Cuts) {
    let config = &model.config;
    let (pools, size) = (config.num_key_value_heads, config.num_attention_heads / config.num_key_value_heads);
    for (layer, block) in cuts.blocks.iter_mut().enumerate() {
        let all = scores(config.num_attention_heads, layer);
        block.query_heads = KeepList::top_of(&all, Pools { pools, kept: size.div_ceil(2) });
    }
    means_over_heads(model, cuts);
}

/// Half of the key heads, with their query heads.
fn cut_kv_heads(model: &Model, cuts: &mut Cuts) {
    let config = &model.config;
    let size = config.num_attention_heads / config.num_key_value_heads;
    for (layer, block) in cuts.blocks.iter_mut().enumerate() {
        let kept = config.num_key_value_heads.div_ceil(2);
        block.kv_heads = KeepList::top(&scores(config.num_key_value_heads, layer + 5), kept);
        block.query_heads = block.kv_heads.in_parts(size);
    }
    means_over_heads(model, cuts);
}

/// Where all heads are normed together, those that are masked count in the mean, and those that are cut do not.
fn means_over_heads(model: &Model, cuts: &mut Cuts) {
    if model.config.family.qk_norm != QkNorm::Whole {
        return;
    }
    for (layer, block) in cuts.blocks.iter().enumerate() {
        for (role, list) in [(Role::QNorm, &block.query_heads), (Role::KNorm, &block.kv_heads)] {
            let factor = (list.of() as f32 / list.len() as f32).sqrt();
            cuts.norms.insert((role, Some(layer)), factor);
        }
    }
}

fn cut_ffn(model: &Model, cuts: &mut Cuts) {
    for (layer, block) in cuts.blocks.iter_mut().enumerate() {
        let width = model.config.intermediate_size;
        block.ffn = KeepList::top(&scores(width, layer + 9), width / 2);
    }
}

/// Half of the first layer's channels, a quarter of the others'.
fn cut_ffn_unevenly(model: &Model, cuts: &mut Cuts) {
    for (layer, block) in cuts.blocks.iter_mut().enumerate() {
        let width = model.config.intermediate_size;
        block.ffn = KeepList::top(&scores(width, layer + 9), if layer == 0 { width / 2 } else { width / 4 });
    }
}

/// All key heads of the first layer, one in every other, with their query heads.
fn cut_kv_heads_unevenly(model: &Model, cuts: &mut Cuts) {
    if model.config.family.qk_norm == QkNorm::Whole {
        return; // whose mean would be over other features in every layer
    }
    let config = &model.config;
    let size = config.num_attention_heads / config.num_key_value_heads;
    for (layer, block) in cuts.blocks.iter_mut().enumerate().skip(1) {
        block.kv_heads = KeepList::top(&scores(config.num_key_value_heads, layer + 5), 1);
        block.query_heads = block.kv_heads.in_parts(size);
    }
}

fn cut_layers(model: &Model, cuts: &mut Cuts) {
    cuts.layers = KeepList::without(&[0], model.config.num_hidden_layers).unwrap();
}

fn cut_hidden(model: &Model, cuts: &mut Cuts) {
    let width = model.config.hidden_size;
    if matches!(model.config.family.scales, Scales::RootOfHiddenSize { .. }) {
        return; // which is refused
    }
    cuts.hidden = KeepList::top(&scores(width, 3), width * 3 / 4);
    let factor = (width as f32 / cuts.hidden.len() as f32).sqrt();
    for spec in model.config.tensors() {
        if spec.shape == [width]
            && !matches!(spec.role, Role::OBias | Role::DownBias)
            && !is_of_heads(spec.role)
        {
            cuts.norms.insert((spec.role, spec.layer), factor);
        }
    }
}

fn is_of_heads(role: Role) -> bool {
    matches!(
        role,
        Role::QNorm | Role::KNorm | Role::QBias | Role::KBias | Role::VBias | Role::GateBias | Role::UpBias
    )
}

type Cut = (&'static str, fn(&Model, &mut Cuts));

const AXES: [Cut; 7] = [
    ("ffn", cut_ffn),
    ("ffn, unevenly", cut_ffn_unevenly),
    ("query heads", cut_query_heads),
    ("key heads", cut_kv_heads),
    ("key heads, unevenly", cut_kv_heads_unevenly),
    ("layers", cut_layers),
    ("hidden", cut_hidden),
];

#[track_caller]
fn assert_near(found: &Array2<f32>, expected: &Array2<f32>, what: &str) {
    assert_eq!(found.dim(), expected.dim(), "{what}");
    let size = expected.iter().map(|x| x.abs()).fold(0.0, f32::max);
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-5 * size.max(1.0), "{what}: {worst:e} of {size:e}");
}

fn assert_cut_is_mask(model: &Model, cuts: &Cuts, what: &str) {
    let windows = windows(12, 2, model.config.vocab_size);
    let pruned = Pruned::new(&model.config, cuts, &model.weights).unwrap();
    let masked = Masked { of: &model.config, cuts, weights: &model.weights };
    let found = logits(pruned.config(), &pruned, &windows);
    assert_near(&found, &logits(&model.config, &masked, &windows), &format!("{}: {what}", model.name));
}

#[test]
fn what_is_cut_away_gives_the_logits_of_what_is_masked_out() {
    for model in golden_models() {
        for (axis, cut) in AXES {
            let mut cuts = Cuts::none(&model.config);
            cut(&model, &mut cuts);
            assert_cut_is_mask(&model, &cuts, axis);
        }
    }
}

#[test]
fn what_is_cut_away_on_all_axes_at_once_is_what_is_masked_out() {
    for model in golden_models() {
        let mut cuts = Cuts::none(&model.config);
        for cut in [cut_hidden, cut_ffn, cut_query_heads, cut_layers] {
            cut(&model, &mut cuts);
        }
        assert_cut_is_mask(&model, &cuts, "all axes");
    }
}

/// Channels and heads that are missing to the largest layer are zeros, wherever they stand.
#[test]
fn layers_filled_up_to_the_largest_give_the_logits_of_what_is_masked_out() {
    for model in golden_models() {
        let mut cuts = Cuts::none(&model.config);
        for cut in [cut_ffn_unevenly, cut_kv_heads_unevenly] {
            cut(&model, &mut cuts);
        }
        let windows = windows(12, 2, model.config.vocab_size);
        let pruned = Pruned::new(&model.config, &cuts, &model.weights).unwrap();
        let unequal = pruned.config().clone();
        let filled = unequal.clone().filled_up();
        let pruned = pruned.filled_up_to(&filled);
        for spec in filled.tensors() {
            assert_eq!(pruned.load(&spec.name).unwrap().shape(), spec.shape, "{} {}", model.name, spec.name);
        }
        let masked = Masked { of: &model.config, cuts: &cuts, weights: &model.weights };
        let expected = logits(&model.config, &masked, &windows);
        assert_near(&logits(&filled, &pruned, &windows), &expected, &model.name);
        assert_eq!(unequal.layer_sizes.len(), filled.num_hidden_layers, "{}", model.name);
    }
}

/// A repaired matrix is one of its own size.
#[test]
fn what_is_changed_of_a_layer_is_filled_up_too() {
    let model = golden("llama-3.1");
    let mut cuts = Cuts::none(&model.config);
    cut_ffn_unevenly(&model, &mut cuts);
    let name = "model.layers.1.mlp.down_proj.weight";
    let mut pruned = Pruned::block(&model.config, &cuts, &model.weights, 1);
    let own = pruned.load(name).unwrap();
    pruned.change(name, own.mapv(|x| 2.0 * x));
    let filled = cuts.config(&model.config).unwrap().filled_up();
    let found = pruned.filled_up_to(&filled).load(name).unwrap();
    assert_eq!(found.shape(), [model.config.hidden_size, filled.intermediate_size]);
    let (left, right) = found.view().split_at(Axis(1), own.shape()[1]);
    assert_eq!(left, own.mapv(|x| 2.0 * x));
    assert!(right.iter().all(|&x| x == 0.0) && !right.is_empty());
}

/// Most models cut above are of a kind that the mask changes at all.
#[test]
fn every_mask_changes_logits() {
    let model = golden("llama-3.1");
    let windows = windows(12, 2, model.config.vocab_size);
    let before = logits(&model.config, &model.weights, &windows);
    for (axis, cut) in AXES {
        let mut cuts = Cuts::none(&model.config);
        cut(&model, &mut cuts);
        let masked = Masked { of: &model.config, cuts: &cuts, weights: &model.weights };
        let after = logits(&model.config, &masked, &windows);
        let most = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most > 1e-2, "{axis}: {most:e}");
    }
}

#[test]
fn keeping_all_changes_no_bit() {
    for model in golden_models() {
        let cuts = Cuts::none(&model.config);
        let pruned = Pruned::new(&model.config, &cuts, &model.weights).unwrap();
        assert_eq!(*pruned.config(), model.config, "{}", model.name);
        for spec in model.config.tensors() {
            let bits = |values: ArrayD<f32>| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let (found, expected) =
                (pruned.load(&spec.name).unwrap(), model.weights.load(&spec.name).unwrap());
            assert_eq!(found.shape(), expected.shape(), "{}", spec.name);
            assert_eq!(bits(found), bits(expected), "{}", spec.name);
        }
    }
}

/// So a newcomer among roles or families cannot be forgotten.
#[test]
fn every_tensor_is_cut_to_the_shape_that_the_new_configuration_says() {
    for model in golden_models() {
        let mut cuts = Cuts::none(&model.config);
        for cut in [cut_hidden, cut_ffn, cut_kv_heads, cut_layers] {
            cut(&model, &mut cuts);
        }
        if let Some(experts) = &model.config.experts {
            let kept = experts.num_experts - 1;
            let of = |block: &mut attar_prune::BlockCuts| {
                block.experts = block.experts.as_ref().map(|list| KeepList::top(&scores(list.of(), 1), kept));
            };
            cuts.blocks.iter_mut().for_each(of);
        }
        let pruned = Pruned::new(&model.config, &cuts, &model.weights).unwrap();
        for spec in pruned.config().tensors() {
            assert_eq!(pruned.load(&spec.name).unwrap().shape(), spec.shape, "{} {}", model.name, spec.name);
            if spec.is_matrix() {
                let (rows, all) =
                    (pruned.load_rows(&spec.name, &[1, 0]).unwrap(), pruned.load(&spec.name).unwrap());
                assert_eq!(rows.row(0).into_dyn(), all.index_axis(Axis(0), 1), "{}", spec.name);
                assert_eq!(pruned.load_range(&spec.name, 0..2).unwrap().row(0), rows.row(1), "{}", spec.name);
            }
        }
    }
}

#[test]
fn one_layer_alone_may_be_narrower_than_the_others() {
    let model = golden("qwen3");
    let mut cuts = Cuts::none(&model.config);
    cut_layers(&model, &mut cuts);
    let layer = cuts.layers.kept()[0];
    cuts.blocks[layer].ffn = KeepList::top(&scores(model.config.intermediate_size, 1), 8);
    let block = Pruned::block(&model.config, &cuts, &model.weights, layer);
    assert_eq!(block.config().intermediate_size, 8);
    assert_eq!(
        block.load("model.layers.0.mlp.down_proj.weight").unwrap().shape(),
        [model.config.hidden_size, 8]
    );
    assert!(!block.has("model.norm.weight"), "one layer is one layer");
}

#[test]
fn what_no_configuration_can_say_is_refused() {
    let model = golden("llama-3.1");
    let refused = |change: &dyn Fn(&mut Cuts)| {
        let mut cuts = Cuts::none(&model.config);
        change(&mut cuts);
        cuts.config(&model.config).unwrap_err()
    };
    let heads = model.config.num_attention_heads;
    let one_head = refused(&|cuts| cuts.blocks[1].query_heads = KeepList::without(&[0], heads).unwrap());
    assert!(matches!(one_head, Error::Groups { layer: 1, .. }), "{one_head}");
    let whole_group = refused(&|cuts| {
        cuts.blocks[0].kv_heads = KeepList::new([0], model.config.num_key_value_heads).unwrap();
    });
    assert!(matches!(whole_group, Error::Groups { layer: 0, .. }), "{whole_group}");
    let uneven = refused(&|cuts| {
        let mut other = Cuts::none(&model.config);
        cut_query_heads(&model, &mut other);
        cuts.blocks[1] = other.blocks[1].clone();
    });
    assert!(
        matches!(uneven, Error::NotUniform { what: "query heads of every key head", layer: 1, .. }),
        "{uneven}"
    );

    let gemma = golden("gemma2");
    let mut cuts = Cuts::none(&gemma.config);
    cuts.hidden = KeepList::without(&[0, 1], gemma.config.hidden_size).unwrap();
    let hidden = cuts.config(&gemma.config).unwrap_err();
    assert!(matches!(hidden, Error::HiddenSize { family: "gemma2" }), "{hidden}");
}
