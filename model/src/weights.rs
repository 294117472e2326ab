//! Where a model's weights come from.

use crate::{Error, TensorSpec};
use ndarray::{Array1, Array2, ArrayD, Ix1, Ix2};

/// Why a source of weights could not deliver.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// A source of weights. Names, shapes and the order of rows are Hugging Face's, whatever the file's are.
pub trait Weights: Sync {
    /// The tensor called `name`, decoded to f32.
    ///
    /// # Errors
    /// The source's own.
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError>;

    /// Whether there is a tensor called `name`.
    fn has(&self, name: &str) -> bool;
}

/// Loads a matrix and holds it to its description.
pub fn matrix(weights: &dyn Weights, spec: &TensorSpec) -> Result<Array2<f32>, Error> {
    let found = any(weights, spec)?;
    let shape = found.shape().to_vec();
    found.into_dimensionality::<Ix2>().map_err(|_| other_shape(spec, shape))
}

/// Loads a vector and holds it to its description.
pub fn vector(weights: &dyn Weights, spec: &TensorSpec) -> Result<Array1<f32>, Error> {
    let found = any(weights, spec)?;
    let shape = found.shape().to_vec();
    found.into_dimensionality::<Ix1>().map_err(|_| other_shape(spec, shape))
}

fn any(weights: &dyn Weights, spec: &TensorSpec) -> Result<ArrayD<f32>, Error> {
    let found = weights.load(&spec.name).map_err(|source| Error::Load { name: spec.name.clone(), source })?;
    if found.shape() == spec.shape { Ok(found) } else { Err(other_shape(spec, found.shape().to_vec())) }
}

fn other_shape(spec: &TensorSpec, found: Vec<usize>) -> Error {
    Error::Shape { name: spec.name.clone(), found, expected: spec.shape.clone() }
}
