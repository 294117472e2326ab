//! A block's weights on the device: streamed from a checkpoint, or put there one by one.

use crate::weights::{matrix, vector};
use crate::{Block, Error, ModelConfig, Role, TensorSpec, Weights};
use attar_tensor::cuda::{Cuda, Element, Loaded, Matrix, Rows, RowsMut, bf16, bytes, slot_bytes};
use ndarray::Ix1;
use rayon::prelude::*;
use std::collections::HashMap;

/// Where each part of a block stands on the device, by role.
#[derive(Debug, Clone)]
pub struct Parts<'a, T> {
    pub(super) matrices: HashMap<Role, Rows<'a, T>>, // [out_features, in_features] each
    pub(super) vectors: HashMap<Role, Rows<'a, f32>>, // [1, features] each: norms as they are stored, biases
}

/// The tensors of one layer, in the order in which they lie in a slot.
pub(super) fn specs(config: &ModelConfig, layer: usize) -> Vec<TensorSpec> {
    config.tensors().into_iter().filter(|spec| spec.layer == Some(layer)).collect()
}

/// The largest slot that a layer needs.
pub(super) fn largest_slot<T: Element>(config: &ModelConfig) -> usize {
    let mut largest = vec![0; config.num_hidden_layers];
    let tensors = config.tensors();
    for (layer, bytes) in largest.iter_mut().enumerate() {
        let of_layer = tensors.iter().filter(|spec| spec.layer == Some(layer));
        *bytes = slot_bytes(of_layer.map(|spec| spec.len() * element_bytes::<T>(spec)));
    }
    largest.into_iter().max().unwrap_or(0)
}

fn element_bytes<T: Element>(spec: &TensorSpec) -> usize {
    if spec.shape.len() == 2 { size_of::<T>() } else { size_of::<f32>() }
}

/// The numbers of one tensor as the device reads them.
pub(super) enum Prepared<'a, T> {
    /// They stand so in the file.
    InFile(&'a [u8]),
    /// A matrix, decoded and rounded.
    Matrix(Vec<T>),
    /// A norm or a bias.
    Vector(Vec<f32>),
}

impl<T: Element> Prepared<'_, T> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::InFile(bytes) => bytes,
            Self::Matrix(values) => bytes(values),
            Self::Vector(values) => bytes(values),
        }
    }
}

/// Reads the tensors of one layer.
pub(super) fn prepare<'a, T: Element>(
    config: &ModelConfig,
    layer: usize,
    weights: &'a dyn Weights,
) -> Result<Vec<Prepared<'a, T>>, Error> {
    specs(config, layer).iter().map(|spec| prepare_one(spec, weights)).collect()
}

/// Reads a tensor.
pub(super) fn prepare_one<'a, T: Element>(
    spec: &TensorSpec,
    weights: &'a dyn Weights,
) -> Result<Prepared<'a, T>, Error> {
    if spec.shape.len() == 1 {
        return Ok(Prepared::Vector(vector(weights, spec)?.to_vec()));
    }
    let stored = weights.bf16_bytes(&spec.name).filter(|bytes| bytes.len() == 2 * spec.len());
    if let Some(bytes) = stored.filter(|_| T::DEFINITION == bf16::DEFINITION) {
        return Ok(Prepared::InFile(bytes));
    }
    let all = matrix(weights, spec)?;
    let all = all.as_standard_layout();
    let values = all.as_slice().unwrap_or_else(|| unreachable!("standard layout is one slice"));
    Ok(Prepared::Matrix(values.par_iter().map(|&x| T::of(x)).collect()))
}

impl<'a, T: Element> Parts<'a, T> {
    /// Those of a layer that has arrived, its tensors in the order of [`specs`].
    pub(super) fn of_slot(loaded: Loaded<'a>, config: &ModelConfig, specs: &[TensorSpec]) -> Self {
        let mut parts = Self { matrices: HashMap::new(), vectors: HashMap::new() };
        for (at, spec) in specs.iter().enumerate() {
            match spec.shape[..] {
                [rows, cols] => parts.add(config, spec.role, loaded.matrix(at, (rows, cols))),
                _ => {
                    parts.vectors.insert(spec.role, loaded.matrix(at, (1, spec.len())));
                }
            }
        }
        parts
    }

    /// A stored matrix becomes its parts, one below the other.
    fn add(&mut self, config: &ModelConfig, role: Role, all: Rows<'a, T>) {
        let mut from = 0;
        for &part in role.parts() {
            let rows = rows_of(config, (role, all.dim().0), part);
            self.matrices.insert(part, all.rows(from, from + rows));
            from += rows;
        }
    }
}

/// Rows that a part takes of a stored matrix of so many.
pub(super) fn rows_of(config: &ModelConfig, (stored, rows): (Role, usize), part: Role) -> usize {
    match (stored, part) {
        (Role::Qkv, Role::Q) => config.query_size(),
        (Role::Qkv, _) => config.key_value_size(),
        (Role::GateUp, _) => config.intermediate_size,
        _ => rows,
    }
}

/// A tensor on the device whose numbers are still to come.
#[derive(Debug)]
pub enum Blank<'a, T> {
    /// A matrix as it is stored.
    Matrix(RowsMut<'a, T>),
    /// A norm as it is stored, or a bias, `[1, features]`.
    Vector(RowsMut<'a, f32>),
}

/// Writes tensors to where they stand on the device, one after another.
pub type Fill<'f, T> = dyn FnMut(&TensorSpec, Blank<'_, T>) -> Result<(), Error> + 'f;

/// Tensors on the device as they are stored.
#[derive(Debug)]
pub(super) struct Stored<T> {
    matrices: Vec<(Role, Matrix<T>)>,
    vectors: Vec<(Role, Matrix<f32>)>,
}

impl<T: Element> Stored<T> {
    /// Makes room for each tensor and lets `fill` write it.
    pub(super) fn new(cuda: &Cuda, specs: &[TensorSpec], fill: &mut Fill<'_, T>) -> Result<Self, Error> {
        let mut stored = Self { matrices: Vec::new(), vectors: Vec::new() };
        for spec in specs {
            if let [rows, cols] = spec.shape[..] {
                let mut matrix = cuda.room((rows, cols))?;
                fill(spec, Blank::Matrix(matrix.view_mut()))?;
                stored.matrices.push((spec.role, matrix));
            } else {
                let mut vector = cuda.room((1, spec.len()))?;
                fill(spec, Blank::Vector(vector.view_mut()))?;
                stored.vectors.push((spec.role, vector));
            }
        }
        Ok(stored)
    }

    /// Where the parts of a block stand.
    pub(super) fn parts(&self, config: &ModelConfig) -> Parts<'_, T> {
        let vectors = self.vectors.iter().map(|(role, vector)| (*role, vector.view())).collect();
        let mut parts = Parts { matrices: HashMap::new(), vectors };
        self.matrices.iter().for_each(|(role, matrix)| parts.add(config, *role, matrix.view()));
        parts
    }

    /// A matrix as it is stored.
    pub(super) fn matrix(&self, role: Role) -> Option<Rows<'_, T>> {
        self.matrices.iter().find(|(found, _)| *found == role).map(|(_, matrix)| matrix.view())
    }

    /// A vector as it is stored.
    pub(super) fn vector(&self, role: Role) -> Option<Rows<'_, f32>> {
        self.vectors.iter().find(|(found, _)| *found == role).map(|(_, vector)| vector.view())
    }
}

/// The weights of a block that change while it runs: vectors first, every matrix once it is as it will be.
#[derive(Debug)]
pub struct OwnParts<T> {
    matrices: HashMap<Role, Matrix<T>>, // as stored, or their parts
    vectors: HashMap<Role, Matrix<f32>>,
}

const MATRICES: [Role; 7] = [Role::Q, Role::K, Role::V, Role::O, Role::Gate, Role::Up, Role::Down];
const NORMS: [Role; 6] =
    [Role::AttnNorm, Role::QNorm, Role::KNorm, Role::PostAttnNorm, Role::MlpNorm, Role::PostMlpNorm];
const BIASES: [Role; 7] =
    [Role::QBias, Role::KBias, Role::VBias, Role::OBias, Role::GateBias, Role::UpBias, Role::DownBias];

/// The role of a matrix's bias.
pub(super) fn bias_of(matrix: Role) -> Option<Role> {
    BIASES.into_iter().find(|bias| bias.biased() == Some(matrix))
}

impl<T: Element> OwnParts<T> {
    /// Puts the norms and biases of a block on the device.
    ///
    /// # Errors
    /// If memory is short.
    pub fn vectors_of(cuda: &Cuda, block: &Block) -> Result<Self, Error> {
        let mut vectors = HashMap::new();
        for role in NORMS.into_iter().chain(BIASES) {
            let Some(vector) = block.parameter(role) else { continue };
            let vector = vector
                .into_dimensionality::<Ix1>()
                .unwrap_or_else(|_| unreachable!("norms and biases are vectors"));
            vectors.insert(role, cuda.vector(&vector.to_vec())?);
        }
        Ok(Self { matrices: HashMap::new(), vectors })
    }

    /// Puts the norms and biases of a layer on the device, from where its weights come from.
    ///
    /// # Errors
    /// If memory is short; a tensor that cannot be loaded or has another shape.
    pub fn vectors_from(
        cuda: &Cuda,
        config: &ModelConfig,
        layer: usize,
        weights: &dyn Weights,
    ) -> Result<Self, Error> {
        let mut vectors = HashMap::new();
        for spec in specs(config, layer).iter().filter(|spec| spec.shape.len() == 1) {
            vectors.insert(spec.role, cuda.vector(&vector(weights, spec)?.to_vec())?);
        }
        Ok(Self { matrices: HashMap::new(), vectors })
    }

    /// Puts all of a block there.
    ///
    /// # Errors
    /// If memory is short.
    ///
    /// # Panics
    /// If the block is packed, or its MLP is made of experts.
    pub fn of(cuda: &Cuda, block: &Block) -> Result<Self, Error> {
        let mut parts = Self::vectors_of(cuda, block)?;
        MATRICES.into_iter().try_for_each(|role| parts.put(cuda, block, role))?;
        Ok(parts)
    }

    /// Puts the [parts](Role::parts) of a stored matrix there, as they are now.
    ///
    /// # Errors
    /// If memory is short.
    ///
    /// # Panics
    /// If it is not a matrix of the block, or is packed.
    pub fn put(&mut self, cuda: &Cuda, block: &Block, role: Role) -> Result<(), Error> {
        for &part in role.parts() {
            self.matrices.insert(part, cuda.upload(block.linear(part).weight.view())?);
        }
        Ok(())
    }

    /// Takes over a stored matrix that is there already.
    pub fn take(&mut self, role: Role, matrix: Matrix<T>) {
        self.matrices.insert(role, matrix);
    }

    /// Where they stand.
    pub(super) fn parts(&self, config: &ModelConfig) -> Parts<'_, T> {
        let vectors = self.vectors.iter().map(|(&role, vector)| (role, vector.view())).collect();
        let mut parts = Parts { matrices: HashMap::new(), vectors };
        self.matrices.iter().for_each(|(&role, matrix)| parts.add(config, role, matrix.view()));
        parts
    }
}

/// A stored matrix on the device in f32, `[out_features, in_features]`: from the file as it is where it is bf16.
///
/// # Errors
/// If memory is short; a tensor that cannot be loaded or has another shape.
pub fn stored_matrix(cuda: &Cuda, spec: &TensorSpec, weights: &dyn Weights) -> Result<Matrix<f32>, Error> {
    let bytes = weights.bf16_bytes(&spec.name).filter(|bytes| bytes.len() == 2 * spec.len());
    match (bytes, &spec.shape[..]) {
        (Some(bytes), &[rows, cols]) => {
            let there = cuda.upload_bytes::<bf16>(bytes, (rows, cols))?;
            weights.let_go(&spec.name);
            Ok(cuda.widen(there.view())?)
        }
        _ => Ok(cuda.upload(matrix(weights, spec)?.view())?),
    }
}
