//! What the shrinking cost: perplexity, divergence from a reference, and the report that says so.
//!
//! Reads as the pipeline uses it: [`windows()`] cuts a tokenized text, [`evaluate()`] runs a model over
//! the windows and scores it, [`report::Report`] holds the figures with everything needed to
//! reproduce them, and [`render::RENDERERS`] turns reports into text.
//!
//! Shapes: `hidden` is `[tokens, hidden_size]`, `logits` is `[tokens, vocab_size]`.

#![expect(
    clippy::inline_always,
    reason = "a vector loop must be compiled for the instructions of its caller"
)]

pub mod divergence;
pub mod perplexity;
pub mod render;
pub mod report;

mod error;
mod evaluate;
mod softmax;
mod windows;

pub use divergence::Divergence;
pub use error::Error;
pub use evaluate::{Passage, Progress, Reference, Scored, Stage, evaluate};
pub use perplexity::Perplexity;
pub use report::Report;
pub use windows::{Convention, windows};
