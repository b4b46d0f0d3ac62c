//! Ctrl-C, SIGTERM and SIGHUP: `train` is asked to stop at a safe place, and a second signal ends
//! it at once; any other command ends at the first. What was half-written goes with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lowrank_formats::files::abandon_pending;

use crate::output;
use lowrank_run::{RunError, RunResult};

/// The exit code of a program that was told to stop.
const EXIT_CODE: i32 = 130;

/// Listens from now on; the flag is raised by the first signal.
///
/// # Errors
/// The system refuses the handler.
pub fn listen() -> RunResult<Arc<AtomicBool>> {
    let raised = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&raised);
    let handler = move || {
        if seen.swap(true, Ordering::SeqCst) {
            abandon_pending();
            std::process::exit(EXIT_CODE);
        }
    };
    set_handler(handler)?;
    Ok(raised)
}

/// For commands without a place to stop at: the first signal removes temporary files and folders
/// and ends the program.
///
/// # Errors
/// The system refuses the handler.
pub fn end_cleanly() -> RunResult {
    let handler = || {
        abandon_pending();
        output::note("interrupted: no half-written file is left");
        std::process::exit(EXIT_CODE);
    };
    set_handler(handler)
}

/// Listens to the signals that nobody asked to ignore: under `nohup` a closed terminal ends
/// nothing.
fn set_handler(handler: impl FnMut() + Send + 'static) -> RunResult {
    let hangup = Hangup::found();
    ctrlc::set_handler(handler).map_err(|error| RunError::from_error(&error))?;
    hangup.keep();
    Ok(())
}

/// What SIGHUP does as the program was started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hangup {
    Ends,
    Ignored,
}

#[cfg(unix)]
#[allow(unsafe_code)]
impl Hangup {
    fn found() -> Self {
        // SAFETY: all bytes zero are a valid `sigaction`: it holds integers and a pointer that may
        // be null.
        let mut found: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: a null pointer for the new action only asks; `found` lives through the call.
        let outcome = unsafe { libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut found) };
        if outcome == 0 && found.sa_sigaction == libc::SIG_IGN {
            Self::Ignored
        } else {
            Self::Ends
        }
    }

    fn keep(self) {
        if self == Self::Ignored {
            // SAFETY: SIG_IGN is a disposition that every signal of a terminal may have.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        }
    }
}

#[cfg(not(unix))]
impl Hangup {
    fn found() -> Self {
        Self::Ends
    }

    fn keep(self) {}
}
