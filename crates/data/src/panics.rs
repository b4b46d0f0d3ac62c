//! Panics of foreign libraries, turned into errors. Knows nothing of what runs inside. The
//! program's panic hook prints nothing, so that a panic that is caught here is told by its error
//! alone.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`; `None` if it panicked. What `work` borrowed must not be used afterwards if it was
/// being changed.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
