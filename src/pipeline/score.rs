//! Models scored on a text, alone or against the one they were made from.

use attar_eval::report::Evaluation;
use attar_eval::{Convention, Passage, Progress, Reference, Scored, Stage as Part, evaluate};
use attar_model::{Precision, Windows};

use crate::diagnostic::{Explain, Result};
use crate::source::Source;
use crate::talk::{Stage, Talk};

/// The text that models are scored on.
#[derive(Debug)]
pub struct Scoring {
    /// How reports name it.
    pub text: String,
    /// Its tokens.
    pub windows: Windows,
    /// Which of them count.
    pub convention: Convention,
    /// How exactly matrices are multiplied.
    pub precision: Precision,
}

impl Scoring {
    fn passage(&self) -> Passage<'_> {
        Passage { text: &self.text, windows: &self.windows, convention: self.convention }
    }

    /// Runs the model that others are compared with.
    ///
    /// # Errors
    /// Weights that cannot be read, tokens the model does not have.
    pub fn reference(&self, source: &Source, talk: Talk) -> Result<Reference> {
        self.at_work("reference", source, talk, |model, progress| {
            Reference::run(model, self.passage(), progress)
        })
    }

    /// Scores a model.
    ///
    /// # Errors
    /// Weights that cannot be read, tokens the model does not have, numbers that overflow.
    pub fn score(&self, source: &Source, reference: Option<&Reference>, talk: Talk) -> Result<Evaluation> {
        self.at_work("evaluating", source, talk, |model, progress| {
            evaluate(model, reference, self.passage(), progress)
        })
    }

    /// One bar over the blocks and, as long as one block more, the head.
    fn at_work<T>(
        &self,
        name: &str,
        source: &Source,
        talk: Talk,
        work: impl FnOnce(Scored<'_>, &mut dyn FnMut(Progress)) -> std::result::Result<T, attar_eval::Error>,
    ) -> Result<T> {
        let (tokens, blocks) = (self.windows.tokens().len() as u64, source.config.num_hidden_layers as u64);
        let stage = talk.stage(name, tokens * (blocks + 1), "tokens x blocks");
        let mut told = 0;
        let model = Scored { config: &source.config, weights: source, precision: self.precision };
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
