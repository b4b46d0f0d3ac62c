//! Scratch memory that a caller lends to a call: a part that all of the call's tasks share, and a
//! slot for each thread. What is in it at the start is unspecified, and nothing is kept from one
//! call to the next.
//!
//! Nothing here knows what the memory is for. A call says what it needs from its shapes alone
//! ([`ScratchNeed`]), so that a plan can ask without data.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::aligned::{LINE_BYTES, Line, Plain};

/// Bytes of scratch that a call needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScratchNeed {
    /// Shared by all tasks.
    pub shared: usize,
    /// For each thread.
    pub per_thread: usize,
}

impl ScratchNeed {
    /// Bytes in all for a number of threads: each part starts on a cache line of its own.
    pub fn bytes(self, threads: usize) -> usize {
        round_up(self.shared) + threads * self.slot_bytes()
    }

    /// Enough for either of two calls, one after the other.
    pub fn max(self, other: Self) -> Self {
        Self {
            shared: self.shared.max(other.shared),
            per_thread: self.per_thread.max(other.per_thread),
        }
    }

    /// A slot with the line that says whether it is in use.
    fn slot_bytes(self) -> usize {
        match self.per_thread {
            0 => 0,
            bytes => LINE_BYTES + round_up(bytes),
        }
    }
}

/// Bytes of `len` values of T, up to whole cache lines: what [`Room::take`] uses up.
pub fn bytes_of<T: Plain>(len: usize) -> usize {
    round_up(len * size_of::<T>())
}

fn round_up(bytes: usize) -> usize {
    bytes.next_multiple_of(LINE_BYTES)
}

/// Scratch memory for the threads of one pool.
#[derive(Debug)]
pub struct Scratch<'a> {
    bytes: &'a mut [u8],
    threads: usize,
}

impl<'a> Scratch<'a> {
    /// Lends `bytes` to calls that run on `threads` threads. Panics if they do not start on a cache
    /// line of 64 bytes.
    pub fn new(bytes: &'a mut [u8], threads: usize) -> Self {
        let aligned = bytes.as_ptr().addr().is_multiple_of(LINE_BYTES);
        assert!(
            aligned || bytes.is_empty(),
            "scratch starts on a cache line"
        );
        Self { bytes, threads }
    }

    /// The threads that it has slots for.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The first `bytes`, up to a whole cache line, and what is left for another call. Panics if
    /// there are fewer.
    pub fn cut(&mut self, bytes: usize) -> (Room<'_>, Scratch<'_>) {
        let (needed, found) = (round_up(bytes), self.bytes.len());
        assert!(
            found >= needed,
            "scratch of {found} bytes for a call that needs {needed}"
        );
        let (taken, rest) = self.bytes.split_at_mut(needed);
        let threads = self.threads;
        let rest = Scratch {
            bytes: rest,
            threads,
        };
        (Room { bytes: taken }, rest)
    }

    /// The shared part, and the slots. Panics if there are fewer bytes than `need` says for these
    /// threads.
    pub(crate) fn split(&mut self, need: ScratchNeed) -> (Room<'_>, Slots<'_>) {
        let (needed, found) = (need.bytes(self.threads), self.bytes.len());
        assert!(
            found >= needed,
            "scratch of {found} bytes for a call that needs {needed}"
        );
        let (shared, slots) = self.bytes.split_at_mut(round_up(need.shared));
        (
            Room { bytes: shared },
            Slots::new(slots, need, self.threads),
        )
    }
}

/// Memory from which buffers are taken one after the other, each on a cache line.
pub struct Room<'r> {
    bytes: &'r mut [u8],
}

impl<'r> Room<'r> {
    /// `len` values, whatever they hold. Panics if there is no room for them.
    pub fn take<T: Plain>(&mut self, len: usize) -> &'r mut [T] {
        // Room for nothing need not lie on a cache line.
        if len == 0 {
            return &mut [];
        }
        let bytes = std::mem::take(&mut self.bytes);
        let (needed, found) = (bytes_of::<T>(len), bytes.len());
        assert!(
            needed <= found,
            "scratch for {needed} bytes, of which {found} are left"
        );
        let (taken, rest) = bytes.split_at_mut(needed);
        self.bytes = rest;
        // SAFETY: the bytes are initialised and ours alone for 'r; any bytes are values of T; parts
        // start on cache lines, which is all the alignment that a Plain type may ask for; `needed`
        // covers `len` values.
        unsafe { std::slice::from_raw_parts_mut(taken.as_mut_ptr().cast(), len) }
    }
}

/// The slots of the threads, of which a task takes that of the thread it runs on.
pub struct Slots<'s> {
    start: *mut u8,
    slot_bytes: usize,
    threads: usize,
    bytes: PhantomData<&'s mut [u8]>,
}

// SAFETY: a slot's memory is used only through the guard that set its flag; flags are atomic.
unsafe impl Sync for Slots<'_> {}
// SAFETY: as above.
unsafe impl Send for Slots<'_> {}

impl<'s> Slots<'s> {
    fn new(bytes: &'s mut [u8], need: ScratchNeed, threads: usize) -> Self {
        let slots = Self {
            start: bytes.as_mut_ptr(),
            slot_bytes: need.slot_bytes(),
            threads,
            bytes: PhantomData,
        };
        if slots.slot_bytes > 0 {
            for slot in 0..threads {
                // SAFETY: `split` asserted that the slots lie inside the bytes, which nobody else
                // uses; a slot starts with a line for its flag.
                unsafe {
                    slots
                        .start
                        .add(slot * slots.slot_bytes)
                        .cast::<AtomicBool>()
                        .write(AtomicBool::new(false))
                };
            }
        }
        slots
    }

    /// The slot of this thread: a pool's threads by their number, the first one for a thread
    /// outside any pool. Panics if the call asked for none, if the pool has more threads than the
    /// scratch, or if the thread has taken its slot already.
    pub(crate) fn take(&self) -> Slot<'_> {
        let thread = rayon::current_thread_index().unwrap_or(0);
        let threads = self.threads;
        assert!(
            thread < threads,
            "scratch for {threads} threads on thread {thread}"
        );
        assert!(self.slot_bytes > 0, "a slot of a call that asked for none");
        let start = self.start.wrapping_add(thread * self.slot_bytes);
        // SAFETY: `new` wrote a flag at the start of each slot, of which `thread` is one; it is
        // only used atomically since.
        let busy = unsafe { &*start.cast::<AtomicBool>() };
        let was_busy = busy.swap(true, Ordering::Acquire);
        assert!(!was_busy, "a thread took its scratch twice");
        let (start, len) = (start.wrapping_add(LINE_BYTES), self.slot_bytes - LINE_BYTES);
        // SAFETY: the slot's memory behind its flag; the flag was false, so that no other guard of
        // it lives.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, len) };
        Slot { bytes, busy }
    }
}

/// A thread's slot, given back when dropped.
pub(crate) struct Slot<'s> {
    bytes: &'s mut [u8],
    busy: &'s AtomicBool,
}

impl Slot<'_> {
    /// All of the slot's memory.
    pub(crate) fn room(&mut self) -> Room<'_> {
        Room { bytes: self.bytes }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.busy.store(false, Ordering::Release);
    }
}

/// Scratch memory from the heap, for callers that do not count theirs, such as tests and
/// benchmarks.
#[derive(Debug)]
pub struct ScratchBuffer {
    lines: Vec<Line>,
    threads: usize,
}

impl ScratchBuffer {
    /// Room for `bytes` in all, which calls on `threads` threads share.
    pub fn new(bytes: usize, threads: usize) -> Self {
        let lines = vec![Line::ZERO; bytes.div_ceil(LINE_BYTES)];
        Self { lines, threads }
    }

    /// The scratch, for one call after the other.
    pub fn scratch(&mut self) -> Scratch<'_> {
        let Range { start, end } = self.lines.as_mut_ptr_range();
        let len = end.addr() - start.addr();
        // SAFETY: the lines are initialised bytes, borrowed mutably for as long as the scratch.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), len) };
        Scratch::new(bytes, self.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: ScratchNeed = ScratchNeed {
        shared: 100,
        per_thread: 1000,
    };

    fn buffer(threads: usize) -> ScratchBuffer {
        ScratchBuffer::new(NEED.bytes(threads), threads)
    }

    #[test]
    fn parts_start_on_cache_lines_and_are_as_long_as_asked() {
        let mut buffer = buffer(3);
        assert_eq!(NEED.bytes(3), 128 + 3 * (64 + 1024));
        let mut scratch = buffer.scratch();
        let (mut shared, slots) = scratch.split(NEED);
        let whole = shared.take::<f32>(25);
        whole.fill(1.0);
        let mut slot = slots.take();
        let mut room = slot.room();
        let (a, b) = (room.take::<u32>(3), room.take::<f32>(200));
        a.fill(7);
        b.fill(2.0);
        assert_eq!((a.len(), b.len()), (3, 200));
        assert_eq!(b.as_ptr().addr() - a.as_ptr().addr(), 64);
        assert!(whole.as_ptr().addr().is_multiple_of(64) && b.as_ptr().addr().is_multiple_of(64));
        assert!(whole.iter().all(|&v| v == 1.0) && a.iter().all(|&v| v == 7));
    }

    #[test]
    fn a_cut_leaves_the_rest_and_its_parts_lie_end_to_end_on_cache_lines() {
        let bytes = bytes_of::<f32>(17) + bytes_of::<half::bf16>(3);
        let mut buffer = ScratchBuffer::new(bytes + LINE_BYTES, 1);
        let mut scratch = buffer.scratch();
        let (mut room, rest) = scratch.cut(bytes);
        let (a, b) = (room.take::<f32>(17), room.take::<half::bf16>(3));
        assert_eq!((a.len(), b.len(), rest.bytes.len()), (17, 3, LINE_BYTES));
        assert_eq!(b.as_ptr().addr() - a.as_ptr().addr(), 128);
        assert!(Scratch::new(&mut [], 1).cut(0).0.take::<f32>(0).is_empty());
    }

    #[test]
    fn threads_at_work_have_slots_of_their_own() {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build();
        let threads = threads.expect("threads start");
        let mut buffer = buffer(3);
        let mut scratch = buffer.scratch();
        let (_, slots) = scratch.split(NEED);
        let barrier = std::sync::Barrier::new(3);
        let starts = threads.broadcast(|_| {
            let mut slot = slots.take();
            barrier.wait();
            slot.room().take::<f32>(250).as_ptr().addr()
        });
        for pair in [(0, 1), (1, 2), (0, 2)] {
            assert!(starts[pair.0].abs_diff(starts[pair.1]) >= 1000);
        }
    }

    #[test]
    fn a_slot_given_back_can_be_taken_again() {
        let mut buffer = buffer(1);
        let mut scratch = buffer.scratch();
        let (_, slots) = scratch.split(NEED);
        let first = slots.take().room().take::<f32>(1).as_ptr();
        assert_eq!(slots.take().room().take::<f32>(1).as_ptr(), first);
    }

    #[test]
    #[should_panic(expected = "took its scratch twice")]
    fn a_thread_that_takes_its_slot_twice_panics() {
        let mut buffer = buffer(1);
        let mut scratch = buffer.scratch();
        let (_, slots) = scratch.split(NEED);
        let _slot = slots.take();
        slots.take();
    }

    #[test]
    #[should_panic(expected = "scratch of 64 bytes for a call that needs 1216")]
    fn too_little_scratch_panics() {
        ScratchBuffer::new(64, 1).scratch().split(NEED);
    }

    #[test]
    #[should_panic(expected = "64 are left")]
    fn a_buffer_beyond_the_slot_panics() {
        let mut buffer = buffer(1);
        let mut scratch = buffer.scratch();
        let (_, slots) = scratch.split(NEED);
        let mut slot = slots.take();
        let mut room = slot.room();
        room.take::<f32>(240);
        room.take::<f32>(17);
    }

    #[test]
    #[should_panic(expected = "starts on a cache line")]
    fn scratch_beside_a_cache_line_panics() {
        let mut buffer = buffer(1);
        let scratch = buffer.scratch();
        Scratch::new(&mut scratch.bytes[4..], 1);
    }
}
