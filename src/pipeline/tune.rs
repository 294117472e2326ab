//! Scales, norms and codes tuned together, so that the model predicts what it did: steps of gradient descent on the divergence from the
//! unquantized model. Both models stand in memory whole.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use attar_distill::{Aim, ByLayer, Decay, Order, Schedule, Teacher, gradients};
use attar_model::{AdamW, Divergence, Gradients, Likeness, Model, Moments, Step, Windows};
use attar_quant::{Facts, Grid, Named};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayD, ArrayView2, Axis, Ix2, Zip, s};

use super::outlet::Piece;
use crate::diagnostic::{Failure, Result};
use crate::plan::{PlannedTensor, STEP_TOKENS, tuning_windows};
use crate::talk::Talk;

/// One in so many windows is not learned from, but tells whether tuning has helped.
const HELD_OUT: usize = 16;

/// The highest learning rate, of factors of scales and of norms.
const RATE: f64 = 5e-3;

/// The highest learning rate of codes, in steps of the grid, times the root of the number of steps.
///
/// The root, since that is how far noise gets: a code gives way where the sum of its gradients is four times what it would be by chance, however long
/// the run. What turns by chance breaks together more than it mends one by one: books-2m as w3a16-g64 by 64 steps of 4,096 tokens comes from 0.0132 to
/// 0.0102 where codes give way at three times, to 0.0159 at one and a half; books-7m, whose gradients say less of each of its codes, is better off
/// with none of them changed (0.0109) than at three times (0.0113).
const CODES_RATE: f64 = 0.25;

/// Codes of matrices with more values than 4 bits tell apart stay as they are: rounding has little left to choose there.
const MOST_CODES: u8 = 15;

/// Times at which the held-out windows are looked at; the best of them is kept.
const LOOKS: u64 = 4;

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
    /// As the parts were.
    pub before: f64,
    /// As they are: no more than before.
    pub after: f64,
}

/// A matrix while it learns.
struct Learner {
    scales: Option<Scales>, // none where they are too coarse to be tuned
    codes: Option<Codes>,   // none where they stay
}

/// What its scales and minima are multiplied by.
struct Scales {
    base: Grid, // as they were
    scale: Learned,
    min: Learned,
}

/// How far its codes have gone.
struct Codes {
    base: Array2<u8>, // as they were
    away: Learned,    // in steps of the grid
}

/// Numbers that learn.
struct Learned {
    values: ArrayD<f32>,
    moments: Moments,
}

impl Learned {
    fn all(value: f32, shape: (usize, usize)) -> Self {
        let shape = [shape.0, shape.1];
        Self { values: ArrayD::from_elem(&shape[..], value), moments: Moments::zeros(&shape) }
    }

    fn step(&mut self, number: u32, d: Array2<f32>, rate: f32) {
        adam(rate).step(number, self.values.view_mut(), d.into_dyn().view(), 1.0, &mut self.moments);
    }

    fn view(&self) -> ArrayView2<'_, f32> {
        let two = self.values.view().into_dimensionality::<Ix2>();
        two.unwrap_or_else(|_| unreachable!("made with two dimensions"))
    }
}

fn adam(learning_rate: f32) -> AdamW {
    // Gradients of single codes are far below the usual eps.
    AdamW { learning_rate, weight_decay: 0.0, eps: 1e-20, ..AdamW::default() }
}

impl Learner {
    /// `None` where nothing of it can be tuned; zeros of a sparse matrix stay where they are.
    fn new(held: &Coded, sparse: bool) -> Option<Self> {
        let encoding = held.encoding.grid()?;
        let (rows, cols) = held.codes.dim();
        let scales = encoding.unit().map(|unit| {
            let ones = || Learned::all(1.0, (rows, cols / unit));
            Scales { base: held.grid.clone(), scale: ones(), min: ones() }
        });
        let are_free = encoding.codebook().is_none() && held.grid.max_code <= MOST_CODES && !sparse;
        let codes =
            are_free.then(|| Codes { base: held.codes.clone(), away: Learned::all(0.0, (rows, cols)) });
        (scales.is_some() || codes.is_some()).then_some(Self { scales, codes })
    }

    /// Moves the matrix against a gradient of its values, `[out_features, in_features]`.
    fn step(&mut self, held: &mut Coded, number: u32, d: &Array2<f32>, [of_factors, of_codes]: [f32; 2]) {
        let by_code = self.codes.as_ref().map(|_| by_codes(&held.grid, d));
        if let (Some(Scales { base, scale, min }), Some(encoding)) = (&mut self.scales, held.encoding.grid())
        {
            let [d_scale, d_min] = by_factors(held, d, scale.view().dim());
            scale.step(number, d_scale, of_factors);
            min.step(number, d_min, of_factors);
            held.grid = encoding.rescaled(base, scale.view(), min.view());
        }
        if let (Some(Codes { base, away }), Some(d)) = (&mut self.codes, by_code) {
            away.step(number, d, of_codes);
            let most = f32::from(held.grid.max_code);
            Zip::from(&mut held.codes).and(base.view()).and(away.view()).par_for_each(|code, base, away| {
                *code = (f32::from(*base) + away).round_ties_even().clamp(0.0, most) as u8;
            });
        }
    }
}

/// The gradients of codes, `[out_features, in_features]`, as if the values between them were there too.
fn by_codes(grid: &Grid, d: &Array2<f32>) -> Array2<f32> {
    let mut by_code = d.to_owned();
    Zip::indexed(by_code.rows_mut()).par_for_each(|row, mut d| {
        let groups = d.axis_chunks_iter_mut(Axis(0), grid.group_size);
        groups.zip(grid.scale.row(row)).for_each(|(mut d, &scale)| d *= scale);
    });
    by_code
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
        let mut best = Best { score: before, parts: Kept::of(parts) };
        let tokens = self.learn(tensors, (&learned, &held_out), parts, &mut best)?;
        best.parts.put_back(parts);
        Ok(Tuned { tokens, before, after: best.score })
    }

    /// The mean divergence over some windows.
    fn score(&self, which: &[usize]) -> Result<f64> {
        Ok(self.backward(which, false)?.0)
    }

    /// The mean divergence over some windows, and its gradients by layer where they are wanted.
    fn backward(&self, which: &[usize], learns: bool) -> Result<(f64, ByLayer)> {
        let likeness = Likeness { divergence: Divergence::ForwardKl, temperature: 1.0 };
        let aim = Aim { likeness, cross_entropy: 0.0, streams: None };
        let teacher = Teacher::Online(&self.original);
        let mut parts = which.chunks((STEP_TOKENS / self.windows.ctx()).max(1)).map(|part| {
            let windows = self.windows.select(part.iter().copied());
            let signal = teacher.of(&windows, part, &aim, which.len())?;
            Ok((windows, signal))
        });
        Ok(gradients(&self.student, self.step, &|_| learns, &mut parts)?)
    }

    /// Goes down over windows of the numbers `learned`, and keeps what is best on those that are held out; the tokens seen.
    fn learn(
        &mut self,
        tensors: &[PlannedTensor],
        (learned, held_out): (&[usize], &[usize]),
        parts: &mut Parts,
        best: &mut Best,
    ) -> Result<u64> {
        let batch = tuning_windows(self.windows.ctx()).min(learned.len());
        let of_a_step = batch * self.windows.ctx();
        let steps = (self.tokens / of_a_step).max(1) as u64;
        let stage = self.talk.stage("tuning", steps * of_a_step as u64, "tokens");
        let mut learners: BTreeMap<&str, Learner> = BTreeMap::new();
        for tensor in tensors {
            let name = tensor.spec.name.as_str();
            let learner = parts.coded.get(name).and_then(|held| Learner::new(held, tensor.sparse));
            learners.extend(learner.map(|learner| (name, learner)));
        }
        let mut norms: BTreeMap<&str, Moments> = BTreeMap::new();
        let mut order = Order::new(&[(learned.len(), 1.0)], batch, SEED);
        let warmup_steps = steps / 20 + 1;
        let schedule = Schedule { peak: 1.0, floor: 0.05, warmup_steps, steps, decay: Decay::Cosine };
        let codes = CODES_RATE / (steps as f64).sqrt();
        for number in 1..=steps {
            let which: Vec<usize> = order.next_step().into_iter().map(|at| learned[at]).collect();
            let (loss, gradients) = self.backward(&which, true)?;
            if !loss.is_finite() {
                return Err(Failure::new("the divergence is not finite").hint("leave --tune-tokens out"));
            }
            let rates = [RATE, codes].map(|rate| schedule.rate(number) * rate as f32);
            let at = number as u32;
            for tensor in tensors {
                let Some(gradients) = gradients.get(&tensor.spec.layer) else { continue };
                let (name, spec) = (tensor.spec.name.as_str(), &tensor.spec);
                if let (Some(learner), Some(held), Some(d)) =
                    (learners.get_mut(name), parts.coded.get_mut(name), gathered(gradients, tensor))
                {
                    learner.step(held, at, &d, rates);
                    put(&mut self.student, tensor, &held.decoded());
                } else if let (Some(d), Some(mut weight), Some(kept)) = (
                    gradients.get(spec.role).filter(|d| d.ndim() == 1),
                    self.student.parameter_mut(spec.role, spec.layer),
                    parts.floats.get_mut(name),
                ) {
                    let moments = norms.entry(name).or_insert_with(|| Moments::zeros(d.shape()));
                    adam(rates[0]).step(at, weight.view_mut(), d.view(), 1.0, moments);
                    *kept = weight.iter().copied().collect();
                }
            }
            stage.step(of_a_step as u64, "tokens");
            if number * LOOKS / steps > (number - 1) * LOOKS / steps {
                let score = self.score(held_out)?;
                if score < best.score {
                    *best = Best { score, parts: Kept::of(parts) };
                }
            }
        }
        stage.done();
        Ok(steps * of_a_step as u64)
    }
}

/// The best there was.
struct Best {
    score: f64, // the mean divergence of windows held out
    parts: Kept,
}

/// What of some parts changes while they learn.
struct Kept {
    coded: Vec<(Grid, Array2<u8>)>, // in the order of their names
    floats: BTreeMap<String, Vec<f32>>,
}

impl Kept {
    fn of(parts: &Parts) -> Self {
        let coded = parts.coded.values().map(|coded| (coded.grid.clone(), coded.codes.clone()));
        Self { coded: coded.collect(), floats: parts.floats.clone() }
    }

    fn put_back(self, parts: &mut Parts) {
        for (held, (grid, codes)) in parts.coded.values_mut().zip(self.coded) {
            (held.grid, held.codes) = (grid, codes);
        }
        parts.floats = self.floats;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn coded(name: &str) -> Coded {
        let encoding = attar_quant::encoding(name).expect("it is listed");
        let w = Array2::from_shape_fn((2, 256), |(row, col)| ((5 * row + 3 * col) % 17) as f32 / 17.0 - 0.45);
        let fit = encoding.grid().expect("it has codes").search(w.view(), None);
        Coded { encoding, grid: fit.grid, codes: fit.codes, facts: Facts::default() }
    }

    #[test]
    fn a_code_that_is_always_pushed_one_way_gives_way_and_no_other_does() {
        for name in ["q4_0", "q4_1", "w3-g32", "w2-g64-asym", "mxfp4", "iq4_nl"] {
            let mut held = coded(name);
            let was = held.decoded();
            let mut learner = Learner::new(&held, false).expect("it learns");
            let at = (1, was.row(1).iter().position(|x| x.abs() < 0.2).expect("one that can rise"));
            for number in 1..=30 {
                let turning = if number % 2 == 0 { 1e-6 } else { -1e-6 };
                let mut d = Array2::from_elem(was.dim(), turning);
                d[at] = -1e-9; // however small
                learner.step(&mut held, number, &d, [0.0, 0.05]);
            }
            let is = held.decoded();
            assert!(is[at] > was[at], "{name}: {} and then {}", was[at], is[at]);
            let changed = is.indexed_iter().filter(|(place, x)| x.to_bits() != was[*place].to_bits());
            assert_eq!(changed.map(|(place, _)| place).collect::<Vec<_>>(), [at], "{name}");
        }
    }

    #[test]
    fn codes_stay_where_there_are_many_and_where_zeros_are_kept() {
        for (name, sparse) in [("q8_0", false), ("q6_k", false), ("w3-g32", true), ("iq2_xs", false)] {
            let mut held = coded(name);
            let codes = held.codes.clone();
            if let Some(mut learner) = Learner::new(&held, sparse) {
                let d = Array2::ones(codes.dim());
                (1..=60).for_each(|number| learner.step(&mut held, number, &d, [0.001, 0.05]));
            }
            assert_eq!(held.codes, codes, "{name}");
        }
    }
}
