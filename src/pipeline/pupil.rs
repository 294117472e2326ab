//! A student with its teacher, on the processor or on a CUDA device: what a run asks of them.

use attar_distill::{Aim, DeviceTraining, Done, Progress, Teacher, TeacherThere, Training};
use attar_model::device::{AtOnce, Cuda, DeviceModel, DeviceTeacher, Element};
use attar_model::device::{Course, Teaching, TrainingPlan, WholeModel};
use attar_model::{Keep, Moments, NextToken, Precision, TensorSpec, Weights};

use super::teacher::Original;
use super::training::{self, Data};
use crate::diagnostic::{Explain, Failure, Result};
use crate::plan::STEP_TOKENS;
use crate::source::Source;

/// A student with its teacher, wherever they compute.
pub trait Pupil {
    /// How far it has come.
    fn progress(&self) -> Progress;

    /// Gets ready for the next step: where blocks learn one after another and one has had its steps, which are on the disk by now, the
    /// next one's turn begins.
    ///
    /// # Errors
    /// Files that cannot be read.
    fn turn(&mut self) -> Result<()> {
        Ok(())
    }

    /// The layer that learns, where one does alone.
    fn layer(&self) -> Option<usize> {
        None
    }

    /// One step over the windows of these numbers.
    ///
    /// # Errors
    /// A teacher that cannot be asked; ten steps in a row without a finite gradient.
    fn step(&mut self, data: &Data, which: &[usize]) -> Result<Done>;

    /// What becomes of the windows that are held out.
    ///
    /// # Errors
    /// A teacher that cannot be asked.
    fn held_out(&mut self, data: &Data) -> Result<HeldOut>;

    /// A tensor of the student as it is stored.
    ///
    /// # Errors
    /// If it cannot be had.
    fn stored(&self, spec: &TensorSpec) -> Result<Vec<f32>>;

    /// The shape of what the optimizer remembers of each parameter, by the parameter's name.
    fn parameters(&self) -> Vec<(String, Vec<usize>)>;

    /// Hands over what the optimizer remembers of each parameter, in the same order.
    ///
    /// # Errors
    /// If it cannot be had; those of `keep`.
    fn moments(&self, keep: &mut dyn FnMut(&str, &Moments) -> Result<()>) -> Result<()>;
}

/// What becomes of windows that are never learned from.
#[derive(Clone, Copy, Debug)]
pub struct HeldOut {
    /// What is minimised, its mean.
    pub loss: f64,
    /// How surprising their tokens are, its mean; unknown where a layer learns alone.
    pub surprise: Option<f64>,
}

/// On the processor.
pub struct OnProcessor<'a> {
    /// The student.
    pub training: Training<'a>,
    /// Its teacher.
    pub teacher: &'a Teacher<'a>,
    /// What it learns.
    pub aim: Aim,
}

fn at_once(data: &Data) -> usize {
    (STEP_TOKENS / data.windows.ctx()).max(1)
}

impl Pupil for OnProcessor<'_> {
    fn progress(&self) -> Progress {
        self.training.progress()
    }

    fn step(&mut self, data: &Data, which: &[usize]) -> Result<Done> {
        let mut parts = which.chunks(at_once(data)).map(|part| {
            let windows = data.of(part);
            let signal = self.teacher.of(&windows, part, &self.aim, which.len())?;
            Ok((windows, signal))
        });
        Ok(self.training.step(&mut parts)?)
    }

    fn held_out(&mut self, data: &Data) -> Result<HeldOut> {
        let ([mut loss, mut surprise], all) = ([0.0, 0.0], data.held_out.len());
        for part in data.held_out.chunks(at_once(data)) {
            let windows = data.of(part);
            let signal = self.teacher.of(&windows, part, &self.aim, all)?;
            loss += self.training.loss(&windows, &signal)?;
            let share = part.len() as f64 / all as f64;
            surprise += self.training.loss(&windows, &NextToken::mean(&windows))? * share;
        }
        Ok(HeldOut { loss, surprise: Some(surprise) })
    }

    fn stored(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let values = self.training.student().load(&spec.name);
        Ok(values.map_err(|error| Failure::new(error.to_string()))?.into_iter().collect())
    }

    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        self.training.moments().map(|(name, moments)| (name, moments.mean.shape().to_vec())).collect()
    }

    fn moments(&self, keep: &mut dyn FnMut(&str, &Moments) -> Result<()>) -> Result<()> {
        self.training.moments().try_for_each(|(name, moments)| keep(&name, moments))
    }
}

/// On a CUDA device.
pub struct OnDevice<'a, T> {
    /// The student.
    pub training: DeviceTraining<T>,
    /// Its teacher.
    pub teacher: TeacherThere<'a, T>,
    /// What it learns.
    pub aim: Aim,
    /// Windows that go through it at once.
    pub at_once: usize,
}

impl<T: Element> Pupil for OnDevice<'_, T> {
    fn progress(&self) -> Progress {
        self.training.progress()
    }

    fn step(&mut self, data: &Data, which: &[usize]) -> Result<Done> {
        let Self { training, teacher, aim, at_once } = self;
        let (cuda, config) = (training.student().cuda().clone(), training.student().config().clone());
        let mut parts = which
            .chunks(*at_once)
            .map(|part| teacher.of((&cuda, &config), (&data.of(part), part), aim, which.len()));
        Ok(training.step(&mut parts)?)
    }

    fn held_out(&mut self, data: &Data) -> Result<HeldOut> {
        let Self { training, teacher, aim, at_once } = self;
        let (mut found, all, student) = ([0.0, 0.0], data.held_out.len(), training.student());
        for part in data.held_out.chunks(*at_once) {
            let windows = data.of(part);
            let lesson = teacher.of((student.cuda(), student.config()), (&windows, part), aim, all)?;
            let [loss, surprise] = training.losses(&windows, &lesson)?;
            found = [found[0] + loss, found[1] + surprise * part.len() as f64 / all as f64];
        }
        Ok(HeldOut { loss: found[0], surprise: Some(found[1]) })
    }

    fn stored(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        Ok(self.training.stored(spec)?)
    }

    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        self.training.parameters().collect()
    }

    fn moments(&self, keep: &mut dyn FnMut(&str, &Moments) -> Result<()>) -> Result<()> {
        self.training.moments().try_for_each(|found| {
            let (name, moments) = found?;
            keep(&name, &moments)
        })
    }
}

/// Where a student learns on a CUDA device, and how much of a step is there at once.
#[derive(Clone, Debug)]
pub struct Desk {
    /// The device.
    pub cuda: Cuda,
    /// The sizes.
    pub plan: TrainingPlan,
}

fn whole(source: &Source) -> WholeModel {
    let config = &source.config;
    WholeModel {
        shape: attar_model::device::shape(config),
        layers: config.num_hidden_layers as u64,
        tied: config.tie_word_embeddings,
    }
}

/// What is to be learned, as a device's plan reads it; windows of `ctx` tokens, so many a step.
///
/// # Errors
/// A cache of the likeliest tokens: a device does not learn from it.
pub fn course(
    student: &Source,
    original: &Original,
    (windows, ctx): (usize, usize),
    precision: Precision,
) -> Result<Course> {
    let teaching = match original {
        Original::Model(teacher) => Teaching::Online(whole(teacher)),
        Original::Cache(cache) => match cache.head() {
            Some(head) => Teaching::Head { hidden_size: head.hidden_size() as u64 },
            None => {
                return Err(Failure::new("from a cache of the likeliest tokens a student learns on the processor only")
                    .hint("leave --device out, or keep hidden states: attar eval --save-reference --save-as hidden-bf16"));
            }
        },
    };
    Ok(Course { student: whole(student), teaching, windows: windows as u64, ctx: ctx as u64, precision })
}

impl Desk {
    /// Puts a student there that learns in windows of `ctx` tokens.
    ///
    /// # Errors
    /// Tensors that cannot be read; too little memory.
    pub fn student<T: Element>(&self, source: &Source, ctx: usize) -> Result<DeviceModel<T>> {
        let keep = if self.plan.keeps_activations { Keep::Activations } else { Keep::Inputs };
        let at_once = AtOnce { keep, logits: self.plan.logits_at_once as usize };
        Ok(DeviceModel::of(&self.cuda, &training::load(source)?, ctx, at_once)?)
    }

    /// Puts its teacher there.
    ///
    /// # Errors
    /// Tensors that cannot be read; too little memory.
    pub fn teacher<'a, T: Element>(&self, original: &'a Original, ctx: usize) -> Result<TeacherThere<'a, T>> {
        match original {
            Original::Model(source) => {
                let teacher = DeviceTeacher::load(&self.cuda, &source.config, &**source, ctx);
                let teacher = teacher.doing(|| format!("while loading `{}`", source.path.display()))?;
                Ok(TeacherThere::Online(Box::new(teacher)))
            }
            Original::Cache(cache) => Ok(TeacherThere::kept(&self.cuda, cache)?),
        }
    }
}
