//! What a teacher said of a text, kept in a folder so that the teacher need not be run again.
//!
//! ```text
//! teacher-cache.json   Facts: which model, which text, cut how, what is kept of it
//! *.safetensors        tokens         u32 [windows, ctx]
//!                      and for every scored position, in parts of whole windows:
//!                        hidden.N     f32 or bf16 [rows, hidden_size], what the head reads (after the final norm)
//!                      with the head that reads them:
//!                        head         [vocab_size, hidden_size], as the model stores it
//!                      or, where only the likeliest tokens are kept:
//!                        ids.N        u32 [rows, k], the likeliest first
//!                        log_probs.N  f32 [rows, k]
//!                        rest.N       f32 [rows], ln of the probability of all other tokens together
//!                        targets.N    f32 [rows], ln of the probability of the token that follows in the text
//! ```
//!
//! A position `p` of a window predicts token `p + 1`; which positions are scored is the same in every window. The
//! folder is written whole or not at all, and is read as if its author were an enemy: a [`Cache`] that opens has the
//! tensors and shapes its facts call for and the very tokens they name; numbers are looked at as they are read.

mod error;
mod facts;
mod read;
#[cfg(test)]
mod tests;
mod write;

/// The same as llama.cpp keeps it, in one file of rounded log-probabilities.
pub use attar_checkpoint::log_probs::{self, LogProbs, LogProbsWriter};
pub use error::Error;
pub use facts::{Facts, Signal, Teacher, tokens_sha256};
pub use read::{Cache, Lesson, Said, TopK};
pub use write::Writer;

/// The schema this version reads and writes.
pub const SCHEMA: &str = "attar-teacher-cache/1";

/// The file that makes a folder a cache.
pub const FACTS: &str = "teacher-cache.json";
