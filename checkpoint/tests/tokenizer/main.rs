//! Tokenizers, from every kind of file to every other.
#![expect(clippy::unwrap_used, reason = "a test may")]

mod byte_level;
mod forge;
mod hostile;
mod pieces;
mod real;
