//! Ctrl-C and SIGTERM: the first asks the command to stop at a safe place, the second ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errors::{CliError, CliResult};

/// Listens from now on; the flag is raised by the first signal.
///
/// # Errors
/// The system refuses the handler.
pub fn listen() -> CliResult<Arc<AtomicBool>> {
    let raised = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&raised);
    let handler = move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).map_err(|error| CliError::from_error(&error))?;
    Ok(raised)
}
