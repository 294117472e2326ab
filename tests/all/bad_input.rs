//! What cannot be done is refused: in words, in time, and with nothing left behind.

mod gate;
mod models;
mod outputs;
mod parts;
mod reports;
mod requests;
mod tasks;
mod teacher;
mod texts;
