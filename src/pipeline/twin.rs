//! The model as it was, run beside the one that becomes codes, so that each matrix can make up for what those before it have lost.

use attar_model::{Block, Norm, Precision, Streaming, Tap, Windows, streamed_embeddings};
use attar_quant::{Correction, Drift, Statistics, ridge_for};

use super::stream::Stream;
use crate::diagnostic::Result;
use crate::plan::{Memory, Plan};
use crate::source::Source;

/// The calibration windows in the unquantized model.
pub struct Twin {
    stream: Box<Stream>,
    block: Option<Block>,
    precision: Precision,
}

impl Twin {
    /// At the first block's input.
    ///
    /// # Errors
    /// An embedding that cannot be read, hidden states on a disk that fails.
    pub fn new(plan: &Plan, source: &Source, windows: &Windows, precision: Precision) -> Result<Self> {
        let Memory { keeping, carry, .. } = &plan.memory;
        let hidden = streamed_embeddings(&source.config, source, windows, &Streaming::kept(keeping))?;
        let stream = Stream::new(hidden, windows.ctx(), keeping.clone(), *carry);
        Ok(Self { stream: Box::new(stream), block: None, precision })
    }

    /// Goes into a block, of which this is a copy that stays as it is.
    pub fn enter(&mut self, mut block: Block) {
        block.pack(self.precision);
        self.block = Some(block);
    }

    /// Takes both streams to a tap: the statistics of the inputs now, and what is to be added to the weights that read them.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    ///
    /// # Panics
    /// Outside blocks.
    pub fn observe(
        &mut self,
        (stream, block): (&mut Stream, &Block),
        tap: Tap,
        mut statistics: Statistics,
    ) -> Result<(Statistics, Option<Correction>)> {
        let original = self.block.as_ref().unwrap_or_else(|| panic!("a tap is inside a block"));
        // What o and down add to the stream can make up for what the stream itself has lost.
        let repairs = matches!(tap, Tap::AttnOut | Tap::MlpMid) && block.adds_as_it_is(tap);
        let scale = 1.0 / block.config().residual_multiplier;
        let out_features = repairs.then(|| block.config().hidden_size);
        let mut drift = Drift::new(statistics.in_features(), out_features);
        let precision = self.precision;
        stream.advance_beside(block, tap, (&mut self.stream, original), |beside| {
            statistics.observe_in(beside.now, precision);
            let lost = if repairs { Some(beside.lost()? * scale) } else { None };
            drift.observe(beside.was, beside.now, lost.as_ref().map(|lost| lost.view()));
            Ok(())
        })?;
        let correction = corrections(&statistics, &drift);
        Ok((statistics, correction))
    }

    /// Takes both streams past a tap where nothing is to be learned.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    ///
    /// # Panics
    /// Outside blocks.
    pub fn pass(&mut self, (stream, block): (&mut Stream, &Block), tap: Tap) -> Result<()> {
        let original = self.block.as_ref().unwrap_or_else(|| panic!("a tap is inside a block"));
        stream.advance_beside(block, tap, (&mut self.stream, original), |_| Ok(()))?;
        Ok(())
    }

    /// Leaves the block.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(block) = self.block.take() {
            self.stream.finish(&block)?;
        }
        Ok(())
    }

    /// The same as [`observe`](Self::observe) for what the head reads.
    ///
    /// # Errors
    /// Hidden states on a disk that fails.
    pub fn head(
        &self,
        stream: &Stream,
        norm: &Norm,
        mut statistics: Statistics,
    ) -> Result<(Statistics, Option<Correction>)> {
        let mut drift = Drift::new(statistics.in_features(), None);
        stream.each_chunk_beside(&self.stream, |now, was| {
            let [now, was] = [now, was].map(|hidden| norm.apply(hidden));
            statistics.observe_in(now.view(), self.precision);
            drift.observe(was.view(), now.view(), None);
        })?;
        let correction = corrections(&statistics, &drift);
        Ok((statistics, correction))
    }
}

fn corrections(statistics: &Statistics, drift: &Drift) -> Option<Correction> {
    Correction::new(statistics, drift, ridge_for(statistics.tokens_per_column())).ok()
}
