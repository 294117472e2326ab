//! A student that learns block by block: each block is held to the residual stream after one of its teacher's, one block of either
//! is in memory at a time, and so is no optimizer but that of the block that learns.
//!
//! ```text
//! student: stream before block ──> block that learns ──┐
//!          (through those that have learned)           ├── relative error ──> block changed, block after block
//! teacher: stream after the block that is followed ────┘
//! ```

use std::path::Path;

use attar_distill::{BlockLesson, BlockTraining, Done, LayerMap, Optimizer, Progress};
use attar_model::{
    Block, HiddenStates, Keeping, Moments, Precision, Streaming, TensorSpec, Weights, Windows,
    streamed_embeddings,
};
use ndarray::{Array2, Axis};

use super::pupil::{HeldOut, Pupil};
use super::training::{Data, Remembered};
use crate::diagnostic::{Explain, Failure, Result};
use crate::plan::PART_TOKENS;
use crate::source::Source;

/// What a block-local run goes by.
pub struct Course<'a> {
    /// The teacher.
    pub teacher: &'a Source,
    /// The blocks that learn, and which of the teacher's each follows; these rise too.
    pub map: &'a LayerMap,
    /// How each block learns, from its first step to its last.
    pub optimizer: Optimizer,
    /// What the factors of products are rounded to.
    pub precision: Precision,
    /// How the residual streams of both are kept.
    pub keeping: &'a Keeping,
    /// Where the student is kept once a block has learned.
    pub state: &'a Path,
}

/// A student on its way through its blocks.
pub struct BlockByBlock<'a> {
    course: Course<'a>,
    given: &'a Source,
    kept: Option<Source>, // the student with the blocks that have learned
    learned: usize,
    streams: Streams,
    training: Option<BlockTraining>,
}

impl<'a> BlockByBlock<'a> {
    /// A student none of whose blocks has learned; it will see the windows of these numbers, which rise.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, embeddings that cannot be read, a disk too full for the streams.
    pub fn new(course: Course<'a>, student: &'a Source, data: &Data, windows: Vec<usize>) -> Result<Self> {
        let tokens = data.of(&windows);
        let stream = |source| Stream::new(source, &tokens, course.keeping);
        let streams =
            Streams { ctx: tokens.ctx(), windows, here: stream(student)?, there: stream(course.teacher)? };
        Ok(Self { course, given: student, kept: None, learned: 0, streams, training: None })
    }

    /// The same after so many steps, as it was kept then.
    ///
    /// # Errors
    /// Files that cannot be read; moments that are not there.
    pub fn after(mut self, progress: Progress, remembered: &mut Remembered<'_>) -> Result<Self> {
        self.kept = Some(Source::open(self.course.state)?);
        self.learned = (progress.steps / self.block_steps()) as usize;
        let steps = progress.steps % self.block_steps();
        if steps > 0 {
            let begun = self.begun()?;
            self.training = Some(begun.after(Progress { steps, ..progress }, remembered)?);
        }
        Ok(self)
    }

    fn block_steps(&self) -> u64 {
        self.course.optimizer.schedule.steps
    }

    fn student(&self) -> &Source {
        self.kept.as_ref().unwrap_or(self.given)
    }

    /// The next block before its first step, both streams up to it.
    fn begun(&mut self) -> Result<BlockTraining> {
        let Course { teacher, map, optimizer, precision, .. } = self.course;
        let student = self.kept.as_ref().unwrap_or(self.given);
        let (layer, like) = map.pairs()[self.learned];
        self.streams.here.go(student, layer, self.streams.ctx, precision)?;
        self.streams.there.go(teacher, like + 1, self.streams.ctx, precision)?;
        let block = Block::load(&student.config, layer, student)
            .doing(|| format!("while loading layer {layer} of `{}`", student.path.display()))?;
        Ok(BlockTraining::new(block, optimizer, precision)?)
    }

    /// Steps before those of the block that learns.
    fn before(&self) -> u64 {
        self.learned as u64 * self.block_steps()
    }
}

impl Pupil for BlockByBlock<'_> {
    fn progress(&self) -> Progress {
        let here = self.training.as_ref().map_or_else(Progress::default, BlockTraining::progress);
        Progress { steps: self.before() + here.steps, ..here }
    }

    fn layer(&self) -> Option<usize> {
        self.training.as_ref().map(|training| training.block().layer())
    }

    fn turn(&mut self) -> Result<()> {
        let done = self.training.as_ref().map(|training| training.progress().steps == self.block_steps());
        match done {
            Some(false) => return Ok(()),
            Some(true) => {
                self.training = None;
                self.kept = Some(Source::open(self.course.state)?);
                self.learned += 1;
            }
            None => {}
        }
        self.training = Some(self.begun()?);
        Ok(())
    }

    fn step(&mut self, _: &Data, which: &[usize]) -> Result<Done> {
        let before = self.before();
        let Self { streams, training: Some(training), .. } = self else {
            unreachable!("a block learns once it is its turn")
        };
        let mut parts = which.chunks(streams.at_once()).map(|part| streams.lesson(part, which.len()));
        let counted = |error| match error {
            attar_distill::Error::Diverged { steps, step, what } => {
                attar_distill::Error::Diverged { steps, step: before + step, what }
            }
            other => other,
        };
        let done = training.step(&mut parts).map_err(counted)?;
        Ok(Done { step: before + done.step, ..done })
    }

    fn held_out(&mut self, data: &Data) -> Result<HeldOut> {
        let Self { streams, training: Some(training), .. } = self else {
            unreachable!("a block learns once it is its turn")
        };
        let (mut loss, all) = (0.0, data.held_out.len());
        for part in data.held_out.chunks(streams.at_once()) {
            loss += training.loss(streams.lesson(part, all)?);
        }
        Ok(HeldOut { loss, surprise: None })
    }

    fn stored(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let block = self.training.as_ref().map(BlockTraining::block);
        let block = block.filter(|block| spec.layer == Some(block.layer()));
        let learned = block.and_then(|block| match spec.role.parts().len() {
            2.. => Some(block.stored(spec.role).into_dyn()),
            _ => Some(block.parameter(spec.role)?.to_owned()),
        });
        let values = match learned {
            Some(values) => values,
            None => self.student().load(&spec.name).map_err(|error| Failure::new(error.to_string()))?,
        };
        Ok(values.into_iter().collect())
    }

    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let moments = self.training.iter().flat_map(BlockTraining::moments);
        moments.map(|(name, moments)| (name, moments.mean.shape().to_vec())).collect()
    }

    fn moments(&self, keep: &mut dyn FnMut(&str, &Moments) -> Result<()>) -> Result<()> {
        let mut moments = self.training.iter().flat_map(BlockTraining::moments);
        moments.try_for_each(|(name, moments)| keep(&name, moments))
    }
}

/// What goes into the block that learns, and what is to come out of it.
struct Streams {
    windows: Vec<usize>, // by number, rising
    ctx: usize,
    here: Stream,
    there: Stream,
}

impl Streams {
    /// Windows that go through a block that learns together.
    fn at_once(&self) -> usize {
        PART_TOKENS.div_ceil(self.ctx)
    }

    /// What the windows of these numbers ask of the block, a share of what `all` windows do.
    fn lesson(&self, which: &[usize], all: usize) -> std::result::Result<BlockLesson, attar_distill::Error> {
        let share = 1.0 / (all * self.ctx).max(1) as f32;
        let [input, target] = [&self.here, &self.there].map(|stream| self.rows(&stream.hidden, which));
        Ok(BlockLesson { input: input?, target: target?, ctx: self.ctx, share })
    }

    /// The rows of some windows, `[tokens, hidden_size]`.
    fn rows(
        &self,
        hidden: &HiddenStates,
        which: &[usize],
    ) -> std::result::Result<Array2<f32>, attar_distill::Error> {
        let mut all = Array2::zeros((which.len() * self.ctx, hidden.features()));
        for (window, mut rows) in which.iter().zip(all.axis_chunks_iter_mut(Axis(0), self.ctx)) {
            let Ok(at) = self.windows.binary_search(window) else {
                unreachable!("streams are of all windows that are seen")
            };
            let found = hidden.read(at * self.ctx..(at + 1) * self.ctx).map_err(attar_model::Error::from)?;
            rows.assign(&found);
        }
        Ok(all)
    }
}

/// The residual stream of a model at some depth, of all windows that are seen.
struct Stream {
    hidden: HiddenStates,
    blocks: usize, // that it has gone through
}

impl Stream {
    /// Before the first block.
    fn new(source: &Source, windows: &Windows, keeping: &Keeping) -> Result<Self> {
        let hidden = streamed_embeddings(&source.config, source, windows, &Streaming::kept(keeping))
            .doing(|| format!("while reading the embeddings of `{}`", source.path.display()))?;
        Ok(Self { hidden, blocks: 0 })
    }

    /// On through blocks until so many lie behind.
    fn go(&mut self, source: &Source, until: usize, ctx: usize, precision: Precision) -> Result<()> {
        for layer in self.blocks..until {
            let at = || format!("while running layer {layer} of `{}`", source.path.display());
            let mut block = Block::load(&source.config, layer, source).doing(at)?;
            block.pack(precision);
            for rows in Streaming::default().chunks(self.hidden.tokens(), ctx) {
                self.hidden.update(rows, |here| block.forward_rows(here, ctx)).doing(at)?;
            }
            self.blocks = layer + 1;
        }
        Ok(())
    }
}
