//! A task's panels as its tiles find them, in place or made in cache.

use std::ops::Range;

use half::bf16;

use crate::aligned::typed_mut;

use super::driver::{Block, Job};
use super::pack_bf16::pairs_of;
use super::pack_int8::GROUP;
use super::panels::{PANEL, PanelPart, PanelsInPlace};
use super::plan::{Base, Reading};

/// Where a tile finds a task's panels, from the block's first depth on, in words of four bytes.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub start: *const u32,
    /// Distance between panels.
    pub panel: usize,
    /// Distance between lines.
    pub line: usize,
    /// Depths of a line: one, two of bf16, four of integers.
    pub depths: usize,
    /// Whether the last panel is whole.
    pub padded: bool,
}

impl Panels {
    fn lines(start: *const f32, [panel, line]: [usize; 2]) -> Self {
        Self {
            start: start.cast(),
            panel,
            line,
            depths: 1,
            padded: true,
        }
    }

    fn pairs(start: *const bf16, depth: usize) -> Self {
        Self {
            start: start.cast(),
            panel: pairs_of(depth) * PANEL,
            line: PANEL,
            depths: 2,
            padded: true,
        }
    }

    /// Panels of integers, so many words apart.
    fn integers(start: *const u32, panel: usize) -> Self {
        Self {
            start,
            panel,
            line: PANEL,
            depths: GROUP,
            padded: true,
        }
    }

    /// All panels, where they lie.
    fn in_place(panels: PanelsInPlace, depth: usize) -> Self {
        match panels {
            PanelsInPlace::Lines {
                values,
                panel_stride,
                depth_stride,
                padded,
            } => Self {
                padded,
                ..Self::lines(values.as_ptr(), [panel_stride, depth_stride])
            },
            PanelsInPlace::Pairs(values) => Self::pairs(values.as_ptr(), depth),
        }
    }

    /// Those from a panel and a depth on, which starts a line.
    pub(super) fn from(self, panel: usize, depth: usize) -> Self {
        let start = self
            .start
            .wrapping_add(panel * self.panel + depth / self.depths * self.line);
        Self { start, ..self }
    }

    /// A task's panels of a block, made in `words` where they cannot be read in place.
    pub(super) fn of(job: &Job, panels: Range<usize>, block: Block, words: &mut [u32]) -> Self {
        let (first, shape) = (panels.start, &job.shape);
        if shape.reading() != Reading::Decoded {
            if let Some(integers) = job.integers {
                let all = &integers.panels;
                let start = all.panel(first).words().as_ptr();
                return Self::integers(start, all.panel_words()).from(0, block.start);
            }
            if let Some(panels) = job.in_place {
                return Self::in_place(panels, shape.k).from(first, block.start);
            }
        }
        let (depth, isa) = (block.depth, job.isa);
        let words_of_panel = PANEL * shape.base().lines(depth);
        for (i, panel) in panels.enumerate() {
            let into = &mut words[i * words_of_panel..][..words_of_panel];
            let depth = block.start..block.start + depth;
            let part = PanelPart { panel, depth };
            match (shape.base(), job.integers) {
                (Base::F32, _) => job.call.b.widen(isa, part, typed_mut(into)),
                (Base::Bf16, _) => job.call.b.pairs(isa, part, typed_mut(into)),
                (Base::Int8, Some(integers)) => {
                    integers.panels.transposed_words(isa, &part, into);
                }
                (Base::Int8, None) => unreachable!("a product with integers has them"),
            }
        }
        match shape.base() {
            Base::F32 => Self::lines(words.as_ptr().cast(), [words_of_panel, PANEL]),
            Base::Bf16 => Self::pairs(words.as_ptr().cast(), depth),
            Base::Int8 => Self::integers(words.as_ptr(), words_of_panel),
        }
    }
}
