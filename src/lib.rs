//! attar makes language models small without making them stupid.
//!
//! The pipeline, from what was typed to what was written: [`cli`] parses, [`plan`] decides every tensor's fate before
//! any work starts, [`pipeline`] calibrates, compresses, writes and verifies. Numbers live in the crates below; here
//! live names, files and the user.

mod chat;
pub mod cli;
pub mod commands;
pub mod data;
pub mod device;
pub mod diagnostic;
pub mod hub;
pub mod imatrix;
pub mod layout;
pub mod mix;
pub mod pipeline;
pub mod plan;
pub mod recipe;
pub mod scheme;
pub mod source;
pub mod talk;
pub mod text;

use cli::{Cli, Command};
use diagnostic::{Explain, Result};

/// How a command that could be done ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Done,
    /// A limit was passed that the model was held to.
    GateFailed,
}

/// Does what was typed.
///
/// # Errors
/// Whatever kept it from being done.
pub fn run(cli: &Cli) -> Result<Outcome> {
    if let Some(threads) = cli.global.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.into())
            .build_global()
            .doing(|| format!("while starting {threads} threads"))?;
    }
    let mut command = cli.command.clone();
    hub::settle(command.models(), cli.global.talk())?;
    let done = match &command {
        Command::Inspect { model } => commands::inspect::run(model, &cli.global),
        Command::Quantize(args) => commands::quantize::run(args, &cli.global),
        Command::Prune(args) => commands::prune::run(args, &cli.global),
        Command::Convert(args) => commands::convert::run(args, &cli.global),
        Command::Eval(args) => commands::eval::run(args, &cli.global),
        Command::Compare(args) => commands::compare::run(args, &cli.global),
        Command::Imatrix(args) => commands::imatrix::run(args, &cli.global),
        Command::Check(args) => return commands::check::run(args, &cli.global),
        Command::Distill(args) => commands::distill::run(args, &cli.global),
        Command::Run(args) => return recipe::run(args, &cli.global),
        Command::Report(args) => commands::report::run(args, &cli.global),
        Command::Completions { shell } => commands::manual::completions(*shell),
        Command::Man { folder } => commands::manual::pages(folder.as_deref(), &cli.global),
    };
    done.map(|()| Outcome::Done)
}
