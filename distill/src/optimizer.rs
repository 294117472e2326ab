//! Gradients become steps.

use crate::{Error, Schedule};
use attar_model::{AdamW, Block, Gradients, Model, Moments, Role, global_norm};
use ndarray::{ArrayD, ArrayViewMutD};
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

/// A parameter's place: its layer, or none outside of all, and its role.
pub(crate) type Place = (Option<usize>, Role);

/// Where a parameter is found.
pub(crate) trait Parameters {
    /// A parameter, to be changed in place.
    fn at(&mut self, place: Place) -> Option<ArrayViewMutD<'_, f32>>;
}

impl Parameters for Model {
    fn at(&mut self, (layer, role): Place) -> Option<ArrayViewMutD<'_, f32>> {
        self.parameter_mut(role, layer)
    }
}

/// A block is asked for its own parameters only.
impl Parameters for Block {
    fn at(&mut self, (_, role): Place) -> Option<ArrayViewMutD<'_, f32>> {
        self.parameter_mut(role)
    }
}

/// Gradients by layer, or none for those outside of all.
pub type ByLayer = BTreeMap<Option<usize>, Gradients>;

/// An optimizer and what it remembers of each parameter.
#[derive(Debug)]
pub(crate) struct Memory {
    optimizer: Optimizer,
    moments: BTreeMap<Place, Moments>,
    progress: Progress,
}

impl Memory {
    /// Of parameters of these shapes, none of which has been changed yet.
    pub fn new(optimizer: Optimizer, shapes: impl IntoIterator<Item = (Place, Vec<usize>)>) -> Self {
        let moments = shapes.into_iter().map(|(place, shape)| (place, Moments::zeros(&shape)));
        Self { optimizer, moments: moments.collect(), progress: Progress::default() }
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Where the parameters are.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.moments.keys().copied()
    }

    /// What is remembered of each parameter, by a name for it.
    pub fn moments(&self) -> impl Iterator<Item = (String, &Moments)> {
        self.moments.iter().map(|(place, moments)| (name_of(*place), moments))
    }

    /// The same after so many steps, with what was remembered then; `find` knows it by its name.
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

    /// One step of `parameters` by their gradients; without a finite loss and gradient it changes nothing and is counted.
    ///
    /// # Errors
    /// The last of ten such steps in a row.
    pub fn step(
        &mut self,
        parameters: &mut impl Parameters,
        loss: f64,
        gradients: &ByLayer,
    ) -> Result<Done, Error> {
        let gradient_norm = global_norm(gradients.values().flat_map(Gradients::iter).map(|(_, g)| g.view()));
        let (done, update) = self.optimizer.judge(&mut self.progress, loss, gradient_norm)?;
        let Some(update) = update else { return Ok(done) };
        for (layer, gradients) in gradients {
            for (role, gradient) in gradients.iter() {
                self.update(parameters, (*layer, role), gradient, update);
            }
        }
        Ok(done)
    }

    fn update(
        &mut self,
        parameters: &mut impl Parameters,
        place: Place,
        gradient: &ArrayD<f32>,
        update: Update,
    ) {
        let (Some(weight), Some(moments)) = (parameters.at(place), self.moments.get_mut(&place)) else {
            unreachable!("what has a gradient is a parameter")
        };
        let Update { mut adamw, number, scale } = update;
        if gradient.ndim() < 2 {
            adamw.weight_decay = 0.0;
        }
        adamw.step(number, weight, gradient.view(), scale, moments);
    }
}

/// What a parameter is called where the optimizer's memory is kept.
pub(crate) fn name_of((layer, role): Place) -> String {
    match layer {
        Some(layer) => format!("layers.{layer}.{}", role.as_str()),
        None => role.as_str().to_owned(),
    }
}
