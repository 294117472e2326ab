//! Questions with known answers: which of several endings a model finds likeliest, whether it finds a text's last word.
//!
//! Reads in the order of the work: [`Task::parse`] takes a file of items, [`Task::requests`] tokenizes them, [`answer()`] asks
//! a model, [`Task::result`] counts, [`compare`] sets two models' answers to the same items beside each other.
//!
//! # Source
//! lm-evaluation-harness: what is put before an answer, where tokens are cut, which figures are taken.

mod answer;
mod item;
mod request;
mod result;

pub use answer::{Answer, Size, answer};
pub use item::{Item, Task};
pub use request::Request;
pub use result::compare;
