//! Faults on request, for tests: at the n-th file call of this process it is killed, or the call is
//! refused as by the system. Only debug builds can, a release build holds none of it. Reads no
//! environment: the program's `main` does, in such a build.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use super::system::Call;

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process ends at once, nothing is cleaned up.
    Kill,
    /// The disk is full.
    StorageFull,
    /// The disk gives an error.
    InputOutput,
    /// The call does not come back: the process waits there to be told to end.
    Hold,
}

/// Which call fails, and where all are listed.
pub struct Plan {
    /// The number of the call, from 1; none to count alone.
    pub at: Option<u64>,
    /// How it fails.
    pub fault: Fault,
    /// A file that lists each call: its number, its kind and its path. Written past the seam that
    /// it watches.
    pub log: Option<PathBuf>,
}

/// Whether this build has faults at all.
pub const AVAILABLE: bool = cfg!(debug_assertions);

static PLAN: OnceLock<Plan> = OnceLock::new();
static COUNT: AtomicU64 = AtomicU64::new(0);

/// From now on the calls are counted. The first plan of a process stays.
pub fn install(plan: Plan) {
    let _ = PLAN.set(plan);
}

/// Counts a call, and lets it fail if it is the chosen one.
pub(super) fn meet(call: Call, path: &Path) -> io::Result<()> {
    let Some(plan) = PLAN.get().filter(|_| AVAILABLE) else {
        return Ok(());
    };
    let number = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    if let Some(log) = &plan.log {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let line = format!("{number} {call:?} {}\n", path.display());
        file.and_then(|mut file| file.write_all(line.as_bytes()))?;
    }
    if plan.at != Some(number) {
        return Ok(());
    }
    match plan.fault {
        // Ends without unwinding and without exit handlers, as a signal that cannot be caught does.
        Fault::Kill => std::process::abort(),
        Fault::StorageFull => Err(io::ErrorKind::StorageFull.into()),
        Fault::Hold => loop {
            std::thread::sleep(Duration::from_millis(10));
        },
        Fault::InputOutput => Err(io::Error::other("input/output error (injected)")),
    }
}
