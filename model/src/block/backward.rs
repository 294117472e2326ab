//! A block's backward pass, stage by stage in the order opposite to forward.
//!
//! Legend: `d` is the gradient of the residual stream, `[tokens, hidden_size]`. It comes in as the gradient of the block's output
//! and, every branch having added its share, leaves as that of the block's input.

use super::{Block, Linear};
use crate::family::Activation;
use crate::norm::Norm;
use crate::products::{Activations, Learning};
use crate::{Error, Gradients, ModelConfig, Precision, Role, TensorSpec};
use attar_tensor::op::{
    GateBackward, attention, attention_backward, bias_backward, gelu_mul_backward, silu_mul_backward,
};
use attar_tensor::{bf16_attention, bf16_attention_backward};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

/// What a backward pass reads of the forward pass before it; `[tokens, features]` each, tokens in whole windows.
#[derive(Debug)]
pub struct Kept {
    input: Array2<f32>,
    q: Array2<f32>, // turned, as the attention read them
    k: Array2<f32>,
    v: Array2<f32>,
    before_norm: Option<[Array2<f32>; 2]>, // q and k where they are normalised
    attn_out: Array2<f32>,
    between: Array2<f32>, // the residual stream after the attention and before the MLP
    gate: Array2<f32>,
    up: Array2<f32>,
    ctx: usize,
}

/// The roles of a matrix and its bias.
type Roles = [Role; 2];

const Q: Roles = [Role::Q, Role::QBias];
const K: Roles = [Role::K, Role::KBias];
const V: Roles = [Role::V, Role::VBias];
const O: Roles = [Role::O, Role::OBias];
const GATE: Roles = [Role::Gate, Role::GateBias];
const UP: Roles = [Role::Up, Role::UpBias];
const DOWN: Roles = [Role::Down, Role::DownBias];

impl Linear {
    fn learning(&self, precision: Precision) -> Learning<'_> {
        Learning::new(&self.weight, self.bias.as_ref(), precision)
    }
}

/// A block in a training step: its matrices in the layouts that the step's products read.
///
/// In bf16 the factors of every product are rounded, sums are f32, and so are weights, activations, gradients and all that is no
/// product. A matrix is packed when a product first reads it, so a learner is made anew once weights have changed.
pub struct Learner<'a> {
    block: &'a Block,
    precision: Precision,
    q: Learning<'a>,
    k: Learning<'a>,
    v: Learning<'a>,
    o: Learning<'a>,
    gate: Learning<'a>,
    up: Learning<'a>,
    down: Learning<'a>,
}

/// Refuses a layer that has no backward pass.
pub fn refuse_experts(config: &ModelConfig, layer: usize) -> Result<(), Error> {
    match config.experts_of(layer) {
        Some(_) => Err(Error::NoBackward { layer }),
        None => Ok(()),
    }
}

impl Block {
    /// Zeros for those weights of the block that `trained` says yes to.
    ///
    /// # Errors
    /// A block with experts: it has no backward pass.
    pub fn gradients(&self, trained: &dyn Fn(&TensorSpec) -> bool) -> Result<Gradients, Error> {
        refuse_experts(&self.config, self.layer)?;
        let specs = self.config.tensors().into_iter().filter(|spec| spec.layer == Some(self.layer));
        let roles: Vec<_> = specs.filter(trained).flat_map(|spec| spec.role.parts().to_vec()).collect();
        let parameters: Vec<_> =
            roles.into_iter().filter_map(|role| Some((role, self.parameter(role)?))).collect();
        Ok(Gradients::zeros(parameters.iter().map(|(role, parameter)| (*role, parameter.shape()))))
    }

    /// The block as it learns, with products in `precision`.
    ///
    /// # Panics
    /// If a matrix is packed, or the MLP is made of experts: [`gradients`](Self::gradients) refuses such a block.
    pub fn learner(&self, precision: Precision) -> Learner<'_> {
        let mlp = self.dense();
        Learner {
            block: self,
            precision,
            q: self.q.learning(precision),
            k: self.k.learning(precision),
            v: self.v.learning(precision),
            o: self.o.learning(precision),
            gate: mlp.gate.learning(precision),
            up: mlp.up.learning(precision),
            down: mlp.down.learning(precision),
        }
    }

    /// Tokens in whole windows that go through a block together. No thread count enters: sums over tokens depend on it.
    pub(crate) fn windows_at_once(ctx: usize) -> usize {
        1024usize.div_ceil(ctx) * ctx
    }
}

/// Adds the gradients of a matrix and its bias, where they are asked for.
fn add_gradients(
    matrix: &Learning<'_>,
    roles: Roles,
    d_out: &Activations<'_>,
    x: &Activations<'_>,
    gradients: &mut Gradients,
) {
    let [weight, bias] = roles;
    if let Some(d_weight) = gradients.matrix_mut(weight) {
        matrix.add_weight_gradient(d_out, x, d_weight);
    }
    if let Some(d_bias) = gradients.vector_mut(bias) {
        bias_backward(d_out.view(), d_bias);
    }
}

impl Learner<'_> {
    /// The whole block in place of `[tokens, hidden_size]`, nothing kept: in f32 [`Block::forward`], in any precision the bits of
    /// [`forward_keeping`](Self::forward_keeping).
    ///
    /// # Panics
    /// If the rows are not whole windows of `ctx` tokens.
    pub fn forward(&self, hidden: &mut Array2<f32>, ctx: usize) {
        match self.precision {
            Precision::F32 => self.block.forward(hidden, ctx),
            Precision::Bf16 => {
                for hidden in hidden.axis_chunks_iter_mut(Axis(0), Block::windows_at_once(ctx)) {
                    self.forward_keeping(hidden, ctx);
                }
            }
        }
    }

    /// The whole block in place of `[tokens, hidden_size]`, in f32 as [`Block::forward`] to the bit; returns what
    /// [`backward`](Self::backward) will read.
    ///
    /// # Panics
    /// If the rows are not whole windows of `ctx` tokens.
    pub fn forward_keeping(&self, mut hidden: ArrayViewMut2<'_, f32>, ctx: usize) -> Kept {
        let block = self.block;
        let input = hidden.to_owned();
        let attn_in = Activations::new(block.attn_in(input.view()));
        let [mut q, mut k, v] = [&self.q, &self.k, &self.v].map(|matrix| matrix.apply(&attn_in));
        drop(attn_in);
        let before_norm = block.qk_norm.is_some().then(|| [q.clone(), k.clone()]);
        block.norm_and_turn([&mut q, &mut k], ctx);
        let shape = block.config.attention(block.layer, ctx);
        let attend = match self.precision {
            Precision::F32 => attention,
            Precision::Bf16 => bf16_attention,
        };
        let attn_out = attend(shape, q.view(), k.view(), v.view());
        let o_in = Activations::new(attn_out.view());
        self.add(&self.o, block.post_attn_norm.as_ref(), hidden.view_mut(), &o_in);
        let between = hidden.to_owned();
        let mlp_in = Activations::new(block.mlp_in(hidden.view()));
        let (gate, up) = (self.gate.apply(&mlp_in), self.up.apply(&mlp_in));
        drop(mlp_in);
        let mid = Activations::new(block.dense().gated(gate.clone(), up.view()));
        self.add(&self.down, block.post_mlp_norm.as_ref(), hidden, &mid);
        drop(o_in);
        Kept { input, q, k, v, before_norm, attn_out, between, gate, up, ctx }
    }

    /// What a matrix makes of x, normed and scaled as the family has it, is added to `hidden`.
    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    fn add(
        &self,
        matrix: &Learning<'_>,
        post_norm: Option<&Norm>,
        mut hidden: ArrayViewMut2<'_, f32>,
        x: &Activations<'_>,
    ) {
        let multiplier = self.block.config.residual_multiplier;
        if post_norm.is_none() && multiplier == 1.0 {
            return matrix.add_to(hidden, x);
        }
        let mut out = matrix.apply(x);
        if let Some(norm) = post_norm {
            norm.apply_to_heads(out.view_mut()); // of one head
        }
        hidden.scaled_add(multiplier, &out);
    }

    /// Turns the gradient of the block's output into that of its input, `d`, and adds those of the weights to `gradients`, where
    /// they are asked for.
    ///
    /// # Panics
    /// If `d` has not the shape of the input or is not contiguous.
    pub fn backward(&self, kept: Kept, mut d: ArrayViewMut2<'_, f32>, gradients: &mut Gradients) {
        assert_eq!(kept.input.dim(), d.dim(), "the gradient of a block's output");
        let Kept { input, q, k, v, before_norm, attn_out, between, gate, up, ctx } = kept;
        self.mlp_backward(between.view(), [gate, up], d.view_mut(), gradients);
        drop(between);
        let attn_out = Activations::new(attn_out);
        let d_added =
            self.added_backward(Role::PostAttnNorm, d.view(), gradients, || self.o.apply(&attn_out));
        add_gradients(&self.o, O, &d_added, &attn_out, gradients);
        let d_attn_out = self.o.input_gradient(&d_added);
        drop((d_added, attn_out));
        let shape = self.block.config.attention(self.block.layer, ctx);
        let attend_backward = match self.precision {
            Precision::F32 => attention_backward,
            Precision::Bf16 => bf16_attention_backward,
        };
        let mut d_qkv = attend_backward(shape, [q.view(), k.view(), v.view()], d_attn_out.view());
        drop([q, k, v]);
        let [d_q, d_k, _] = &mut d_qkv;
        self.turn_backward([d_q, d_k], before_norm.as_ref(), ctx, gradients);
        self.attn_in_backward(input.view(), d_qkv, d, gradients);
    }

    /// [`backward`](Self::backward) with no more kept than the block's input `[tokens, hidden_size]`: a few windows at a time go
    /// forward once more.
    ///
    /// # Panics
    /// As [`backward`](Self::backward), or if the rows are not whole windows of `ctx` tokens.
    pub fn backward_from_input(
        &self,
        input: ArrayView2<'_, f32>,
        ctx: usize,
        mut d: ArrayViewMut2<'_, f32>,
        gradients: &mut Gradients,
    ) {
        assert_eq!(input.dim(), d.dim(), "the gradient of a block's output");
        let tokens = Block::windows_at_once(ctx);
        for (input, d) in input.axis_chunks_iter(Axis(0), tokens).zip(d.axis_chunks_iter_mut(Axis(0), tokens))
        {
            let kept = self.forward_keeping(input.to_owned().view_mut(), ctx);
            self.backward(kept, d, gradients);
        }
    }

    /// gate and up are `[tokens, intermediate_size]`; adds the MLP's share to `d`.
    fn mlp_backward(
        &self,
        between: ArrayView2<'_, f32>,
        [gate, up]: [Array2<f32>; 2],
        d: ArrayViewMut2<'_, f32>,
        gradients: &mut Gradients,
    ) {
        let mlp = self.block.dense();
        let d_added = self.added_backward(Role::PostMlpNorm, d.view(), gradients, || {
            self.down.apply(&Activations::new(mlp.gated(gate.clone(), up.view())))
        });
        let d_mid = self.down.input_gradient(&d_added);
        let gate_backward = match mlp.activation {
            Activation::Silu => silu_mul_backward,
            Activation::GeluTanh => gelu_mul_backward,
        };
        let GateBackward { out, d_gate, d_up } = gate_backward(gate, up, d_mid);
        add_gradients(&self.down, DOWN, &d_added, &Activations::new(out), gradients);
        drop(d_added);
        let mlp_in = Activations::new(self.block.mlp_in(between));
        let (d_gate, d_up) = (Activations::new(d_gate), Activations::new(d_up));
        add_gradients(&self.gate, GATE, &d_gate, &mlp_in, gradients);
        add_gradients(&self.up, UP, &d_up, &mlp_in, gradients);
        let mut d_mlp_in = self.gate.input_gradient(&d_gate);
        self.up.add_input_gradient(&d_up, d_mlp_in.view_mut());
        self.normed_backward(Role::MlpNorm, between, d_mlp_in.view(), d, gradients);
    }

    /// The gradient of what o or down gives, from `d`, the gradient of the stream it is added to: scaled as the family scales it,
    /// and through the norm of what is `given`, if there is one.
    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    fn added_backward<'d>(
        &self,
        post_norm: Role,
        d: ArrayView2<'d, f32>,
        gradients: &mut Gradients,
        given: impl FnOnce() -> Array2<f32>,
    ) -> Activations<'d> {
        let (norm, multiplier) = (self.block.norm(post_norm), self.block.config.residual_multiplier);
        if norm.is_none() && multiplier == 1.0 {
            return Activations::new(d);
        }
        let mut d_given = &d * multiplier;
        if let Some(norm) = norm {
            norm.backward_to_heads(given().view(), d_given.view_mut(), gradients.vector_mut(post_norm)); // of one head
        }
        Activations::new(d_given)
    }

    /// Adds to `d`, the gradient of the stream, what comes from its normed form.
    fn normed_backward(
        &self,
        role: Role,
        stream: ArrayView2<'_, f32>,
        d_normed: ArrayView2<'_, f32>,
        mut d: ArrayViewMut2<'_, f32>,
        gradients: &mut Gradients,
    ) {
        match self.block.norm(role) {
            Some(norm) => norm.backward(stream, d_normed, d, gradients.vector_mut(role)),
            None => d += &d_normed,
        }
    }

    /// The gradients of q and k as the attention read them become those of the projections' outputs.
    fn turn_backward(
        &self,
        d_qk: [&mut Array2<f32>; 2],
        before_norm: Option<&[Array2<f32>; 2]>,
        ctx: usize,
        gradients: &mut Gradients,
    ) {
        for (i, (d, role)) in d_qk.into_iter().zip([Role::QNorm, Role::KNorm]).enumerate() {
            self.block.with_rope(ctx, |rope| rope.backward(d.view_mut()));
            if let (Some(norm), Some(before)) = (self.block.norm(role), before_norm) {
                norm.backward_to_heads(before[i].view(), d.view_mut(), gradients.vector_mut(role));
            }
        }
    }

    /// From the gradients of q, k and v adds the attention's share to `d`.
    fn attn_in_backward(
        &self,
        input: ArrayView2<'_, f32>,
        d_qkv: [Array2<f32>; 3],
        d: ArrayViewMut2<'_, f32>,
        gradients: &mut Gradients,
    ) {
        let attn_in = Activations::new(self.block.attn_in(input));
        let [d_q, d_k, d_v] = d_qkv.map(Activations::new);
        add_gradients(&self.q, Q, &d_q, &attn_in, gradients);
        add_gradients(&self.k, K, &d_k, &attn_in, gradients);
        add_gradients(&self.v, V, &d_v, &attn_in, gradients);
        let mut d_attn_in = self.q.input_gradient(&d_q);
        self.k.add_input_gradient(&d_k, d_attn_in.view_mut());
        self.v.add_input_gradient(&d_v, d_attn_in.view_mut());
        self.normed_backward(Role::AttnNorm, input, d_attn_in.view(), d, gradients);
    }
}
