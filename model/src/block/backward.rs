//! A block's backward pass, stage by stage in the order opposite to forward.
//!
//! Legend: `d` is the gradient of the residual stream, `[tokens, hidden_size]`. It comes in as the gradient of the block's output
//! and, every branch having added its share, leaves as that of the block's input.

use super::{Block, Linear};
use crate::family::Activation;
use crate::{Error, Gradients, ModelConfig, Role, TensorSpec};
use attar_tensor::matmul;
use attar_tensor::op::{
    GateBackward, attention_backward, bias_backward, gelu_mul_backward, input_backward, silu_mul_backward,
    weight_backward,
};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2};

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
    /// `d_out @ weight`, the gradient of what the matrix read.
    fn input_gradient(&self, d_out: ArrayView2<'_, f32>) -> Array2<f32> {
        matmul(d_out, self.weight.view())
    }

    /// Adds the gradients of weight and bias, where they are asked for.
    fn add_gradients(
        roles: Roles,
        d_out: ArrayView2<'_, f32>,
        x: ArrayView2<'_, f32>,
        gradients: &mut Gradients,
    ) {
        let [weight, bias] = roles;
        if let Some(d_weight) = gradients.matrix_mut(weight) {
            weight_backward(d_out, x, d_weight);
        }
        if let Some(d_bias) = gradients.vector_mut(bias) {
            bias_backward(d_out, d_bias);
        }
    }
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

    /// The whole block, as [`forward`](Self::forward) to the bit, in place of `[tokens, hidden_size]`; returns what
    /// [`backward`](Self::backward) will read.
    ///
    /// # Panics
    /// If the rows are not whole windows of `ctx` tokens, or the MLP is made of experts: [`gradients`](Self::gradients) refuses
    /// such a block.
    pub fn forward_keeping(&self, mut hidden: ArrayViewMut2<'_, f32>, ctx: usize) -> Kept {
        let input = hidden.to_owned();
        let [mut q, mut k, v] = self.projected(self.attn_in(input.view()).view());
        let before_norm = self.qk_norm.is_some().then(|| [q.clone(), k.clone()]);
        self.norm_and_turn([&mut q, &mut k], ctx);
        let attn_out = self.attend([&q, &k, &v], ctx);
        self.add_attn(hidden.view_mut(), attn_out.view());
        let between = hidden.to_owned();
        let mlp_in = self.mlp_in(hidden.view());
        let mlp = self.dense();
        let (gate, up) = (mlp.gate.apply(mlp_in.view()), mlp.up.apply(mlp_in.view()));
        self.add_mlp(hidden, mlp.gated(gate.clone(), up.view()).view());
        Kept { input, q, k, v, before_norm, attn_out, between, gate, up, ctx }
    }

    /// Turns the gradient of the block's output into that of its input, `d`, and adds those of the weights to `gradients`, where
    /// they are asked for.
    ///
    /// # Panics
    /// If `d` has not the shape of the input or is not contiguous, or a matrix is packed.
    pub fn backward(&self, kept: Kept, mut d: ArrayViewMut2<'_, f32>, gradients: &mut Gradients) {
        assert_eq!(kept.input.dim(), d.dim(), "the gradient of a block's output");
        let Kept { input, q, k, v, before_norm, attn_out, between, gate, up, ctx } = kept;
        self.mlp_backward(between.view(), [gate, up], d.view_mut(), gradients);
        drop(between);
        let d_added =
            self.added_backward(Role::PostAttnNorm, d.view(), gradients, || self.o.apply(attn_out.view()));
        Linear::add_gradients(O, d_added.view(), attn_out.view(), gradients);
        let d_attn_out = self.o.input_gradient(d_added.view());
        drop((d_added, attn_out));
        let shape = self.config.attention(self.layer, ctx);
        let mut d_qkv = attention_backward(shape, [q.view(), k.view(), v.view()], d_attn_out.view());
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
        let tokens = Self::windows_at_once(ctx);
        for (input, d) in input.axis_chunks_iter(Axis(0), tokens).zip(d.axis_chunks_iter_mut(Axis(0), tokens))
        {
            let kept = self.forward_keeping(input.to_owned().view_mut(), ctx);
            self.backward(kept, d, gradients);
        }
    }

    /// Tokens in whole windows that go through a block together. No thread count enters: sums over tokens depend on it.
    pub(crate) fn windows_at_once(ctx: usize) -> usize {
        1024usize.div_ceil(ctx) * ctx
    }

    /// gate and up are `[tokens, intermediate_size]`; adds the MLP's share to `d`.
    fn mlp_backward(
        &self,
        between: ArrayView2<'_, f32>,
        [gate, up]: [Array2<f32>; 2],
        d: ArrayViewMut2<'_, f32>,
        gradients: &mut Gradients,
    ) {
        let mlp = self.dense();
        let d_added = self.added_backward(Role::PostMlpNorm, d.view(), gradients, || {
            mlp.out(mlp.gated(gate.clone(), up.view()).view())
        });
        let d_mid = mlp.down.input_gradient(d_added.view());
        let gate_backward = match mlp.activation {
            Activation::Silu => silu_mul_backward,
            Activation::GeluTanh => gelu_mul_backward,
        };
        let GateBackward { out, d_gate, d_up } = gate_backward(gate, up, d_mid);
        Linear::add_gradients(DOWN, d_added.view(), out.view(), gradients);
        drop((d_added, out));
        let mlp_in = self.mlp_in(between);
        Linear::add_gradients(GATE, d_gate.view(), mlp_in.view(), gradients);
        Linear::add_gradients(UP, d_up.view(), mlp_in.view(), gradients);
        let mut d_mlp_in = mlp.gate.input_gradient(d_gate.view());
        input_backward(d_up.view(), mlp.up.weight.view(), d_mlp_in.view_mut());
        self.normed_backward(Role::MlpNorm, between, d_mlp_in.view(), d, gradients);
    }

    /// The gradient of what o or down gives, from `d`, the gradient of the stream it is added to: scaled as the family scales it,
    /// and through the norm of what is `given`, if there is one.
    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    fn added_backward<'a>(
        &self,
        post_norm: Role,
        d: ArrayView2<'a, f32>,
        gradients: &mut Gradients,
        given: impl FnOnce() -> Array2<f32>,
    ) -> CowArray<'a, f32, Ix2> {
        let (norm, multiplier) = (self.norm(post_norm), self.config.residual_multiplier);
        if norm.is_none() && multiplier == 1.0 {
            return d.into();
        }
        let mut d_given = &d * multiplier;
        if let Some(norm) = norm {
            norm.backward_to_heads(given().view(), d_given.view_mut(), gradients.vector_mut(post_norm)); // of one head
        }
        d_given.into()
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
        match self.norm(role) {
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
            self.with_rope(ctx, |rope| rope.backward(d.view_mut()));
            if let (Some(norm), Some(before)) = (self.norm(role), before_norm) {
                norm.backward_to_heads(before[i].view(), d.view_mut(), gradients.vector_mut(role));
            }
        }
    }

    /// From the gradients of q, k and v adds the attention's share to `d`.
    fn attn_in_backward(
        &self,
        input: ArrayView2<'_, f32>,
        [d_q, d_k, d_v]: [Array2<f32>; 3],
        d: ArrayViewMut2<'_, f32>,
        gradients: &mut Gradients,
    ) {
        let attn_in = self.attn_in(input);
        Linear::add_gradients(Q, d_q.view(), attn_in.view(), gradients);
        Linear::add_gradients(K, d_k.view(), attn_in.view(), gradients);
        Linear::add_gradients(V, d_v.view(), attn_in.view(), gradients);
        let mut d_attn_in = self.q.input_gradient(d_q.view());
        input_backward(d_k.view(), self.k.weight.view(), d_attn_in.view_mut());
        input_backward(d_v.view(), self.v.weight.view(), d_attn_in.view_mut());
        self.normed_backward(Role::AttnNorm, input, d_attn_in.view(), d, gradients);
    }
}
