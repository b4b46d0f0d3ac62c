//! Scratch that starts on a cache line: a vector that crosses from one line to the next costs two accesses.

use half::bf16;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest vector.
pub(crate) const LINE_BYTES: usize = 64;

/// Values that any bytes are.
///
/// # Safety
/// Every bit pattern is a value, and none asks for more than a line's alignment.
pub unsafe trait Plain: Copy {}

// SAFETY: numbers of 2 and 4 bytes.
unsafe impl Plain for bf16 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above, end to end.
unsafe impl<const N: usize> Plain for [f32; N] {}

/// Bytes of a cache line, on a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; LINE_BYTES]);

impl Line {
    pub(crate) const ZERO: Self = Line([0; LINE_BYTES]);
}

/// A buffer that grows and is never shrunk; what is new is zero.
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    values: PhantomData<T>,
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self {
            lines: Vec::new(),
            values: PhantomData,
        }
    }
}

impl<T: Plain> Aligned<T> {
    /// The first `len` values, whatever they hold.
    pub(crate) fn at_least(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(LINE_BYTES);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line::ZERO);
        }
        &mut self[..len]
    }
}

impl<T: Plain> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let len = self.lines.len() * LINE_BYTES / size_of::<T>();
        // SAFETY: the lines are initialised bytes, of which any are values of T, and aligned for it.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), len) }
    }
}

impl<T: Plain> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.lines.len() * LINE_BYTES / size_of::<T>();
        // SAFETY: as in `deref`; the lines are borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) }
    }
}
