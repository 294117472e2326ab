//! The `attar` program: parse, do, explain.

use std::process::ExitCode;

use attar::cli::Cli;
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match attar::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            attar::talk::complain(&failure);
            ExitCode::from(2)
        }
    }
}
