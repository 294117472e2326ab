//! Gradients of weights, by role.

use crate::Role;
use ndarray::{ArrayD, ArrayViewMut1, ArrayViewMut2, Ix1, Ix2};
use std::collections::BTreeMap;

/// Gradients of one block's weights, or of those outside of the blocks, each shaped as its weight.
///
/// The roles that are here are those that were asked for: a weight whose role is not here is frozen, and a backward pass
/// spends nothing on it. Gradients are added to what stands here. Of a stored matrix that several are made of, each
/// [part](Role::parts) has its own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gradients(BTreeMap<Role, ArrayD<f32>>);

impl Gradients {
    /// For a backward pass that wants no more than the gradient of its input.
    pub fn none() -> Self {
        Self::default()
    }

    /// Zeros for some roles, each shaped as its weight.
    pub(crate) fn zeros<'a>(shapes: impl IntoIterator<Item = (Role, &'a [usize])>) -> Self {
        Self(shapes.into_iter().map(|(role, shape)| (role, ArrayD::zeros(shape))).collect())
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The gradient of one role.
    pub fn get(&self, role: Role) -> Option<&ArrayD<f32>> {
        self.0.get(&role)
    }

    /// All gradients, by role.
    pub fn iter(&self) -> impl Iterator<Item = (Role, &ArrayD<f32>)> {
        self.0.iter().map(|(&role, gradient)| (role, gradient))
    }

    /// Adds those of another pass, role by role.
    ///
    /// # Panics
    /// If the two are not of the same roles and shapes.
    pub fn add(&mut self, other: &Self) {
        assert!(self.0.keys().eq(other.0.keys()), "gradients of the same roles");
        self.0.values_mut().zip(other.0.values()).for_each(|(sum, other)| *sum += other);
    }

    pub(crate) fn matrix_mut(&mut self, role: Role) -> Option<ArrayViewMut2<'_, f32>> {
        self.0.get_mut(&role)?.view_mut().into_dimensionality::<Ix2>().ok()
    }

    pub(crate) fn vector_mut(&mut self, role: Role) -> Option<ArrayViewMut1<'_, f32>> {
        self.0.get_mut(&role)?.view_mut().into_dimensionality::<Ix1>().ok()
    }
}
