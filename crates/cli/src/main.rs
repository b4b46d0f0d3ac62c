//! The program `lowrank`: parses the command line, runs one command, and turns its failure into a
//! message and an exit code. The only crate that prints or reads the environment.
#![deny(unsafe_code, clippy::print_stdout, clippy::print_stderr)]

mod allocator;
mod args;
mod assets;
mod commands;
mod errors;
mod faults;
mod interrupt;
mod output;
mod panics;
mod presets;
mod printable;
mod progress;
mod session;
mod settings;
mod sink;
mod source;
mod stream;
mod tables;
mod unused;

use std::process::ExitCode;

use crate::args::Command;
use crate::commands::{
    chat, check, convert, eval, export, generate, inspect, merge, plan, predict, profile, train,
};

fn main() -> ExitCode {
    allocator::return_large_blocks();
    panics::remember();
    faults::from_environment();
    let command = args::parse();
    let json = is_json(&command);
    let result = panics::guard(|| run(command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if json {
                output::print_json(&error.to_json());
            }
            output::note(errors::shown(&error));
            errors::exit_code(&error)
        }
    }
}

fn run(command: Command) -> lowrank_run::RunResult {
    // A run of training has a safe place to stop at and listens for itself.
    if !matches!(command, Command::Train(_)) {
        interrupt::end_cleanly()?;
    }
    match command {
        Command::Train(args) => train::run(*args),
        Command::Eval(args) => eval::run(*args),
        Command::Predict(args) => predict::run(*args),
        Command::Generate(args) => generate::run(*args),
        Command::Chat(args) => chat::run(*args),
        Command::Merge(args) => merge::run(*args),
        Command::Export(args) => export::run(*args),
        Command::Convert(args) => convert::run(*args),
        Command::Plan(args) => plan::run(*args),
        Command::Inspect(args) => inspect::run(*args),
        Command::Check(args) => check::run(*args),
        Command::Profile(args) => profile::run(*args),
    }
}

fn is_json(command: &Command) -> bool {
    match command {
        Command::Train(a) => a.common.is_json(),
        Command::Eval(a) => a.common.is_json(),
        Command::Predict(a) => a.common.is_json(),
        Command::Generate(a) => a.common.is_json(),
        Command::Chat(a) => a.common.is_json(),
        Command::Merge(a) => a.common.is_json(),
        Command::Export(a) => a.common.is_json(),
        Command::Convert(a) => a.common.is_json(),
        Command::Plan(a) => a.common.is_json(),
        Command::Inspect(a) => a.common.is_json(),
        Command::Check(a) => a.common.is_json(),
        Command::Profile(a) => a.common.is_json(),
    }
}
