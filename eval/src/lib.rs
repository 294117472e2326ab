//! What the shrinking cost: perplexity, divergence from a reference, and the report that says so.
//!
//! Reads as the pipeline uses it: [`windows()`] cuts a tokenized text, [`Predictions`] are what a model makes of
//! the windows, [`score()`] and [`evaluate()`] turn them into figures within a [`Budget`], [`keep()`] writes them down
//! so that the model need not be run again, [`report::Report`] holds the figures with everything needed to
//! reproduce them, and [`render::RENDERERS`] turns reports into text.
//!
//! Shapes: `hidden` is `[tokens, hidden_size]`, `logits` is `[tokens, vocab_size]`.

#![expect(
    clippy::inline_always,
    reason = "a vector loop must be compiled for the instructions of its caller"
)]
#![expect(clippy::needless_pass_by_value, reason = "a view is a reference already")]

pub mod divergence;
pub mod gate;
pub mod perplexity;
pub mod render;
pub mod report;
pub mod tasks;

mod breakdown;
mod budget;
mod error;
mod evaluate;
mod keep;
mod logits;
mod on_device;
mod predictions;
mod softmax;
mod windows;
mod worst;

pub use budget::{Budget, Portion};
pub use divergence::Divergence;
pub use error::Error;
pub use evaluate::{evaluate, score};
pub use keep::{keep, keep_log_probs};
pub use perplexity::Perplexity;
pub use predictions::{Decode, Passage, Predictions, Progress, Reference, Scored, Stage};
pub use report::Report;
pub use windows::{Convention, windows};
