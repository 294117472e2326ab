//! Steps of a student.

use crate::optimizer::{ByLayer, Done, Memory, Optimizer, Parameters, Place, Progress};
use crate::{Error, Signal};
use attar_model::{Loss, Model, Moments, Role, Step, TensorSpec, Windows};
use ndarray::{ArrayD, ArrayView2, Ix2};

/// What the file will make of a weight. A student that is trained so sees the weights it will have when it is stored; its
/// gradients pass through as if nothing had been done.
///
/// # Source
/// Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432, section 4: straight through.
pub trait Disguise: Sync {
    /// What is read of a matrix `[out_features, in_features]` once it is stored; `None` where that is the matrix.
    fn stored(
        &self,
        layer: Option<usize>,
        role: Role,
        weight: ArrayView2<'_, f32>,
    ) -> Option<ndarray::Array2<f32>>;
}

/// A student and what its optimizer remembers.
pub struct Training<'a> {
    model: Model,
    how: Step,
    disguise: Option<&'a dyn Disguise>,
    memory: Memory,
}

impl<'a> Training<'a> {
    /// A student that no step has changed yet.
    pub fn new(model: Model, optimizer: Optimizer, how: Step) -> Self {
        let config = model.config();
        let places = config.tensors().into_iter().flat_map(|TensorSpec { layer, role, .. }| {
            role.parts().iter().map(move |&part| (layer, part)).collect::<Vec<_>>()
        });
        let shapes = places.filter_map(|(layer, role)| {
            Some(((layer, role), model.parameter(role, layer)?.shape().to_vec()))
        });
        Self { memory: Memory::new(optimizer, shapes), model, how, disguise: None }
    }

    /// The same, seeing its weights as they will be stored.
    #[must_use]
    pub fn disguised(self, disguise: &'a dyn Disguise) -> Self {
        Self { disguise: Some(disguise), ..self }
    }

    /// The student.
    pub fn student(&self) -> &Model {
        &self.model
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.memory.progress()
    }

    /// What the optimizer remembers of each parameter, by a name for it.
    pub fn moments(&self) -> impl Iterator<Item = (String, &Moments)> {
        self.memory.moments()
    }

    /// The same student after so many steps, with what the optimizer remembered then; `find` knows it by its name.
    ///
    /// # Errors
    /// Moments that are not there or have another shape.
    pub fn after(
        self,
        progress: Progress,
        find: &mut dyn FnMut(&str) -> Option<Moments>,
    ) -> Result<Self, Error> {
        Ok(Self { memory: self.memory.after(progress, find)?, ..self })
    }

    /// One step over the windows of all parts together: a part is what fits into memory at once.
    ///
    /// A step without a finite loss and gradient changes nothing and is counted.
    ///
    /// # Errors
    /// A part that cannot be had; the last of ten such steps in a row.
    pub fn step(
        &mut self,
        parts: &mut dyn Iterator<Item = Result<(Windows, Signal<'_>), Error>>,
    ) -> Result<Done, Error> {
        let masters = self.put_on_disguise();
        let learned = gradients(&self.model, self.how, &|_| true, parts);
        self.take_off(masters);
        let (loss, gradients) = learned?;
        self.memory.step(&mut self.model, loss, &gradients)
    }

    /// The loss of some windows as they stand now.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn loss(&mut self, windows: &Windows, loss: &dyn Loss) -> Result<f64, Error> {
        let masters = self.put_on_disguise();
        let found = self.model.backward(windows, loss, self.how, &|_| false, &mut |_, _| ());
        self.take_off(masters);
        Ok(found?)
    }

    /// Puts what will be stored into the place of weights; returns those.
    fn put_on_disguise(&mut self) -> Vec<(Place, ArrayD<f32>)> {
        let Some(disguise) = self.disguise else { return Vec::new() };
        let mut masters = Vec::new();
        for (layer, role) in self.memory.places() {
            let Some(mut weight) = self.model.at((layer, role)) else { continue };
            let Ok(matrix) = weight.view().into_dimensionality::<Ix2>() else { continue };
            let Some(stored) = disguise.stored(layer, role, matrix) else { continue };
            masters.push(((layer, role), weight.to_owned()));
            weight.assign(&stored);
        }
        masters
    }

    fn take_off(&mut self, masters: Vec<(Place, ArrayD<f32>)>) {
        for (place, master) in masters {
            if let Some(mut weight) = self.model.at(place) {
                weight.assign(&master);
            }
        }
    }
}

/// The loss of a model and its gradients with respect to the weights that `trained` says yes to, those of all parts added in their order: a part is what fits into
/// memory at once.
///
/// # Errors
/// A part that cannot be had, a token outside the vocabulary.
pub fn gradients(
    model: &Model,
    how: Step,
    trained: &dyn Fn(&TensorSpec) -> bool,
    parts: &mut dyn Iterator<Item = Result<(Windows, Signal<'_>), Error>>,
) -> Result<(f64, ByLayer), Error> {
    let (mut total, mut all) = (0.0, ByLayer::new());
    for part in parts {
        let (windows, signal) = part?;
        total += model.backward(&windows, &signal, how, trained, &mut |layer, gradients| match all
            .get_mut(&layer)
        {
            Some(sum) => sum.add(&gradients),
            None => {
                all.insert(layer, gradients);
            }
        })?;
    }
    Ok((total, all))
}
