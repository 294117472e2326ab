//! MLPs made of experts, whatever their numbers are.

use crate::checkpoint::{Folder, config, golden};
use attar_model::{
    Block, Error, Gated, LoadError, Model, ModelConfig, Precision, Role, Routing, Share, Weights, Windows,
    embed, hidden_states,
};
use ndarray::{Array2, ArrayD};

const CTX: usize = 11;

fn tokens(count: usize) -> Vec<u32> {
    (0..count).map(|i| (i * i * 7 + i * 3) as u32 % 64).collect()
}

/// What the router of one layer makes of some tokens, and their normed hidden states.
fn routing(name: &str, layer: usize, count: usize) -> (ModelConfig, Array2<f32>, Routing) {
    let (config, weights) = (config(&golden().join(name)), Folder::open(&golden().join(name)));
    let hidden = embed(&config, &weights, &tokens(count)).unwrap();
    let block = Block::load_without_experts(&config, layer, &weights).unwrap();
    let mlp_in = block.mlp_in(hidden.view());
    let routing = block.experts().unwrap().router().route(mlp_in.view());
    (config, mlp_in, routing)
}

#[test]
fn counts_add_up_to_the_tokens_times_the_experts_of_a_token() {
    for (name, layer) in [("mixtral", 0), ("mixtral-sliding", 1), ("qwen3-moe", 1), ("qwen3-moe-mixed", 1)] {
        let (config, _, routing) = routing(name, layer, 200);
        let experts = config.experts.unwrap();
        let counts = routing.counts();
        assert_eq!(counts.len(), experts.num_experts);
        assert_eq!(
            counts.iter().sum::<u64>(),
            200 * experts.num_experts_per_tok as u64,
            "{name}: {counts:?}"
        );
        let shares = routing.shares();
        assert!(shares.iter().zip(&counts).all(|(share, count)| share.rows.len() as u64 == *count), "{name}");
    }
}

#[test]
fn what_a_token_s_experts_count_for_adds_up_to_one_where_it_is_normalised() {
    for (name, layer, normalised) in
        [("mixtral", 0, true), ("qwen3-moe", 0, true), ("qwen3-moe-mixed", 1, false)]
    {
        let (_, _, routing) = routing(name, layer, 50);
        let mut sums = [0.0; 50];
        for share in routing.shares() {
            share.rows.iter().zip(&share.weights).for_each(|(&row, weight)| sums[row] += weight);
        }
        if normalised {
            assert!(sums.iter().all(|sum: &f32| (sum - 1.0).abs() < 1e-6), "{name}: {sums:?}");
        } else {
            assert!(sums.iter().all(|sum| *sum < 0.9999), "{name}: {sums:?}");
        }
    }
}

/// Mistral's weights, every expert of every layer the one MLP.
struct Alike<'a> {
    dense: &'a Folder,
    router: &'a Folder,
}

impl Weights for Alike<'_> {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        if name.ends_with("gate.weight") {
            return self.router.load(name);
        }
        let Some((layer, expert)) = name.split_once("block_sparse_moe.experts.") else {
            return self.dense.load(name);
        };
        let part = match &expert[expert.len() - "w1.weight".len()..] {
            "w1.weight" => "gate_proj",
            "w2.weight" => "down_proj",
            "w3.weight" => "up_proj",
            other => panic!("{other}"),
        };
        self.dense.load(&format!("{layer}mlp.{part}.weight"))
    }

    fn has(&self, _: &str) -> bool {
        true
    }
}

#[test]
fn experts_that_are_all_alike_are_a_dense_model() {
    let (dense, router) = (Folder::open(&golden().join("mistral")), Folder::open(&golden().join("mixtral")));
    let windows = Windows::new(CTX, tokens(5 * CTX));
    let states = |config: &ModelConfig, weights: &dyn Weights| {
        hidden_states(config, weights, &windows, Precision::F32, &mut |_| ()).unwrap()
    };
    let one = states(&config(&golden().join("mistral")), &dense);
    let many = states(&config(&golden().join("mixtral")), &Alike { dense: &dense, router: &router });
    let largest = one.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let worst = one.iter().zip(&many).fold(0.0, |worst: f32, (a, b)| worst.max((a - b).abs()));
    assert!(worst < 1e-5 * largest, "{worst:e} of {largest}");
    assert_ne!(one, many, "a test of nothing: shares that are halves add up without rounding");
}

#[test]
fn experts_loaded_one_by_one_equal_those_loaded_with_their_block() {
    let (config, weights) = (config(&golden().join("mixtral")), Folder::open(&golden().join("mixtral")));
    let mut whole = embed(&config, &weights, &tokens(3 * CTX)).unwrap();
    let mut staged = whole.clone();
    Block::load(&config, 1, &weights).unwrap().forward(&mut whole, CTX);

    let block = Block::load_without_experts(&config, 1, &weights).unwrap();
    let attn_out = block.attn_out(block.attn_in(staged.view()).view(), CTX);
    block.add_attn(staged.view_mut(), attn_out.view());
    let mlp_in = block.mlp_in(staged.view());
    let shares = block.experts().unwrap().router().route(mlp_in.view()).shares();
    for (index, share) in shares.iter().enumerate() {
        let expert = Gated::load_expert(&config, 1, index, &weights).unwrap();
        let mid = expert.mid(share.gather(mlp_in.view()).view());
        assert_eq!(mid.dim(), (share.rows.len(), config.experts.as_ref().unwrap().moe_intermediate_size));
        share.add_to(staged.view_mut(), expert.out(mid.view()).view());
    }
    assert_eq!(whole, staged);
}

#[test]
fn a_changed_expert_changes_only_the_tokens_it_gets() {
    let (config, mlp_in, routing) = routing("qwen3-moe", 0, 60);
    let weights = Folder::open(&golden().join("qwen3-moe"));
    let mut expert = Gated::load_expert(&config, 0, 5, &weights).unwrap();
    let share: &Share = &routing.shares()[5];
    assert!(!share.is_empty() && share.rows.len() < 60);
    expert.weight_mut(Role::Down).fill(1.0);
    let mut hidden = Array2::zeros(mlp_in.raw_dim());
    share.add_to(hidden.view_mut(), expert.out(expert.mid(share.gather(mlp_in.view()).view()).view()).view());
    for (row, hidden) in hidden.outer_iter().enumerate() {
        assert_eq!(hidden.iter().any(|x| *x != 0.0), share.rows.contains(&row), "row {row}");
    }
}

#[test]
fn a_missing_expert_is_named() {
    let (config, weights) = (config(&golden().join("mixtral")), Folder::open(&golden().join("mixtral")));
    let error = Gated::load_expert(&config, 0, 4, &weights).unwrap_err();
    assert_eq!(error.to_string(), "the configuration has no `Gate of expert 4`");
}

#[test]
fn a_model_with_experts_is_refused_before_it_is_trained() {
    let folder = golden().join("qwen3-moe-mixed"); // layer 1 is the first with experts
    let (config, weights) = (config(&folder), Folder::open(&folder));
    let refused = |error: Option<Error>, layer| {
        let error = error.expect("a refusal");
        assert!(matches!(error, Error::NoBackward { layer: found } if found == layer), "{error}");
    };
    assert!(config.experts_of(0).is_none() && config.experts_of(1).is_some());
    refused(Model::load(&config, &weights).err(), 1);
    let gradients =
        |layer| Block::load(&config, layer, &weights).unwrap().gradients(&|spec| spec.role == Role::Q);
    refused(gradients(1).err(), 1);
    assert!(gradients(0).unwrap().get(Role::Q).is_some(), "a dense layer can be trained alone");
}

#[test]
fn a_block_with_experts_has_no_parameters_of_a_dense_mlp() {
    let folder = golden().join("mixtral");
    let mut block = Block::load(&config(&folder), 0, &Folder::open(&folder)).unwrap();
    for role in [Role::Gate, Role::Up, Role::Down, Role::DownBias] {
        assert!(block.parameter(role).is_none() && block.parameter_mut(role).is_none(), "{role:?}");
    }
    assert!(block.parameter(Role::O).is_some() && block.parameter_mut(Role::MlpNorm).is_some());
}
