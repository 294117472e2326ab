//! The tokens whose predictions moved farthest, in their context.

use crate::evaluate::{Against, TokenScore};
use crate::predictions::{Passage, Predictions, Reference};
use crate::report::{Prediction, WorstToken};
use crate::softmax::top_of;
use crate::{Budget, Error};

/// So many are told of.
const WORST: usize = 16;
/// Tokens of the text before them that are told.
const CONTEXT: usize = 24;

/// The worst of the scored tokens, the worst first; none where the passage cannot be read.
///
/// # Errors
/// A head that cannot be read.
pub(crate) fn worst_tokens(
    model: &Predictions,
    reference: &Reference,
    passage: Passage,
    scores: &[TokenScore],
    budget: Budget,
) -> Result<Vec<WorstToken>, Error> {
    let mut worst: Vec<(usize, &Against)> = scores
        .iter()
        .enumerate()
        .filter_map(|(token, score)| Some((token, score.against.as_ref()?)))
        .collect();
    worst.retain(|(_, against)| against.kl_divergence > 0.0);
    // Of equals the first.
    worst.sort_by(|(_, a), (_, b)| b.kl_divergence.total_cmp(&a.kl_divergence));
    worst.truncate(WORST);
    if worst.is_empty() || passage.decode.is_none() {
        return Ok(Vec::new());
    }
    let tokens: Vec<usize> = worst.iter().map(|(token, _)| *token).collect();
    let portion = budget.portion(model.vocab_size(), model.hidden_size(), 1);
    let own: Vec<usize> = model.logits(portion)?.rows(&tokens)?.outer_iter().map(top_of).collect();
    let other = budget.portion(model.vocab_size(), reference.head_features().unwrap_or(1), 1);
    let theirs = reference.opponent(other, model.precision())?.tops(&tokens)?;

    let tell = |(((token, against), own), theirs): (((usize, &Against), usize), usize)| {
        let per_window = passage.positions().len();
        let position = passage.positions().start + token % per_window + 1;
        let ctx = passage.windows.ctx();
        let window = &passage.windows.tokens()[token / per_window * ctx..][..ctx];
        let before = &window[position.saturating_sub(CONTEXT)..position];
        let text = |token: usize| passage.token_after(before, token as u32).unwrap_or_default();
        WorstToken {
            window: (token / per_window) as u64,
            position: position as u64,
            before: passage.decode.map(|decode| decode(before)).unwrap_or_default(),
            token: text(window[position] as usize),
            kl_divergence: against.kl_divergence,
            reference: Prediction { top: text(theirs), probability: against.nll.map(|nll| (-nll).exp()) },
            model: Prediction { top: text(own), probability: Some((-scores[token].nll).exp()) },
        }
    };
    Ok(worst.into_iter().zip(own).zip(theirs).map(tell).collect())
}
