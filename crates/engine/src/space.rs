//! Memory for tensors: one arena of address space, handed out by offset. It knows sizes only, not
//! what is stored.
//!
//! A pass is nearly a stack: forward appends, backward gives back. Lowest-address first fit with
//! merging of neighbours keeps the top of the arena close to the bytes in use, pages once touched
//! are used again, and after the first large batch nothing is asked of the system. The arithmetic
//! of offsets needs no memory, so the dry device runs it too: the top that it finds is the one that
//! the processor will touch.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use lowrank_kernels::Plain;
use memmap2::{MmapOptions, MmapRaw};

/// Every block starts on a cache line.
const LINE_BYTES: usize = 64;

/// Address space asked for, in bytes: far more than any machine's memory, as untouched pages cost
/// nothing.
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
}

/// Address space for tensors, and where in it they lie. A backend has one. Clones share it.
///
/// Places are counted in nominal bytes, which are those of the storage types that a model names;
/// each stands for `scale` bytes of memory, so that a backend may store every value wider than its
/// nominal type.
#[derive(Debug, Clone)]
pub struct Space(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// None where places are only counted.
    memory: Option<MmapRaw>,
    scale: usize,
    layout: Mutex<Layout>,
}

impl Space {
    /// Reserves address space in host memory; less where the system grants less.
    ///
    /// # Errors
    /// The system grants less than 1 GiB.
    pub fn reserve() -> std::io::Result<Self> {
        Self::reserve_wide(1)
    }

    /// As [`Space::reserve`] with `scale` bytes of memory for each nominal byte.
    pub(crate) fn reserve_wide(scale: usize) -> std::io::Result<Self> {
        let mut bytes = RESERVE_BYTES;
        loop {
            match MmapOptions::new().len(bytes).no_reserve_swap().map_anon() {
                Ok(map) => {
                    ask_for_huge_pages(&map);
                    return Ok(Self::of(Some(map.into()), scale));
                }
                Err(error) if bytes <= 1 << 30 => return Err(error),
                Err(_) => bytes /= 2,
            }
        }
    }

    /// A space whose places have no memory: they are laid out and counted.
    pub fn unbacked() -> Self {
        Self::of(None, 1)
    }

    fn of(memory: Option<MmapRaw>, scale: usize) -> Self {
        let layout = Mutex::default();
        Space(Arc::new(Inner {
            memory,
            scale,
            layout,
        }))
    }

    /// Nominal bytes of the reserve; nothing for a space without memory, which has no end.
    pub(crate) fn len(&self) -> Option<usize> {
        let memory = self.0.memory.as_ref();
        memory.map(|memory| memory.len() / self.0.scale)
    }

    /// The highest end of any place so far, in nominal bytes: what is resident once every place has
    /// been written.
    pub(crate) fn highest_top(&self) -> usize {
        self.layout().highest_top
    }

    /// A place for `bytes` nominal bytes. Its values are zeros in a process's first use of it, and
    /// whatever was last stored there later. None where the reserve has none.
    pub(crate) fn take(&self, bytes: usize) -> Option<Place> {
        let range = self.layout().take(bytes);
        let space = self.clone();
        let is_inside = self.len().is_none_or(|len| range.end <= len);
        let place = Place { space, range };
        is_inside.then_some(place)
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.0.layout.lock().expect("no panic holds this lock")
    }
}

/// Asks for pages of 2 MiB: with small ones a step of RoBERTa-base took 1.5 to 2.3% longer in a
/// virtual machine. What is touched stays one stretch from the bottom, so that they cost one page
/// more at most.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(map: &memmap2::MmapMut) {
    // A kernel without them works as well, only slower.
    let _ = map.advise(memmap2::Advice::HugePage);
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &memmap2::MmapMut) {}

/// A part of a [`Space`] that belongs to one owner until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    space: Space,
    range: Range<usize>,
}

impl Place {
    /// Where it starts: no other place that lives starts there.
    pub(crate) fn start(&self) -> usize {
        self.range.start
    }

    /// All values. Panics for a place without memory.
    pub(crate) fn slice<T: Plain>(&self) -> &[T] {
        let (pointer, len) = self.parts();
        // SAFETY: the pointer is that of `len` values within the mapping (checked in
        // `Space::take`), a multiple of 64 bytes from its start, and the mapping lives as long as
        // `self.space`; anonymous pages are initialised and any bytes are values of T; no other
        // place overlaps this one until it is dropped.
        unsafe { std::slice::from_raw_parts(pointer, len) }
    }

    /// All values, to change them. Panics for a place without memory.
    pub(crate) fn slice_mut<T: Plain>(&mut self) -> &mut [T] {
        let (pointer, len) = self.parts();
        // SAFETY: as in `slice`, and `&mut self` is the only access to the place.
        unsafe { std::slice::from_raw_parts_mut(pointer, len) }
    }

    fn parts<T: Plain>(&self) -> (*mut T, usize) {
        let Inner { memory, scale, .. } = &*self.space.0;
        let memory = memory.as_ref().expect("what is only planned has no values");
        let len = self.range.len() * scale / size_of::<T>();
        // SAFETY: the range times the scale is within the mapping, checked in `Space::take`.
        let start = unsafe { memory.as_mut_ptr().add(self.range.start * scale) };
        (start.cast(), len)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.space.layout().give(self.range.clone());
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
        assert_eq!(layout.highest_top, 1280);
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
    fn places_start_as_zeros_on_cache_lines_and_hold_what_is_written() {
        let space = Space::reserve().expect("address space");
        let mut first = space.take(4 * 100).expect("a place");
        let second = space.take(4 * 7).expect("a place");
        let all_zero = |place: &Place| place.slice::<f32>().iter().all(|&v| v == 0.0);
        assert!(all_zero(&first) && all_zero(&second));
        assert_eq!(second.slice::<f32>().as_ptr() as usize % 64, 0);
        first.slice_mut().fill(2.0f32);
        assert!(all_zero(&second));
        drop((first, second));
        assert_eq!(space.layout().top, 0);
        assert_eq!(space.highest_top(), 512);
        assert!(space.take(usize::MAX / 2).is_none());
    }

    #[test]
    fn a_wide_place_holds_an_f64_for_each_nominal_value() {
        let space = Space::reserve_wide(4).expect("address space");
        let (mut a, b) = (space.take(2 * 96).expect("a"), space.take(2).expect("b"));
        assert!(a.slice::<f64>().len() >= 96);
        a.slice_mut().fill(1.5f64);
        assert!(b.slice::<f64>().iter().all(|&v| v == 0.0));
    }
}
