//! A block's backward pass over the device, stage by stage: the steps of [`Learner`](crate::Learner), in its order.
//!
//! Legend: `d` is the gradient of the residual stream, `[tokens, hidden_size]`. It comes in as the gradient of the block's output
//! and, every branch having added its share, leaves as that of the block's input.

use super::block::{DeviceBlock, Input};
use super::weights::bias_of;
use crate::{Error, Role};
use attar_tensor::cuda::{CudaError, Direction, Element, Keep, Matrix, Rows, RowsMut};

/// What a backward pass reads of the forward pass before it; `[tokens, features]` each, tokens in whole windows.
#[derive(Debug)]
pub(super) struct Kept<T> {
    input: Matrix<T>,
    q: Matrix<T>, // turned, as the attention read them
    k: Matrix<T>,
    v: Matrix<T>,
    before_norm: Option<[Matrix<T>; 2]>, // q and k where they are normalised
    attn_out: Matrix<T>,
    between: Matrix<T>, // the residual stream after the attention and before the MLP
    gate: Matrix<T>,
    up: Matrix<T>,
}

/// Where gradients of weights are added up: those of one layer, or of what is outside of all.
pub(super) trait Sums {
    /// The sum for one role, shaped as its weight, a vector as `[1, features]`; none where the model has no such weight.
    fn of(&mut self, role: Role) -> Option<RowsMut<'_, f32>>;
}

impl<T: Element> DeviceBlock<'_, T> {
    /// The whole block in place of `[tokens, hidden_size]`; returns what [`backward`](Self::backward) will read.
    pub(super) fn forward_keeping(&self, hidden: &mut Matrix<T>) -> Result<Kept<T>, Error> {
        let input = self.cuda.copied(hidden.view())?;
        let attn_in = self.normed(Role::AttnNorm, input.view())?;
        let [mut q, mut k, v] = self.projected(attn_in.view())?;
        drop(attn_in);
        let before_norm = if self.parts.vectors.contains_key(&Role::QNorm) {
            Some([self.cuda.copied(q.view())?, self.cuda.copied(k.view())?])
        } else {
            None
        };
        self.norm_and_turn([&mut q, &mut k])?;
        let attn_out = self.attend([&q, &k, &v])?;
        self.add(Role::O, Role::PostAttnNorm, hidden.view_mut(), attn_out.view())?;
        let between = self.cuda.copied(hidden.view())?;
        let mlp_in = self.normed(Role::MlpNorm, between.view())?;
        let gate = self.linear(Role::Gate, mlp_in.view())?;
        let up = self.linear(Role::Up, mlp_in.view())?;
        drop(mlp_in);
        let mid = self.cuda.gated(gate.view(), up.view(), self.curve())?;
        self.add(Role::Down, Role::PostMlpNorm, hidden.view_mut(), mid.view())?;
        Ok(Kept { input, q, k, v, before_norm, attn_out, between, gate, up })
    }

    /// Turns the gradient of the block's output into that of its input, `d`, and adds those of the weights to `sums`.
    pub(super) fn backward(
        &self,
        kept: Kept<T>,
        d: &mut Matrix<T>,
        sums: &mut dyn Sums,
    ) -> Result<(), Error> {
        let Kept { input, q, k, v, before_norm, attn_out, between, gate, up } = kept;
        self.mlp_backward(between.view(), [gate, up], d, sums)?;
        drop(between);
        let d_attn_out = {
            let d_added =
                self.added_backward([Role::O, Role::PostAttnNorm], d.view(), sums, attn_out.view())?;
            self.add_gradients(Role::O, d_added.view(), attn_out.view(), sums)?;
            self.input_gradient(&[(Role::O, d_added.view())])?
        };
        drop(attn_out);
        let shape = self.config.attention(self.layer, self.turns.ctx);
        let qkv = [q.view(), k.view(), v.view()];
        let [mut d_q, mut d_k, d_v] = self.cuda.attention_backward(qkv, d_attn_out.view(), shape)?;
        drop((q, k, v, d_attn_out));
        self.turn_backward([&mut d_q, &mut d_k], before_norm, sums)?;
        let attn_in = self.normed(Role::AttnNorm, input.view())?;
        let d_parts = [(Role::Q, d_q.view()), (Role::K, d_k.view()), (Role::V, d_v.view())];
        for (role, d_out) in d_parts {
            self.add_gradients(role, d_out, attn_in.view(), sums)?;
        }
        let d_attn_in = self.input_gradient(&d_parts)?;
        Ok(self.normed_backward(Role::AttnNorm, input.view(), d_attn_in.view(), d, sums)?)
    }

    /// gate and up are `[tokens, intermediate_size]`; adds the MLP's share to `d`.
    fn mlp_backward(
        &self,
        between: Rows<'_, T>,
        [mut gate, mut up]: [Matrix<T>; 2],
        d: &mut Matrix<T>,
        sums: &mut dyn Sums,
    ) -> Result<(), CudaError> {
        let mid = self.cuda.gated(gate.view(), up.view(), self.curve())?;
        let d_mid = {
            let d_added = self.added_backward([Role::Down, Role::PostMlpNorm], d.view(), sums, mid.view())?;
            self.add_gradients(Role::Down, d_added.view(), mid.view(), sums)?;
            self.input_gradient(&[(Role::Down, d_added.view())])?
        };
        drop(mid);
        self.cuda.gate_backward(gate.view_mut(), up.view_mut(), d_mid.view(), self.curve())?;
        drop(d_mid);
        let mlp_in = self.normed(Role::MlpNorm, between)?;
        let d_parts = [(Role::Gate, gate.view()), (Role::Up, up.view())];
        for (role, d_out) in d_parts {
            self.add_gradients(role, d_out, mlp_in.view(), sums)?;
        }
        let d_mlp_in = self.input_gradient(&d_parts)?;
        self.normed_backward(Role::MlpNorm, between, d_mlp_in.view(), d, sums)
    }

    /// Adds the gradients of a matrix and its bias.
    fn add_gradients(
        &self,
        matrix: Role,
        d_out: Rows<'_, T>,
        x: Rows<'_, T>,
        sums: &mut dyn Sums,
    ) -> Result<(), CudaError> {
        if let Some(d_weight) = sums.of(matrix) {
            self.cuda.weight_backward(d_weight, d_out, x, Keep::Sum)?;
        }
        match bias_of(matrix).and_then(|bias| sums.of(bias)) {
            Some(d_bias) => self.cuda.column_sum(d_bias, d_out),
            None => Ok(()),
        }
    }

    /// The gradient of what several matrices read, from those of what each made of it.
    fn input_gradient(&self, d_outs: &[(Role, Rows<'_, T>)]) -> Result<Matrix<T>, CudaError> {
        let (first, d_out) = d_outs[0];
        let mut d_x = self.cuda.room((d_out.dim().0, self.matrix(first).dim().1))?;
        let mut keep = Keep::Nothing;
        for &(role, d_out) in d_outs {
            self.cuda.input_backward(d_x.view_mut(), d_out, self.matrix(role), keep)?;
            keep = Keep::Sum;
        }
        Ok(d_x)
    }

    /// The gradient of what o or down gives of x, from `d`, the gradient of the stream it is added to: scaled as the family scales
    /// it, and through the norm of what is given, if there is one.
    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    fn added_backward<'d>(
        &self,
        [role, post_norm]: [Role; 2],
        d: Rows<'d, T>,
        sums: &mut dyn Sums,
        x: Rows<'_, T>,
    ) -> Result<Input<'d, T>, CudaError> {
        let (norm, multiplier) = (self.parts.vectors.get(&post_norm), self.config.residual_multiplier);
        if norm.is_none() && multiplier == 1.0 {
            return Ok(Input::Stream(d));
        }
        let mut d_given = self.cuda.copied(d)?;
        if multiplier != 1.0 {
            self.cuda.scale(d_given.view_mut(), multiplier)?;
        }
        if let Some(&weight) = norm {
            let given = self.linear(role, x)?;
            let gradients = (d_given.view_mut(), sums.of(post_norm));
            self.cuda.rms_norm_backward_in_place(gradients, given.view(), weight, self.norm_of())?;
        }
        Ok(Input::Normed(d_given))
    }

    /// Adds to `d`, the gradient of the stream, what comes from its normed form.
    fn normed_backward(
        &self,
        role: Role,
        stream: Rows<'_, T>,
        d_normed: Rows<'_, T>,
        d: &mut Matrix<T>,
        sums: &mut dyn Sums,
    ) -> Result<(), CudaError> {
        match self.parts.vectors.get(&role) {
            Some(&weight) => {
                let gradients = (d.view_mut(), sums.of(role));
                self.cuda.rms_norm_backward(gradients, stream, weight, self.norm_of(), d_normed)
            }
            None => self.cuda.add(d.view_mut(), d_normed),
        }
    }

    /// The gradients of q and k as the attention read them become those of the projections' outputs.
    fn turn_backward(
        &self,
        d_qk: [&mut Matrix<T>; 2],
        before_norm: Option<[Matrix<T>; 2]>,
        sums: &mut dyn Sums,
    ) -> Result<(), CudaError> {
        let mut before_norm = before_norm.into_iter().flatten();
        for (d, role) in d_qk.into_iter().zip([Role::QNorm, Role::KNorm]) {
            if let Some(turns) = self.turns.of(self.config, self.layer) {
                self.cuda.rope(d.view_mut(), turns, Direction::Back)?;
            }
            if let (Some(&weight), Some(before)) = (self.parts.vectors.get(&role), before_norm.next()) {
                // Where all heads are normed together the weight is as wide as all: one head.
                let width = weight.dim().1;
                let gradients = (d.view_mut().reshaped(width), sums.of(role));
                let before = before.view().reshaped(width);
                self.cuda.rms_norm_backward_in_place(gradients, before, weight, self.norm_of())?;
            }
        }
        Ok(())
    }
}
