//! A model over the windows of a text: its blocks one after the other, then its head a few tokens
//! at a time, so that neither the whole model nor all logits ever stand in memory.

use std::ops::Range;

use attar_model::{Head, ModelConfig, Precision, Weights, Windows, hidden_states};
use ndarray::{Array2, ArrayView1, Axis, s};
use rayon::prelude::*;

use crate::perplexity::negative_log_likelihood;
use crate::report::Evaluation;
use crate::softmax::Pair;
use crate::{Convention, Divergence, Error, Perplexity};

/// Logits of one model that stand in memory together.
const LOGITS_BYTES: usize = 64 << 20;
/// Enough rows to keep a matrix product busy, however large the vocabulary.
const LEAST_ROWS: usize = 16;
/// More rows than this gain nothing, however small the vocabulary.
const MOST_ROWS: usize = 1024;

/// A model to run: its shape and where its weights come from.
#[derive(Clone, Copy)]
pub struct Scored<'a> {
    /// The shape.
    pub config: &'a ModelConfig,
    /// The weights, under Hugging Face names.
    pub weights: &'a dyn Weights,
    /// How exactly its matrices are multiplied.
    pub precision: Precision,
}

/// The text to score a model on.
#[derive(Clone, Copy)]
pub struct Passage<'a> {
    /// How the report names the text.
    pub text: &'a str,
    /// The text's tokens, cut by [`windows()`](crate::windows()) for `convention`.
    pub windows: &'a Windows,
    /// Which tokens count.
    pub convention: Convention,
}

impl Passage<'_> {
    fn positions(&self) -> Range<usize> {
        self.convention.scored(self.windows.ctx())
    }

    /// The token each scored position should have predicted, in order.
    fn targets(&self) -> Vec<usize> {
        let predicted = self.positions().start + 1..self.positions().end + 1;
        let windows = self.windows.tokens().chunks_exact(self.windows.ctx());
        windows.flat_map(|window| &window[predicted.clone()]).map(|&token| token as usize).collect()
    }
}

/// What an evaluation is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Running the decoder blocks; counted in blocks.
    Blocks,
    /// Turning hidden states into scores; counted in tokens.
    Head,
}

/// How far an evaluation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Finished so far.
    pub done: usize,
    /// To be finished in this stage.
    pub total: usize,
}

/// A model's final hidden states at the scored positions of one passage.
struct Predictions {
    head: Head,
    hidden: Array2<f32>, // [scored tokens, hidden_size], before the final norm
    vocab_size: usize,
}

impl Predictions {
    fn run(model: Scored, passage: Passage, progress: &mut dyn FnMut(Progress)) -> Result<Self, Error> {
        let Scored { config, weights, precision } = model;
        check_tokens(passage.windows, config.vocab_size)?;

        let total = config.num_hidden_layers;
        let mut done = 0;
        let hidden = hidden_states(config, weights, passage.windows, precision, &mut |_layer| {
            done += 1;
            progress(Progress { stage: Stage::Blocks, done, total });
        })
        .map_err(Error::Forward)?;
        let hidden = at_positions(&hidden, passage.windows.ctx(), passage.positions());
        let mut head = Head::load(config, weights).map_err(Error::Forward)?;
        head.pack(precision);
        Ok(Self { head, hidden, vocab_size: config.vocab_size })
    }

    /// `[rows.len(), vocab_size]`.
    fn logits(&self, rows: Range<usize>) -> Array2<f32> {
        let normed = self.head.norm(self.hidden.slice(s![rows, ..]));
        self.head.logits(normed.view())
    }
}

/// The model that candidates are compared with, run once over a passage and reused for each.
pub struct Reference {
    predictions: Predictions,
    windows: Windows,
    convention: Convention,
}

impl Reference {
    /// Runs `model` over `passage`.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a failed forward pass.
    pub fn run(model: Scored, passage: Passage, progress: &mut dyn FnMut(Progress)) -> Result<Self, Error> {
        Ok(Self {
            predictions: Predictions::run(model, passage, progress)?,
            windows: passage.windows.clone(),
            convention: passage.convention,
        })
    }
}

/// Scores `model` on `passage`, and against `reference` where there is one.
///
/// Figures are the same bits for any number of threads.
///
/// # Errors
/// A token outside the vocabulary, vocabularies that differ, a failed forward pass, logits that are
/// not finite.
///
/// # Panics
/// Where `reference` was run over another passage.
pub fn evaluate(
    model: Scored,
    reference: Option<&Reference>,
    passage: Passage,
    progress: &mut dyn FnMut(Progress),
) -> Result<Evaluation, Error> {
    if let Some(reference) = reference {
        assert!(
            reference.convention == passage.convention && reference.windows == *passage.windows,
            "the reference was run over another passage"
        );
        check_vocabularies(reference.predictions.vocab_size, model.config.vocab_size)?;
    }
    let predictions = Predictions::run(model, passage, progress)?;
    let scores = score(&predictions, reference.map(|r| &r.predictions), passage, progress)?;
    summarise(&scores, passage)
}

/// What one scored token contributes.
struct TokenScore {
    nll: f64,
    against: Option<Against>,
}

/// What the reference says of the same token.
struct Against {
    nll: f64,
    kl_divergence: f64,
    same_top: bool,
}

fn score(
    model: &Predictions,
    reference: Option<&Predictions>,
    passage: Passage,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TokenScore>, Error> {
    let targets = passage.targets();
    let total = targets.len();
    let rows = (LOGITS_BYTES / (4 * model.vocab_size)).clamp(LEAST_ROWS, MOST_ROWS);

    let mut scores = Vec::with_capacity(total);
    for start in (0..total).step_by(rows) {
        let range = start..total.min(start + rows);
        let logits = model.logits(range.clone());
        check_finite(&logits, start, "model", passage)?;
        let reference_logits = reference.map(|r| r.logits(range.clone()));
        if let Some(logits) = &reference_logits {
            check_finite(logits, start, "reference", passage)?;
        }
        scores.par_extend(range.clone().into_par_iter().map(|token| {
            let candidate = row(&logits, token - start);
            let reference = reference_logits.as_ref().map(|logits| row(logits, token - start));
            score_token(candidate, reference, targets[token])
        }));
        progress(Progress { stage: Stage::Head, done: range.end, total });
    }
    Ok(scores)
}

fn score_token(candidate: &[f32], reference: Option<&[f32]>, target: usize) -> TokenScore {
    let Some(reference) = reference else {
        return TokenScore { nll: negative_log_likelihood(candidate, target), against: None };
    };
    let pair = Pair::of(reference, candidate);
    let against = Against {
        nll: pair.reference.nll(reference[target]),
        kl_divergence: pair.kl_divergence(),
        same_top: pair.reference.top == pair.candidate.top,
    };
    TokenScore { nll: pair.candidate.nll(candidate[target]), against: Some(against) }
}

fn summarise(scores: &[TokenScore], passage: Passage) -> Result<Evaluation, Error> {
    let nll: Vec<f64> = scores.iter().map(|score| score.nll).collect();
    let against: Vec<&Against> = scores.iter().filter_map(|score| score.against.as_ref()).collect();
    let mut evaluation = Evaluation {
        text: passage.text.to_owned(),
        tokens: scores.len() as u64,
        chunks: passage.windows.count() as u64,
        ctx: passage.windows.ctx() as u64,
        convention: passage.convention,
        perplexity: finite_perplexity(&nll)?,
        reference_perplexity: None,
        perplexity_ratio: None,
        kl_divergence: None,
        top1_agreement: None,
    };
    if !against.is_empty() {
        let reference_nll: Vec<f64> = against.iter().map(|a| a.nll).collect();
        let excess: Vec<f64> =
            nll.iter().zip(&reference_nll).map(|(nll, reference)| nll - reference).collect();
        let divergences: Vec<f64> = against.iter().map(|a| a.kl_divergence).collect();
        let same = against.iter().filter(|a| a.same_top).count();
        evaluation.reference_perplexity = Some(finite_perplexity(&reference_nll)?);
        evaluation.perplexity_ratio = Some(finite_perplexity(&excess)?);
        evaluation.kl_divergence = Some(Divergence::of(&divergences));
        evaluation.top1_agreement = Some(same as f64 / against.len() as f64);
    }
    Ok(evaluation)
}

fn finite_perplexity(nll: &[f64]) -> Result<Perplexity, Error> {
    let perplexity = Perplexity::of(nll);
    if perplexity.value.is_finite() && perplexity.stderr.is_finite() {
        return Ok(perplexity);
    }
    let mean_nll = nll.iter().sum::<f64>() / nll.len() as f64;
    Err(Error::PerplexityOverflows { mean_nll })
}

fn check_tokens(windows: &Windows, vocab_size: usize) -> Result<(), Error> {
    match windows.tokens().iter().copied().max() {
        Some(token) if token as usize >= vocab_size => {
            Err(Error::TokenOutsideVocabulary { token, vocab_size })
        }
        _ => Ok(()),
    }
}

fn check_vocabularies(reference: usize, model: usize) -> Result<(), Error> {
    if reference == model { Ok(()) } else { Err(Error::VocabularyDiffers { reference, model }) }
}

/// The first row of `logits` is the scored token `first`.
fn check_finite(
    logits: &Array2<f32>,
    first: usize,
    which: &'static str,
    passage: Passage,
) -> Result<(), Error> {
    let finite = |row: ArrayView1<f32>| row.iter().all(|logit| logit.is_finite());
    let Some(row) = logits.rows().into_iter().position(|row| !finite(row)) else {
        return Ok(());
    };
    let positions = passage.positions();
    let token = first + row;
    Err(Error::NotFinite {
        which,
        window: token / positions.len(),
        position: positions.start + token % positions.len(),
    })
}

/// The rows of `hidden`, `[windows * ctx, hidden_size]`, at `positions` of every window.
fn at_positions(hidden: &Array2<f32>, ctx: usize, positions: Range<usize>) -> Array2<f32> {
    let rows: Vec<usize> = (0..hidden.nrows() / ctx)
        .flat_map(|window| positions.clone().map(move |position| window * ctx + position))
        .collect();
    hidden.select(Axis(0), &rows)
}

fn row(logits: &Array2<f32>, index: usize) -> &[f32] {
    logits.row(index).to_slice().expect("logits are row major")
}

#[cfg(test)]
mod tests;
