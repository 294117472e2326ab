//! GGUF, read from files put together by hand and written for other readers.
#![expect(clippy::unwrap_used, reason = "a test may")]

mod forge;
mod hostile;
mod round_trip;
mod split;
