//! A smaller model as a source of weights.

use crate::coupling::{Group, coupling};
use crate::{Cuts, Error, KeepList};
use attar_model::{LoadError, ModelConfig, Role, TensorSpec, Weights};
use ndarray::{Array2, ArrayD, Axis, Slice};
use std::collections::HashMap;
use std::ops::Range;

/// What is left of a model, cut as it is loaded: it runs as any other without ever having stood anywhere.
pub struct Pruned<'a> {
    config: ModelConfig,
    of: &'a ModelConfig,
    cuts: &'a Cuts,
    weights: &'a dyn Weights,
    tensors: HashMap<String, [TensorSpec; 2]>, // by name: as it is, and as it was
    changed: HashMap<String, ArrayD<f32>>,
}

/// Some of the rows, or columns, of a tensor, and how many they are filled up to with zeros.
struct Part {
    keep: KeepList,
    filled_to: usize,
}

impl<'a> Pruned<'a> {
    /// The whole of it.
    ///
    /// # Errors
    /// As [`Cuts::config`].
    ///
    /// # Panics
    /// If these are not cuts of a model of this shape.
    pub fn new(of: &'a ModelConfig, cuts: &'a Cuts, weights: &'a dyn Weights) -> Result<Self, Error> {
        let config = cuts.config(of)?;
        let specs = config.tensors();
        Ok(Self::with(config, specs, of, cuts, weights))
    }

    /// One layer of it, with its own numbers, whatever is kept of the others; `layer` is its number before. What is left of it
    /// is called by the number it has among the layers that stay.
    ///
    /// # Panics
    /// If these are not cuts of a model of this shape, or the layer does not stay.
    pub fn block(of: &'a ModelConfig, cuts: &'a Cuts, weights: &'a dyn Weights, layer: usize) -> Self {
        let config = cuts.block_config(of, layer);
        let number = cuts.layers.kept().binary_search(&layer);
        let number = number.unwrap_or_else(|_| panic!("layer {layer} does not stay"));
        let specs = config.tensors().into_iter().filter(|spec| spec.layer == Some(number)).collect();
        Self::with(config, specs, of, cuts, weights)
    }

    fn with(
        config: ModelConfig,
        specs: Vec<TensorSpec>,
        of: &'a ModelConfig,
        cuts: &'a Cuts,
        weights: &'a dyn Weights,
    ) -> Self {
        let both = |spec: TensorSpec| Some((spec.name.clone(), [spec.clone(), before(&spec, of, cuts)?]));
        let tensors = specs.into_iter().filter_map(both).collect();
        Self { config, of, cuts, weights, tensors, changed: HashMap::new() }
    }

    /// The same in the shape of `config`, whose layers may be larger: zeros are added that change nothing of what it computes.
    ///
    /// # Panics
    /// If it has a tensor that `config` lacks.
    #[must_use]
    pub fn filled_up_to(mut self, config: &ModelConfig) -> Self {
        for [new, _] in self.tensors.values_mut().filter(|[new, _]| new.expert.is_none()) {
            let spec = config.tensor(new.role, new.layer);
            *new = spec.unwrap_or_else(|| panic!("no `{}` in the larger shape", new.name));
        }
        self.config = config.clone();
        self
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What a tensor of it was before.
    pub fn before(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.get(name).map(|[_, old]| old)
    }

    /// Puts other numbers in the place of what is kept of a tensor.
    ///
    /// # Panics
    /// If there is no such tensor, or another shape is kept of it.
    pub fn change(&mut self, name: &str, values: ArrayD<f32>) {
        let tensor = self.tensors.get(name).unwrap_or_else(|| panic!("no `{name}` is left"));
        let kept = |axis| self.parts(tensor, axis).iter().map(|part| part.keep.len()).sum();
        let shape: Vec<usize> = (0..values.ndim()).map(kept).collect();
        assert_eq!(values.shape(), shape, "what is kept of {name}");
        self.changed.insert(name.to_owned(), values);
    }

    fn find(&self, name: &str) -> Result<&[TensorSpec; 2], LoadError> {
        self.tensors.get(name).ok_or_else(|| format!("the pruned model has no tensor `{name}`").into())
    }

    /// What is kept along one axis of a tensor, of each group that it is made of there, one after the other.
    fn parts(&self, [new, old]: &[TensorSpec; 2], axis: usize) -> Vec<Part> {
        let coupling = coupling(old.role, self.of.family);
        let groups = if axis == 0 { coupling.rows } else { coupling.cols.as_slice() };
        let layer = self.config.of_layer(new.layer.unwrap_or(0));
        let part = |&group: &Group| {
            let keep = self.cuts.kept_of(group, self.of, old, old.shape[axis]);
            let filled_to = match group {
                Group::Ffn if old.expert.is_none() => layer.intermediate_size,
                Group::QueryHeads => layer.query_size(),
                Group::KvHeads => layer.key_value_size(),
                _ => keep.len(),
            };
            Part { keep, filled_to }
        };
        groups.iter().map(part).collect()
    }

    fn cut(&self, mut values: ArrayD<f32>, tensor: &[TensorSpec; 2]) -> ArrayD<f32> {
        for axis in 0..values.ndim() {
            values = cut_along(values, axis, &self.parts(tensor, axis));
        }
        let [_, old] = tensor;
        if let Some(factor) = self.cuts.norms.get(&(old.role, old.layer)) {
            let added = if self.of.family.norms_add_one { 1.0 } else { 0.0 };
            values.mapv_inplace(|stored| (stored + added) * factor - added);
        }
        values
    }

    /// What is kept of a tensor, filled up to its shape.
    fn filled(&self, mut kept: ArrayD<f32>, tensor: &[TensorSpec; 2]) -> ArrayD<f32> {
        for axis in 0..kept.ndim() {
            let all = |part: Part| Part { keep: KeepList::all(part.keep.len()), ..part };
            let parts: Vec<_> = self.parts(tensor, axis).into_iter().map(all).collect();
            kept = cut_along(kept, axis, &parts);
        }
        kept
    }
}

/// A tensor of what is left as it was before.
fn before(spec: &TensorSpec, of: &ModelConfig, cuts: &Cuts) -> Option<TensorSpec> {
    let layer = match spec.layer {
        Some(layer) => Some(*cuts.layers.kept().get(layer)?),
        None => None,
    };
    match (spec.expert, layer) {
        (Some(expert), Some(layer)) => {
            let index = *cuts.blocks[layer].experts.as_ref()?.kept().get(expert.index)?;
            of.expert_tensor(spec.role, layer, index)
        }
        _ => of.tensor(spec.role, layer),
    }
}

/// Keeps along one axis what the parts say, in order; where nothing goes the values stay as they are.
fn cut_along(values: ArrayD<f32>, axis: usize, parts: &[Part]) -> ArrayD<f32> {
    if parts.iter().all(|part| part.keep.is_all() && part.filled_to == part.keep.len()) {
        return values;
    }
    let mut shape = values.shape().to_vec();
    shape[axis] = parts.iter().map(|part| part.filled_to).sum();
    let mut out = ArrayD::zeros(shape);
    let (mut from, mut to) = (0, 0);
    for Part { keep, filled_to } in parts {
        let wanted: Vec<_> = keep.kept().iter().map(|index| from + index).collect();
        let slice = Slice::from(to..to + keep.len());
        out.slice_axis_mut(Axis(axis), slice).assign(&values.select(Axis(axis), &wanted));
        (from, to) = (from + keep.of(), to + filled_to);
    }
    out
}

impl Weights for Pruned<'_> {
    fn load(&self, name: &str) -> Result<ArrayD<f32>, LoadError> {
        let tensor = self.find(name)?;
        if let Some(values) = self.changed.get(name) {
            return Ok(self.filled(values.clone(), tensor));
        }
        let [_, old] = tensor;
        let values = self.weights.load(&old.name)?;
        if values.shape() != old.shape {
            let found = values.shape();
            return Err(format!("`{}` has shape {found:?}, not {:?}", old.name, old.shape).into());
        }
        Ok(self.cut(values, tensor))
    }

    fn load_rows(&self, name: &str, rows: &[usize]) -> Result<Array2<f32>, LoadError> {
        let tensor = self.find(name)?;
        let [_, old] = tensor;
        // Of embedding and head, which are read so, all rows stay.
        if !matches!(old.role, Role::Embedding | Role::Head) || self.changed.contains_key(name) {
            let all = self.load(name)?.into_dimensionality::<ndarray::Ix2>()?;
            return match rows.iter().find(|&&row| row >= all.nrows()) {
                Some(row) => Err(format!("there is no row {row} among its {}", all.nrows()).into()),
                None => Ok(all.select(Axis(0), rows)),
            };
        }
        let values = self.weights.load_rows(&old.name, rows)?.into_dyn();
        Ok(cut_along(values, 1, &self.parts(tensor, 1)).into_dimensionality()?)
    }

    fn load_range(&self, name: &str, rows: Range<usize>) -> Result<Array2<f32>, LoadError> {
        let tensor = self.find(name)?;
        let [_, old] = tensor;
        if !matches!(old.role, Role::Embedding | Role::Head) || self.changed.contains_key(name) {
            return self.load_rows(name, &rows.collect::<Vec<_>>());
        }
        let values = self.weights.load_range(&old.name, rows)?.into_dyn();
        Ok(cut_along(values, 1, &self.parts(tensor, 1)).into_dimensionality()?)
    }

    fn read_ahead(&self, name: &str) {
        if let Some([_, old]) = self.tensors.get(name) {
            self.weights.read_ahead(&old.name);
        }
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}
