//! Scratch that starts on a cache line: a vector that crosses from one line to the next costs two
//! accesses.

use half::bf16;

/// Bytes of a cache line, and of the widest vector.
pub(crate) const LINE_BYTES: usize = 64;

/// Values that any bytes are.
///
/// # Safety
/// Every bit pattern is a value, and none asks for more than a line's alignment.
pub unsafe trait Plain: Copy {}

// SAFETY: numbers of 1, 2, 4 and 8 bytes.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for bf16 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}

/// Bytes of a cache line, on a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; LINE_BYTES]);

impl Line {
    pub(crate) const ZERO: Self = Line([0; LINE_BYTES]);
}

/// The same memory as values of another type. Panics if it is not aligned for them, or not a whole
/// number of them.
pub(crate) fn typed<T: Plain, B: Plain>(bytes: &[B]) -> &[T] {
    if bytes.is_empty() {
        return &[];
    }
    // SAFETY: any bytes are values of T; `align_to` leaves out what is not aligned.
    let (before, values, after) = unsafe { bytes.align_to() };
    assert!(
        before.is_empty() && after.is_empty(),
        "memory aligned for its values"
    );
    values
}

/// As [`typed`], to be written.
pub(crate) fn typed_mut<T: Plain, B: Plain>(bytes: &mut [B]) -> &mut [T] {
    if bytes.is_empty() {
        return &mut [];
    }
    // SAFETY: as in `typed`; any value of T is as good as any bytes of B.
    let (before, values, after) = unsafe { bytes.align_to_mut() };
    assert!(
        before.is_empty() && after.is_empty(),
        "memory aligned for its values"
    );
    values
}
