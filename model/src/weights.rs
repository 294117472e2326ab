//! Where a model's weights come from.

use crate::{Error, Rounding, TensorSpec};
use ndarray::{Array1, Array2, ArrayD, Axis, Ix1, Ix2};
use std::ops::Range;

/// Why a source of weights could not deliver.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// A source of weights. Names, shapes and the order of rows are Hugging Face's, whatever the file's are.
pub trait Weights: Sync {
    /// The tensor called `name`, decoded to f32.
    ///
    /// # Errors
    /// The source's own.
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError>;

    /// Some rows of the matrix called `name`, in the order asked for: of a large embedding a text needs few.
    ///
    /// # Errors
    /// The source's own, a row that is not there among them.
    fn load_rows(&self, name: &str, rows: &[usize]) -> Result<Array2<f32>, LoadError> {
        let matrix = self.load(name)?.into_dimensionality::<Ix2>()?;
        if let Some(row) = rows.iter().find(|&&row| row >= matrix.nrows()) {
            return Err(format!("there is no row {row} among its {}", matrix.nrows()).into());
        }
        Ok(matrix.select(Axis(0), rows))
    }

    /// Says that the tensor called `name` will be loaded soon: a source on a disk can begin to read it. Called beside
    /// other work, it may take its time.
    fn read_ahead(&self, _name: &str) {}

    /// Rows of the matrix called `name` that follow one another: of a large head a slice at a time.
    ///
    /// # Errors
    /// The source's own, a row that is not there among them.
    fn load_range(&self, name: &str, rows: Range<usize>) -> Result<Array2<f32>, LoadError> {
        self.load_rows(name, &rows.collect::<Vec<_>>())
    }

    /// The matrix called `name` as little-endian bf16, row after row, where it lies so in memory or a mapped file: it can go to a
    /// device as it is.
    fn bf16_bytes(&self, _name: &str) -> Option<&[u8]> {
        None
    }

    /// Says that [`bf16_bytes`](Self::bf16_bytes) of `name` have been read: the memory they are mapped to may go.
    fn let_go(&self, _name: &str) {}

    /// How what the matrix called `name` reads is rounded by programs that run the model, where it is.
    fn rounding(&self, _name: &str) -> Option<Rounding> {
        None
    }

    /// Whether there is a tensor called `name`.
    fn has(&self, name: &str) -> bool;
}

/// Loads a matrix and holds it to its description.
pub fn matrix(weights: &dyn Weights, spec: &TensorSpec) -> Result<Array2<f32>, Error> {
    let found = any(weights, spec)?;
    let shape = found.shape().to_vec();
    found.into_dimensionality::<Ix2>().map_err(|_| other_shape(spec, shape))
}

/// Loads some rows of a matrix and holds them to its description.
pub fn rows(weights: &dyn Weights, spec: &TensorSpec, rows: &[usize]) -> Result<Array2<f32>, Error> {
    let load_error = |source| Error::Load { name: spec.name.clone(), source };
    let found = weights.load_rows(&spec.name, rows).map_err(load_error)?;
    if found.ncols() == spec.shape[1] {
        return Ok(found);
    }
    Err(other_shape(spec, vec![spec.shape[0], found.ncols()]))
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
