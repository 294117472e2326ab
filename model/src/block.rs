//! One decoder block, whole or stage by stage.
//!
//! ```text
//! hidden ── attn_in ── attn_out ── add_attn ──> hidden ── mlp_in ── mlp_mid ── add_mlp ──> hidden
//!           norm       q k v,      += o                   norm      gate, up,  += down
//!                      attention                                    silu
//! ```
//!
//! Where the MLP is made of [`Experts`] they take the place of `mlp_mid` and `add_mlp`.
//!
//! Some families normalise what o and down give instead of what q and gate read, or both.

mod backward;

pub use backward::{Kept, Learner, refuse_experts};

use crate::experts::{Experts, Router};
use crate::mlp::Gated;
use crate::norm::Norm;
use crate::weight::Input;
use crate::weights::{matrix, vector};
use crate::{Error, ModelConfig, Role, Rounding, Tap, TensorSpec, Weight, Weights};
use attar_tensor::op::{Rope, attention};
use attar_tensor::{Precision, bf16_attention};
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewD, ArrayViewMut2, ArrayViewMutD, Axis, s};
use std::sync::OnceLock;

/// A matrix and its bias: `x @ weight.T + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out_features, in_features]`.
    pub weight: Weight,
    /// `[out_features]`.
    pub bias: Option<Array1<f32>>,
    /// How what it reads is rounded first.
    pub rounding: Option<Rounding>,
}

impl Linear {
    pub(crate) fn load(
        weights: &dyn Weights,
        weight: &TensorSpec,
        bias: Option<&TensorSpec>,
    ) -> Result<Self, Error> {
        let bias = bias.map(|spec| vector(weights, spec)).transpose()?;
        let rounding = weights.rounding(&weight.name);
        Ok(Self { weight: matrix(weights, weight)?.into(), bias, rounding })
    }

    /// Activations `[tokens, in_features]` to `[tokens, out_features]`.
    pub fn apply(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        self.apply_to(&x.into())
    }

    /// [`apply`](Self::apply) to what others read too.
    pub fn apply_to(&self, x: &Input<'_>) -> Array2<f32> {
        x.with_rounded(self.rounding, |x| {
            let Some(bias) = &self.bias else { return self.weight.apply(x) };
            let mut out = Array2::zeros((x.tokens(), bias.len()));
            out.assign(bias);
            self.weight.add_to(out.view_mut(), x);
            out
        })
    }

    /// `out += x @ weight.T + bias`.
    pub fn add_to(&self, mut out: ArrayViewMut2<'_, f32>, x: ArrayView2<'_, f32>) {
        if let Some(bias) = &self.bias {
            out += bias;
        }
        Input::from(x).with_rounded(self.rounding, |x| self.weight.add_to(out, x));
    }
}

/// One decoder block. Activations are `[tokens, features]`, tokens in whole windows.
#[derive(Debug)]
pub struct Block {
    config: ModelConfig, // of its layer
    layer: usize,
    attn_norm: Option<Norm>,
    q: Linear,
    k: Linear,
    v: Linear,
    qk_norm: Option<[Norm; 2]>,
    o: Linear,
    post_attn_norm: Option<Norm>,
    mlp_norm: Option<Norm>,
    mlp: Mlp,
    post_mlp_norm: Option<Norm>,
    rope: OnceLock<Option<Rope>>, // for the first ctx that was asked for
}

/// What stands between the second norm and the residual stream.
#[derive(Debug)]
enum Mlp {
    Dense(Box<Gated>),
    Experts(Experts),
}

impl Block {
    /// Loads the block's weights, those of all experts among them.
    ///
    /// # Errors
    /// A tensor that cannot be loaded or has another shape than the configuration says.
    ///
    /// # Panics
    /// If the model has no such layer.
    pub fn load(config: &ModelConfig, layer: usize, weights: &dyn Weights) -> Result<Self, Error> {
        let mut block = Self::load_without_experts(config, layer, weights)?;
        if let Mlp::Experts(experts) = &mut block.mlp {
            experts.load_all(config, layer, weights)?;
        }
        Ok(block)
    }

    /// Loads the block's weights and of experts only the router: they can be [loaded](Gated::load_expert) one by one.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    ///
    /// # Panics
    /// As [`load`](Self::load).
    pub fn load_without_experts(
        config: &ModelConfig,
        layer: usize,
        weights: &dyn Weights,
    ) -> Result<Self, Error> {
        assert!(layer < config.num_hidden_layers, "layer {layer} of {}", config.num_hidden_layers);
        let config = &*config.of_layer(layer);
        let spec = |role| config.tensor(role, Some(layer));
        let norm = |role| spec(role).map(|spec| Norm::load(config, &spec, weights)).transpose();
        let needed = |role| spec(role).ok_or_else(|| Error::Missing { key: format!("{role:?}") });
        let linear = |role, bias| -> Result<Linear, Error> {
            Linear::load(weights, &needed(role)?, spec(bias).as_ref())
        };
        let fused = |role, rows: &[usize]| -> Result<Vec<Linear>, Error> {
            let spec = needed(role)?;
            let (all, rounding) = (matrix(weights, &spec)?, weights.rounding(&spec.name));
            let starts = rows.iter().scan(0, |next, rows| Some(std::mem::replace(next, *next + rows)));
            let part = |(start, rows): (usize, &usize)| Linear {
                weight: all.slice(s![start..start + rows, ..]).to_owned().into(),
                bias: None,
                rounding,
            };
            Ok(starts.zip(rows).map(part).collect())
        };
        let (query, key_value) = (config.query_size(), config.key_value_size());
        let [q, k, v] = match spec(Role::Qkv) {
            Some(_) => taken(fused(Role::Qkv, &[query, key_value, key_value])?),
            None => {
                [linear(Role::Q, Role::QBias)?, linear(Role::K, Role::KBias)?, linear(Role::V, Role::VBias)?]
            }
        };
        let dense = || -> Result<Gated, Error> {
            let [gate, up] = match spec(Role::GateUp) {
                Some(_) => taken(fused(Role::GateUp, &[config.intermediate_size; 2])?),
                None => [linear(Role::Gate, Role::GateBias)?, linear(Role::Up, Role::UpBias)?],
            };
            let down = linear(Role::Down, Role::DownBias)?;
            Ok(Gated { gate, up, down, activation: config.family.activation })
        };
        let mlp = match config.experts_of(layer) {
            Some(numbers) => {
                let router = Router::new(numbers, matrix(weights, &needed(Role::Router)?)?);
                Mlp::Experts(Experts::new(router))
            }
            None => Mlp::Dense(Box::new(dense()?)),
        };
        Ok(Self {
            config: config.clone(),
            layer,
            attn_norm: norm(Role::AttnNorm)?,
            q,
            k,
            v,
            qk_norm: norm(Role::QNorm)?.zip(norm(Role::KNorm)?).map(|(q, k)| [q, k]),
            o: linear(Role::O, Role::OBias)?,
            post_attn_norm: norm(Role::PostAttnNorm)?,
            mlp_norm: norm(Role::MlpNorm)?,
            mlp,
            post_mlp_norm: norm(Role::PostMlpNorm)?,
            rope: OnceLock::new(),
        })
    }

    /// Its number in the model.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// The matrix of one role and its bias.
    ///
    /// # Panics
    /// If the role is not one of a block's seven matrices; where the MLP is made of experts its three are not.
    pub fn linear(&self, role: Role) -> &Linear {
        self.find(role).unwrap_or_else(|| panic!("{role:?} is not a matrix of this block"))
    }

    fn linear_mut(&mut self, role: Role) -> &mut Linear {
        self.find_mut(role).unwrap_or_else(|| panic!("{role:?} is not a matrix of this block"))
    }

    fn find(&self, role: Role) -> Option<&Linear> {
        match (role, &self.mlp) {
            (Role::Q, _) => Some(&self.q),
            (Role::K, _) => Some(&self.k),
            (Role::V, _) => Some(&self.v),
            (Role::O, _) => Some(&self.o),
            (Role::Gate | Role::Up | Role::Down, Mlp::Dense(mlp)) => Some(mlp.linear(role)),
            _ => None,
        }
    }

    fn find_mut(&mut self, role: Role) -> Option<&mut Linear> {
        match (role, &mut self.mlp) {
            (Role::Q, _) => Some(&mut self.q),
            (Role::K, _) => Some(&mut self.k),
            (Role::V, _) => Some(&mut self.v),
            (Role::O, _) => Some(&mut self.o),
            (Role::Gate | Role::Up | Role::Down, Mlp::Dense(mlp)) => Some(mlp.linear_mut(role)),
            _ => None,
        }
    }

    /// The matrix of one role, `[out_features, in_features]`, to be changed in place; the bias stays.
    ///
    /// # Panics
    /// If the role is not one of a block's seven matrices, where the MLP is made of experts four, or the matrix is packed.
    pub fn weight_mut(&mut self, role: Role) -> ArrayViewMut2<'_, f32> {
        self.linear_mut(role).weight.view_mut()
    }

    /// The weight, bias or norm of one role, as it is stored; `None` if the block has no such part. A router and experts are
    /// not among them.
    ///
    /// # Panics
    /// If it is a matrix that is packed.
    pub fn parameter(&self, role: Role) -> Option<ArrayViewD<'_, f32>> {
        if let Some(linear) = self.find(role) {
            return Some(linear.weight.view().into_dyn());
        }
        let vector = match role.biased() {
            Some(matrix) => self.find(matrix)?.bias.as_ref(),
            None => self.norm(role).map(Norm::stored),
        };
        vector.map(|vector| vector.view().into_dyn())
    }

    /// [`parameter`](Self::parameter), to be changed in place.
    ///
    /// # Panics
    /// If it is a matrix that is packed.
    pub fn parameter_mut(&mut self, role: Role) -> Option<ArrayViewMutD<'_, f32>> {
        if self.find(role).is_some() {
            return Some(self.weight_mut(role).into_dyn());
        }
        let vector = match role.biased() {
            Some(matrix) => self.find_mut(matrix)?.bias.as_mut(),
            None => self.norm_mut(role).map(Norm::stored_mut),
        };
        vector.map(|vector| vector.view_mut().into_dyn())
    }

    fn norm(&self, role: Role) -> Option<&Norm> {
        match role {
            Role::AttnNorm => self.attn_norm.as_ref(),
            Role::QNorm => self.qk_norm.as_ref().map(|[q, _]| q),
            Role::KNorm => self.qk_norm.as_ref().map(|[_, k]| k),
            Role::PostAttnNorm => self.post_attn_norm.as_ref(),
            Role::MlpNorm => self.mlp_norm.as_ref(),
            Role::PostMlpNorm => self.post_mlp_norm.as_ref(),
            _ => None,
        }
    }

    fn norm_mut(&mut self, role: Role) -> Option<&mut Norm> {
        match role {
            Role::AttnNorm => self.attn_norm.as_mut(),
            Role::QNorm => self.qk_norm.as_mut().map(|[q, _]| q),
            Role::KNorm => self.qk_norm.as_mut().map(|[_, k]| k),
            Role::PostAttnNorm => self.post_attn_norm.as_mut(),
            Role::MlpNorm => self.mlp_norm.as_mut(),
            Role::PostMlpNorm => self.post_mlp_norm.as_mut(),
            _ => None,
        }
    }

    /// Keeps of the [parts](Role::parts) of a stored matrix what products in `precision` need, see [`Weight::pack`].
    ///
    /// # Panics
    /// As [`linear`](Self::linear), for any part.
    pub fn pack_role(&mut self, role: Role, precision: Precision) {
        for &part in role.parts() {
            self.linear_mut(part).weight.pack(precision);
        }
    }

    /// Keeps of every matrix what products in `precision` need, see [`Weight::pack`]; a router stays as it is.
    pub fn pack(&mut self, precision: Precision) {
        for role in [Role::Q, Role::K, Role::V, Role::O] {
            self.pack_role(role, precision);
        }
        match &mut self.mlp {
            Mlp::Dense(mlp) => mlp.pack(precision),
            Mlp::Experts(experts) => experts.pack(precision),
        }
    }

    /// A copy of a stored matrix, `[out_features, in_features]`: its [parts](Role::parts) one below the other.
    ///
    /// # Panics
    /// As [`linear`](Self::linear), for any part.
    pub fn stored(&self, role: Role) -> Array2<f32> {
        let parts: Vec<_> = role.parts().iter().map(|&part| self.linear(part).weight.view()).collect();
        let rows = parts.iter().map(ArrayView2::nrows).sum();
        let mut all = Array2::zeros((rows, parts.first().map_or(0, ArrayView2::ncols)));
        let mut start = 0;
        for part in parts {
            all.slice_mut(s![start..start + part.nrows(), ..]).assign(&part);
            start += part.nrows();
        }
        all
    }

    /// Changes the parts of a stored matrix to those of `weight`: the reverse of [`stored`](Self::stored).
    ///
    /// # Panics
    /// As [`stored`](Self::stored), or if the shapes differ.
    pub fn set_stored(&mut self, role: Role, weight: ArrayView2<'_, f32>) {
        let mut start = 0;
        for &part in role.parts() {
            let mut to = self.weight_mut(part);
            let rows = to.nrows();
            to.assign(&weight.slice(s![start..start + rows, ..]));
            start += rows;
        }
    }

    /// What q, k and v read: the stream, normed if the family norms it here.
    pub fn attn_in(&self, hidden: ArrayView2<'_, f32>) -> Array2<f32> {
        match &self.attn_norm {
            Some(norm) => norm.apply(hidden),
            None => hidden.to_owned(),
        }
    }

    /// q, k, v and the attention within windows of `ctx` tokens: what o reads, `[tokens, heads * head_dim]`. Where q is packed,
    /// so are the attention's factors.
    ///
    /// # Panics
    /// If the rows are not whole windows.
    pub fn attn_out(&self, attn_in: ArrayView2<'_, f32>, ctx: usize) -> Array2<f32> {
        let [mut q, mut k, v] = self.projected(attn_in);
        self.norm_and_turn([&mut q, &mut k], ctx);
        self.attend([&q, &k, &v], ctx)
    }

    fn projected(&self, attn_in: ArrayView2<'_, f32>) -> [Array2<f32>; 3] {
        let attn_in = attn_in.into();
        [&self.q, &self.k, &self.v].map(|linear| linear.apply_to(&attn_in))
    }

    fn norm_and_turn(&self, [q, k]: [&mut Array2<f32>; 2], ctx: usize) {
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            // Where all heads are normed together the weight is as wide as all: one head.
            q_norm.apply_to_heads(q.view_mut());
            k_norm.apply_to_heads(k.view_mut());
        }
        self.with_rope(ctx, |rope| {
            rope.apply(q.view_mut());
            rope.apply(k.view_mut());
        });
    }

    /// Runs `f` with the turns of windows of `ctx` tokens, if this layer turns its heads.
    fn with_rope(&self, ctx: usize, f: impl FnOnce(&Rope)) {
        let make = || self.config.rope(self.layer, ctx);
        let first = self.rope.get_or_init(make);
        let other = if first.as_ref().is_some_and(|rope| rope.ctx() != ctx) { make() } else { None };
        if let Some(rope) = other.as_ref().or(first.as_ref()) {
            f(rope);
        }
    }

    fn attend(&self, [q, k, v]: [&Array2<f32>; 3], ctx: usize) -> Array2<f32> {
        let shape = self.config.attention(self.layer, ctx);
        match self.q.weight {
            Weight::Full(_) => attention(shape, q.view(), k.view(), v.view()),
            Weight::Bf16(_) => bf16_attention(shape, q.view(), k.view(), v.view()),
        }
    }

    /// `hidden += o(attn_out)`, what is added normed and scaled as the family has it.
    pub fn add_attn(&self, hidden: ArrayViewMut2<'_, f32>, attn_out: ArrayView2<'_, f32>) {
        self.add(&self.o, self.post_attn_norm.as_ref(), hidden, attn_out);
    }

    /// Whether what o (at its tap) or down (at its) makes is added to the stream without a norm.
    pub fn adds_as_it_is(&self, tap: Tap) -> bool {
        match tap {
            Tap::AttnOut => self.post_attn_norm.is_none(),
            Tap::MlpMid => self.post_mlp_norm.is_none(),
            _ => false,
        }
    }

    /// The numbers of the model it is of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What gate and up read: the stream, normed if the family norms it here.
    pub fn mlp_in(&self, hidden: ArrayView2<'_, f32>) -> Array2<f32> {
        match &self.mlp_norm {
            Some(norm) => norm.apply(hidden),
            None => hidden.to_owned(),
        }
    }

    /// The experts the MLP is made of, if it is.
    pub fn experts(&self) -> Option<&Experts> {
        match &self.mlp {
            Mlp::Dense(_) => None,
            Mlp::Experts(experts) => Some(experts),
        }
    }

    fn dense(&self) -> &Gated {
        match &self.mlp {
            Mlp::Dense(mlp) => mlp,
            Mlp::Experts(_) => panic!("a block with experts has no MLP of its own"),
        }
    }

    /// `activation(gate) * up`: what down reads, `[tokens, intermediate_size]`.
    ///
    /// # Panics
    /// If the MLP is made of experts.
    pub fn mlp_mid(&self, mlp_in: ArrayView2<'_, f32>) -> Array2<f32> {
        self.dense().mid(mlp_in)
    }

    /// `hidden += down(mlp_mid)`, what is added normed and scaled as the family has it.
    ///
    /// # Panics
    /// If the MLP is made of experts.
    pub fn add_mlp(&self, hidden: ArrayViewMut2<'_, f32>, mlp_mid: ArrayView2<'_, f32>) {
        self.add(&self.dense().down, self.post_mlp_norm.as_ref(), hidden, mlp_mid);
    }

    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    fn add(
        &self,
        linear: &Linear,
        post_norm: Option<&Norm>,
        mut hidden: ArrayViewMut2<'_, f32>,
        x: ArrayView2<'_, f32>,
    ) {
        let multiplier = self.config.residual_multiplier;
        if post_norm.is_none() && multiplier == 1.0 {
            return linear.add_to(hidden, x);
        }
        let mut out = linear.apply(x);
        if let Some(norm) = post_norm {
            norm.apply_to_heads(out.view_mut()); // of one head
        }
        hidden.scaled_add(multiplier, &out);
    }

    /// The whole block, in place of `[tokens, hidden_size]`; a few windows at a time, so that what stands between the
    /// stages stays small.
    ///
    /// # Panics
    /// If the rows are not whole windows of `ctx` tokens.
    pub fn forward(&self, hidden: &mut Array2<f32>, ctx: usize) {
        self.forward_rows(hidden.view_mut(), ctx);
    }

    /// [`forward`](Self::forward) of rows that are part of others.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_rows(&self, mut hidden: ArrayViewMut2<'_, f32>, ctx: usize) {
        let tokens = hidden.nrows();
        assert!(ctx > 0 && tokens.is_multiple_of(ctx), "{tokens} tokens are not windows of {ctx}");
        for mut hidden in hidden.axis_chunks_iter_mut(Axis(0), tokens_at_once(ctx)) {
            let share = self.tokens_of_a_thread(ctx, hidden.nrows());
            hidden.axis_chunks_iter_mut(Axis(0), share).into_par_iter().with_max_len(1).for_each(
                |mut hidden| {
                    let attn_out = self.attn_out(self.attn_in(hidden.view()).view(), ctx);
                    self.add_attn(hidden.view_mut(), attn_out.view());
                    if self.experts().is_none() {
                        let mlp_mid = self.mlp_mid(self.mlp_in(hidden.view()).view());
                        self.add_mlp(hidden, mlp_mid.view());
                    }
                },
            );
            if let Some(experts) = self.experts() {
                let mlp_in = self.mlp_in(hidden.view());
                experts.add_to(hidden, mlp_in.view());
            }
        }
    }

    /// Of `tokens` that go through stages together, those that are best taken by a thread of their own: whole windows.
    ///
    /// A packed weight serves few rows as well as many, and what lies between two products of a window stays in the thread's own
    /// cache. A weight in f32 is packed anew for every product: there all tokens go together and each product is split.
    pub fn tokens_of_a_thread(&self, ctx: usize, tokens: usize) -> usize {
        match self.q.weight {
            Weight::Full(_) => tokens.max(1),
            Weight::Bf16(_) => ctx,
        }
    }
}

/// The parts of a matrix as an array.
fn taken<const N: usize>(parts: Vec<Linear>) -> [Linear; N] {
    parts.try_into().unwrap_or_else(|parts: Vec<_>| panic!("{} parts of {N}", parts.len()))
}

/// Whole windows that give every thread about a thousand tokens: enough to multiply fast, few enough to stay in cache.
pub(crate) fn tokens_at_once(ctx: usize) -> usize {
    (1024 * rayon::current_num_threads()).div_ceil(ctx) * ctx
}
