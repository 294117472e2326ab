//! One block at a time: observe what its matrices read, choose codes, write them, go on with what was written.
//!
//! The pass is staged: q, k and v are quantized before the input of o is observed, o before the input of gate and up,
//! and so on, so that every matrix is fitted to the activations it will really see, in one forward pass of the block.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use attar_checkpoint::{Dtype, round_floats};
use attar_eval::report;
use attar_model::{
    Block, Error as ModelError, HiddenStates, Keep, Precision, Role, Step, Streaming, Tap, TensorSpec,
    Weights, Windows, check_tokens, final_norm, scale_embeddings, streamed_hidden_states,
    while_reading_ahead,
};
use attar_quant::{
    Correction, DeviceGptq, Factor, Facts, Fit, Named, Rtn, Settings, Solution, Solver, Statistics,
};
use ndarray::{Array2, ArrayViewMut2, s};

use super::done::{Done, Merged};
use super::equalize::Equalizing;
use super::learned::Learned;
use super::outlet::{Outlet, writing_behind};
use super::passage::Passage;
use super::training;
use super::tune::{Coded, Parts, Tuned, Tuning};
use super::twin::Twin;
use super::write::Sink;
use crate::diagnostic::{Explain, Failure, Result};
use crate::imatrix::Imatrix;
use crate::plan::{Equalize, Plan, PlannedTensor, Treatment};
use crate::source::{CHUNK_WEIGHTS, Source, rows_and_cols};
use crate::talk::Talk;

/// The stages of a block: at each the matrices that read what is observed there become codes.
pub(super) const STAGES: [Tap; 4] = [Tap::AttnIn, Tap::AttnOut, Tap::MlpIn, Tap::MlpMid];

/// How the statistics of the head's input become the metric of an embedding that is the head too.
///
/// What is looked up goes into the stream as it is, every coordinate alike, which the diagonal stands for. Divergence of llama2xs280K as
/// `q5_k_m` with 0.01, 0.3 and 3 of it: 0.0160, 0.0104, 0.0146; of books-2m as `q2_k` with 0.01 and 0.3: 0.0205 and 0.0201.
pub(super) const LOOKED_UP: Settings = Settings { shrinkage: None, damping: 0.3, together: 1 };

/// Tokens for each feature of the head's input, as many as its statistics are taken from where they are taken beforehand.
const TOKENS_PER_COLUMN: usize = 32;

/// Everything a pass needs.
pub struct Pass<'a> {
    /// What becomes of every tensor.
    pub plan: &'a Plan,
    /// The model that is read.
    pub source: &'a Source,
    /// How codes are chosen where there are statistics.
    pub solver: &'a dyn Solver,
    /// What sets weights to 0 in the matrices that are to have zeros, and chooses their codes.
    pub zeros: Option<&'a dyn Solver>,
    /// Calibration windows, where the solver is to have statistics.
    pub windows: Option<&'a Windows>,
    /// What was learned of the model before, in place of the windows.
    pub learned: Option<&'a Learned>,
    /// What is known of the inputs without a text.
    pub imatrix: Option<&'a Imatrix>,
    /// Tokens to tune the whole on when its codes are chosen, where the plan has that, and what is kept of a step.
    pub tuning: Option<(usize, Keep)>,
    /// How exactly matrices are multiplied.
    pub precision: Precision,
    /// Where progress is told.
    pub talk: Talk,
}

/// What a pass has done.
pub struct Outcome {
    /// What became of each tensor, in the order of the plan.
    pub tensors: Vec<report::Tensor>,
    /// Where the calibration tokens went in layers with experts.
    pub routing: Vec<report::Routing>,
    /// What tuning has brought, where it was asked for.
    pub tuned: Option<Tuned>,
    /// How much of the time went to running the calibration tokens through the model and to the statistics of them.
    pub calibrating: Duration,
}

impl Pass<'_> {
    /// Compresses every tensor of the plan into `sink`.
    ///
    /// # Errors
    /// A tensor that cannot be read, is not finite, or cannot be written.
    pub fn run(&self, sink: &mut Sink) -> Result<Outcome> {
        let stage = self.talk.stage("quantizing", self.plan.weights(), "weights");
        let mut tuned = None;
        let work = |sink: Outlet<'_>| {
            let mut done = Done::new(sink, &stage);
            match (self.imatrix, self.learned, self.windows) {
                (Some(imatrix), ..) => self.with_imatrix(imatrix, &mut done)?,
                (None, Some(learned), _) => self.with_learned(learned, &mut done)?,
                (None, None, Some(windows)) => self.with_data(windows, &mut done)?,
                (None, None, None) => self
                    .plan
                    .tensors
                    .iter()
                    .try_for_each(|tensor| self.without_data(tensor, &mut done, |_, _| Ok(())))?,
            }
            let Done { reports, routing, calibrating, .. } = done;
            Ok((reports, routing, calibrating))
        };
        let there = self.plan.solves_there && self.learned.is_none();
        let (mut tensors, routing, calibrating) = match self.tuning {
            Some(tuning) => {
                let mut parts = Parts::default();
                let found = work(Outlet::Kept { rows: sink.rows(), parts: &mut parts })?;
                tuned = Some(self.tune(tuning, &mut parts)?);
                self.write_parts(parts, sink)?;
                found
            }
            None if there => writing_behind(sink, work)?,
            None => work(Outlet::Here(sink))?,
        };
        if tuned.is_some() {
            // The errors of a matrix were those of codes that have changed since.
            for tensor in &mut tensors {
                (tensor.relative_error, tensor.rtn_relative_error) = (None, None);
            }
        }
        let names = self.plan.tensors.iter().map(|t| t.spec.name.as_str());
        let positions: HashMap<_, _> = names.enumerate().map(|(position, name)| (name, position)).collect();
        tensors.sort_by_key(|report| positions.get(report.name.as_str()));
        stage.done();
        Ok(Outcome { tensors, routing, tuned, calibrating })
    }

    /// Tunes what was chosen.
    fn tune(&self, (tokens, keep): (usize, Keep), parts: &mut Parts) -> Result<Tuned> {
        let windows = self.windows.ok_or_else(|| Failure::new("there is no text to tune by"))?;
        let tuning = Tuning {
            original: training::load(self.source)?,
            student: training::load(self.source)?,
            windows,
            tokens,
            step: Step { keep, precision: self.precision },
            talk: self.talk,
        };
        tuning.run(&self.plan.tensors, parts).doing(|| "while tuning")
    }

    fn write_parts(&self, mut parts: Parts, sink: &mut Sink) -> Result<()> {
        for tensor in &self.plan.tensors {
            let name = &tensor.spec.name;
            if let Some(coded) = parts.coded.remove(name) {
                let decoded = coded.decoded();
                let Coded { encoding, grid, codes, facts } = coded;
                sink.codes(tensor, &encoding, &Solution { grid, codes, decoded, facts })?;
            } else if let (Some(values), Treatment::Float(dtype)) =
                (parts.floats.remove(name), &tensor.treatment)
            {
                sink.floats(tensor, *dtype, values)?;
            }
        }
        Ok(())
    }

    fn with_data(&self, windows: &Windows, done: &mut Done) -> Result<()> {
        let config = &self.source.config;
        let embedded = self.embed(windows, done)?;
        let mut stream = Passage::new(self.plan, self.source, embedded, windows.ctx(), self.precision)?;
        let twin = || Twin::new(self.plan, self.source, windows, self.precision);
        let mut twin = self.plan.corrects.then(|| done.calibrating(twin)).transpose()?;
        for layer in 0..config.num_hidden_layers {
            self.block(layer, (&mut stream, twin.as_mut()), done)
                .doing(|| format!("while quantizing layer {layer}"))?;
        }
        let comes_last = |t: &&PlannedTensor| {
            t.spec.role != Role::Embedding || config.tie_word_embeddings && !self.is_solved_first(t)
        };
        for tensor in self.plan.outside_blocks().filter(comes_last) {
            match &tensor.treatment {
                Treatment::Codes(encoding) => {
                    self.head(tensor, encoding, (&mut stream, twin.as_ref()), done)?;
                }
                Treatment::Float(_) => self.without_data(tensor, done, |_, _| Ok(()))?,
            }
        }
        Ok(())
    }

    /// The windows' embeddings as the reader of the output will look them up, `[tokens, hidden_size]`.
    ///
    /// An embedding that serves as the head too is solved first, for what the head reads in the unquantized model, so that all that comes
    /// after it knows what it has lost. On a device it is written last, and rounded to nearest until then.
    fn embed(&self, windows: &Windows, done: &mut Done) -> Result<HiddenStates> {
        let (config, tokens) = (&self.source.config, windows.tokens());
        check_tokens(config, tokens)?;
        let mut hidden = HiddenStates::zeros([tokens.len(), config.hidden_size], &self.plan.memory.keeping)?;
        let mut looking_up = Duration::ZERO;
        let mut look_up = |first: usize, rows: &Array2<f32>| {
            let started = Instant::now();
            for (position, &token) in tokens.iter().enumerate() {
                if let Some(row) = (token as usize).checked_sub(first).filter(|row| *row < rows.nrows()) {
                    let mut row = rows.slice(s![row..=row, ..]).to_owned();
                    scale_embeddings(config, row.view_mut());
                    hidden.write(position, row.view())?;
                }
            }
            looking_up += started.elapsed();
            Ok(())
        };
        for tensor in self.plan.outside_blocks().filter(|t| t.spec.role == Role::Embedding) {
            match &tensor.treatment {
                Treatment::Codes(encoding) if self.is_solved_first(tensor) => {
                    let statistics = done.calibrating(|| self.head_input(windows))?;
                    let factor = Factor::new(&statistics, LOOKED_UP);
                    self.solve_rows(tensor, encoding, (&factor, None), done, &mut look_up)?;
                }
                Treatment::Codes(encoding) if config.tie_word_embeddings => {
                    self.each_rows(tensor, done, |first, w, _| {
                        let rounded =
                            encoding.unpack(&encoding.quantize(w.view(), None), w.nrows(), w.ncols())?;
                        look_up(first, &rounded)
                    })?;
                }
                Treatment::Float(dtype) if config.tie_word_embeddings => {
                    self.each_rows(tensor, done, |first, w, _| {
                        look_up(first, &self.rounded(&tensor.spec, w, *dtype)?)
                    })?;
                }
                _ => self.without_data(tensor, done, &mut look_up)?,
            }
        }
        done.calibrating += looking_up;
        Ok(hidden)
    }

    /// Whether codes of an embedding that is the head too are chosen before all others.
    fn is_solved_first(&self, tensor: &PlannedTensor) -> bool {
        tensor.spec.role == Role::Embedding
            && self.source.config.tie_word_embeddings
            && matches!(tensor.treatment, Treatment::Codes(_))
            && self.there().is_none()
    }

    /// The statistics of what the head reads in the unquantized model, on windows enough to tell them.
    fn head_input(&self, windows: &Windows) -> Result<Statistics> {
        let (config, ctx) = (&self.source.config, windows.ctx());
        let features = config.tap_features(Tap::HeadIn);
        let (all, count) = (windows.count(), (TOKENS_PER_COLUMN * features).div_ceil(ctx));
        let count = count.min(all);
        let some = windows.select((0..count).map(|i| i * all / count));
        let streaming = Streaming {
            precision: self.precision,
            device: self.plan.device.clone(),
            ..Streaming::kept(&self.plan.memory.keeping)
        };
        let hidden = streamed_hidden_states(config, self.source, &some, &streaming, &mut |_| ())?;
        let mut passage = Passage::new(self.plan, self.source, hidden, ctx, self.precision)?;
        passage.head(&final_norm(config, self.source)?, Statistics::with(self.solver.reads(), features))
    }

    /// Stage by stage through one block.
    fn block(
        &self,
        layer: usize,
        (stream, mut twin): (&mut Passage, Option<&mut Twin>),
        done: &mut Done,
    ) -> Result<()> {
        let config = &self.source.config;
        let is_kept = |t: &&PlannedTensor| t.spec.tap.is_none() || t.spec.role == Role::Router;
        let kept: Vec<_> = self.plan.of_layer(layer).filter(is_kept).collect();
        if self.plan.equalize == Equalize::No {
            kept.iter().try_for_each(|tensor| self.without_data(tensor, done, |_, _| Ok(())))?;
        }
        match (&mut *stream, self.there()) {
            (Passage::F32(stream), Some(solver)) => return self.block_there(layer, (stream, solver), done),
            (Passage::Bf16(stream), Some(solver)) => return self.block_there(layer, (stream, solver), done),
            _ => {}
        }
        let mut block = Block::load_without_experts(config, layer, self.source)?;
        let mut original = twin.is_some().then(|| Block::load(config, layer, self.source)).transpose()?;
        if self.plan.equalize != Equalize::No {
            let equalizing = Equalizing { plan: self.plan, block: &block, precision: self.precision };
            let equalized = done.calibrating(|| equalizing.run(stream.here()?))?;
            std::iter::once(&mut block).chain(&mut original).for_each(|block| equalized.apply(block));
            kept.into_iter().try_for_each(|tensor| self.as_in(&block, tensor, done))?;
        }
        if let (Some(twin), Some(original)) = (&mut twin, original) {
            twin.enter(original);
        }
        for tap in STAGES {
            if tap == Tap::MlpIn && block.experts().is_some() {
                return self.experts(layer, &block, stream.here()?, done);
            }
            let tensors: Vec<_> = self.plan.of_layer(layer).filter(|t| t.spec.tap == Some(tap)).collect();
            let solver = self.solver_of(tensors.iter().any(|t| t.sparse));
            let solved = tensors.iter().any(|t| t.sparse || matches!(t.treatment, Treatment::Codes(_)));
            let wanted =
                solved.then(|| Statistics::with(solver.reads(), config.of_layer(layer).tap_features(tap)));
            let (statistics, correction) = done.calibrating(|| match (&mut twin, wanted) {
                (Some(twin), Some(wanted)) => {
                    let (statistics, correction) = twin.observe((stream.here()?, &block), tap, wanted)?;
                    Ok((Some(statistics), correction))
                }
                (Some(twin), None) => twin.pass((stream.here()?, &block), tap).map(|()| (None, None)),
                (None, wanted) => Ok((stream.observe(&block, tap, wanted)?, None)),
            })?;
            let correction = correction.as_ref();
            let factor = statistics.as_ref().map(|statistics| Factor::new(statistics, solver.settings()));
            for tensor in tensors {
                let (role, factor) = (tensor.spec.role, factor.as_ref());
                if role.parts().len() == 1 {
                    self.matrix(tensor, block.weight_mut(role), (factor, correction), done)
                } else {
                    let mut weight = block.stored(role);
                    let made = self.matrix(tensor, weight.view_mut(), (factor, correction), done);
                    block.set_stored(role, weight.view());
                    made
                }
                .doing(|| format!("while quantizing `{}`", tensor.spec.name))?;
                stream.settle(&mut block, role)?;
            }
        }
        let next = self.plan.first_of(layer + 1);
        done.calibrating(|| while_reading_ahead(next, self.source, || stream.finish(&block)))?;
        twin.map_or(Ok(()), |twin| done.calibrating(|| twin.finish()))
    }

    /// Writes a norm or bias as it stands in a block; a router, which stands in none, as it was.
    fn as_in(&self, block: &Block, tensor: &PlannedTensor, done: &mut Done) -> Result<()> {
        let (Some(values), Treatment::Float(dtype)) = (block.parameter(tensor.spec.role), &tensor.treatment)
        else {
            return self.without_data(tensor, done, |_, _| Ok(()));
        };
        done.sink.floats(tensor, *dtype, values.iter().copied().collect())?;
        done.note(tensor, None);
        Ok(())
    }

    /// What decides on matrices that are to have zeros, or on others.
    pub(super) fn solver_of(&self, sparse: bool) -> &dyn Solver {
        self.zeros.filter(|_| sparse).unwrap_or(self.solver)
    }

    /// The solver on a device, where all that is asked for has a twin there.
    fn there(&self) -> Option<DeviceGptq> {
        self.solver.on_device().filter(|_| self.plan.solves_there)
    }

    /// A matrix whose input is the normed end of the stream.
    fn head(
        &self,
        tensor: &PlannedTensor,
        encoding: &Named,
        (stream, twin): (&mut Passage, Option<&Twin>),
        done: &mut Done,
    ) -> Result<()> {
        let config = &self.source.config;
        let norm = final_norm(config, self.source)?;
        match (&mut *stream, self.there()) {
            (Passage::F32(stream), Some(solver)) => {
                return self.head_there(tensor, (encoding, &norm), (stream, solver), done);
            }
            (Passage::Bf16(stream), Some(solver)) => {
                return self.head_there(tensor, (encoding, &norm), (stream, solver), done);
            }
            _ => {}
        }
        let wanted = Statistics::with(self.solver.reads(), config.tap_features(Tap::HeadIn));
        let (statistics, correction) = done.calibrating(|| match twin {
            Some(twin) => twin.head(stream.here()?, &norm, wanted),
            None => Ok((stream.head(&norm, wanted)?, None)),
        })?;
        let factor = Factor::new(&statistics, Settings::default());
        self.solve_rows(tensor, encoding, (&factor, correction.as_ref()), done, |_, _| Ok(()))
    }

    /// Quantizes a matrix outside the blocks, some rows at a time, and shows `look` what a reader will get, with each run's first row.
    pub(super) fn solve_rows(
        &self,
        tensor: &PlannedTensor,
        encoding: &Named,
        (factor, correction): (&Factor<'_>, Option<&Correction>),
        done: &mut Done,
        mut look: impl FnMut(usize, &Array2<f32>) -> Result<()>,
    ) -> Result<()> {
        let mut facts = Merged::default();
        self.each_rows(tensor, done, |first, w, done| {
            let w = match correction {
                Some(correction) => correction.corrected(w.view(), first),
                None => w,
            };
            let solution = self.solver.solve(w.view(), Some(factor), grid_of(encoding)?)?;
            look(first, &solution.decoded)?;
            done.sink.codes(tensor, encoding, &solution)?;
            facts.add(solution.facts);
            Ok(())
        })?;
        done.note(tensor, Some(&facts));
        Ok(())
    }

    /// Quantizes a matrix of the running block, in place, some rows at a time: rows are independent.
    pub(super) fn matrix(
        &self,
        tensor: &PlannedTensor,
        mut weight: ArrayViewMut2<'_, f32>,
        (factor, correction): (Option<&Factor<'_>>, Option<&Correction>),
        done: &mut Done,
    ) -> Result<()> {
        let (count, step) = (weight.nrows(), done.sink.row_step(tensor, CHUNK_WEIGHTS));
        let solver = self.solver_of(tensor.sparse);
        let mut facts = None::<Merged>;
        for start in (0..count).step_by(step) {
            let mut rows = weight.slice_mut(s![start..count.min(start + step), ..]);
            match &tensor.treatment {
                Treatment::Float(dtype) => {
                    let made = if tensor.sparse { solver.solve_floats(rows.view(), factor)? } else { None };
                    let kept = match made {
                        Some(made) => {
                            facts.get_or_insert_default().add(made.facts);
                            Self::stored(made.weights, *dtype)?
                        }
                        None => self.rounded(&tensor.spec, rows.to_owned(), *dtype)?,
                    };
                    rows.assign(&kept);
                    done.sink.floats(tensor, *dtype, rows.iter().copied().collect())?;
                }
                Treatment::Codes(encoding) => {
                    if let Some(correction) = correction {
                        let corrected = correction.corrected(rows.view(), start);
                        rows.assign(&corrected);
                    }
                    let solution = solver.solve(rows.view(), factor, grid_of(encoding)?)?;
                    done.sink.codes(tensor, encoding, &solution)?;
                    rows.assign(&solution.decoded);
                    facts.get_or_insert_default().add(solution.facts);
                }
            }
        }
        done.note(tensor, facts.as_ref());
        Ok(())
    }

    /// Writes a tensor no statistics are known of, and shows `look` what a reader will get, with each run's first row.
    pub(super) fn without_data(
        &self,
        tensor: &PlannedTensor,
        done: &mut Done,
        mut look: impl FnMut(usize, &Array2<f32>) -> Result<()>,
    ) -> Result<()> {
        if let (Treatment::Codes(encoding), true) = (&tensor.treatment, self.plan.keeps_codes) {
            return self
                .kept(tensor, encoding, done)
                .doing(|| format!("while moving `{}`", tensor.spec.name));
        }
        let mut facts = None::<Merged>;
        self.each_rows(tensor, done, |first, w, done| {
            match &tensor.treatment {
                Treatment::Float(dtype) => {
                    let w = self.rounded(&tensor.spec, w, *dtype)?;
                    look(first, &w)?;
                    done.sink.floats(tensor, *dtype, w.into_raw_vec_and_offset().0)?;
                }
                Treatment::Codes(encoding) => {
                    let solution = Rtn.solve(w.view(), None, grid_of(encoding)?)?;
                    look(first, &solution.decoded)?;
                    done.sink.codes(tensor, encoding, &solution)?;
                    facts.get_or_insert_default().add(solution.facts);
                }
            }
            Ok(())
        })?;
        done.note(tensor, facts.as_ref());
        Ok(())
    }

    /// Writes the codes a matrix has.
    fn kept(&self, tensor: &PlannedTensor, encoding: &Named, done: &mut Done) -> Result<()> {
        let [rows, _] = rows_and_cols(&tensor.spec);
        let step = done.sink.row_step(tensor, CHUNK_WEIGHTS);
        for first in (0..rows).step_by(step) {
            let fit = self.source.codes(&tensor.spec, first..rows.min(first + step))?;
            let fit = fit.ok_or_else(|| Failure::new("there are no codes to be kept"))?;
            let Fit { grid, codes } = grid_of(encoding)?.holding(&fit)?;
            done.sink.grid_and_codes(tensor, encoding, (grid, codes), Facts::default())?;
        }
        done.note(tensor, None);
        Ok(())
    }

    /// Reads a tensor some rows at a time; a vector is rows of one.
    pub(super) fn each_rows(
        &self,
        tensor: &PlannedTensor,
        done: &mut Done,
        mut each: impl FnMut(usize, Array2<f32>, &mut Done) -> Result<()>,
    ) -> Result<()> {
        let at = || format!("while quantizing `{}`", tensor.spec.name);
        let [rows, cols] = rows_and_cols(&tensor.spec);
        let step = done.sink.row_step(tensor, CHUNK_WEIGHTS);
        if rows <= step {
            let all = self.load(&tensor.spec)?.into_shape_with_order((rows, cols))?;
            return each(0, all, done).doing(at);
        }
        for start in (0..rows).step_by(step) {
            let wanted: Vec<usize> = (start..rows.min(start + step)).collect();
            let w = self.source.load_rows(&tensor.spec.name, &wanted);
            let w = w.map_err(|source| load_failed(&tensor.spec, source))?;
            each(start, w, done).doing(at)?;
        }
        Ok(())
    }

    /// What is left of a tensor's numbers when they are stored as `dtype`.
    pub(super) fn rounded(&self, spec: &TensorSpec, w: Array2<f32>, dtype: Dtype) -> Result<Array2<f32>> {
        if dtype == self.source.float_dtype(spec) { Ok(w) } else { Self::stored(w, dtype) }
    }

    /// The same of numbers that need not be the source's.
    fn stored(w: Array2<f32>, dtype: Dtype) -> Result<Array2<f32>> {
        if dtype == Dtype::F32 {
            return Ok(w);
        }
        let shape = w.dim();
        let values = w.as_standard_layout().into_owned().into_raw_vec_and_offset().0;
        let kept = round_floats(dtype, &values)?;
        let overflowed = |(kept, x): (&f32, &f32)| kept.is_infinite() && x.is_finite();
        if let Some(at) = kept.iter().zip(&values).position(overflowed) {
            return Err(Failure::new(format!("the value {:e} is too large for {dtype}", values[at]))
                .hint("choose bf16 or f32"));
        }
        Ok(Array2::from_shape_vec(shape, kept)?)
    }

    pub(super) fn load(&self, spec: &TensorSpec) -> Result<ndarray::ArrayD<f32>> {
        Ok(self.source.load(&spec.name).map_err(|source| load_failed(spec, source))?)
    }
}

fn load_failed(spec: &TensorSpec, source: attar_model::LoadError) -> ModelError {
    ModelError::Load { name: spec.name.clone(), source }
}

pub(super) fn grid_of(encoding: &Named) -> Result<&dyn attar_quant::GridEncoding> {
    encoding.grid().ok_or_else(|| Failure::new(format!("{} has no codes", encoding.name())))
}
