//! Which type each tensor gets in a file of a given size: that with which the model's predictions change least.
//!
//! What a type does to a matrix is its relative error in the metric of the matrix's inputs, from a sample of rows that the real
//! solver rounds. What such an error does to the model is measured: each matrix alone is rounded in two types, a little text runs through the
//! model so changed, and its predictions are held against the model's own. Between and beyond these two the KL divergence follows a power of
//! the error, in small errors the error itself. Damages of different matrices add up, and [`allocate`](attar_quant::allocate) finds the
//! choice of types of which the sum is least.

use std::collections::BTreeMap;

use attar_checkpoint::{GgmlType, round_floats};
use attar_eval::divergence::kl_divergences;
use attar_model::{
    Block, Head, LoadError, ModelConfig, Precision, Role, Tap, TensorSpec, Weights, Windows, embed,
    final_norm,
};
use attar_quant::{Factor, Rtn, Settings, Solver, Statistics, encoding, energy};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayD, Axis, s};

use super::compress::grid_of;
use super::passage::Passage;
use crate::diagnostic::{Explain, Failure, Result};
use crate::plan::{Plan, float_dtype};
use crate::source::{Source, rows_and_cols};
use crate::talk::Talk;

/// Tokens of the calibration text that every changed model is run on, at most.
const PROBE_TOKENS: usize = 4096;

/// Tokens of such a window, at most.
const PROBE_CTX: usize = 512;

/// Rows of a matrix on which types are tried, at least where it has so many.
const SAMPLE_ROWS: usize = 96;

/// Bits per weight of the types in which a matrix is rounded alone; those nearest to them are taken.
const PROBED_BITS: [f64; 2] = [2.7, 4.5];

/// The power of the error that the KL divergence may follow between the two that were measured.
const POWERS: [f64; 2] = [0.7, 1.5];

/// A KL divergence that counts as none.
const NO_DAMAGE: f64 = 1e-12;

/// What a tensor of the file may become, and what that does.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its type.
    pub ggml: GgmlType,
    /// Bytes it then takes.
    pub bytes: u64,
    /// The KL divergence that is expected of it alone.
    pub damage: f64,
}

/// A tensor of the file: a matrix, or the stack of a layer's experts.
#[derive(Debug)]
pub struct Group<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// The matrices in it.
    pub specs: Vec<&'a TensorSpec>,
    /// What it may become.
    pub candidates: Vec<Candidate>,
}

impl Group<'_> {
    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.specs.iter().map(|spec| spec.len()).sum()
    }

    fn first(&self) -> &TensorSpec {
        self.specs[0]
    }

    /// The candidates that the whole matrix is rounded to: one or two of them.
    fn probed(&self) -> Vec<GgmlType> {
        let nearest = |bits: f64| {
            let far = |ggml: GgmlType| (ggml.bits_per_weight() - bits).abs();
            let types = self.candidates.iter().map(|candidate| candidate.ggml);
            types.min_by(|a, b| far(*a).total_cmp(&far(*b)))
        };
        let mut types: Vec<_> = PROBED_BITS.into_iter().filter_map(nearest).collect();
        types.dedup();
        types
    }
}

/// What measures damages.
pub struct Measuring<'a> {
    /// The model.
    pub source: &'a Source,
    /// How it runs: a plan of any types.
    pub plan: &'a Plan,
    /// The text.
    pub windows: &'a Windows,
    /// How codes are chosen.
    pub solver: &'a dyn Solver,
    /// How exactly matrices are multiplied where statistics are collected.
    pub precision: Precision,
    /// Where progress is told.
    pub talk: Talk,
}

/// The model with one tensor of the file rounded.
struct Changed<'a> {
    source: &'a Source,
    weights: BTreeMap<&'a str, Array2<f32>>,
}

impl Weights for Changed<'_> {
    fn load(&self, name: &str) -> std::result::Result<ArrayD<f32>, LoadError> {
        match self.weights.get(name) {
            Some(weight) => Ok(weight.clone().into_dyn()),
            None => self.source.load(name),
        }
    }

    fn load_rows(&self, name: &str, rows: &[usize]) -> std::result::Result<Array2<f32>, LoadError> {
        match self.weights.get(name) {
            Some(weight) => Ok(weight.select(Axis(0), rows)),
            None => self.source.load_rows(name, rows),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }
}

/// A changed model on its way.
struct Probe<'a> {
    group: usize,
    ggml: GgmlType,
    hidden: Array2<f32>, // [tokens, hidden_size]
    head: Option<Changed<'a>>,
}

/// Relative errors of a group's candidates, in their order.
type Errors = Vec<f64>;

impl<'a> Measuring<'a> {
    /// Fills in the damage of every candidate.
    ///
    /// # Errors
    /// Weights that cannot be read or are not finite, predictions that are not.
    pub fn run(&self, groups: &mut [Group<'a>]) -> Result<()> {
        let (config, probe) = (&self.source.config, self.probe_windows());
        let layers = config.num_hidden_layers;
        let stage = self.talk.stage("measuring damage", layers as u64, "layers");
        let mut clean = embed(config, self.source, probe.tokens())?;
        let mut errors: Vec<Errors> = vec![Errors::new(); groups.len()];
        let mut probes = self.embeddings(groups, &probe, &mut errors)?;
        let mut passage = self.passage()?;
        for layer in 0..layers {
            let at = || format!("while measuring the damage to layer {layer}");
            let changed = self.layer(layer, groups, passage.as_mut(), &mut errors).doing(at)?;
            let block = Block::load(config, layer, self.source)?;
            for probe in &mut probes {
                block.forward(&mut probe.hidden, self.probe_ctx());
            }
            for (group, ggml, weights) in changed {
                let mut hidden = clean.clone();
                Block::load(config, layer, &weights)?.forward(&mut hidden, self.probe_ctx());
                probes.push(Probe { group, ggml, hidden, head: None });
            }
            block.forward(&mut clean, self.probe_ctx());
            stage.step(1, "measured");
        }
        self.head(groups, passage.as_mut(), &clean, (&mut probes, &mut errors))?;
        let divergences = self.divergences(&clean, &probes)?;
        stage.done();
        for (at, group) in groups.iter_mut().enumerate() {
            let error_of = |ggml| {
                let found = group.candidates.iter().position(|candidate| candidate.ggml == ggml);
                found.map_or(0.0, |found| errors[at][found])
            };
            let measured = probes.iter().zip(&divergences).filter(|(probe, _)| probe.group == at);
            let law = Law::of(measured.map(|(probe, kl)| [error_of(probe.ggml), *kl]).collect());
            for (candidate, error) in group.candidates.iter_mut().zip(&errors[at]) {
                candidate.damage = law.damage(*error);
            }
        }
        Ok(())
    }

    fn probe_ctx(&self) -> usize {
        self.windows.ctx().min(PROBE_CTX)
    }

    /// The beginnings of windows from all over the text.
    fn probe_windows(&self) -> Windows {
        let (ctx, all) = (self.probe_ctx(), self.windows);
        let count = all.count().min((PROBE_TOKENS / ctx).max(1));
        let starts = (0..count).map(|at| at * all.count() / count * all.ctx());
        Windows::new(ctx, starts.flat_map(|start| all.tokens()[start..start + ctx].to_vec()).collect())
    }

    /// The calibration text at the first block; of experts nothing is summed.
    fn passage(&self) -> Result<Option<Passage>> {
        let is_dense = self.source.config.experts.is_none();
        let begin = || Passage::unquantized(self.plan, self.source, self.windows, self.precision);
        is_dense.then(begin).transpose()
    }

    /// The matrices of a layer rounded, each alone, and the errors of all types there.
    fn layer(
        &self,
        layer: usize,
        groups: &[Group<'a>],
        passage: Option<&mut Passage>,
        errors: &mut [Errors],
    ) -> Result<Vec<(usize, GgmlType, Changed<'a>)>> {
        let here = |tap: Option<Tap>| {
            let of = move |group: &Group<'_>| {
                group.first().layer == Some(layer) && tap.is_none_or(|tap| group.first().tap == Some(tap))
            };
            (0..groups.len()).filter(move |at| of(&groups[*at]))
        };
        let mut changed = Vec::new();
        let Some(passage) = passage else {
            for at in here(None) {
                changed.extend(self.matrix(at, &groups[at], None, &mut errors[at])?);
            }
            return Ok(changed);
        };
        let mut block = Block::load(&self.source.config, layer, self.source)?;
        passage.observe_all((self.plan, layer, &mut block), self.solver.reads(), |tap, statistics| {
            let factor =
                statistics.as_ref().map(|statistics| Factor::new(statistics, self.solver.settings()));
            for at in here(Some(tap)) {
                changed.extend(self.matrix(at, &groups[at], factor.as_ref(), &mut errors[at])?);
            }
            Ok(())
        })?;
        passage.finish(&block)?;
        Ok(changed)
    }

    /// A matrix of a layer rounded in the types that are measured, and the errors of all.
    fn matrix(
        &self,
        at: usize,
        group: &Group<'a>,
        factor: Option<&Factor<'_>>,
        errors: &mut Errors,
    ) -> Result<Vec<(usize, GgmlType, Changed<'a>)>> {
        *errors = self.errors(group, factor)?;
        let rounded = |ggml| {
            let weights = group.specs.iter().map(|spec| {
                let weight = matrix_of(self.source, spec)?;
                Ok((spec.name.as_str(), self.round(&weight, factor, ggml)?))
            });
            let weights = weights.collect::<Result<_>>()?;
            Ok((at, ggml, Changed { source: self.source, weights }))
        };
        group.probed().into_iter().map(rounded).collect()
    }

    /// The relative errors of all candidates on a sample of rows.
    fn errors(&self, group: &Group<'_>, factor: Option<&Factor<'_>>) -> Result<Errors> {
        let sample = self.sample(group)?;
        let sums = factor.map(|factor| &factor.statistics().sums);
        let all = energy(sample.view(), sums);
        let error = |candidate: &Candidate| {
            let rounded = self.round(&sample, factor, candidate.ggml)?;
            let lost = energy((&sample - &rounded).view(), sums);
            Ok(if lost == 0.0 { 0.0 } else { lost / all })
        };
        group.candidates.par_iter().map(error).collect()
    }

    /// Rows from all over a group's matrices.
    fn sample(&self, group: &Group<'_>) -> Result<Array2<f32>> {
        let matrices = group.specs.len().min(8);
        let each = SAMPLE_ROWS.div_ceil(matrices);
        let mut parts = Vec::new();
        for at in 0..matrices {
            let spec = group.specs[at * group.specs.len() / matrices];
            let [rows, _] = rows_and_cols(spec);
            let count = rows.min(each);
            let wanted: Vec<_> = (0..count).map(|row| (2 * row + 1) * rows / (2 * count)).collect();
            let part = self.source.load_rows(&spec.name, &wanted);
            parts.push(part.map_err(|error| Failure::new(format!("`{}`: {error}", spec.name)))?);
        }
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        Ok(ndarray::concatenate(Axis(0), &views)?)
    }

    /// What a reader would get of a matrix in a type.
    fn round(&self, w: &Array2<f32>, factor: Option<&Factor<'_>>, ggml: GgmlType) -> Result<Array2<f32>> {
        if let Some(dtype) = float_dtype(ggml) {
            let values: Vec<f32> = w.iter().copied().collect();
            return Ok(Array2::from_shape_vec(w.dim(), round_floats(dtype, &values)?)?);
        }
        let solver = if factor.is_some() { self.solver } else { &Rtn };
        let encoding = encoding(ggml.name()).ok_or_else(|| Failure::new(format!("{ggml} is not written")))?;
        Ok(solver.solve(w.view(), factor, grid_of(&encoding)?)?.decoded)
    }

    /// The models whose embedding is rounded, where it is looked up.
    fn embeddings(
        &self,
        groups: &[Group<'a>],
        probe: &Windows,
        errors: &mut [Errors],
    ) -> Result<Vec<Probe<'a>>> {
        let mut probes = Vec::new();
        for (at, group) in
            groups.iter().enumerate().filter(|(_, group)| group.first().role == Role::Embedding)
        {
            let config = &self.source.config;
            let is_tied = config.tie_word_embeddings;
            for (group, ggml, changed) in self.matrix(at, group, None, &mut errors[at])? {
                let hidden = embed(config, &changed, probe.tokens())?;
                probes.push(Probe { group, ggml, hidden, head: is_tied.then_some(changed) });
            }
        }
        Ok(probes)
    }

    /// The models whose head is rounded, and the errors of types there, in the metric of what it reads.
    fn head(
        &self,
        groups: &[Group<'a>],
        passage: Option<&mut Passage>,
        clean: &Array2<f32>,
        (probes, errors): (&mut Vec<Probe<'a>>, &mut [Errors]),
    ) -> Result<()> {
        let config = &self.source.config;
        let is_head = |group: &Group<'_>| {
            let role = group.first().role;
            role == Role::Head || (role == Role::Embedding && config.tie_word_embeddings)
        };
        let wanted = Statistics::with(self.solver.reads(), config.tap_features(Tap::HeadIn));
        let statistics =
            passage.map(|passage| passage.head(&final_norm(config, self.source)?, wanted)).transpose()?;
        let factor = statistics.as_ref().map(|statistics| Factor::new(statistics, Settings::default()));
        for (at, group) in groups.iter().enumerate().filter(|(_, group)| is_head(group)) {
            if group.first().role == Role::Head {
                for (group, ggml, changed) in self.matrix(at, group, None, &mut errors[at])? {
                    probes.push(Probe { group, ggml, hidden: clean.clone(), head: Some(changed) });
                }
            }
            errors[at] = self.errors(group, factor.as_ref())?;
        }
        Ok(())
    }

    /// How far each changed model's predictions are from the model's own, on average over the tokens.
    fn divergences(&self, clean: &Array2<f32>, probes: &[Probe<'_>]) -> Result<Vec<f64>> {
        let config = &self.source.config;
        let own = Head::load(config, self.source)?;
        let at_once = logits_at_once(config);
        let mut sums = vec![0.0; probes.len()];
        let heads =
            probes.iter().map(|probe| probe.head.as_ref().map(|head| Head::load(config, head)).transpose());
        let heads = heads.collect::<std::result::Result<Vec<_>, _>>()?;
        for start in (0..clean.nrows()).step_by(at_once) {
            let rows = s![start..clean.nrows().min(start + at_once), ..];
            let logits =
                |head: &Head, hidden: &Array2<f32>| head.logits(head.norm(hidden.slice(rows)).view());
            let was = logits(&own, clean);
            for ((probe, head), sum) in probes.iter().zip(&heads).zip(&mut sums) {
                let is = logits(head.as_ref().unwrap_or(&own), &probe.hidden);
                *sum += kl_divergences(was.view(), is.view()).iter().sum::<f64>();
            }
        }
        if sums.iter().any(|sum| !sum.is_finite()) {
            return Err(Failure::new("predictions on the calibration text are not finite")
                .hint("attar eval shows whether the model works at all"));
        }
        Ok(sums.into_iter().map(|sum| sum / clean.nrows().max(1) as f64).collect())
    }
}

/// What the KL divergence is at an error of one matrix.
struct Law {
    points: Vec<[f64; 2]>, // error and KL divergence, the smaller error first
}

impl Law {
    fn of(mut points: Vec<[f64; 2]>) -> Self {
        points.retain(|[error, _]| *error > 0.0);
        for [_, kl] in &mut points {
            *kl = kl.max(NO_DAMAGE);
        }
        points.sort_by(|[a, _], [b, _]| a.total_cmp(b));
        Self { points }
    }

    /// Proportional to small errors, a power of larger ones.
    fn damage(&self, error: f64) -> f64 {
        let Some(&[least, kl]) = self.points.first() else { return 0.0 };
        let power = match self.points[..] {
            [[a, kl_a], .., [b, kl_b]] if b > a && error > a => {
                ((kl_b / kl_a).ln() / (b / a).ln()).clamp(POWERS[0], POWERS[1])
            }
            _ => 1.0,
        };
        kl * (error / least).powf(power)
    }
}

fn matrix_of(source: &Source, spec: &TensorSpec) -> Result<Array2<f32>> {
    let loaded =
        source.load(&spec.name).map_err(|error| Failure::new(format!("`{}`: {error}", spec.name)))?;
    let [rows, cols] = rows_and_cols(spec);
    Ok(loaded.into_shape_with_order((rows, cols))?)
}

/// Tokens whose logits stand at once.
fn logits_at_once(config: &ModelConfig) -> usize {
    ((1 << 22) / config.vocab_size).clamp(16, 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_what_was_measured_and_goes_with_the_error_where_that_is_small() {
        let law = Law::of(vec![[0.04, 0.02], [0.01, 0.004]]);
        for (error, kl) in [(0.01, 0.004), (0.04, 0.02), (0.001, 0.0004), (0.0, 0.0)] {
            assert!((law.damage(error) - kl).abs() < 1e-9, "{error}: {}", law.damage(error));
        }
        assert!(law.damage(0.1) > 0.05 && Law::of(Vec::new()).damage(0.1) == 0.0);
    }
}
