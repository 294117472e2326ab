//! Scores read off logits that never leave a device.

use attar_model::device::{DeviceHead, DeviceLogits, OnCuda};

use crate::Error;
use crate::evaluate::{Against, TokenScore};
use crate::predictions::{Passage, Predictions, Progress, Reference, Stage};

/// The scores of every token, where the device can tell them: of a model alone, or beside a reference that has a head too.
///
/// A NaN or infinite logit makes its token's loss NaN or infinite, which is how it is found here.
pub(crate) fn score_tokens(
    on: &OnCuda,
    model: &Predictions,
    reference: Option<&Reference>,
    passage: Passage,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<Vec<TokenScore>>, Error> {
    let other = match reference {
        None => None,
        Some(reference) => match reference.head(model.precision())? {
            Some(other) => Some(other),
            None => return Ok(None),
        },
    };
    let load = |head| DeviceHead::load(&on.cuda, &head).map_err(Error::Forward);
    let head = load(model.head()?)?;
    let other = other.map(|(states, head)| load(head).map(|head| (states, head))).transpose()?;

    let targets: Vec<u32> = passage.targets().into_iter().map(|target| target as u32).collect();
    let total = targets.len();
    let mut scores = Vec::with_capacity(total);
    for start in (0..total).step_by(on.plan.logits_at_once as usize) {
        let tokens = start..total.min(start + on.plan.logits_at_once as usize);
        let targets = &targets[tokens.clone()];
        let logits_of = |head: &DeviceHead, states: &crate::logits::States| -> Result<DeviceLogits, Error> {
            head.logits(states.normed(tokens.clone())?.view()).map_err(Error::Forward)
        };
        let logits = logits_of(&head, &model.states())?;
        let losses = head.losses(&logits, targets).map_err(Error::Forward)?.values;
        let against = match &other {
            None => None,
            Some((states, other)) => {
                let theirs = logits_of(other, states)?;
                let divergences = head.divergences(&theirs, &logits).map_err(Error::Forward)?;
                Some((other.losses(&theirs, targets).map_err(Error::Forward)?.values, divergences))
            }
        };
        for (at, nll) in losses.into_iter().enumerate() {
            let not_finite = |which| passage.not_finite(which, start + at);
            if !nll.is_finite() {
                return Err(not_finite("model"));
            }
            let against = against.as_ref().map(|(losses, divergences)| Against {
                nll: Some(losses[at]),
                kl_divergence: divergences.values[at],
                same_top: divergences.top1[at],
            });
            if against
                .as_ref()
                .is_some_and(|a| a.nll.is_some_and(|nll| !nll.is_finite()) || !a.kl_divergence.is_finite())
            {
                return Err(not_finite("reference"));
            }
            scores.push(TokenScore { nll, against });
        }
        progress(Progress { stage: Stage::Head, done: tokens.end, total });
    }
    Ok(Some(scores))
}
