//! Ctrl-C, SIGTERM and SIGHUP: `train` is asked to stop at a safe place, and a second signal ends it at once; any other command
//! ends at the first. What was half-written goes with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lowrank_formats::files::abandon_pending;

use crate::errors::{CliError, CliResult};
use crate::output;

/// The exit code of a program that was told to stop.
const EXIT_CODE: i32 = 130;

/// Listens from now on; the flag is raised by the first signal.
///
/// # Errors
/// The system refuses the handler.
pub fn listen() -> CliResult<Arc<AtomicBool>> {
    let raised = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&raised);
    let handler = move || {
        if seen.swap(true, Ordering::SeqCst) {
            abandon_pending();
            std::process::exit(EXIT_CODE);
        }
    };
    ctrlc::set_handler(handler).map_err(|error| CliError::from_error(&error))?;
    Ok(raised)
}

/// For commands without a place to stop at: the first signal removes temporary files and folders and ends the program.
///
/// # Errors
/// The system refuses the handler.
pub fn end_cleanly() -> CliResult {
    let handler = || {
        abandon_pending();
        output::note("interrupted: no half-written file is left");
        std::process::exit(EXIT_CODE);
    };
    ctrlc::set_handler(handler).map_err(|error| CliError::from_error(&error))
}
