//! Panics of foreign libraries, turned into errors. Knows nothing of what runs inside.
//!
//! A program that shows messages of its own asks [`catching`] in its panic hook, so that no library's text is printed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// How many calls of [`catch`] are open in this thread.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Whether a panic of this thread would be caught here and become an error.
pub fn catching() -> bool {
    DEPTH.with(|depth| depth.get() > 0)
}

/// Runs `work`; `None` if it panicked. What `work` borrowed must not be used afterwards if it was being changed.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Option<T> {
    let change = |by: isize| DEPTH.with(|depth| depth.set(depth.get().wrapping_add_signed(by)));
    change(1);
    let result = catch_unwind(AssertUnwindSafe(work));
    change(-1);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_none_and_is_known_to_be_caught() {
        assert!(!catching());
        assert_eq!(catch(|| catch(catching)), Some(Some(true)));
        assert_eq!(catch(|| panic!("seen only by the hook")), None::<()>);
        assert!(!catching());
    }
}
