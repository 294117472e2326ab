//! MLPs made of experts: a router sends every token to a few of them.
//!
//! Each expert works on the rows that were sent to it, gathered, and its outputs are added to the residual stream times
//! what they count for, expert after expert by rising index. So a token's result is one fixed sum, whatever tokens stand
//! beside it and whoever computes them.

use crate::config::Experts as Numbers;
use crate::mlp::Gated;
use crate::{Error, ModelConfig, Precision, Weights};
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

/// The router of a layer and its experts.
#[derive(Debug)]
pub struct Experts {
    router: Router,
    experts: Vec<Gated>,
}

impl Experts {
    /// With the router alone.
    pub(crate) fn new(router: Router) -> Self {
        Self { router, experts: Vec::new() }
    }

    pub(crate) fn load_all(
        &mut self,
        config: &ModelConfig,
        layer: usize,
        weights: &dyn Weights,
    ) -> Result<(), Error> {
        let load = |expert| Gated::load_expert(config, layer, expert, weights);
        self.experts = (0..self.router.weight.nrows()).map(load).collect::<Result<_, _>>()?;
        Ok(())
    }

    pub(crate) fn pack(&mut self, precision: Precision) {
        self.experts.iter_mut().for_each(|expert| expert.pack(precision));
    }

    /// What sends tokens to experts.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Adds what all experts make of `mlp_in` to `hidden`, both `[tokens, hidden_size]`.
    ///
    /// # Panics
    /// If the experts were not loaded.
    pub fn add_to(&self, mut hidden: ArrayViewMut2<'_, f32>, mlp_in: ArrayView2<'_, f32>) {
        assert!(!self.experts.is_empty(), "a block loaded without its experts");
        let shares = self.router.route(mlp_in).shares();
        for (expert, share) in self.experts.iter().zip(&shares).filter(|(_, share)| !share.is_empty()) {
            let out = expert.out(expert.mid(share.gather(mlp_in).view()).view());
            share.add_to(hidden.view_mut(), out.view());
        }
    }
}

/// Scores every expert for a token and picks the best.
#[derive(Debug, Clone)]
pub struct Router {
    weight: Array2<f32>, // [num_experts, hidden_size]
    num_experts_per_tok: usize,
    normalised: bool,
}

impl Router {
    pub(crate) fn new(numbers: &Numbers, weight: Array2<f32>) -> Self {
        let Numbers { num_experts_per_tok, norm_topk_prob: normalised, .. } = *numbers;
        Self { weight, num_experts_per_tok, normalised }
    }

    /// Where each of the tokens `mlp_in`, `[tokens, hidden_size]`, goes.
    ///
    /// A token's shares are the softmax over all experts, of which the largest are kept; among equals those of the
    /// lower index. All in f32, as transformers has it whatever the type of the weights.
    pub fn route(&self, mlp_in: ArrayView2<'_, f32>) -> Routing {
        let scores = attar_tensor::linear(mlp_in, self.weight.view());
        let picks = scores.axis_iter(Axis(0)).into_par_iter().map(|scores| self.pick(scores)).collect();
        Routing { num_experts: self.weight.nrows(), picks }
    }

    /// The experts of one token and their shares, by rising index.
    fn pick(&self, scores: ArrayView1<'_, f32>) -> Vec<(usize, f32)> {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
        let all: f32 = exps.iter().sum();
        let mut order: Vec<usize> = (0..exps.len()).collect();
        order.sort_by(|&a, &b| exps[b].total_cmp(&exps[a])); // stable: equals as they stand
        order.truncate(self.num_experts_per_tok);
        let kept: f32 = order.iter().map(|&expert| exps[expert] / all).sum();
        order.sort_unstable();
        let share = |expert: usize| exps[expert] / all / if self.normalised { kept } else { 1.0 };
        order.into_iter().map(|expert| (expert, share(expert))).collect()
    }
}

/// Which experts each of some tokens goes to, and how much each counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    num_experts: usize,
    picks: Vec<Vec<(usize, f32)>>, // for each token, experts by rising index
}

impl Routing {
    /// Tokens each expert gets, `[num_experts]`.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.num_experts];
        self.picks.iter().flatten().for_each(|(expert, _)| counts[*expert] += 1);
        counts
    }

    /// What each expert gets, `[num_experts]`.
    pub fn shares(&self) -> Vec<Share> {
        let mut shares = vec![Share::default(); self.num_experts];
        for (row, picks) in self.picks.iter().enumerate() {
            for (expert, weight) in picks {
                shares[*expert].rows.push(row);
                shares[*expert].weights.push(*weight);
            }
        }
        shares
    }
}

/// The tokens one expert gets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Share {
    /// Rows of the tokens, rising.
    pub rows: Vec<usize>,
    /// What the expert's output counts for in each.
    pub weights: Vec<f32>,
}

impl Share {
    /// Adds the share of tokens that stand below these, their first row being row `first` of all.
    pub fn append(&mut self, first: usize, below: &Self) {
        self.rows.extend(below.rows.iter().map(|row| first + row));
        self.weights.extend(&below.weights);
    }

    /// [`append`](Self::append) of every expert's share.
    pub fn append_all(all: &mut Vec<Self>, first: usize, below: &[Self]) {
        all.resize(below.len(), Self::default());
        all.iter_mut().zip(below).for_each(|(all, below)| all.append(first, below));
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The tokens' rows of `x`, `[tokens, features]`.
    ///
    /// # Panics
    /// If `x` has fewer rows.
    pub fn gather(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        x.select(Axis(0), &self.rows)
    }

    /// Adds the expert's outputs, one row for each token of the share, to those tokens' rows of `hidden`, times what
    /// they count for.
    ///
    /// # Panics
    /// If `hidden` has fewer rows, or `out` not one for each token.
    pub fn add_to(&self, mut hidden: ArrayViewMut2<'_, f32>, out: ArrayView2<'_, f32>) {
        assert_eq!(out.nrows(), self.rows.len(), "one output for each token of the share");
        for ((&row, &weight), out) in self.rows.iter().zip(&self.weights).zip(out.outer_iter()) {
            hidden.row_mut(row).scaled_add(weight, &out);
        }
    }
}
