//! The gated MLP: that of a dense block, and every expert.

use crate::family::Activation;
use crate::{Error, Linear, ModelConfig, Precision, Role, TensorSpec, Weights};
use attar_tensor::op::{gelu_mul, silu_mul};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

/// `down(activation(gate(x)) * up(x))`.
#[derive(Debug)]
pub struct Gated {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
}

impl Gated {
    /// Loads one expert of a layer.
    ///
    /// # Errors
    /// A tensor that cannot be loaded or has another shape than the configuration says; a layer without that expert.
    pub fn load_expert(
        config: &ModelConfig,
        layer: usize,
        expert: usize,
        weights: &dyn Weights,
    ) -> Result<Self, Error> {
        let linear = |role| -> Result<Linear, Error> {
            let missing = || Error::Missing { key: format!("{role:?} of expert {expert}") };
            let spec: TensorSpec = config.expert_tensor(role, layer, expert).ok_or_else(missing)?;
            Linear::load(weights, &spec, None)
        };
        Ok(Self {
            gate: linear(Role::Gate)?,
            up: linear(Role::Up)?,
            down: linear(Role::Down)?,
            activation: config.family.activation,
        })
    }

    /// The matrix of one role and its bias.
    ///
    /// # Panics
    /// If the role is not gate, up or down.
    pub fn linear(&self, role: Role) -> &Linear {
        match role {
            Role::Gate => &self.gate,
            Role::Up => &self.up,
            Role::Down => &self.down,
            other => panic!("{other:?} is not a matrix of an MLP"),
        }
    }

    pub(crate) fn linear_mut(&mut self, role: Role) -> &mut Linear {
        match role {
            Role::Gate => &mut self.gate,
            Role::Up => &mut self.up,
            Role::Down => &mut self.down,
            other => panic!("{other:?} is not a matrix of an MLP"),
        }
    }

    /// The matrix of one role, `[out_features, in_features]`, to be changed in place.
    ///
    /// # Panics
    /// If the role is not gate, up or down, or the matrix is packed.
    pub fn weight_mut(&mut self, role: Role) -> ArrayViewMut2<'_, f32> {
        self.linear_mut(role).weight.view_mut()
    }

    /// Keeps of the matrix of one role what products in `precision` need, see [`Weight::pack`](crate::Weight::pack).
    ///
    /// # Panics
    /// If the role is not gate, up or down.
    pub fn pack_role(&mut self, role: Role, precision: Precision) {
        self.linear_mut(role).weight.pack(precision);
    }

    pub(crate) fn pack(&mut self, precision: Precision) {
        for role in [Role::Gate, Role::Up, Role::Down] {
            self.pack_role(role, precision);
        }
    }

    /// `activation(gate(x)) * up(x)`: what down reads, `[tokens, intermediate_size]`.
    pub fn mid(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let x = x.into();
        let up = self.up.apply_to(&x);
        self.gated(self.gate.apply_to(&x), up.view())
    }

    /// `activation(gate) * up`, `[tokens, intermediate_size]` all three.
    pub(crate) fn gated(&self, gate: Array2<f32>, up: ArrayView2<'_, f32>) -> Array2<f32> {
        match self.activation {
            Activation::Silu => silu_mul(gate, up),
            Activation::GeluTanh => gelu_mul(gate, up),
        }
    }

    /// What it adds to the residual stream, `[tokens, hidden_size]`, from [`mid`](Self::mid).
    pub fn out(&self, mid: ArrayView2<'_, f32>) -> Array2<f32> {
        self.down.apply(mid)
    }
}
