//! Which of some shapes is nearest to the model: each is cut and repaired on a little text, and measured on a little more.
//!
//! Nothing is written and no repaired model stands anywhere: what is measured is where the stream of the text ends.

use std::collections::BTreeMap;

use attar_eval::divergence::kl_divergences;
use attar_eval::report;
use attar_model::{Head, Windows};
use attar_prune::criterion::depth::Removal;
use attar_prune::{Cuts, KeepList, Pruned};
use ndarray::{Array2, s};

use super::grid::Grid;
use super::shape::Shape;
use super::{Decided, PruneJob, first_tokens, reported_shape};
use crate::diagnostic::{Explain, Failure, Result};
use crate::pipeline::Clock;
use crate::plan::CalibrationSize;
use crate::talk::{Talk, Verbosity};

/// Tokens of the calibration text that a search runs over, at most.
const SEARCH_TOKENS: usize = 16_384;

/// One in so many windows of these, the last, is measured on and decides nothing.
const MEASURED: usize = 4;

/// The best shape, and how it came to be that.
pub struct Found {
    /// The shape.
    pub shape: Shape,
    /// The layers it keeps, where some go.
    pub layers: Option<Removal>,
    /// What was measured.
    pub report: report::Search,
}

/// The original on the measured windows.
struct Original {
    head: Head,
    hidden: Array2<f32>, // [tokens, hidden_size], before the final norm
}

/// Measures every shape of `grid`.
///
/// # Errors
/// A text of one window only; a model that cannot be read, or whose predictions are not finite.
pub fn run(job: &PruneJob<'_>, grid: &Grid) -> Result<Found> {
    // What is said of each shape's layers and features would be said over and over.
    let quiet = PruneJob { talk: Talk::new(Verbosity::Quiet), ..*job };
    let windows = windows(job.windows()?);
    let measured = check(&windows)?;
    let stage = job.talk.stage("searching", grid.shapes.len() as u64, "shapes");
    let original = Original::run(&quiet, &windows, measured)?;
    let mut layers = Layers {
        job: &quiet,
        least: grid.shapes.iter().map(|(shape, _)| shape.layers).min(),
        found: BTreeMap::new(),
    };
    let mut divergences = Vec::with_capacity(grid.shapes.len());
    for (shape, _) in &grid.shapes {
        let kept = layers.of(shape.layers)?;
        let kl = original
            .divergence(&quiet, *shape, kept, &windows, measured)
            .doing(|| format!("while measuring {shape}"))?;
        stage.detail(&format!("{shape}: KL divergence {kl:.5}"));
        stage.step(1, "measured");
        divergences.push(kl);
    }
    stage.done();
    let best = (1..divergences.len())
        .fold(0, |best, at| if divergences[at] < divergences[best] { at } else { best });
    let candidates =
        grid.shapes.iter().zip(&divergences).enumerate().map(|(at, ((shape, parameters), &kl))| {
            report::Candidate {
                shape: reported_shape(shape, *parameters),
                kl_divergence: kl,
                chosen: at == best,
            }
        });
    let report = report::Search {
        target_parameters: grid.target,
        tokens: (measured * windows.ctx()) as u64,
        candidates: candidates.collect(),
    };
    let (shape, _) = grid.shapes[best];
    Ok(Found { shape, layers: layers.of(shape.layers)?, report })
}

/// What the search is expected to hold at its peak, in bytes: a pass over its part of the text, and beside it the head of the model,
/// that of a shape with fewer features, and where the streams of both end.
///
/// # Errors
/// As [`check`]; more memory than allowed.
pub fn peak_bytes(job: &PruneJob<'_>, grid: &Grid) -> Result<u64> {
    let (config, windows) = (&job.source.config, windows(job.windows()?));
    let ends = 2 * check(&windows)? * windows.ctx() * config.hidden_size;
    let has_own = grid.shapes.iter().any(|(shape, _)| shape.hidden < config.hidden_size);
    let heads = config.vocab_size * config.hidden_size * if has_own { 2 } else { 1 };
    let logits = 2 * logits_at_once(config.vocab_size) * config.vocab_size;
    let beside = size_of::<f32>() * (ends + heads + logits);
    let size = CalibrationSize { tokens: windows.tokens().len(), ctx: windows.ctx() };
    let plan = job.tensors_beside((&Cuts::none(config), config), Some(size), beside as u64)?;
    Ok(plan.memory.peak_bytes)
}

/// Tokens whose logits stand at once.
fn logits_at_once(vocab_size: usize) -> usize {
    ((1 << 22) / vocab_size).clamp(16, 512)
}

/// What of the calibration text a search runs over.
pub fn windows(all: &Windows) -> Windows {
    first_tokens(all, SEARCH_TOKENS)
}

/// How many of a search's windows are measured on.
///
/// # Errors
/// One window, which cannot both decide and be measured on.
pub fn check(windows: &Windows) -> Result<usize> {
    if windows.count() < 2 {
        return Err(Failure::new(
            "the calibration text is one window, and a search measures on another than it cuts by",
        )
        .hint("give more text with --calib, or shorter windows with --ctx"));
    }
    Ok((windows.count() / MEASURED).max(1))
}

/// Which layers stay, by how many do.
struct Layers<'a> {
    job: &'a PruneJob<'a>,
    least: Option<usize>,
    found: BTreeMap<usize, Removal>,
}

impl Layers<'_> {
    fn of(&mut self, count: usize) -> Result<Option<Removal>> {
        let of = self.job.source.config.num_hidden_layers;
        if count == of {
            return Ok(None);
        }
        // Of a criterion that takes one layer after the other the longest removal begins with all others.
        let nested = self.job.depth.by.takes_one_after_the_other();
        let asked = if nested { self.least.unwrap_or(count) } else { count };
        if !self.found.contains_key(&asked) {
            self.found.insert(asked, self.job.choose_layers(asked)?);
        }
        let steps = self.found[&asked].steps[..of - count].to_vec();
        let dropped: Vec<_> = steps.iter().map(|step| step.layer).collect();
        Ok(Some(Removal { keep: KeepList::without(&dropped, of)?, steps }))
    }
}

impl Original {
    fn run(job: &PruneJob<'_>, windows: &Windows, measured: usize) -> Result<Self> {
        let config = &job.source.config;
        let (shape, cuts) = (Shape::of(config), Cuts::none(config));
        let tensors = job.tensors(&cuts, config)?;
        let pass = job.pass(shape, &tensors, None);
        let hidden =
            ends(&pass.rehearse(cuts, windows, windows.count() - measured)?, windows.ctx() * measured)?;
        Ok(Self { head: Head::load(config, job.source)?, hidden })
    }

    /// The mean KL divergence of a shape from the original.
    fn divergence(
        &self,
        job: &PruneJob<'_>,
        shape: Shape,
        layers: Option<Removal>,
        windows: &Windows,
        measured: usize,
    ) -> Result<f64> {
        let Decided { cuts, gradients, .. } = job.decide(&shape, layers, &mut Clock::default())?;
        let stand_in = job.stand_in(&shape, &cuts, &[])?;
        let tensors = job.tensors(&stand_in, &job.written(&stand_in)?)?;
        let pass = job.pass(shape, &tensors, gradients.as_ref());
        let outside = Cuts { blocks: Cuts::none(&job.source.config).blocks, ..cuts.clone() };
        let hidden =
            ends(&pass.rehearse(cuts, windows, windows.count() - measured)?, windows.ctx() * measured)?;
        let pruned = Pruned::new(&job.source.config, &outside, job.source)?;
        // Where no feature goes the head is what it was.
        let own = (!outside.hidden.is_all()).then(|| Head::load(pruned.config(), &pruned)).transpose()?;
        self.mean(own.as_ref().unwrap_or(&self.head), &hidden)
    }

    fn mean(&self, head: &Head, hidden: &Array2<f32>) -> Result<f64> {
        let (tokens, vocab_size) = (hidden.nrows(), self.head.weight().nrows());
        let at_once = logits_at_once(vocab_size);
        let logits = |head: &Head, hidden: &Array2<f32>, rows: std::ops::Range<usize>| {
            head.logits(head.norm(hidden.slice(s![rows, ..])).view())
        };
        let mut sum = 0.0;
        for start in (0..tokens).step_by(at_once) {
            let rows = start..tokens.min(start + at_once);
            let (was, is) = (logits(&self.head, &self.hidden, rows.clone()), logits(head, hidden, rows));
            sum += kl_divergences(was.view(), is.view()).iter().sum::<f64>();
        }
        let mean = sum / tokens.max(1) as f64;
        if mean.is_finite() {
            return Ok(mean);
        }
        Err(Failure::new("its predictions on the calibration text are not finite")
            .hint("attar eval shows whether the model works at all; --no-repair leaves weights as they are"))
    }
}

/// The last tokens of a stream, `[tokens, hidden_size]`.
fn ends(stream: &crate::pipeline::stream::Stream, tokens: usize) -> Result<Array2<f32>> {
    let mut skipped = stream.tokens() - tokens;
    let mut rows = Vec::new();
    stream.each_chunk(|hidden| {
        let from = skipped.min(hidden.nrows());
        skipped -= from;
        rows.push(hidden.slice(s![from.., ..]).to_owned());
    })?;
    let rows: Vec<_> = rows.iter().map(|rows| rows.view()).collect();
    Ok(ndarray::concatenate(ndarray::Axis(0), &rows)?)
}
