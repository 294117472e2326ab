//! Predictions to figures: a few tokens' logits at a time, each row scored as it stands.

use std::ops::Range;

use attar_model::Device;
use attar_model::teacher::log_probs;
use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::breakdown::{breakdown, by_window, histogram};
use crate::divergence::Buckets;
use crate::perplexity::Perplexity;
use crate::predictions::{
    Opponent, Passage, Predictions, Progress, Reference, Scored, Stage, row_of, top_code,
};
use crate::report::Evaluation;
use crate::softmax::{Pair, Partition};
use crate::worst::worst_tokens;
use crate::{Budget, Divergence, Error, on_device};

/// Scores `model` on `passage`, and against `reference` where there is one.
///
/// Figures are the same bits for any number of threads and any budget.
///
/// # Errors
/// A token outside the vocabulary, vocabularies that differ, a cache of another text, a failed forward pass, logits that
/// are not finite.
///
/// # Panics
/// Where `reference` was run over another passage.
pub fn evaluate(
    model: Scored,
    reference: Option<&Reference>,
    passage: Passage,
    budget: Budget,
    progress: &mut dyn FnMut(Progress),
) -> Result<Evaluation, Error> {
    if let Some(reference) = reference {
        reference.check(passage, model.config.vocab_size)?;
    }
    score(&Predictions::run(model, passage, progress)?, reference, passage, budget, progress)
}

/// The same of a model that has been run over `passage` already.
///
/// # Errors
/// As [`evaluate`].
///
/// # Panics
/// Where either was run over another passage.
pub fn score(
    model: &Predictions,
    reference: Option<&Reference>,
    passage: Passage,
    budget: Budget,
    progress: &mut dyn FnMut(Progress),
) -> Result<Evaluation, Error> {
    assert!(model.are_over(passage), "the model was run over another passage");
    if let Some(reference) = reference {
        reference.check(passage, model.vocab_size())?;
    }
    let scores = score_tokens(model, reference, passage, budget, progress)?;
    let mut evaluation = summarise(&scores, passage)?;
    if let Some(reference) = reference {
        let unknown = scores.iter().filter_map(|score| score.against.as_ref()).filter(|a| a.nll.is_none());
        evaluation.reference = reference.facts(unknown.count() as u64);
        evaluation.worst_tokens = worst_tokens(model, reference, passage, &scores, budget)?;
    }
    Ok(evaluation)
}

/// What one scored token contributes.
pub(crate) struct TokenScore {
    pub(crate) nll: f64,
    pub(crate) against: Option<Against>,
}

/// What the reference says of the same token.
pub(crate) struct Against {
    pub(crate) nll: Option<f64>, // unless it is not known
    pub(crate) kl_divergence: f64,
    pub(crate) same_top: bool,
}

/// Whose logit is NaN or infinite.
type Flaw = &'static str;

fn score_tokens(
    model: &Predictions,
    reference: Option<&Reference>,
    passage: Passage,
    budget: Budget,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TokenScore>, Error> {
    if let Device::Cuda(on) = model.device()
        && let Some(scores) = on_device::score_tokens(on, model, reference, passage, progress)?
    {
        return Ok(scores);
    }
    let targets = passage.targets();
    let total = targets.len();
    let other = reference.and_then(Reference::head_features);
    let features = model.hidden_size().max(other.unwrap_or(0));
    let portion = budget.portion(model.vocab_size(), features, 1 + usize::from(other.is_some()));
    let mut candidate = model.logits(portion)?;
    let mut opponent =
        reference.map(|reference| reference.opponent(portion, model.precision())).transpose()?;

    let mut scores = Vec::with_capacity(total);
    for start in (0..total).step_by(portion.tokens) {
        let tokens = start..total.min(start + portion.tokens);
        let logits = candidate.of(tokens.clone())?;
        let chunk = score_chunk(logits, opponent.as_mut(), tokens.clone(), &targets[tokens.clone()])?;
        for (score, token) in chunk.into_iter().zip(tokens.clone()) {
            scores.push(score.map_err(|which| passage.not_finite(which, token))?);
        }
        progress(Progress { stage: Stage::Head, done: tokens.end, total });
    }
    Ok(scores)
}

/// Scores `tokens`, whose logits `[tokens, vocab_size]` and targets these are.
fn score_chunk(
    logits: ArrayView2<'_, f32>,
    opponent: Option<&mut Opponent<'_>>,
    tokens: Range<usize>,
    targets: &[usize],
) -> Result<Vec<Result<TokenScore, Flaw>>, Error> {
    let each = |score: &(dyn Fn(usize) -> Result<TokenScore, Flaw> + Sync)| {
        (0..targets.len()).into_par_iter().map(score).collect()
    };
    Ok(match opponent {
        None => each(&|at| score_alone(row(logits, at), targets[at])),
        Some(Opponent::Logits(reference)) => {
            let reference = reference.of(tokens)?;
            each(&|at| score_pair(row(logits, at), row(reference, at), targets[at]))
        }
        Some(Opponent::TopK(cache)) => {
            let kept = cache.top_k(tokens)?;
            each(&|at| {
                let (ids, log_probs) = (kept.ids.row(at), kept.log_probs.row(at));
                let buckets = Buckets {
                    ids: ids.to_slice().expect("kept tokens are row major"),
                    log_probs: log_probs.to_slice().expect("kept numbers are row major"),
                    rest: kept.rest[at],
                };
                score_buckets(row(logits, at), &buckets, targets[at], -f64::from(kept.targets[at]))
            })
        }
        Some(Opponent::LogProbs(file)) => {
            let rows = tokens.map(|token| row_of(file, token)).collect::<Result<Vec<_>, Error>>()?;
            each(&|at| score_rounded(row(logits, at), &rows[at], targets[at]))
        }
    })
}

fn score_alone(candidate: &[f32], target: usize) -> Result<TokenScore, Flaw> {
    let partition = Partition::of(candidate);
    if !partition.finite {
        return Err("model");
    }
    Ok(TokenScore { nll: partition.nll(candidate[target]), against: None })
}

fn score_pair(candidate: &[f32], reference: &[f32], target: usize) -> Result<TokenScore, Flaw> {
    let pair = Pair::of(reference, candidate);
    if !pair.candidate.finite {
        return Err("model");
    }
    if !pair.reference.finite {
        return Err("reference");
    }
    let against = Against {
        nll: Some(pair.reference.nll(reference[target])),
        kl_divergence: pair.kl_divergence(),
        same_top: pair.reference.top(reference) == pair.candidate.top(candidate),
    };
    Ok(TokenScore { nll: pair.candidate.nll(candidate[target]), against: Some(against) })
}

fn score_buckets(
    candidate: &[f32],
    reference: &Buckets<'_>,
    target: usize,
    reference_nll: f64,
) -> Result<TokenScore, Flaw> {
    let partition = Partition::of(candidate);
    if !partition.finite {
        return Err("model");
    }
    let against = Against {
        nll: Some(reference_nll),
        kl_divergence: reference.kl_divergence(candidate, &partition),
        same_top: reference.ids[0] as usize == partition.top(candidate),
    };
    Ok(TokenScore { nll: partition.nll(candidate[target]), against: Some(against) })
}

/// Beside log-probabilities rounded to 16 bits, of which all below a limit look alike.
///
/// Rounding leaves their sum a little off 1, which is divided out: it would weigh as much as a small divergence. What lies below the
/// limit is taken to be, all together, as likely as the candidate has it if that can be, so that the divergence is never more than the true one.
fn score_rounded(
    candidate: &[f32],
    reference: &log_probs::Row<'_>,
    target: usize,
) -> Result<TokenScore, Flaw> {
    const NOTHING: f32 = -1e5; // e^it is 0
    let below = reference.codes().filter(|code| *code == 0).count();
    let is_cut = below > 1; // one alone is where the scale begins
    let log_prob = |code| if code == 0 && is_cut { NOTHING } else { reference.log_prob(code) };
    let told: Vec<f32> = reference.codes().map(log_prob).collect();
    let pair = Pair::of(&told, candidate);
    if !pair.candidate.finite {
        return Err("model");
    }
    let mut kl_divergence = pair.kl_divergence();
    if is_cut {
        let told: Vec<u32> =
            (0..).zip(reference.codes()).filter(|(_, code)| *code > 0).map(|(id, _)| id).collect();
        let ln_others = pair.candidate.rest(candidate, &told);
        let most = (below as f64).ln() + f64::from(reference.log_prob(0));
        let rest = ln_others.min(most).exp();
        if rest > 0.0 {
            kl_divergence = (1.0 - rest) * (kl_divergence + (-rest).ln_1p()) + rest * (rest.ln() - ln_others);
        }
    }
    let known = !is_cut || reference.code(target) > 0;
    let against = Against {
        nll: known.then(|| -f64::from(reference.log_prob(reference.code(target)))),
        kl_divergence: kl_divergence.max(0.0),
        same_top: top_code(reference) == pair.candidate.top(candidate),
    };
    Ok(TokenScore { nll: pair.candidate.nll(candidate[target]), against: Some(against) })
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
        inputs: None,
        perplexity: finite_perplexity(&nll)?,
        reference: None,
        reference_perplexity: None,
        perplexity_ratio: None,
        kl_divergence: None,
        top1_agreement: None,
        kl_histogram: None,
        breakdown: Some(breakdown(scores, passage)?),
        worst_tokens: Vec::new(),
        by_window: Some(by_window(scores, passage)),
    };
    if !against.is_empty() {
        let reference_nll: Option<Vec<f64>> = against.iter().map(|a| a.nll).collect();
        if let Some(reference_nll) = reference_nll {
            let excess: Vec<f64> =
                nll.iter().zip(&reference_nll).map(|(nll, reference)| nll - reference).collect();
            evaluation.reference_perplexity = Some(finite_perplexity(&reference_nll)?);
            evaluation.perplexity_ratio = Some(finite_perplexity(&excess)?);
        }
        let divergences: Vec<f64> = against.iter().map(|a| a.kl_divergence).collect();
        let same = against.iter().filter(|a| a.same_top).count();
        evaluation.kl_divergence = Some(Divergence::of(&divergences));
        evaluation.kl_histogram = Some(histogram(&divergences));
        evaluation.top1_agreement = Some(same as f64 / against.len() as f64);
    }
    Ok(evaluation)
}

pub(crate) fn finite_perplexity(nll: &[f64]) -> Result<Perplexity, Error> {
    let perplexity = Perplexity::of(nll);
    if perplexity.value.is_finite() && perplexity.stderr.is_finite() {
        return Ok(perplexity);
    }
    let mean_nll = nll.iter().sum::<f64>() / nll.len() as f64;
    Err(Error::PerplexityOverflows { mean_nll })
}

impl Passage<'_> {
    /// The error for the scored token number `token`.
    pub(crate) fn not_finite(&self, which: &'static str, token: usize) -> Error {
        let positions = self.positions();
        Error::NotFinite {
            which,
            window: token / positions.len(),
            position: positions.start + token % positions.len(),
        }
    }
}

fn row(logits: ArrayView2<'_, f32>, index: usize) -> &[f32] {
    let cols = logits.ncols();
    &logits.to_slice().expect("logits are row major")[index * cols..(index + 1) * cols]
}

#[cfg(test)]
mod tests;
