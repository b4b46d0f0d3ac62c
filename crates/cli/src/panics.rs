//! Panics: one that a library's caller catches prints nothing; any other becomes one clear message
//! and exit code 101.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use lowrank_engine::OutOfAddressSpace;

use lowrank_run::RunError;

/// What the last panic said, with its place.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// From now on a panic is remembered, not printed.
pub fn remember() {
    panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(|at| format!(" ({at})"));
        let mut said = format!("{text}{}", place.unwrap_or_default());
        // Taken only where `RUST_BACKTRACE` asks for it.
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            said.push_str(&format!("\n{trace}"));
        }
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
    }));
}

/// Runs a command; a panic in it is an internal error. What does not fit is refused before it is
/// begun; where a plan cannot tell, the engine unwinds, and that is an error of its own.
///
/// # Errors
/// Those of the command.
pub fn guard(run: impl FnOnce() -> Result<(), RunError>) -> Result<(), RunError> {
    panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        if let Some(error) = payload.downcast_ref::<OutOfAddressSpace>() {
            return Err(RunError::from_error(error).hint(
                "lower the batch size or the length, take a smaller model, or raise `ulimit -v`",
            ));
        }
        let last = LAST.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(internal_error(&last.unwrap_or_default()))
    })
}

fn internal_error(said: &str) -> RunError {
    RunError::internal(format!("internal error: {said}")).hint(format!(
        "this is a fault of lowrank {}, whatever the input; report it with the command line and the smallest files that show it",
        env!("CARGO_PKG_VERSION")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_says_what_to_do() {
        let error = internal_error("index out of bounds (a.rs:1:2)");
        let text = crate::errors::shown(&error);
        assert!(text.starts_with("error: internal error: index out of bounds (a.rs:1:2)"));
        assert!(text.contains("hint: this is a fault of lowrank"), "{text}");
    }
}
