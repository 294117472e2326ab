//! Steps of a student.

use crate::{Error, Schedule, Signal};
use attar_model::{AdamW, Gradients, Loss, Model, Moments, Role, Step, TensorSpec, Windows, global_norm};
use ndarray::{ArrayD, ArrayView2, Ix2};
use std::collections::BTreeMap;

/// How gradients become steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optimizer {
    /// Its constants; the learning rate is the schedule's. Norms and biases do not decay.
    pub adamw: AdamW,
    /// The learning rate.
    pub schedule: Schedule,
    /// The largest norm of all gradients together; a larger one is made as small.
    pub clip: Option<f32>,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps, those without a finite gradient among them.
    pub steps: u64,
    /// Steps that changed the student.
    pub updates: u32,
    /// Steps without a finite loss and gradient since the last that changed the student.
    pub skipped_in_a_row: u32,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Done {
    /// Its number, the first being 1.
    pub step: u64,
    /// The mean loss of its tokens before it.
    pub loss: f64,
    /// The norm of all gradients together, before it was clipped.
    pub gradient_norm: f64,
    /// The learning rate.
    pub rate: f32,
    /// Whether it changed nothing, since loss or gradient was not finite.
    pub skipped: bool,
}

/// Steps in a row without a finite gradient after which there is no hope.
const MOST_SKIPPED: u32 = 10;

/// How gradients are used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    /// With the step's learning rate.
    pub adamw: AdamW,
    /// Updates so far, this one among them.
    pub number: u32,
    /// What gradients are multiplied by.
    pub scale: f32,
}

impl Optimizer {
    /// Counts a step of this loss and norm of gradients; what becomes of the gradients, if they are finite.
    pub(crate) fn judge(
        &self,
        progress: &mut Progress,
        loss: f64,
        gradient_norm: f64,
    ) -> Result<(Done, Option<Update>), Error> {
        progress.steps += 1;
        let step = progress.steps;
        let rate = self.schedule.rate(step);
        let done = Done { step, loss, gradient_norm, rate, skipped: false };
        if !(loss.is_finite() && gradient_norm.is_finite()) {
            progress.skipped_in_a_row += 1;
            if progress.skipped_in_a_row >= MOST_SKIPPED {
                let what = if loss.is_finite() { "gradient" } else { "loss" };
                return Err(Error::Diverged { steps: MOST_SKIPPED, step, what });
            }
            return Ok((Done { skipped: true, ..done }, None));
        }
        progress.skipped_in_a_row = 0;
        progress.updates += 1;
        let scale = match self.clip {
            Some(most) if gradient_norm > f64::from(most) => (f64::from(most) / gradient_norm) as f32,
            _ => 1.0,
        };
        let adamw = AdamW { learning_rate: rate, ..self.adamw };
        Ok((done, Some(Update { adamw, number: progress.updates, scale })))
    }
}

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

/// A parameter's place: its layer, or none outside of all, and its role.
type Place = (Option<usize>, Role);

/// A student and what its optimizer remembers.
pub struct Training<'a> {
    model: Model,
    optimizer: Optimizer,
    how: Step,
    disguise: Option<&'a dyn Disguise>,
    moments: BTreeMap<Place, Moments>,
    progress: Progress,
}

impl<'a> Training<'a> {
    /// A student that no step has changed yet.
    pub fn new(model: Model, optimizer: Optimizer, how: Step) -> Self {
        let config = model.config();
        let places = config.tensors().into_iter().flat_map(|TensorSpec { layer, role, .. }| {
            role.parts().iter().map(move |&part| (layer, part)).collect::<Vec<_>>()
        });
        let moments = places.filter_map(|(layer, role)| {
            Some(((layer, role), Moments::zeros(model.parameter(role, layer)?.shape())))
        });
        let moments = moments.collect();
        Self { model, optimizer, how, disguise: None, moments, progress: Progress::default() }
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
        self.progress
    }

    /// What the optimizer remembers of each parameter, by a name for it.
    pub fn moments(&self) -> impl Iterator<Item = (String, &Moments)> {
        self.moments.iter().map(|(place, moments)| (name_of(*place), moments))
    }

    /// The same student after so many steps, with what the optimizer remembered then; `find` knows it by its name.
    ///
    /// # Errors
    /// Moments that are not there or have another shape.
    pub fn after(
        mut self,
        progress: Progress,
        find: &mut dyn FnMut(&str) -> Option<Moments>,
    ) -> Result<Self, Error> {
        for (place, moments) in &mut self.moments {
            let (name, shape) = (name_of(*place), moments.mean.shape());
            let fits = |found: &Moments| found.mean.shape() == shape && found.mean_square.shape() == shape;
            *moments = find(&name)
                .filter(fits)
                .ok_or_else(|| Error::State { name, shape: moments.mean.shape().to_vec() })?;
        }
        Ok(Self { progress, ..self })
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
        let learned = self.gradients(parts);
        self.take_off(masters);
        let (loss, gradients) = learned?;
        let gradient_norm = global_norm(gradients.values().flat_map(Gradients::iter).map(|(_, g)| g.view()));
        let (done, update) = self.optimizer.judge(&mut self.progress, loss, gradient_norm)?;
        let Some(update) = update else { return Ok(done) };
        for (layer, gradients) in &gradients {
            for (role, gradient) in gradients.iter() {
                self.update((*layer, role), gradient, update);
            }
        }
        Ok(done)
    }

    /// The loss and its gradients, those of all parts added in their order.
    fn gradients(
        &self,
        parts: &mut dyn Iterator<Item = Result<(Windows, Signal<'_>), Error>>,
    ) -> Result<(f64, BTreeMap<Option<usize>, Gradients>), Error> {
        let (mut total, mut all) = (0.0, BTreeMap::<Option<usize>, Gradients>::new());
        for part in parts {
            let (windows, signal) = part?;
            total += self.model.backward(
                &windows,
                &signal,
                self.how,
                &|_| true,
                &mut |layer, gradients| match all.get_mut(&layer) {
                    Some(sum) => sum.add(&gradients),
                    None => {
                        all.insert(layer, gradients);
                    }
                },
            )?;
        }
        Ok((total, all))
    }

    fn update(&mut self, place: Place, gradient: &ArrayD<f32>, update: Update) {
        let (layer, role) = place;
        let (Some(weight), Some(moments)) =
            (self.model.parameter_mut(role, layer), self.moments.get_mut(&place))
        else {
            unreachable!("what has a gradient is a parameter")
        };
        let Update { mut adamw, number, scale } = update;
        if gradient.ndim() < 2 {
            adamw.weight_decay = 0.0;
        }
        adamw.step(number, weight, gradient.view(), scale, moments);
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
        for &(layer, role) in self.moments.keys() {
            let Some(mut weight) = self.model.parameter_mut(role, layer) else { continue };
            let Ok(matrix) = weight.view().into_dimensionality::<Ix2>() else { continue };
            let Some(stored) = disguise.stored(layer, role, matrix) else { continue };
            masters.push(((layer, role), weight.to_owned()));
            weight.assign(&stored);
        }
        masters
    }

    fn take_off(&mut self, masters: Vec<(Place, ArrayD<f32>)>) {
        for ((layer, role), master) in masters {
            if let Some(mut weight) = self.model.parameter_mut(role, layer) {
                weight.assign(&master);
            }
        }
    }
}

/// What a parameter is called where the optimizer's memory is kept.
pub(crate) fn name_of((layer, role): Place) -> String {
    match layer {
        Some(layer) => format!("layers.{layer}.{}", role.as_str()),
        None => role.as_str().to_owned(),
    }
}
