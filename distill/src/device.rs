//! Steps of a student on a CUDA device: what [`Training`](crate::Training) and [`Teacher`](crate::Teacher) are on the processor.

use crate::lesson::{placed, token_weights};
use crate::optimizer::{Update, name_of};
use crate::{Aim, Done, Error, Optimizer, Progress};
use attar_model::device::{Cuda, DeviceLesson, DeviceModel, DeviceTeacher, Element, KeptHead};
use attar_model::teacher::Cache;
use attar_model::{ModelConfig, Moments, TensorSpec, Windows, next_token_weights};
use std::ops::Range;

/// Where what the teacher says comes from.
#[derive(Debug)]
pub enum TeacherThere<'a, T> {
    /// A model on the device, run over every window when it is learned from.
    Online(Box<DeviceTeacher<T>>),
    /// Hidden states that were kept, and their head on the device.
    Kept(&'a Cache, KeptHead<T>),
}

impl<'a, T: Element> TeacherThere<'a, T> {
    /// What was kept, with its head.
    ///
    /// # Errors
    /// A cache of the likeliest tokens; a head that cannot be read; too little memory.
    pub fn kept(cuda: &Cuda, cache: &'a Cache) -> Result<Self, Error> {
        let head = cache.head().ok_or(Error::LikeliestOnDevice)?;
        Ok(Self::Kept(cache, KeptHead::load(cuda, &head)?))
    }

    /// The positions of a window that are learned from: all that predict one of its tokens, or those that were kept.
    pub fn positions(&self, ctx: usize) -> Range<usize> {
        match self {
            Self::Online(_) => 0..ctx - 1,
            Self::Kept(cache, _) => cache.facts().positions(),
        }
    }

    /// What is to be learned of `windows`, which are those of the numbers `which` among all it is asked about; each token counts
    /// its share of `all` windows of a step.
    ///
    /// # Errors
    /// A token outside the vocabulary; what was kept cannot be read; layers to be compared; the device.
    pub fn of<'t>(
        &'t self,
        (cuda, student): (&Cuda, &ModelConfig),
        (windows, which): (&Windows, &[usize]),
        aim: &Aim,
        all: usize,
    ) -> Result<DeviceLesson<'t, T>, Error> {
        let positions = self.positions(windows.ctx());
        let weights = token_weights(windows, positions.clone(), all);
        let lesson = DeviceLesson::next_token(cuda, student, windows, weights.view())?;
        let &Aim { likeness, cross_entropy, streams: None } = aim else { return Err(Error::StreamsOnDevice) };
        match self {
            Self::Online(teacher) => Ok(lesson.taught_by(teacher, likeness, cross_entropy)?),
            Self::Kept(cache, head) => {
                let rows = |window: &usize| window * positions.len()..(window + 1) * positions.len();
                let kept = which.iter().map(|window| cache.hidden(rows(window)));
                let kept = kept.collect::<Result<Vec<_>, _>>()?;
                let normed = placed(kept.iter().map(|kept| kept.view()), windows.ctx(), &positions);
                Ok(lesson.towards(cuda, head, normed.view(), (likeness, cross_entropy))?)
            }
        }
    }
}

/// A student on a device and what its optimizer remembers.
#[derive(Debug)]
pub struct DeviceTraining<T> {
    model: DeviceModel<T>,
    optimizer: Optimizer,
    progress: Progress,
}

impl<T: Element> DeviceTraining<T> {
    /// A student that no step has changed yet.
    pub fn new(model: DeviceModel<T>, optimizer: Optimizer) -> Self {
        Self { model, optimizer, progress: Progress::default() }
    }

    /// The student.
    pub fn student(&self) -> &DeviceModel<T> {
        &self.model
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The shape of what the optimizer remembers of each parameter, by a name for it.
    pub fn parameters(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        self.model.places().map(|(layer, role)| (name_of((layer, role)), self.model.shape(layer, role)))
    }

    /// What the optimizer remembers of each parameter, in the same order.
    ///
    /// # Errors
    /// If something asked of the device before has failed.
    pub fn moments(&self) -> impl Iterator<Item = Result<(String, Moments), Error>> {
        self.model
            .places()
            .map(|(layer, role)| Ok((name_of((layer, role)), self.model.moments(layer, role)?)))
    }

    /// A stored tensor of the student: its parts one below the other.
    ///
    /// # Errors
    /// If something asked of the device before has failed.
    pub fn stored(&self, spec: &TensorSpec) -> Result<Vec<f32>, Error> {
        let mut all = Vec::with_capacity(spec.len());
        for &part in spec.role.parts() {
            all.extend(self.model.parameter(spec.layer, part)?);
        }
        Ok(all)
    }

    /// The same student after so many steps, with what the optimizer remembered then; `find` knows it by its name.
    ///
    /// # Errors
    /// Moments that are not there or have another shape; the device.
    pub fn after(
        mut self,
        progress: Progress,
        find: &mut dyn FnMut(&str) -> Option<Moments>,
    ) -> Result<Self, Error> {
        let places: Vec<_> = self.model.places().collect();
        for (layer, role) in places {
            let (name, shape) = (name_of((layer, role)), self.model.shape(layer, role));
            let fits = |found: &Moments| found.mean.shape() == shape && found.mean_square.shape() == shape;
            let found = find(&name).filter(fits).ok_or(Error::State { name, shape: shape.clone() })?;
            self.model.set_moments(layer, role, &found)?;
        }
        Ok(Self { progress, ..self })
    }

    /// One step over the windows of all parts together: a part is what fits onto the device at once.
    ///
    /// A step without a finite loss and gradient changes nothing and is counted.
    ///
    /// # Errors
    /// A part that cannot be had; the last of ten such steps in a row; the device.
    pub fn step(
        &mut self,
        parts: &mut dyn Iterator<Item = Result<DeviceLesson<'_, T>, Error>>,
    ) -> Result<Done, Error> {
        for lesson in parts {
            self.model.backward(&lesson?, &mut |_| Ok(()))?;
        }
        let (loss, gradient_norm) = self.model.finish()?;
        let (done, update) = self.optimizer.judge(&mut self.progress, loss, gradient_norm)?;
        match update {
            Some(Update { adamw, number, scale }) => self.model.step(adamw, number, scale)?,
            None => self.model.forget()?,
        }
        Ok(done)
    }

    /// The loss of some windows as they stand now, by `lesson` and by how surprising each next token is, its mean.
    ///
    /// # Errors
    /// A token outside the vocabulary; the device.
    pub fn losses(&self, windows: &Windows, lesson: &DeviceLesson<'_, T>) -> Result<[f64; 2], Error> {
        let weights = next_token_weights(windows);
        let (cuda, config) = (self.model.cuda(), self.model.config());
        let text = DeviceLesson::next_token(cuda, config, windows, weights.view())?;
        Ok([self.model.loss(lesson)?, self.model.loss(&text)?])
    }
}
