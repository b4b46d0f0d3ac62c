//! How the program fails: one message with its causes and a hint on standard error, and an exit
//! code.

use std::process::ExitCode;

use lowrank_run::{Kind, RunError};

/// 1 for a failure, 2 for a request that cannot be (as for a misspelt flag), 101 for a fault of the
/// program itself, 130 for the end by Ctrl-C or SIGTERM.
pub fn exit_code(error: &RunError) -> ExitCode {
    ExitCode::from(match error.kind() {
        Kind::Failure => 1,
        Kind::Usage => 2,
        Kind::Internal => 101,
        Kind::Interrupted => 130,
    })
}

/// The failure as it is shown, its kind first.
pub fn shown(error: &RunError) -> String {
    let head = match error.kind() {
        Kind::Failure | Kind::Usage | Kind::Internal => "error",
        Kind::Interrupted => "interrupted",
    };
    format!("{head}: {error}")
}
