//! Scales and norms tuned together, so that the model predicts what it did: steps of gradient descent on the divergence from the
//! unquantized model. Codes stay. Both models stand in memory whole.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use attar_distill::{Aim, Decay, Order, Schedule, Teacher};
use attar_model::{AdamW, Divergence, Gradients, Likeness, Model, Moments, Step, Windows};
use attar_quant::{Facts, Grid, Named};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayD, ArrayView2, Axis, Ix2, s};

use super::outlet::Piece;
use crate::diagnostic::{Failure, Result};
use crate::plan::PlannedTensor;
use crate::talk::Talk;

/// Windows of a step.
const WINDOWS: usize = 8;

/// One in so many windows is not learned from, but tells whether tuning has helped.
const HELD_OUT: usize = 16;

/// The highest learning rate, of factors of scales and of norms.
const RATE: f64 = 5e-3;

/// The seed of the order in which windows are seen.
const SEED: u64 = 1;

/// A quantized matrix, not yet packed.
pub struct Coded {
    /// The format.
    pub encoding: Named,
    /// Values to choose from.
    pub grid: Grid,
    /// The choice, `[out_features, in_features]`.
    pub codes: Array2<u8>,
    /// What choosing it cost.
    pub facts: Facts,
}

impl Coded {
    /// What it decodes to, `[out_features, in_features]`.
    pub fn decoded(&self) -> Array2<f32> {
        self.grid.decode_all(self.codes.view())
    }
}

/// Matrices by name, and vectors.
#[derive(Default)]
pub struct Parts {
    /// Quantized matrices.
    pub coded: BTreeMap<String, Coded>,
    /// All others.
    pub floats: BTreeMap<String, Vec<f32>>,
}

impl Parts {
    /// Adds the next rows of a tensor.
    pub(super) fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Codes { tensor, encoding, grid, codes, facts } => match self.coded.entry(tensor.spec.name)
            {
                Entry::Vacant(entry) => {
                    entry.insert(Coded { encoding, grid: *grid, codes, facts });
                }
                Entry::Occupied(mut entry) => {
                    let above = entry.get_mut();
                    above.grid.append(&grid);
                    let both = ndarray::concatenate(Axis(0), &[above.codes.view(), codes.view()]);
                    above.codes = both.unwrap_or_else(|_| unreachable!("rows of one matrix"));
                }
            },
            Piece::Floats { tensor, values, .. } => {
                self.floats.entry(tensor.spec.name).or_default().extend(values);
            }
        }
    }
}

/// What tuning is to do, and what it has to do it with.
pub struct Tuning<'a> {
    /// The unquantized model.
    pub original: Model,
    /// The same once more, which becomes the quantized one.
    pub student: Model,
    /// What is learned from, and what is held out.
    pub windows: &'a Windows,
    /// Tokens to be seen, some more than once.
    pub tokens: usize,
    /// How products are computed.
    pub step: Step,
    /// Where progress is told.
    pub talk: Talk,
}

/// What came of it: the mean divergence of windows that were not learned from.
#[derive(Clone, Copy, Debug)]
pub struct Tuned {
    /// Tokens seen.
    pub tokens: u64,
    /// As the codes were.
    pub before: f64,
    /// As they are.
    pub after: f64,
}

/// A matrix while its scales learn.
struct Learner<'a> {
    held: &'a mut Coded,
    base: Grid, // scales as they were
    scale: Factors,
    min: Factors,
}

/// What the scales, or the minima, of a matrix are multiplied by.
struct Factors {
    by: ArrayD<f32>, // [out_features, units]
    moments: Moments,
}

impl Factors {
    fn ones(shape: [usize; 2]) -> Self {
        Self { by: ArrayD::ones(&shape[..]), moments: Moments::zeros(&shape) }
    }

    fn step(&mut self, number: u32, d: Array2<f32>, rate: f32) {
        adam(rate).step(number, self.by.view_mut(), d.into_dyn().view(), 1.0, &mut self.moments);
    }

    fn view(&self) -> ArrayView2<'_, f32> {
        let two = self.by.view().into_dimensionality::<Ix2>();
        two.unwrap_or_else(|_| unreachable!("made with two dimensions"))
    }
}

fn adam(learning_rate: f32) -> AdamW {
    AdamW { learning_rate, weight_decay: 0.0, ..AdamW::default() }
}

impl<'a> Learner<'a> {
    /// `None` where the format's scales are too coarse to be tuned.
    fn new(held: &'a mut Coded) -> Option<Self> {
        let unit = held.encoding.grid()?.unit()?;
        let shape = [held.codes.nrows(), held.codes.ncols() / unit];
        Some(Self { base: held.grid.clone(), held, scale: Factors::ones(shape), min: Factors::ones(shape) })
    }

    /// Moves against a gradient of the values, `[out_features, in_features]`.
    fn step(&mut self, number: u32, d: &Array2<f32>, rate: f32) {
        let Some(encoding) = self.held.encoding.grid() else { return };
        let [d_scale, d_min] = by_factors(self.held, d, self.scale.view().dim());
        self.scale.step(number, d_scale, rate);
        self.min.step(number, d_min, rate);
        self.held.grid = encoding.rescaled(&self.base, self.scale.view(), self.min.view());
    }
}

/// The gradients of the factors of scales and of minima, `[out_features, units]`: `value = scale * (level - zero) - min`.
fn by_factors(held: &Coded, d: &Array2<f32>, shape: (usize, usize)) -> [Array2<f32>; 2] {
    let (grid, codes) = (&held.grid, &held.codes);
    let unit = codes.ncols() / shape.1;
    let decoded = grid.decode_all(codes.view());
    let [mut d_scale, mut d_min] = [(); 2].map(|()| Array2::zeros(shape));
    let rows = d_scale.axis_iter_mut(Axis(0)).into_par_iter().zip(d_min.axis_iter_mut(Axis(0)));
    rows.enumerate().for_each(|(row, (mut d_scale, mut d_min))| {
        for (col, (&d, &value)) in d.row(row).iter().zip(decoded.row(row)).enumerate() {
            let min = grid.min[[row, col / grid.group_size]];
            d_scale[col / unit] += d * (value + min);
            d_min[col / unit] -= d * min;
        }
    });
    [d_scale, d_min]
}

/// Refuses a text of which no window could be held out.
///
/// # Errors
/// Fewer windows than are needed.
pub fn check_windows(windows: Option<&Windows>) -> Result<()> {
    let count = windows.map_or(0, Windows::count);
    if count >= HELD_OUT {
        return Ok(());
    }
    Err(Failure::new(format!("{count} windows of calibration text are too few to tune by"))
        .hint(format!("calibrate on {HELD_OUT} windows or more, or leave --tune-tokens out")))
}

impl Tuning<'_> {
    /// Tunes the parts of a quantized model; they stay as they were where that did not help.
    ///
    /// # Errors
    /// Losses that are not finite.
    pub fn run(mut self, tensors: &[PlannedTensor], parts: &mut Parts) -> Result<Tuned> {
        for tensor in tensors {
            if let Some(coded) = parts.coded.get(&tensor.spec.name) {
                put(&mut self.student, tensor, &coded.decoded());
            }
        }
        let all = self.windows.tokens().len() / self.windows.ctx();
        let (held_out, learned): (Vec<usize>, Vec<usize>) =
            (0..all).partition(|window| window % HELD_OUT == HELD_OUT - 1);
        let before = self.score(&held_out)?;
        let grids: Vec<_> = parts.coded.values().map(|coded| coded.grid.clone()).collect();
        let floats = parts.floats.clone();
        let tokens = self.learn(tensors, &learned, parts)?;
        let after = self.score(&held_out)?;
        let helped = after < before;
        if !helped {
            parts.coded.values_mut().zip(grids).for_each(|(coded, grid)| coded.grid = grid);
            parts.floats = floats;
        }
        Ok(Tuned { tokens, before, after })
    }

    /// The mean divergence over some windows.
    fn score(&self, which: &[usize]) -> Result<f64> {
        let mut total = 0.0;
        for part in which.chunks(WINDOWS) {
            total += self.backward(part, which.len(), false, &mut |_, _| ())?;
        }
        Ok(total)
    }

    /// The divergence over some windows, each counting its share of `all`, and its gradients where they are wanted.
    fn backward(
        &self,
        which: &[usize],
        all: usize,
        learns: bool,
        deliver: &mut dyn FnMut(Option<usize>, Gradients),
    ) -> Result<f64> {
        let ctx = self.windows.ctx();
        let tokens = which.iter().flat_map(|window| &self.windows.tokens()[window * ctx..][..ctx]);
        let windows = Windows::new(ctx, tokens.copied().collect());
        let likeness = Likeness { divergence: Divergence::ForwardKl, temperature: 1.0 };
        let aim = Aim { likeness, cross_entropy: 0.0, streams: None };
        let signal = Teacher::Online(&self.original);
        let signal = signal.of(&windows, which, &aim, all)?;
        Ok(self.student.backward(&windows, &signal, self.step, &|_| learns, deliver)?)
    }

    /// Goes down over windows of the numbers `learned`; the tokens seen.
    fn learn(&mut self, tensors: &[PlannedTensor], learned: &[usize], parts: &mut Parts) -> Result<u64> {
        let batch = WINDOWS.min(learned.len());
        let of_a_step = batch * self.windows.ctx();
        let steps = (self.tokens / of_a_step).max(1) as u64;
        let stage = self.talk.stage("tuning", steps * of_a_step as u64, "tokens");
        let Parts { coded, floats } = parts;
        let mut learners: BTreeMap<&str, Learner<'_>> =
            coded.iter_mut().filter_map(|(name, held)| Some((name.as_str(), Learner::new(held)?))).collect();
        let mut norms: BTreeMap<&str, Moments> = BTreeMap::new();
        let mut order = Order::new(&[(learned.len(), 1.0)], batch, SEED);
        let warmup_steps = steps / 20 + 1;
        let schedule = Schedule { peak: RATE, floor: 0.05, warmup_steps, steps, decay: Decay::Cosine };
        for number in 1..=steps {
            let which: Vec<usize> = order.next_step().into_iter().map(|at| learned[at]).collect();
            let mut gradients = BTreeMap::new();
            let loss = self.backward(&which, which.len(), true, &mut |layer, found| {
                gradients.insert(layer, found);
            })?;
            if !loss.is_finite() {
                return Err(Failure::new("the divergence is not finite").hint("leave --tune-tokens out"));
            }
            let (number, rate) = (number as u32, schedule.rate(number));
            for tensor in tensors {
                let Some(gradients) = gradients.get(&tensor.spec.layer) else { continue };
                let (name, spec) = (tensor.spec.name.as_str(), &tensor.spec);
                if let (Some(learner), Some(d)) = (learners.get_mut(name), gathered(gradients, tensor)) {
                    learner.step(number, &d, rate);
                    put(&mut self.student, tensor, &learner.held.decoded());
                } else if let (Some(d), Some(mut weight), Some(kept)) = (
                    gradients.get(spec.role).filter(|d| d.ndim() == 1),
                    self.student.parameter_mut(spec.role, spec.layer),
                    floats.get_mut(name),
                ) {
                    let moments = norms.entry(name).or_insert_with(|| Moments::zeros(d.shape()));
                    adam(rate).step(number, weight.view_mut(), d.view(), 1.0, moments);
                    *kept = weight.iter().copied().collect();
                }
            }
            stage.step(of_a_step as u64, "tokens");
        }
        stage.done();
        Ok(steps * of_a_step as u64)
    }
}

/// The gradient of a stored matrix, its parts one below the other; `None` where there is none.
fn gathered(gradients: &Gradients, tensor: &PlannedTensor) -> Option<Array2<f32>> {
    let parts = tensor.spec.role.parts().iter();
    let parts: Option<Vec<_>> =
        parts.map(|&role| gradients.get(role)?.view().into_dimensionality::<Ix2>().ok()).collect();
    ndarray::concatenate(Axis(0), &parts?).ok()
}

fn put(model: &mut Model, tensor: &PlannedTensor, all: &Array2<f32>) {
    let mut start = 0;
    for &role in tensor.spec.role.parts() {
        if let Some(mut weight) = model.parameter_mut(role, tensor.spec.layer) {
            let rows = weight.shape()[0];
            weight.assign(&all.slice(s![start..start + rows, ..]).into_dyn());
            start += rows;
        }
    }
}
