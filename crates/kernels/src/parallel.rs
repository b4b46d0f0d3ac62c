//! Splitting work over threads by shape alone.

use rayon::prelude::*;
use std::ops::Range;

use crate::tasks::{as_group, run_task};

/// Elements of an elementwise task: 64 KiB, small enough for the L1 and L2 caches, large enough to
/// hide a task's cost.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Runs `task` for each index, on several threads unless there is but one task.
pub(crate) fn for_each_task(n_tasks: usize, task: impl Fn(usize) + Sync + Send) {
    let task = |index| run_task(|| task(index));
    as_group(|| {
        if n_tasks <= 1 {
            (0..n_tasks).for_each(task);
        } else {
            (0..n_tasks).into_par_iter().with_max_len(1).for_each(task);
        }
    });
}

/// Runs `task` on each chunk of `x`, told where the chunk starts.
pub(crate) fn for_each_chunk<T: Send>(
    x: &mut [T],
    chunk: usize,
    task: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    let task = |start, chunk: &mut [T]| run_task(|| task(start, chunk));
    as_group(|| {
        if x.len() > chunk {
            let chunks = x.par_chunks_mut(chunk).enumerate();
            chunks.for_each(|(index, chunk_of_x)| task(index * chunk, chunk_of_x));
        } else if !x.is_empty() {
            task(0, x);
        }
    });
}

/// Chunk `index` of `0..len`.
pub(crate) fn chunk_range(index: usize, chunk: usize, len: usize) -> Range<usize> {
    let start = index * chunk;
    start..(start + chunk).min(len)
}

/// Rows of a task over rows of `width` elements: about one [`CHUNK`].
pub(crate) fn rows_per_task(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// The results of `task` for each index, in the order of the indices.
pub(crate) fn map_tasks<T: Send>(
    n_tasks: usize,
    task: impl Fn(usize) -> T + Sync + Send,
) -> Vec<T> {
    let task = |index| run_task(|| task(index));
    as_group(|| {
        if n_tasks <= 1 {
            (0..n_tasks).map(task).collect()
        } else {
            let tasks = (0..n_tasks).into_par_iter().with_max_len(1);
            tasks.map(task).collect()
        }
    })
}

/// A base pointer that tasks share to write disjoint, interleaved parts of one buffer.
///
/// Slices cannot say "these columns of every row"; every use names in its SAFETY comment why the
/// parts are disjoint.
pub(crate) struct SharedMut<T = f32>(*mut T);

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<T> {}

// SAFETY: the pointer is only dereferenced in unsafe blocks, each of which argues disjointness and
// lifetime.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(x: &mut [T]) -> Self {
        Self(x.as_mut_ptr())
    }

    /// Of memory that the caller has for itself as long as it is used.
    pub(crate) fn of(start: *mut T) -> Self {
        Self(start)
    }

    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}
