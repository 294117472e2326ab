//! The main jobs from beginning to end, on the fixture model.

mod check;
mod compare;
mod containers;
mod cut;
mod distill;
mod evaluate;
mod experts;
mod families;
mod fit;
mod foreign;
mod hub;
mod imatrix;
mod layouts;
mod memory;
mod moved;
mod numbers;
mod parts;
mod prune;
mod quality;
mod recipes;
mod report_command;
mod reports;
mod tasks;
mod teacher;
mod terminal;
mod zeros;

/// Little text, in short windows: enough to exercise everything, too little to say anything about quality.
const QUICK: &str = "--calib-tokens 1024 --ctx 128 --chunks 4";
