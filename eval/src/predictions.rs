//! What a model makes of a text, ready to be scored: run now, or kept from a run before.

use std::ops::Range;

use attar_model::teacher::{Cache, Signal};
use attar_model::{
    Device, HeadSource, HiddenStates, ModelConfig, Norm, Precision, Streaming, Weights, Windows, final_norm,
    streamed_hidden_states,
};

use crate::logits::{Logits, States};
use crate::{Convention, Error, Portion};

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
}

impl Passage<'_> {
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
        }
    }

    /// Features of the head that makes its logits; `None` where they were made before.
    pub(crate) fn head_features(&self) -> Option<usize> {
        match self {
            Self::Model(predictions) => Some(predictions.hidden_size()),
            Self::Cache(cache) => cache.head().map(|head| head.hidden_size()),
        }
    }

    /// What it has to say of each scored token; a head that was kept is multiplied in `precision`.
    pub(crate) fn opponent(&self, portion: Portion, precision: Precision) -> Result<Opponent<'_>, Error> {
        Ok(match (self.head(precision)?, self) {
            (Some((states, head)), _) => Opponent::Logits(Box::new(Logits::new(states, head, portion)?)),
            (None, Self::Cache(cache)) => Opponent::TopK(cache),
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
        }
    }

    /// The cache, and over how many buckets a divergence from it is taken, if not over the whole vocabulary.
    pub(crate) fn cache(&self) -> Option<(&Cache, Option<usize>)> {
        let Self::Cache(cache) = self else { return None };
        let buckets = match cache.facts().signal {
            Signal::TopK(k) => Some(k + 1),
            Signal::HiddenF32 | Signal::HiddenBf16 => None,
        };
        Some((cache, buckets))
    }
}

/// What a candidate is held against, token by token.
pub(crate) enum Opponent<'a> {
    /// Logits over the whole vocabulary.
    Logits(Box<Logits<'a>>),
    /// The likeliest tokens only.
    TopK(&'a Cache),
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
