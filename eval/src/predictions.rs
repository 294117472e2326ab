//! What a model makes of a text, ready to be scored: run now, or kept from a run before.

use std::cmp::Reverse;
use std::ops::Range;

use attar_model::teacher::{Cache, LogProbs, Signal, log_probs};
use attar_model::{
    Device, HeadSource, HiddenStates, ModelConfig, Norm, Precision, Streaming, Weights, Windows, final_norm,
    streamed_hidden_states,
};

use crate::logits::{Logits, States};
use crate::softmax::top_of;
use crate::{Convention, Error, Portion, report};

/// A model to run: its shape and where its weights come from.
#[derive(Clone)]
pub struct Scored<'a> {
    /// The shape.
    pub config: &'a ModelConfig,
    /// The weights, under Hugging Face names.
    pub weights: &'a dyn Weights,
    /// How exactly its matrices are multiplied, and where its hidden states are kept meanwhile.
    pub streaming: Streaming,
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
    /// What tokens say, where figures are to be told by kind of token and the worst tokens in their context.
    pub decode: Option<Decode<'a>>,
}

/// The text of some tokens that follow one another.
pub type Decode<'a> = &'a (dyn Fn(&[u32]) -> String + Sync);

impl Passage<'_> {
    /// What `token` adds to the text of those `before` it, its space included; `None` where tokens cannot be read.
    pub(crate) fn token_after(&self, before: &[u32], token: u32) -> Option<String> {
        let decode = self.decode?;
        let both = [before, &[token]].concat();
        let text = decode(&both);
        // Parts of one letter have no text of their own.
        Some(text.strip_prefix(&decode(before)).map_or_else(|| decode(&[token]), str::to_owned))
    }

    /// Holds what was kept of a run to these windows and the vocabulary of a candidate.
    ///
    /// # Errors
    /// Vocabularies that differ, another text or convention.
    pub fn check(&self, file: &LogProbs, vocab_size: usize) -> Result<(), Error> {
        check_vocabularies(file.vocab_size(), vocab_size)?;
        if self.is_that_of(file) { Ok(()) } else { Err(Error::OtherText { ctx: file.ctx() }) }
    }

    /// Whether `file` is of these windows; it does not tell which of their first tokens gave way to a BOS.
    fn is_that_of(&self, file: &LogProbs) -> bool {
        let ctx = self.windows.ctx();
        let same = |(own, other): (&[u32], &[u32])| own[1..] == other[1..];
        self.convention == Convention::LlamaCpp
            && file.ctx() == ctx
            && file.tokens().len() == self.windows.tokens().len()
            && self.windows.tokens().chunks_exact(ctx).zip(file.tokens().chunks_exact(ctx)).all(same)
    }

    pub(crate) fn positions(&self) -> Range<usize> {
        self.convention.scored(self.windows.ctx())
    }

    /// The token each scored position should have predicted, in order.
    pub(crate) fn targets(&self) -> Vec<usize> {
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
pub struct Predictions<'a> {
    model: Scored<'a>,
    norm: Norm,
    hidden: HiddenStates, // [scored tokens, hidden_size], before the final norm
    windows: Windows,
    convention: Convention,
}

impl<'a> Predictions<'a> {
    /// Runs the blocks of `model` over `passage`; the head waits until logits are asked for.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a failed forward pass.
    pub fn run(
        model: Scored<'a>,
        passage: Passage,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, Error> {
        let Scored { config, weights, ref streaming } = model;
        check_tokens(passage.windows.tokens(), config.vocab_size)?;

        let total = config.num_hidden_layers;
        let mut done = 0;
        let mut hidden = streamed_hidden_states(config, weights, passage.windows, streaming, &mut |_layer| {
            done += 1;
            progress(Progress { stage: Stage::Blocks, done, total });
        })
        .map_err(Error::Forward)?;
        let (ctx, positions) = (passage.windows.ctx(), passage.positions());
        hidden.keep_positions(ctx, positions).map_err(|source| Error::Forward(source.into()))?;
        let norm = final_norm(config, weights).map_err(Error::Forward)?;
        let (windows, convention) = (passage.windows.clone(), passage.convention);
        Ok(Self { model, norm, hidden, windows, convention })
    }

    /// How exactly the model's matrices are multiplied.
    pub(crate) fn precision(&self) -> Precision {
        self.model.streaming.precision
    }

    /// Where the model is run.
    pub(crate) fn device(&self) -> &Device {
        &self.model.streaming.device
    }

    /// Tokens the model knows.
    pub fn vocab_size(&self) -> usize {
        self.model.config.vocab_size
    }

    /// Features of its hidden states.
    pub fn hidden_size(&self) -> usize {
        self.model.config.hidden_size
    }

    /// Whether these are predictions over `passage`.
    pub(crate) fn are_over(&self, passage: Passage) -> bool {
        self.convention == passage.convention && self.windows == *passage.windows
    }

    pub(crate) fn states(&self) -> States<'_> {
        States::Run(&self.norm, &self.hidden)
    }

    pub(crate) fn head(&self) -> Result<HeadSource<'_>, Error> {
        let head = HeadSource::of(self.model.config, self.model.weights).map_err(Error::Forward)?;
        Ok(head.multiplied_in(self.precision()))
    }

    pub(crate) fn logits(&self, portion: Portion) -> Result<Logits<'_>, Error> {
        Logits::new(self.states(), self.head()?, portion)
    }
}

/// The model that candidates are compared with, run once over a passage and used for each of them.
pub enum Reference<'a> {
    /// Run now.
    Model(Box<Predictions<'a>>),
    /// Run before.
    Cache(Box<Cache>),
    /// Run before, by llama-perplexity or as if by it.
    LogProbs(Box<LogProbs>),
}

impl<'a> Reference<'a> {
    /// Runs `model` over `passage`.
    ///
    /// # Errors
    /// As [`Predictions::run`].
    pub fn run(
        model: Scored<'a>,
        passage: Passage,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, Error> {
        Ok(Self::Model(Box::new(Predictions::run(model, passage, progress)?)))
    }

    /// Takes what was kept of a run.
    pub fn kept(cache: Cache) -> Self {
        Self::Cache(Box::new(cache))
    }

    /// Holds it to the passage and the vocabulary of a candidate.
    ///
    /// # Errors
    /// Vocabularies that differ, a cache of another text.
    ///
    /// # Panics
    /// Where a model was run over another passage.
    pub(crate) fn check(&self, passage: Passage, vocab_size: usize) -> Result<(), Error> {
        match self {
            Self::Model(predictions) => {
                assert!(predictions.are_over(passage), "the reference was run over another passage");
                check_vocabularies(predictions.vocab_size(), vocab_size)
            }
            Self::Cache(cache) => {
                let (convention, positions) = (passage.convention.name(), passage.positions());
                Ok(cache.check(passage.windows, convention, positions, vocab_size)?)
            }
            Self::LogProbs(file) => passage.check(file, vocab_size),
        }
    }

    /// Features of the head that makes its logits; `None` where they were made before.
    pub(crate) fn head_features(&self) -> Option<usize> {
        match self {
            Self::Model(predictions) => Some(predictions.hidden_size()),
            Self::Cache(cache) => cache.head().map(|head| head.hidden_size()),
            Self::LogProbs(_) => None,
        }
    }

    /// What it has to say of each scored token; a head that was kept is multiplied in `precision`.
    pub(crate) fn opponent(&self, portion: Portion, precision: Precision) -> Result<Opponent<'_>, Error> {
        Ok(match (self.head(precision)?, self) {
            (Some((states, head)), _) => Opponent::Logits(Box::new(Logits::new(states, head, portion)?)),
            (None, Self::Cache(cache)) => Opponent::TopK(cache),
            (None, Self::LogProbs(file)) => Opponent::LogProbs(file),
            (None, Self::Model(_)) => unreachable!("a model has a head"),
        })
    }

    /// What a head reads for every token, and the head; none where only the likeliest tokens were kept.
    pub(crate) fn head(&self, precision: Precision) -> Result<Option<(States<'_>, HeadSource<'_>)>, Error> {
        match self {
            Self::Model(predictions) => Ok(Some((predictions.states(), predictions.head()?))),
            Self::Cache(cache) => {
                let head = cache.head().map(|head| head.multiplied_in(precision));
                Ok(head.map(|head| (States::Kept(cache), head)))
            }
            Self::LogProbs(_) => Ok(None),
        }
    }

    /// What stood for a model that was not run; `unknown_targets` are the scored tokens it does not know the likelihood of.
    pub(crate) fn facts(&self, unknown_targets: u64) -> Option<report::Reference> {
        match self {
            Self::Model(_) => None,
            Self::Cache(cache) => {
                let facts = cache.facts();
                Some(report::Reference {
                    kind: "teacher cache".to_owned(),
                    path: cache.path().display().to_string(),
                    model: facts.model.source.clone(),
                    model_sha256: facts.model.sha256.clone(),
                    signal: facts.signal.to_string(),
                    kl_buckets: match facts.signal {
                        Signal::TopK(k) => Some(k as u64 + 1),
                        Signal::HiddenF32 | Signal::HiddenBf16 => None,
                    },
                    unknown_targets: None,
                })
            }
            Self::LogProbs(file) => Some(report::Reference {
                kind: "llama.cpp's logits".to_owned(),
                path: file.path().display().to_string(),
                model: String::new(),
                model_sha256: String::new(),
                signal: "16-bit log-probabilities".to_owned(),
                kl_buckets: None,
                unknown_targets: (unknown_targets > 0).then_some(unknown_targets),
            }),
        }
    }
}

/// What a candidate is held against, token by token.
pub(crate) enum Opponent<'a> {
    /// Logits over the whole vocabulary.
    Logits(Box<Logits<'a>>),
    /// The likeliest tokens only.
    TopK(&'a Cache),
    /// Rounded log-probabilities.
    LogProbs(&'a LogProbs),
}

impl Opponent<'_> {
    /// The likeliest token at each of these places.
    pub(crate) fn tops(&mut self, tokens: &[usize]) -> Result<Vec<usize>, Error> {
        match self {
            Self::Logits(logits) => Ok(logits.rows(tokens)?.outer_iter().map(top_of).collect()),
            Self::TopK(cache) => {
                tokens.iter().map(|&token| Ok(cache.top_k(token..token + 1)?.ids[[0, 0]] as usize)).collect()
            }
            Self::LogProbs(file) => tokens.iter().map(|&token| Ok(top_code(&row_of(file, token)?))).collect(),
        }
    }
}

/// What `file` keeps of a scored token.
pub(crate) fn row_of(file: &LogProbs, token: usize) -> Result<log_probs::Row<'_>, Error> {
    Ok(file.row(token).map_err(attar_model::teacher::Error::from)?)
}

/// The token of the largest code: the first of equals.
pub(crate) fn top_code(row: &log_probs::Row<'_>) -> usize {
    let largest = row.codes().enumerate().max_by_key(|(token, code)| (*code, Reverse(*token)));
    largest.map_or(0, |(token, _)| token)
}

pub(crate) fn check_tokens(tokens: &[u32], vocab_size: usize) -> Result<(), Error> {
    match tokens.iter().copied().max() {
        Some(token) if token as usize >= vocab_size => {
            Err(Error::TokenOutsideVocabulary { token, vocab_size })
        }
        _ => Ok(()),
    }
}

fn check_vocabularies(reference: usize, model: usize) -> Result<(), Error> {
    if reference == model { Ok(()) } else { Err(Error::VocabularyDiffers { reference, model }) }
}
