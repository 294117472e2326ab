//! Experts: which go, and what is left when they have.

use crate::checkpoint::{golden, windows};
use attar_model::Weights;
use attar_model::{Block, Gated, embed};
use attar_prune::criterion::Reap;
use attar_prune::{Cuts, Error, KeepList, Pruned};
use ndarray::{Array2, Axis, Ix2};

#[test]
fn an_expert_counts_for_its_share_of_what_it_gives() {
    let mut scores = Reap.start(3);
    scores.observe(1, &[0.5], ndarray::array![[3.0, 4.0]].view());
    scores.observe(1, &[0.25], ndarray::array![[0.0, 8.0]].view());
    scores.observe(2, &[1.0], ndarray::array![[1.0, 0.0]].view());
    assert_eq!(scores.scores(), [0.0, 2.25, 1.0]);
    assert_eq!(scores.keep(2).kept(), [1, 2]);
}

/// Tokens are sent to the best of the experts that are left, by the softmax over those.
#[test]
fn a_layer_without_some_experts_sends_tokens_to_the_others() {
    for name in ["mixtral", "qwen3-moe"] {
        let model = golden(name);
        let (config, numbers) = (&model.config, model.config.experts.as_ref().unwrap());
        let tokens = windows(12, 2, config.vocab_size);
        let mut cuts = Cuts::none(config);
        let keep = KeepList::without(&[1], numbers.num_experts).unwrap();
        cuts.blocks.iter_mut().for_each(|block| block.experts = Some(keep.clone()));
        let pruned = Pruned::new(config, &cuts, &model.weights).unwrap();
        assert_eq!(pruned.config().experts.as_ref().unwrap().num_experts, numbers.num_experts - 1);
        let cut = Block::load(pruned.config(), 0, &pruned).unwrap();
        let hidden = embed(config, &model.weights, tokens.tokens()).unwrap();
        let mut found = Array2::zeros(hidden.dim());
        cut.experts().unwrap().add_to(found.view_mut(), cut.mlp_in(hidden.view()).view());

        let whole = Block::load(config, 0, &model.weights).unwrap();
        let mlp_in = whole.mlp_in(hidden.view());
        let router = config.tensor(attar_model::Role::Router, Some(0)).unwrap();
        let router = model.weights.load(&router.name).unwrap().into_dimensionality::<Ix2>().unwrap();
        let experts: Vec<_> = keep
            .kept()
            .iter()
            .map(|&index| Gated::load_expert(config, 0, index, &model.weights).unwrap())
            .collect();
        for (row, x) in mlp_in.outer_iter().enumerate() {
            let scores: Vec<f64> =
                keep.kept().iter().map(|&index| f64::from(router.row(index).dot(&x)).exp()).collect();
            let all: f64 = scores.iter().sum();
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            order.truncate(numbers.num_experts_per_tok);
            let chosen: f64 = order.iter().map(|&expert| scores[expert]).sum();
            let x = x.insert_axis(Axis(0));
            let mut expected = Array2::<f32>::zeros((1, config.hidden_size));
            for &expert in &order {
                let share = scores[expert] / if numbers.norm_topk_prob { chosen } else { all };
                expected.scaled_add(share as f32, &experts[expert].out(experts[expert].mid(x).view()));
            }
            let worst = (&found.row(row) - &expected.row(0)).mapv(f32::abs).into_iter().fold(0.0, f32::max);
            assert!(worst < 1e-5, "{name}, token {row}: {worst:e}");
        }
    }
}

#[test]
fn fewer_experts_than_a_token_goes_to_are_refused() {
    let model = golden("mixtral");
    let numbers = model.config.experts.as_ref().unwrap();
    let mut cuts = Cuts::none(&model.config);
    let one = KeepList::new([2], numbers.num_experts).unwrap();
    cuts.blocks.iter_mut().for_each(|block| block.experts = Some(one.clone()));
    let error = cuts.config(&model.config).unwrap_err();
    assert!(matches!(error, Error::FewExperts { kept: 1, per_token: 2 }), "{error}");
}
