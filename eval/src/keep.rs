//! Keeping what a model predicts, so that it need not be run again to be a reference.

use std::cmp::Ordering;

use attar_model::teacher::{LogProbsWriter, Signal, TopK, Writer, log_probs};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;

use crate::predictions::{Passage, Predictions, Progress, Stage};
use crate::softmax::Partition;
use crate::{Budget, Error};

/// Hidden states that are written together.
const ROWS: usize = 4096;

/// Writes what `model` predicts at the scored positions of `passage`, and its head where hidden states are kept.
///
/// # Errors
/// Weights that cannot be read, logits that are not finite, a disk that refuses.
///
/// # Panics
/// Where `model` was run over another passage, or `writer` was made for another.
pub fn keep(
    model: &Predictions<'_>,
    passage: Passage,
    signal: Signal,
    budget: Budget,
    writer: &mut Writer,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    assert!(model.are_over(passage), "the model was run over another passage");
    let total = passage.windows.count() * passage.positions().len();
    let mut step = |done| progress(Progress { stage: Stage::Head, done, total });
    let Signal::TopK(k) = signal else {
        writer.head(&model.head()?).map_err(Error::Forward)?;
        for start in (0..total).step_by(ROWS) {
            let rows = start..total.min(start + ROWS);
            writer.hidden(model.states().normed(rows.clone())?.view())?;
            step(rows.end);
        }
        return Ok(());
    };
    let targets = passage.targets();
    let portion = budget.portion(model.vocab_size(), model.hidden_size(), 1);
    let mut logits = model.logits(portion)?;
    for start in (0..total).step_by(portion.tokens) {
        let rows = start..total.min(start + portion.tokens);
        let kept = likeliest(logits.of(rows.clone())?, k, &targets[rows.clone()]);
        let kept = kept.map_err(|row| passage.not_finite("model", start + row))?;
        writer.top_k(&kept)?;
        step(rows.end);
    }
    Ok(())
}

/// The same as llama-perplexity keeps it.
///
/// # Errors
/// As [`keep`].
///
/// # Panics
/// As [`keep`].
pub fn keep_log_probs(
    model: &Predictions<'_>,
    passage: Passage,
    budget: Budget,
    writer: &mut LogProbsWriter,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    assert!(model.are_over(passage), "the model was run over another passage");
    let targets = passage.targets();
    let total = targets.len();
    let portion = budget.portion(model.vocab_size(), model.hidden_size(), 1);
    let mut logits = model.logits(portion)?;
    for start in (0..total).step_by(portion.tokens) {
        let rows = start..total.min(start + portion.tokens);
        let logits = logits.of(rows.clone())?;
        let encode = |(at, row): (usize, ArrayView1<'_, f32>)| {
            let row = row.to_slice().expect("logits are row major");
            let partition = Partition::of(row);
            let encoded = || log_probs::encode(row, partition.sum(), targets[start + at]);
            partition.finite.then(encoded).ok_or_else(|| passage.not_finite("model", start + at))
        };
        let numbered: Vec<_> = logits.outer_iter().enumerate().collect();
        let encoded = numbered.into_par_iter().map(encode).collect::<Vec<_>>();
        let encoded = encoded.into_iter().collect::<Result<Vec<_>, Error>>()?;
        writer.rows(&encoded).map_err(attar_model::teacher::Error::from)?;
        progress(Progress { stage: Stage::Head, done: rows.end, total });
    }
    Ok(())
}

/// The `k` likeliest tokens of every row; where a logit is not finite, that row's number.
fn likeliest(logits: ArrayView2<'_, f32>, k: usize, targets: &[usize]) -> Result<TopK, usize> {
    let rows: Vec<Row> = (0..logits.nrows())
        .into_par_iter()
        .map(|row| {
            let logits = logits.row(row);
            Row::of(logits.as_slice().expect("logits are row major"), k, targets[row]).ok_or(row)
        })
        .collect::<Vec<_>>()
        .into_iter()
        .collect::<Result<_, usize>>()?;
    let mut kept = TopK {
        ids: Array2::zeros((rows.len(), k)),
        log_probs: Array2::zeros((rows.len(), k)),
        rest: Array1::zeros(rows.len()),
        targets: Array1::zeros(rows.len()),
    };
    for (at, row) in rows.into_iter().enumerate() {
        for (rank, (id, log_prob)) in row.likeliest.into_iter().enumerate() {
            kept.ids[[at, rank]] = id;
            kept.log_probs[[at, rank]] = log_prob;
        }
        kept.rest[at] = row.rest;
        kept.targets[at] = row.target;
    }
    Ok(kept)
}

struct Row {
    likeliest: Vec<(u32, f32)>,
    rest: f32,
    target: f32,
}

impl Row {
    fn of(logits: &[f32], k: usize, target: usize) -> Option<Self> {
        let partition = Partition::of(logits);
        if !partition.finite {
            return None;
        }
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        // Of equals the first token counts as likelier, as it does where the best is sought.
        let order = |a: &u32, b: &u32| {
            let (likelier, other) = (logits[*b as usize], logits[*a as usize]);
            likelier.partial_cmp(&other).unwrap_or(Ordering::Equal).then(a.cmp(b))
        };
        ids.select_nth_unstable_by(k - 1, order);
        ids.truncate(k);
        ids.sort_unstable_by(order);
        let likeliest: Vec<_> =
            ids.iter().map(|&id| (id, partition.log_prob(logits[id as usize]) as f32)).collect();
        let rest = partition.rest(logits, &ids) as f32;
        Some(Self { likeliest, rest, target: partition.log_prob(logits[target]) as f32 })
    }
}
