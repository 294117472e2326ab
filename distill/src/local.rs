//! One block of a student learns alone, to do to its own input what its teacher's blocks make of theirs.

use crate::Error;
use crate::optimizer::{ByLayer, Done, Memory, Optimizer, Progress};
use attar_model::{Block, Moments, Precision, relative_error_backward};
use ndarray::Array2;

/// What some windows ask of a block.
#[derive(Debug)]
pub struct BlockLesson {
    /// The student's residual stream before the block, `[tokens, hidden_size]`, tokens in whole windows.
    pub input: Array2<f32>,
    /// The teacher's after the block that is followed, `[tokens, hidden_size]`.
    pub target: Array2<f32>,
    /// Tokens of a window.
    pub ctx: usize,
    /// What the error of a token counts, relative to the square of the teacher's stream.
    pub share: f32,
}

/// A block that learns and what its optimizer remembers; no other block is needed for that.
///
/// # Source
/// Bercovich et al., "Puzzle", arXiv:2411.19146, section 3 (blockwise local distillation), with the student's own stream for an input in
/// place of the teacher's: a block makes good what those before it do otherwise.
#[derive(Debug)]
pub struct BlockTraining {
    block: Block,
    precision: Precision,
    memory: Memory,
}

impl BlockTraining {
    /// A block that no step has changed yet, with products in `precision`.
    ///
    /// # Errors
    /// A block with experts: it has no backward pass.
    ///
    /// # Panics
    /// If a matrix of the block is packed.
    pub fn new(block: Block, optimizer: Optimizer, precision: Precision) -> Result<Self, Error> {
        let (layer, gradients) = (Some(block.layer()), block.gradients(&|_| true)?);
        let shapes = gradients.iter().map(|(role, gradient)| ((layer, role), gradient.shape().to_vec()));
        Ok(Self { memory: Memory::new(optimizer, shapes), block, precision })
    }

    /// The block.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.memory.progress()
    }

    /// What the optimizer remembers of each parameter, by a name for it.
    pub fn moments(&self) -> impl Iterator<Item = (String, &Moments)> {
        self.memory.moments()
    }

    /// The same block after so many steps, with what the optimizer remembered then; `find` knows it by its name.
    ///
    /// # Errors
    /// Moments that are not there or have another shape.
    pub fn after(
        self,
        progress: Progress,
        find: &mut dyn FnMut(&str) -> Option<Moments>,
    ) -> Result<Self, Error> {
        Ok(Self { memory: self.memory.after(progress, find)?, ..self })
    }

    /// One step over the windows of all parts together, which go through the block part by part.
    ///
    /// A step without a finite loss and gradient changes nothing and is counted.
    ///
    /// # Errors
    /// A part that cannot be had; the last of ten such steps in a row.
    ///
    /// # Panics
    /// If a lesson's rows are not whole windows, or its two streams are not equally large.
    pub fn step(
        &mut self,
        parts: &mut dyn Iterator<Item = Result<BlockLesson, Error>>,
    ) -> Result<Done, Error> {
        let (mut loss, mut gradients) = (0.0, self.block.gradients(&|_| true)?);
        let learner = self.block.learner(self.precision);
        for lesson in parts {
            let BlockLesson { input: mut stream, target, ctx, share } = lesson?;
            let kept = learner.forward_keeping(stream.view_mut(), ctx);
            loss += relative_error_backward(stream.view_mut(), target.view(), share);
            learner.backward(kept, stream.view_mut(), &mut gradients);
        }
        drop(learner);
        let gradients = ByLayer::from([(Some(self.block.layer()), gradients)]);
        self.memory.step(&mut self.block, loss, &gradients)
    }

    /// What a lesson would cost as the block stands now.
    ///
    /// # Panics
    /// As [`step`](Self::step).
    pub fn loss(&self, lesson: BlockLesson) -> f64 {
        let BlockLesson { input: mut stream, target, ctx, share } = lesson;
        self.block.learner(self.precision).forward(&mut stream, ctx);
        relative_error_backward(stream.view_mut(), target.view(), share)
    }
}
