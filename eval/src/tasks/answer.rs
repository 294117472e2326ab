//! Asking a model: texts of about one length together, filled up at their ends, which no earlier token sees.

use attar_model::{HeadSource, Windows, final_norm, streamed_hidden_states};
use rayon::prelude::*;

use super::Request;
use crate::logits::{Logits, States};
use crate::predictions::{Progress, Scored, Stage, check_tokens};
use crate::softmax::Partition;
use crate::{Budget, Error};

/// What a model makes of a request's continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer {
    /// The logarithm of its probability after the context, natural.
    pub log_likelihood: f64,
    /// Whether each of its tokens is the likeliest after those before it.
    pub greedy: bool,
}

/// What follows the last token of a text that is shorter than those it is run with.
const FILLER: u32 = 0;

/// Asks `model` for all `requests`, in order.
///
/// Answers are the same bits for any number of threads and any budget. `progress` counts the tokens of all texts.
///
/// # Errors
/// A token outside the vocabulary, a failed forward pass, logits that are not finite.
pub fn answer(
    model: &Scored,
    requests: &[Request],
    budget: Budget,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Answer>, Error> {
    requests.iter().try_for_each(|request| check_tokens(&request.tokens, model.config.vocab_size))?;
    let total = requests.iter().map(Request::read_tokens).sum();
    let mut done = 0;
    let mut answers = vec![Answer { log_likelihood: 0.0, greedy: true }; requests.len()];
    for group in groups(requests) {
        let together: Vec<&Request> = group.iter().map(|&at| &requests[at]).collect();
        for (at, answer) in group.iter().zip(answer_together(model, &together, budget)?) {
            answers[*at] = answer;
        }
        done += together.iter().map(|request| request.read_tokens()).sum::<usize>();
        progress(Progress { stage: Stage::Head, done, total });
    }
    Ok(answers)
}

/// The most that [`answer()`] runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Tokens, those that fill up shorter texts among them.
    pub tokens: usize,
    /// Tokens of the longest text.
    pub ctx: usize,
    /// Predictions asked for.
    pub asked: usize,
}

impl Size {
    /// Of these requests.
    pub fn of(requests: &[Request]) -> Self {
        let mut size = Self { tokens: 0, ctx: 0, asked: 0 };
        for group in groups(requests) {
            let longest = group.iter().map(|&at| requests[at].read_tokens()).max().unwrap_or(0);
            size.tokens = size.tokens.max(longest * group.len());
            size.ctx = size.ctx.max(longest);
            size.asked = size.asked.max(group.iter().map(|&at| requests[at].asked()).sum());
        }
        size
    }
}

/// Requests that are run together: none is twice as long as another.
fn groups(requests: &[Request]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&at| requests[at].read_tokens());
    order
        .chunk_by(|&a, &b| requests[a].read_tokens().ilog2() == requests[b].read_tokens().ilog2())
        .map(<[usize]>::to_vec)
        .collect()
}

fn answer_together(model: &Scored, requests: &[&Request], budget: Budget) -> Result<Vec<Answer>, Error> {
    let Scored { config, weights, ref streaming } = *model;
    let ctx = requests.iter().map(|request| request.read_tokens()).max().unwrap_or(1);
    let filled = |request: &&Request| {
        let mut tokens = request.read().to_vec();
        tokens.resize(ctx, FILLER);
        tokens
    };
    let windows = Windows::new(ctx, requests.iter().flat_map(filled).collect());
    let asked = requests.iter().flat_map(|request| request.continuation());
    let targets: Vec<usize> = asked.map(|&token| token as usize).collect();

    let mut hidden = streamed_hidden_states(config, weights, &windows, streaming, &mut |_layer| {})
        .map_err(Error::Forward)?;
    let rows = requests.iter().enumerate().map(|(at, request)| {
        let asks = request.asks();
        at * ctx + asks.start..at * ctx + asks.end
    });
    hidden.keep_rows(rows).map_err(|source| Error::Forward(source.into()))?;
    let norm = final_norm(config, weights).map_err(Error::Forward)?;
    let head = HeadSource::of(config, weights).map_err(Error::Forward)?;
    let portion = budget.portion(config.vocab_size, config.hidden_size, 1);
    let states = States::Run(&norm, &hidden);
    let mut logits = Logits::new(states, head.multiplied_in(streaming.precision), portion)?;

    let mut tokens: Vec<Option<(f64, bool)>> = Vec::with_capacity(targets.len());
    for start in (0..targets.len()).step_by(portion.tokens) {
        let part = start..targets.len().min(start + portion.tokens);
        let rows = logits.of(part.clone())?;
        let scored = rows.outer_iter().into_par_iter().zip(&targets[part]).map(|(row, &target)| {
            let row = row.to_slice().expect("logits are row major");
            let partition = Partition::of(row);
            partition.finite.then(|| (partition.log_prob(row[target]), partition.top(row) == target))
        });
        tokens.extend(scored.collect::<Vec<_>>());
    }

    let mut tokens = tokens.into_iter();
    let finite = |request: &&Request| {
        let mut answer = Answer { log_likelihood: 0.0, greedy: true };
        for _ in 0..request.asked() {
            let (log_prob, top) = tokens.next()??;
            answer.log_likelihood += log_prob;
            answer.greedy &= top;
        }
        Some(answer)
    };
    requests.iter().map(finite).collect::<Option<Vec<_>>>().ok_or(Error::AnswerNotFinite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_about_one_length_go_together_and_each_once() {
        let request = |len: usize| Request { tokens: vec![0; len + 1], asked: 1 };
        let requests: Vec<Request> = [40, 3, 33, 2, 63, 64].map(request).to_vec();
        assert_eq!(groups(&requests), [vec![3, 1], vec![2, 0, 4], vec![5]]);
        let size = Size::of(&requests);
        assert_eq!((size.tokens, size.ctx, size.asked), (3 * 63, 64, 3));
    }
}
