//! Reused, cache-line aligned buffers of f32. It knows sizes only, not what is stored.

use std::collections::BTreeMap;

/// One cache line of f32, so that every buffer starts on a 64-byte boundary.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A buffer of at least the asked number of f32, 64-byte aligned. Its content is whatever was last stored there.
pub(crate) struct Buffer(Vec<Line>);

impl Buffer {
    fn zeroed(lines: usize) -> Self {
        Buffer(bytemuck::allocation::zeroed_vec(lines))
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    fn lines(&self) -> usize {
        self.0.len()
    }
}

/// Free buffers by size. A request takes the smallest that fits without wasting more than an eighth; when a new buffer
/// would raise the total above what was ever held, free ones are given back to the system first, so that a changing
/// mix of batch shapes cannot make the process grow past what one moment needs.
#[derive(Default)]
pub(crate) struct Pool {
    free: BTreeMap<usize, Vec<Buffer>>,
    held_lines: usize,
    peak_lines: usize,
}

impl Pool {
    pub(crate) fn take(&mut self, len: usize) -> Buffer {
        let lines = len.div_ceil(16);
        let fits = lines..=lines + lines / 8;
        if let Some((&size, list)) = self.free.range_mut(fits).next() {
            let buffer = list.pop().expect("no empty list is kept");
            if list.is_empty() {
                self.free.remove(&size);
            }
            return buffer;
        }
        while self.held_lines + lines > self.peak_lines {
            let Some((&size, list)) = self.free.iter_mut().next_back() else { break };
            list.pop();
            if list.is_empty() {
                self.free.remove(&size);
            }
            self.held_lines -= size;
        }
        self.held_lines += lines;
        self.peak_lines = self.peak_lines.max(self.held_lines);
        Buffer::zeroed(lines)
    }

    pub(crate) fn give(&mut self, buffer: Buffer) {
        if buffer.lines() > 0 {
            self.free.entry(buffer.lines()).or_default().push(buffer);
        }
    }

    /// Hands every free buffer back to the system.
    pub(crate) fn trim(&mut self) {
        for (size, list) in std::mem::take(&mut self.free) {
            self.held_lines -= size * list.len();
        }
        self.peak_lines = self.held_lines;
    }

    /// Bytes held now, in use or free.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_lines * 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_reused_and_bounded() {
        let mut pool = Pool::default();
        let a = pool.take(1000);
        assert_eq!(a.as_slice().as_ptr() as usize % 64, 0);
        assert!(a.as_slice().len() >= 1000);
        let held = pool.held_bytes();
        pool.give(a);
        let b = pool.take(1000);
        assert_eq!(pool.held_bytes(), held, "a fitting free buffer is reused");
        pool.give(b);
        let c = pool.take(1500);
        assert!(pool.held_bytes() <= 1504 * 4, "the free one that does not fit goes back first");
        pool.give(c);
        pool.trim();
        assert_eq!(pool.held_bytes(), 0);
    }
}
