//! The program `lowrank`: parses the command line, runs one command, and turns its failure into a message and an exit code.
//! The only crate that prints or reads the environment.
#![deny(unsafe_code)]

mod allocator;
mod args;
mod commands;
mod errors;
mod fits;
mod head;
mod interrupt;
mod memory;
mod notes;
mod output;
mod presets;
mod progress;
mod resolve;
mod session;
mod settings;
mod source;
mod unused;
mod yaml;

use std::process::ExitCode;

use lowrank_engine::OutOfAddressSpace;

use crate::args::Command;
use crate::commands::{check, eval, generate, inspect, merge, plan, predict, profile, train};
use crate::errors::{CliError, CliResult};

fn main() -> ExitCode {
    allocator::return_large_blocks();
    hide_caught_panics();
    let command = args::parse();
    let json = is_json(&command);
    let result = without_panic(|| match command {
        Command::Train(args) => train::run(*args),
        Command::Eval(args) => eval::run(*args),
        Command::Predict(args) => predict::run(*args),
        Command::Generate(args) => generate::run(*args),
        Command::Merge(args) => merge::run(*args),
        Command::Plan(args) => plan::run(*args),
        Command::Inspect(args) => inspect::run(*args),
        Command::Check(args) => check::run(*args),
        Command::Profile(args) => profile::run(*args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if json {
                output::print_json(&error.to_json());
            }
            eprintln!("{error}");
            error.exit_code()
        }
    }
}

/// A library's panic that becomes an error is told by that error alone.
fn hide_caught_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !lowrank_data::catching() {
            usual(panic);
        }
    }));
}

/// Runs a command. What does not fit is refused before it is begun; where a plan cannot tell, the engine unwinds, and this is
/// the error. Bugs panic as ever.
fn without_panic(run: impl FnOnce() -> CliResult) -> CliResult {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(result) => result,
        Err(payload) => match payload.downcast::<OutOfAddressSpace>() {
            Ok(error) => Err(CliError::from_error(&*error).hint(
                "lower the batch size or the length, take a smaller model, or raise `ulimit -v`",
            )),
            Err(payload) => std::panic::resume_unwind(payload),
        },
    }
}

fn is_json(command: &Command) -> bool {
    match command {
        Command::Train(a) => a.common.is_json(),
        Command::Eval(a) => a.common.is_json(),
        Command::Predict(a) => a.common.is_json(),
        Command::Generate(a) => a.common.is_json(),
        Command::Merge(a) => a.common.is_json(),
        Command::Plan(a) => a.common.is_json(),
        Command::Inspect(a) => a.common.is_json(),
        Command::Check(a) => a.common.is_json(),
        Command::Profile(a) => a.common.is_json(),
    }
}
