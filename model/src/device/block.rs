//! One decoder block over the device, whole or stage by stage: the steps of [`Block`](crate::Block), in its order.

use super::weights::{OwnParts, Parts, bias_of};
use crate::family::Activation;
use crate::{Error, ModelConfig, Role, TensorSpec};
use attar_tensor::cuda::{
    Cuda, CudaError, Direction, Element, Gate, Keep, Loaded, Matrix, Norm, Rows, RowsMut, Turns,
};

/// How a model's norms are stored.
pub(super) fn norm_of(config: &ModelConfig) -> Norm {
    let offset = if config.family.norms_add_one { 1.0 } else { 0.0 };
    Norm { eps: config.rms_norm_eps, offset }
}

/// The turns of a model's layers in windows of one length, each kind once.
#[derive(Debug)]
pub struct AllTurns {
    pub(super) ctx: usize,
    kinds: Vec<(Vec<f32>, Turns)>, // by radians per position
}

impl AllTurns {
    /// Puts the turns of all layers on the device.
    ///
    /// # Errors
    /// If memory is short.
    pub fn new(cuda: &Cuda, config: &ModelConfig, ctx: usize) -> Result<Self, Error> {
        let mut kinds: Vec<(Vec<f32>, Turns)> = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let Some(frequencies) = config.rope_frequencies(layer, ctx) else { continue };
            if kinds.iter().any(|(kind, _)| *kind == frequencies) {
                continue;
            }
            if let Some(rope) = config.rope(layer, ctx) {
                kinds.push((frequencies, cuda.turns(&rope)?));
            }
        }
        Ok(Self { ctx, kinds })
    }

    pub(super) fn of(&self, config: &ModelConfig, layer: usize) -> Option<&Turns> {
        let frequencies = config.rope_frequencies(layer, self.ctx)?;
        self.kinds.iter().find(|(kind, _)| *kind == frequencies).map(|(_, turns)| turns)
    }
}

/// What matrices read of the residual stream: the stream itself, or its norm.
#[derive(Debug)]
pub enum Input<'a, T> {
    /// The stream as it is.
    Stream(Rows<'a, T>),
    /// Normed.
    Normed(Matrix<T>),
}

impl<T: Element> Input<'_, T> {
    /// All rows, `[tokens, hidden_size]`.
    pub fn view(&self) -> Rows<'_, T> {
        match self {
            Self::Stream(rows) => *rows,
            Self::Normed(matrix) => matrix.view(),
        }
    }
}

/// One decoder block on the device. Activations are `[tokens, features]`, tokens in whole windows.
#[derive(Debug)]
pub struct DeviceBlock<'a, T> {
    pub(super) cuda: &'a Cuda,
    pub(super) config: &'a ModelConfig,
    pub(super) layer: usize,
    pub(super) turns: &'a AllTurns,
    pub(super) parts: Parts<'a, T>,
}

impl<'a, T: Element> DeviceBlock<'a, T> {
    /// A layer whose weights have arrived, in the order of its tensors.
    pub(super) fn arrived(
        (cuda, config): (&'a Cuda, &'a ModelConfig),
        (layer, specs): (usize, &[TensorSpec]),
        turns: &'a AllTurns,
        loaded: Loaded<'a>,
    ) -> Self {
        Self { cuda, config, layer, turns, parts: Parts::of_slot(loaded, config, specs) }
    }

    /// A layer whose weights were put there one by one. A stage needs those it multiplies by.
    pub fn of(
        cuda: &'a Cuda,
        config: &'a ModelConfig,
        layer: usize,
        turns: &'a AllTurns,
        own: &'a OwnParts<T>,
    ) -> Self {
        Self { cuda, config, layer, turns, parts: own.parts(config) }
    }

    pub(super) fn norm_of(&self) -> Norm {
        norm_of(self.config)
    }

    pub(super) fn normed<'x>(&self, role: Role, x: Rows<'x, T>) -> Result<Input<'x, T>, CudaError> {
        let Some(&weight) = self.parts.vectors.get(&role) else { return Ok(Input::Stream(x)) };
        let mut out = self.cuda.room(x.dim())?;
        self.cuda.rms_norm(out.view_mut(), x, weight, self.norm_of())?;
        Ok(Input::Normed(out))
    }

    /// The norm of every head, or of all together where the weight is as wide as all, in place.
    fn norm_heads(&self, role: Role, x: RowsMut<'_, T>) -> Result<(), CudaError> {
        let Some(&weight) = self.parts.vectors.get(&role) else { return Ok(()) };
        self.cuda.rms_norm_in_place(x.reshaped(weight.dim().1), weight, self.norm_of())
    }

    pub(super) fn matrix(&self, role: Role) -> Rows<'_, T> {
        let found = self.parts.matrices.get(&role);
        *found.unwrap_or_else(|| panic!("{role:?} of layer {} is not on the device", self.layer))
    }

    fn add_bias(&self, role: Role, out: RowsMut<'_, T>) -> Result<(), CudaError> {
        let bias = bias_of(role).and_then(|bias| self.parts.vectors.get(&bias));
        bias.map_or(Ok(()), |&bias| self.cuda.add_row(out, bias))
    }

    /// `x @ weight.T + bias`.
    pub(super) fn linear(&self, role: Role, x: Rows<'_, T>) -> Result<Matrix<T>, CudaError> {
        let weight = self.matrix(role);
        let mut out = self.cuda.room((x.dim().0, weight.dim().0))?;
        self.cuda.linear(out.view_mut(), x, weight, Keep::Nothing)?;
        self.add_bias(role, out.view_mut())?;
        Ok(out)
    }

    /// What q, k and v read: the stream, normed if the family norms it here.
    ///
    /// # Errors
    /// If memory is short or a launch fails.
    pub fn attn_in<'x>(&self, hidden: Rows<'x, T>) -> Result<Input<'x, T>, Error> {
        Ok(self.normed(Role::AttnNorm, hidden)?)
    }

    /// q, k, v and the attention within windows: what o reads, `[tokens, heads * head_dim]`.
    ///
    /// # Errors
    /// If memory is short, a launch fails or a library refuses.
    ///
    /// # Panics
    /// If the rows are not whole windows.
    pub fn attn_out(&self, attn_in: Rows<'_, T>) -> Result<Matrix<T>, Error> {
        let [mut q, mut k, v] = self.projected(attn_in)?;
        self.norm_and_turn([&mut q, &mut k])?;
        Ok(self.attend([&q, &k, &v])?)
    }

    pub(super) fn projected(&self, attn_in: Rows<'_, T>) -> Result<[Matrix<T>; 3], CudaError> {
        Ok([self.linear(Role::Q, attn_in)?, self.linear(Role::K, attn_in)?, self.linear(Role::V, attn_in)?])
    }

    pub(super) fn norm_and_turn(&self, [q, k]: [&mut Matrix<T>; 2]) -> Result<(), CudaError> {
        self.norm_heads(Role::QNorm, q.view_mut())?;
        self.norm_heads(Role::KNorm, k.view_mut())?;
        if let Some(turns) = self.turns.of(self.config, self.layer) {
            self.cuda.rope(q.view_mut(), turns, Direction::There)?;
            self.cuda.rope(k.view_mut(), turns, Direction::There)?;
        }
        Ok(())
    }

    pub(super) fn attend(&self, [q, k, v]: [&Matrix<T>; 3]) -> Result<Matrix<T>, CudaError> {
        let mut out = self.cuda.room(q.dim())?;
        let shape = self.config.attention(self.layer, self.turns.ctx);
        self.cuda.attention(out.view_mut(), [q.view(), k.view(), v.view()], shape)?;
        Ok(out)
    }

    /// `hidden += o(attn_out)`, what is added normed and scaled as the family has it.
    ///
    /// # Errors
    /// If memory is short, a launch fails or a library refuses.
    pub fn add_attn(&self, hidden: RowsMut<'_, T>, attn_out: Rows<'_, T>) -> Result<(), Error> {
        Ok(self.add(Role::O, Role::PostAttnNorm, hidden, attn_out)?)
    }

    /// What gate and up read: the stream, normed if the family norms it here.
    ///
    /// # Errors
    /// If memory is short or a launch fails.
    pub fn mlp_in<'x>(&self, hidden: Rows<'x, T>) -> Result<Input<'x, T>, Error> {
        Ok(self.normed(Role::MlpNorm, hidden)?)
    }

    /// `activation(gate) * up`: what down reads, `[tokens, intermediate_size]`.
    ///
    /// # Errors
    /// If memory is short, a launch fails or a library refuses.
    pub fn mlp_mid(&self, mlp_in: Rows<'_, T>) -> Result<Matrix<T>, Error> {
        let mut gate = self.linear(Role::Gate, mlp_in)?;
        let up = self.linear(Role::Up, mlp_in)?;
        self.cuda.gate(gate.view_mut(), up.view(), self.curve())?;
        Ok(gate)
    }

    /// The curve of the gate.
    pub(super) fn curve(&self) -> Gate {
        match self.config.family.activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::Gelu,
        }
    }

    /// `hidden += down(mlp_mid)`, what is added normed and scaled as the family has it.
    ///
    /// # Errors
    /// If memory is short, a launch fails or a library refuses.
    pub fn add_mlp(&self, hidden: RowsMut<'_, T>, mlp_mid: Rows<'_, T>) -> Result<(), Error> {
        Ok(self.add(Role::Down, Role::PostMlpNorm, hidden, mlp_mid)?)
    }

    #[expect(clippy::float_cmp, reason = "it is one or it is not")]
    pub(super) fn add(
        &self,
        role: Role,
        post_norm: Role,
        mut hidden: RowsMut<'_, T>,
        x: Rows<'_, T>,
    ) -> Result<(), CudaError> {
        let multiplier = self.config.residual_multiplier;
        if !self.parts.vectors.contains_key(&post_norm) && multiplier == 1.0 {
            self.cuda.linear(hidden.reborrow(), x, self.matrix(role), Keep::Sum)?;
            return self.add_bias(role, hidden);
        }
        let mut out = self.linear(role, x)?;
        self.norm_heads(post_norm, out.view_mut())?; // of one head
        if multiplier != 1.0 {
            self.cuda.scale(out.view_mut(), multiplier)?;
        }
        self.cuda.add(hidden, out.view())
    }

    /// The whole block, in place of `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// If memory is short, a launch fails or a library refuses.
    ///
    /// # Panics
    /// If the rows are not whole windows.
    pub fn forward(&self, mut hidden: RowsMut<'_, T>) -> Result<(), Error> {
        let attn_out = self.attn_out(self.attn_in(hidden.view())?.view())?;
        self.add_attn(hidden.reborrow(), attn_out.view())?;
        drop(attn_out);
        let mlp_mid = self.mlp_mid(self.mlp_in(hidden.view())?.view())?;
        self.add_mlp(hidden, mlp_mid.view())
    }
}
