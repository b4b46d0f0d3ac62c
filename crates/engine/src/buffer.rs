//! Memory for tensors: one arena of address space, handed out by offset. It knows sizes only, not what is stored.
//!
//! A pass is nearly a stack: forward appends, backward gives back. Lowest-address first fit with merging of neighbours keeps
//! the top of the arena close to the bytes in use, pages once touched are used again, and after the first large batch
//! nothing is asked of the system. The arithmetic of offsets needs no memory, so the dry device runs it too: the top that it
//! finds is the one that the processor will touch.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use lowrank_kernels::Element;
use memmap2::{MmapOptions, MmapRaw};

/// Every block starts on a cache line.
const LINE_BYTES: usize = 64;

/// Address space asked for, in bytes: far more than any machine's memory, as untouched pages cost nothing.
const RESERVE_BYTES: usize = 1 << 40;

/// Offsets of free and used blocks.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Free blocks below the top, by offset: none touches another or the top.
    free: BTreeMap<usize, usize>,
    top: usize,
    highest_top: usize,
}

impl Layout {
    /// The lowest place for `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Range<usize> {
        let len = len.next_multiple_of(LINE_BYTES);
        let hole = self.free.iter().find(|&(_, &free)| free >= len);
        let start = match hole.map(|(&start, &free)| (start, free)) {
            Some((start, free)) => {
                self.free.remove(&start);
                if free > len {
                    self.free.insert(start + len, free - len);
                }
                start
            }
            None => {
                self.top += len;
                self.top - len
            }
        };
        self.highest_top = self.highest_top.max(self.top);
        start..start + len
    }

    /// Frees a block that [`Layout::take`] gave.
    pub(crate) fn give(&mut self, block: Range<usize>) {
        let Range { mut start, mut end } = block;
        if start == end {
            return;
        }
        if let Some((&before, &len)) = self.free.range(..start).next_back()
            && before + len == start
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(len) = self.free.remove(&end) {
            end += len;
        }
        if end == self.top {
            self.top = start;
        } else {
            self.free.insert(start, end - start);
        }
    }

    /// The highest end of any block so far, in bytes: what is resident once every block has been written.
    pub(crate) fn highest_top(&self) -> usize {
        self.highest_top
    }
}

/// The address space behind a [`Layout`].
#[derive(Debug, Clone)]
pub(crate) struct Space(Arc<MmapRaw>);

impl Space {
    /// Reserves address space; less where the system grants less.
    pub(crate) fn reserve() -> std::io::Result<Self> {
        let mut bytes = RESERVE_BYTES;
        loop {
            match MmapOptions::new().len(bytes).no_reserve_swap().map_anon() {
                Ok(map) => {
                    ask_for_huge_pages(&map);
                    return Ok(Space(Arc::new(map.into())));
                }
                Err(error) if bytes <= 1 << 30 => return Err(error),
                Err(_) => bytes /= 2,
            }
        }
    }

    /// Bytes of the reserve.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The values of a block; zeros in a process's first use of it, and whatever was last stored there later.
    /// None if the block lies past the reserve.
    pub(crate) fn buffer(&self, block: &Range<usize>) -> Option<Buffer> {
        (block.end <= self.0.len()).then(|| Buffer {
            space: self.clone(),
            start: block.start,
            bytes: block.len(),
        })
    }
}

/// Asks for pages of 2 MiB: with small ones a step of RoBERTa-base took 1.5 to 2.3% longer in a virtual machine. What is
/// touched stays one stretch from the bottom, so that they cost one page more at most.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(map: &memmap2::MmapMut) {
    // A kernel without them works as well, only slower.
    let _ = map.advise(memmap2::Advice::HugePage);
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &memmap2::MmapMut) {}

/// A block's values.
#[derive(Debug)]
pub(crate) struct Buffer {
    space: Space,
    start: usize,
    bytes: usize,
}

impl Buffer {
    pub(crate) fn as_slice<E: Element>(&self) -> &[E] {
        // SAFETY: `start` is a multiple of 64 and start + bytes is within the mapping (checked in `Space::buffer`), which
        // lives as long as `self.space`; anonymous pages are initialised, and every bit pattern is a value of f32 and of
        // bf16, the only elements there are; no other buffer overlaps this block until its range is given back, which
        // the tensor that owns it does after dropping it.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.bytes / size_of::<E>()) }
    }

    pub(crate) fn as_mut_slice<E: Element>(&mut self) -> &mut [E] {
        // SAFETY: as in `as_slice`, and `&mut self` is the only access to the block.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.bytes / size_of::<E>()) }
    }

    fn pointer<E>(&self) -> *mut E {
        // SAFETY: `start` is within the mapping, checked in `Space::buffer`.
        unsafe { self.space.0.as_mut_ptr().add(self.start).cast() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_reused_from_the_bottom_and_merged() {
        let mut layout = Layout::default();
        let blocks: Vec<_> = [100, 64, 1000, 1]
            .into_iter()
            .map(|len| layout.take(len))
            .collect();
        assert_eq!(blocks, [0..128, 128..192, 192..1216, 1216..1280]);
        layout.give(blocks[0].clone());
        layout.give(blocks[2].clone());
        assert_eq!(layout.take(900), 192..1152, "the first hole is too small");
        layout.give(blocks[1].clone());
        assert_eq!(layout.take(192), 0..192, "neighbours merge");
        layout.give(blocks[3].clone());
        assert_eq!(
            layout.take(128),
            1152..1280,
            "a hole at the top is given up"
        );
        assert_eq!(layout.highest_top(), 1280);
        assert!(layout.take(0).is_empty());
    }

    #[test]
    fn random_blocks_never_overlap_and_all_memory_comes_back() {
        let mut layout = Layout::default();
        let mut held: Vec<Range<usize>> = Vec::new();
        let mut state = 1u64;
        for _ in 0..5000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let random = (state >> 33) as usize;
            if held.len() > 20 || (random.is_multiple_of(3) && !held.is_empty()) {
                layout.give(held.swap_remove(random % held.len()));
            } else {
                let block = layout.take(1 + random % 5000);
                assert!(
                    held.iter()
                        .all(|h| h.end <= block.start || block.end <= h.start)
                );
                held.push(block);
            }
        }
        held.into_iter().for_each(|block| layout.give(block));
        assert_eq!((layout.top, layout.free.len()), (0, 0));
    }

    #[test]
    fn buffers_start_as_zeros_on_cache_lines_and_hold_what_is_written() {
        let space = Space::reserve().expect("address space");
        let mut layout = Layout::default();
        let (a, b) = (layout.take(4 * 100), layout.take(4 * 7));
        let (mut first, second) = (
            space.buffer(&a).expect("a place"),
            space.buffer(&b).expect("a place"),
        );
        assert!(
            first
                .as_slice::<f32>()
                .iter()
                .chain(second.as_slice())
                .all(|&v| v == 0.0)
        );
        assert_eq!(second.as_slice::<f32>().as_ptr() as usize % 64, 0);
        first.as_mut_slice().fill(2.0f32);
        assert!(second.as_slice::<f32>().iter().all(|&v| v == 0.0));
        assert!(space.buffer(&(usize::MAX - 63..usize::MAX)).is_none());
    }
}
