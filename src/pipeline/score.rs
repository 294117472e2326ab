//! Models scored on a text, alone or against the one they were made from.

use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::gate::Cut;
use attar_eval::report::Evaluation;
use attar_eval::{
    Convention, Passage, Predictions, Progress, Reference, Scored, Stage as Part, evaluate, keep,
    keep_log_probs, score,
};
use attar_model::Windows;
use attar_model::teacher::{Cache, LogProbs, LogProbsWriter, Signal, Writer, tokens_sha256};

use crate::diagnostic::{Explain, Result};
use crate::plan::ScoringMemory;
use crate::source::Source;
use crate::talk::{Stage, Talk};

/// The hint where token stands against token.
pub const SAME_TOKENIZER: &str = "only models with the same tokenizer can be compared token by token";

/// The text that models are scored on.
pub struct Scoring<'a> {
    /// How reports name it.
    pub text: String,
    /// Its tokens.
    pub windows: Windows,
    /// Which of them count.
    pub convention: Convention,
    /// How models are run over it, and in how much memory.
    pub memory: ScoringMemory,
    /// What tokens say.
    pub decode: Decode<'a>,
}

/// What makes text of tokens.
pub type Decode<'a> = Box<dyn Fn(&[u32]) -> String + Sync + 'a>;

/// What a model was run for before.
#[derive(Clone, Copy)]
pub enum Kept<'a> {
    /// By attar.
    Cache(&'a Cache),
    /// By llama-perplexity, or as if by it.
    LogProbs(&'a LogProbs),
}

impl Kept<'_> {
    /// Tokens of a window.
    pub fn ctx(self) -> usize {
        match self {
            Self::Cache(cache) => cache.facts().ctx,
            Self::LogProbs(file) => file.ctx(),
        }
    }

    /// Windows.
    pub fn windows(self) -> usize {
        match self {
            Self::Cache(cache) => cache.facts().windows,
            Self::LogProbs(file) => file.tokens().len() / file.ctx(),
        }
    }

    /// Whether a head was kept, which then makes its logits again.
    pub fn has_head(self) -> bool {
        matches!(self, Self::Cache(cache) if cache.head().is_some())
    }
}

impl Scoring<'_> {
    fn passage(&self) -> Passage<'_> {
        let Self { text, windows, convention, decode, .. } = self;
        Passage { text, windows, convention: *convention, decode: Some(&**decode) }
    }

    /// How the text is cut.
    pub fn cut(&self) -> Cut {
        Cut {
            text: self.text.clone(),
            tokens_sha256: Some(tokens_sha256(self.windows.tokens())),
            ctx: self.windows.ctx() as u64,
            chunks: self.windows.count() as u64,
            convention: self.convention,
        }
    }

    /// Finds out before any work whether `cache` is of this text and of a model that `source` with its `tokenizer` compares with.
    ///
    /// # Errors
    /// Another text, another vocabulary.
    pub fn check(&self, cache: &Cache, source: &Source, tokenizer: &Tokenizer) -> Result<()> {
        let (convention, positions) = (self.convention, self.convention.scored(self.windows.ctx()));
        cache
            .check(&self.windows, convention.name(), positions, source.config.vocab_size)
            .and_then(|()| cache.check_vocabulary(&tokenizer.vocabulary_sha256()))
            .doing(|| format!("while comparing with the teacher cache `{}`", cache.path().display()))
    }

    /// The same of llama-perplexity's file.
    ///
    /// # Errors
    /// Another text, convention or vocabulary.
    pub fn check_log_probs(&self, file: &LogProbs, vocab_size: usize) -> Result<()> {
        let checked = self.passage().check(file, vocab_size);
        let hint = match &checked {
            Err(attar_eval::Error::VocabularyDiffers { .. }) => SAME_TOKENIZER,
            _ => {
                "leave --text, --ctx and --chunks out to take the reference's own windows, or name the text it was made on"
            }
        };
        checked.hint(|| hint).doing(|| format!("while comparing with `{}`", file.path().display()))
    }

    /// Writes down what a model predicted as llama-perplexity does.
    ///
    /// # Errors
    /// As [`keep`](Self::keep).
    pub fn keep_log_probs(
        &self,
        predictions: &Predictions<'_>,
        writer: &mut LogProbsWriter,
        talk: Talk,
    ) -> Result<()> {
        self.keeping(talk, |progress| {
            keep_log_probs(predictions, self.passage(), self.memory.budget, writer, progress)
        })
    }

    /// Runs the model that others are compared with.
    ///
    /// # Errors
    /// Weights that cannot be read, tokens the model does not have.
    pub fn reference<'a>(&self, source: &'a Source, talk: Talk) -> Result<Reference<'a>> {
        self.at_work("reference", source, talk, |model, progress| {
            Reference::run(model, self.passage(), progress)
        })
    }

    /// Scores a model.
    ///
    /// # Errors
    /// Weights that cannot be read, tokens the model does not have, numbers that overflow.
    pub fn score(&self, source: &Source, reference: Option<&Reference>, talk: Talk) -> Result<Evaluation> {
        let evaluation = self.at_work("evaluating", source, talk, |model, progress| {
            evaluate(model, reference, self.passage(), self.memory.budget, progress)
        })?;
        Ok(Evaluation { inputs: source.inputs_told(), ..evaluation })
    }

    /// Scores a model, and hands over what it predicted too.
    ///
    /// # Errors
    /// As [`Scoring::score`].
    pub fn predict<'a>(
        &self,
        source: &'a Source,
        reference: Option<&Reference>,
        talk: Talk,
    ) -> Result<(Predictions<'a>, Evaluation)> {
        self.at_work("evaluating", source, talk, |model, progress| {
            let predictions = Predictions::run(model, self.passage(), progress)?;
            let evaluation = score(&predictions, reference, self.passage(), self.memory.budget, progress)?;
            Ok((predictions, Evaluation { inputs: source.inputs_told(), ..evaluation }))
        })
    }

    /// Writes down what a model predicted.
    ///
    /// # Errors
    /// Weights that cannot be read, a disk that refuses.
    pub fn keep(
        &self,
        predictions: &Predictions<'_>,
        signal: Signal,
        writer: &mut Writer,
        talk: Talk,
    ) -> Result<()> {
        self.keeping(talk, |progress| {
            keep(predictions, self.passage(), signal, self.memory.budget, writer, progress)
        })
    }

    fn keeping(
        &self,
        talk: Talk,
        work: impl FnOnce(&mut dyn FnMut(Progress)) -> std::result::Result<(), attar_eval::Error>,
    ) -> Result<()> {
        let tokens = self.windows.count() * self.convention.scored(self.windows.ctx()).len();
        let stage = talk.stage("keeping", tokens as u64, "tokens");
        let mut told = 0;
        work(&mut |progress| {
            stage.step((progress.done - told) as u64, "");
            told = progress.done;
        })?;
        stage.done();
        Ok(())
    }

    /// One bar over the blocks and, as long as one block more, the head.
    fn at_work<'a, T>(
        &self,
        name: &str,
        source: &'a Source,
        talk: Talk,
        work: impl FnOnce(Scored<'a>, &mut dyn FnMut(Progress)) -> std::result::Result<T, attar_eval::Error>,
    ) -> Result<T> {
        let (tokens, blocks) = (self.windows.tokens().len() as u64, source.config.num_hidden_layers as u64);
        let stage = talk.stage(name, tokens * (blocks + 1), "tokens x blocks");
        let mut told = 0;
        let model =
            Scored { config: &source.config, weights: source, streaming: self.memory.streaming.clone() };
        let result = work(model, &mut |progress| tell(&stage, &mut told, tokens, blocks, progress));
        let result = result
            .doing(|| format!("while evaluating `{}`", source.path.display()))
            .hint(|| "attar inspect shows what the model is; a model that was just written can be deleted and made again")?;
        stage.done();
        Ok(result)
    }
}

fn tell(stage: &Stage, told: &mut u64, tokens: u64, blocks: u64, progress: Progress) {
    let (done, total) = (progress.done as u64, progress.total.max(1) as u64);
    let (reached, now) = match progress.stage {
        Part::Blocks => (done * tokens, "blocks"),
        Part::Head => (blocks * tokens + done * tokens / total, "head"),
    };
    stage.step(reached.saturating_sub(*told), now);
    *told = reached.max(*told);
}
