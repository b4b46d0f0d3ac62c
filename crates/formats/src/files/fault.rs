//! Faults on request, for tests: the n-th file call of this process is killed, or refused by the "system". Built only with the
//! feature `fault-injection`; reads no environment (the program's own `main` does, in such a build).

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

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
}

/// Which call fails, and who is told of each call.
pub struct Plan {
    /// The number of the call, from 1; none to count alone.
    pub at: Option<u64>,
    /// How it fails.
    pub fault: Fault,
    /// Called with the number, the kind and the path of each call.
    pub seen: fn(u64, Call, &Path),
}

static PLAN: OnceLock<Plan> = OnceLock::new();
static COUNT: AtomicU64 = AtomicU64::new(0);

/// From now on the calls are counted. The first plan of a process stays.
pub fn install(plan: Plan) {
    let _ = PLAN.set(plan);
}

/// Counts a call, and lets it fail if it is the chosen one.
pub(super) fn meet(call: Call, path: &Path) -> io::Result<()> {
    let Some(plan) = PLAN.get() else {
        return Ok(());
    };
    let number = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
    (plan.seen)(number, call, path);
    if plan.at != Some(number) {
        return Ok(());
    }
    match plan.fault {
        // Ends without unwinding and without exit handlers, as a signal that cannot be caught does.
        Fault::Kill => std::process::abort(),
        Fault::StorageFull => Err(io::ErrorKind::StorageFull.into()),
        Fault::InputOutput => Err(io::Error::other("input/output error (injected)")),
    }
}
