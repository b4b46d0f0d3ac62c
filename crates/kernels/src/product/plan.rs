//! How a product is cut into tasks and the depth into blocks, and the scratch that it takes: from
//! shapes alone. An element's sum does not depend on the tasks, so that they may follow the number
//! of threads.

use std::ops::Range;

use crate::element::DType;
use crate::matrix::AnyMatRef;
use crate::scratch::{ScratchNeed, bytes_of};

use super::Arithmetic;
use super::integers::{self, Needed};
use super::pack_bf16::pairs_of;
use super::pack_int8::groups_of;
use super::panels::{PANEL, PanelForm};
use super::strips::{self, MAX_ROWS};
use super::weights::Side;

/// Depth over which f32 sums run in registers; such sums are added in order, so that it decides the
/// bits. A strip of 12 rows takes 18 KiB of the L1 cache while panels pass by (measured against
/// 256: 1 to 2% more).
pub(super) const F32_DEPTH: usize = 384;

/// Rows of an f32 task, about.
const F32_ROWS: usize = 384;

/// Panels of an f32 task, at most: with [`F32_DEPTH`] deep blocks 384 KiB, for the L2 cache.
const F32_PANELS: usize = 8;

/// Threads for which an f32 product makes enough tasks however it is cut.
const FEW_THREADS: usize = 4;

/// Tasks of an f32 product for each of more threads.
const TASKS_OF_MANY: usize = 4;

/// Rows of such a task for which their copies pay.
const LONG_ROWS: usize = 96;

/// Bytes of the panels that a bf16 task works on: they share the L2 cache with a strip of `a`.
const GROUP_BYTES: usize = 384 * 1024;

/// Depth up to which bf16 panels are made whole in cache. A deeper sum, such as that over a
/// vocabulary, goes by blocks.
const WHOLE_DEPTH: usize = 6144;

/// Depth of such a block, a multiple of [`PANEL`]: the block's panels, [`GROUP_BYTES`] at most,
/// stay in the L2 cache.
const BLOCK_DEPTH: usize = 512;

/// Rows that a task sums by blocks at a time: the tiles wait in cache for the next block.
const BLOCK_ROWS: usize = 512;

/// Panels that a task sums by blocks: few, as their tiles wait in cache; as many as that allows, as
/// each task reads `a` anew.
const BLOCK_PANELS: usize = 6;

/// Rows of a task over packed strips are a multiple of every instruction set's tile: 12, 8, 6
/// and 4.
const PACKED_STEP: usize = 24;

/// Rows of such a task at most: beyond, a panel's way into the cache is paid for.
const PACKED_ROWS: usize = 192;

/// Rows up to which bf16 panels are widened in registers, anew for each strip of rows: beyond, once
/// in cache for all rows.
const WIDENED_ROWS: usize = 24;

/// How a tile gets its panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Where it lies.
    InPlace,
    /// Where it lies, bf16 pairs that are widened in registers.
    Registers,
    /// Made in cache by the task.
    Decoded,
}

/// What a product's scratch depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductShape {
    /// What multiplies.
    pub arithmetic: Arithmetic,
    /// Rows of a and c.
    pub m: usize,
    /// Rows of b, columns of c.
    pub n: usize,
    /// Columns of a and b.
    pub k: usize,
    /// How a lies.
    pub a: Order,
    /// How b's panels are found.
    pub b: PanelForm,
    /// The type of c.
    pub c: DType,
    /// Sum of the ranks of the low-rank terms.
    pub rank: usize,
    /// Low-rank terms.
    pub terms: usize,
    /// Columns of `a` that are kept beside where b is integers.
    pub outliers: usize,
}

/// What multiplies a and b. Low-rank terms are multiplied in the call's arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    F32,
    Bf16,
    Int8,
}

impl Base {
    /// Lines of a panel that so much depth makes.
    pub(super) fn lines(self, depth: usize) -> usize {
        match self {
            Base::F32 => depth,
            Base::Bf16 => pairs_of(depth),
            Base::Int8 => groups_of(depth),
        }
    }
}

/// Which elements of a matrix lie end to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Those of a row, or none.
    Rows,
    /// Those of a column, but not those of a row.
    Columns,
}

impl Order {
    /// That of a view.
    pub fn of(a: AnyMatRef) -> Self {
        match (a.row_stride(), a.col_stride()) {
            (1, stride) if stride != 1 => Order::Columns,
            _ => Order::Rows,
        }
    }
}

impl ProductShape {
    /// What multiplies a and b.
    pub(super) fn base(&self) -> Base {
        match (self.b, self.arithmetic) {
            (PanelForm::Integers(_), _) => Base::Int8,
            (_, Arithmetic::F32) => Base::F32,
            (_, Arithmetic::Bf16) => Base::Bf16,
        }
    }

    /// Whether sums are made in c itself: f32 sums over blocks of the depth are added to it.
    pub(super) fn sums_in_c(&self) -> bool {
        self.base() == Base::F32 && self.c == DType::F32
    }

    /// How a tile gets its panel.
    pub(super) fn reading(&self) -> Reading {
        match (self.base(), self.b) {
            (Base::F32, PanelForm::Lines) => Reading::InPlace,
            (Base::F32, PanelForm::Pairs) if self.m <= WIDENED_ROWS => Reading::Registers,
            (Base::Bf16, PanelForm::Pairs) => Reading::InPlace,
            (Base::Int8, PanelForm::Integers(Side::Straight)) => Reading::InPlace,
            (Base::F32 | Base::Bf16 | Base::Int8, _) => Reading::Decoded,
        }
    }

    /// What quantising `a` takes, where b is integers.
    pub(super) fn integers(&self) -> Option<Needed> {
        let &ProductShape {
            arithmetic,
            m,
            n,
            k,
            outliers,
            ..
        } = self;
        (self.base() == Base::Int8).then_some(Needed {
            m,
            n,
            k,
            outliers,
            arithmetic,
        })
    }

    /// For a product that is not empty.
    pub(super) fn plan(&self, threads: usize) -> Plan {
        let cut = match self.base() {
            Base::F32 => self.cut_f32(threads),
            Base::Bf16 if self.packs_strips() => self.cut_packed(threads),
            Base::Bf16 if self.reading() == Reading::Decoded && self.k > WHOLE_DEPTH => {
                self.cut_by_blocks(threads)
            }
            Base::Bf16 => self.cut_narrow(threads),
            Base::Int8 => Cut {
                depth: integers::DEPTH,
                ..self.cut_narrow(threads)
            },
        };
        Plan {
            buffers: self.buffers(&cut),
            cut,
            integers: self.integers().map(|needed| needed.scratch()),
        }
    }

    /// Whether whole strips of a transposed `a`, as where a weight's gradient sums over tokens, are
    /// packed ahead in pairs: rows copied one by one, anew for each group of panels, ran at a fifth
    /// of the speed.
    fn packs_strips(&self) -> bool {
        self.a == Order::Columns && self.terms == 0 && self.b == PanelForm::Pairs
    }

    fn cut(&self, n_groups: usize, n_row_blocks: usize, depth: usize) -> Cut {
        Cut {
            m: self.m,
            n_panels: self.n.div_ceil(PANEL),
            n_groups,
            rows: Rows::Even(n_row_blocks),
            depth,
        }
    }

    fn cut_f32(&self, threads: usize) -> Cut {
        let n_panels = self.n.div_ceil(PANEL);
        // Even groups: 24 panels in 3 groups of 8, 9 panels in 2 of 5 and 4.
        let n_groups = n_panels.div_ceil(F32_PANELS);
        if threads > FEW_THREADS {
            return self.cut_f32_for_many(n_groups, threads);
        }
        // Few rows leave the threads idle unless the panels are split finer.
        let n_groups = if self.m <= F32_ROWS {
            n_panels.div_ceil(3).max(n_groups)
        } else {
            n_groups
        };
        self.cut(n_groups, self.m.div_ceil(F32_ROWS), F32_DEPTH)
    }

    /// Some tasks for each of many threads, and not one more, which all others would wait for. Rows
    /// are cut first, down to so many that copying them pays, then panels; but panels that are made
    /// anew in each task before all.
    fn cut_f32_for_many(&self, fewest_groups: usize, threads: usize) -> Cut {
        let n_panels = self.n.div_ceil(PANEL);
        let wanted = TASKS_OF_MANY * threads;
        let n_groups = match self.reading() {
            Reading::Decoded => wanted,
            Reading::InPlace | Reading::Registers => {
                wanted.div_ceil(self.m.div_ceil(LONG_ROWS).max(1))
            }
        };
        let n_groups = n_groups.max(fewest_groups).min(n_panels);
        let n_row_blocks = (wanted / n_groups).min(self.m.div_ceil(PACKED_STEP));
        // The sums of a task are few enough for the caches whatever the threads.
        let n_row_blocks = n_row_blocks.max(self.m.div_ceil(F32_ROWS));
        self.cut(n_groups, n_row_blocks, F32_DEPTH)
    }

    /// For values of sixteen bits or eight.
    fn cut_narrow(&self, threads: usize) -> Cut {
        let n_panels = self.n.div_ceil(PANEL);
        let decoded = self.reading() == Reading::Decoded;
        let panel_bytes = self.base().lines(self.k) * PANEL * 4;
        let per_group = (GROUP_BYTES / panel_bytes.max(1)).clamp(1, 12);
        let mut n_groups = n_panels.div_ceil(per_group);
        if threads == 1 {
            return self.cut(n_groups, 1, self.k);
        }
        // Several tasks for each thread even out their ends. Panels that are made anew in each task
        // are cut by columns first, others by rows.
        let wanted = 6 * threads;
        if decoded || self.m < 64 * threads {
            n_groups = n_groups.max(wanted.min(n_panels));
        }
        let n_row_blocks = if decoded && n_groups >= 2 * threads {
            1
        } else {
            wanted.div_ceil(n_groups).min(self.m.div_ceil(48)).max(1)
        };
        self.cut(n_groups, n_row_blocks, self.k)
    }

    /// For sums by blocks of the depth.
    fn cut_by_blocks(&self, threads: usize) -> Cut {
        let n_panels = self.n.div_ceil(PANEL);
        let n_groups = n_panels
            .div_ceil(BLOCK_PANELS)
            .max((2 * threads).min(n_panels));
        self.cut(n_groups, self.m.div_ceil(BLOCK_ROWS), BLOCK_DEPTH)
    }

    /// For strips that are packed ahead.
    fn cut_packed(&self, threads: usize) -> Cut {
        let n_panels = self.n.div_ceil(PANEL);
        let wanted = 4 * threads;
        let in_cache = GROUP_BYTES / (4 * pairs_of(self.k).max(1));
        let rows = in_cache.min(PACKED_ROWS).min(self.m.div_ceil(wanted));
        let rows = rows.next_multiple_of(PACKED_STEP).max(PACKED_STEP);
        // Too few rows for all threads: the panels are cut too, and each part packs its strips.
        let n_groups = wanted.div_ceil(self.m.div_ceil(rows)).min(n_panels);
        Cut {
            rows: Rows::Packed(rows),
            ..self.cut(n_groups, 0, self.k)
        }
    }

    fn buffers(&self, cut: &Cut) -> Buffers<usize> {
        let (rows, panels) = (cut.most_rows(), cut.n_panels.div_ceil(cut.n_groups));
        let depth = cut.depth.min(self.k);
        let panel = PANEL * self.base().lines(depth);
        let strip = match (self.base(), cut.rows) {
            (Base::F32, _) => strips::F32_WORDS,
            (Base::Bf16, Rows::Packed(_)) => strips::packed_words(rows, depth),
            (Base::Bf16, Rows::Even(_)) => strips::pair_words(depth),
            // Rows are quantised once, for all tasks.
            (Base::Int8, _) => 0,
        };
        let terms_beside = usize::from(self.outliers > 0);
        let terms = match self.arithmetic {
            Arithmetic::F32 => 0,
            // Whole lines for each term's rank, and one more.
            Arithmetic::Bf16 => {
                let terms = self.terms + terms_beside;
                strips::pair_words(self.rank + self.outliers) + terms * strips::pair_words(PANEL)
            }
        };
        let tile = MAX_ROWS * PANEL;
        let tiles = match (self.sums_in_c(), depth < self.k) {
            (true, _) => 0,
            (false, false) => tile,
            // Strips of fewer rows have smaller tiles.
            (false, true) => (rows + MAX_ROWS) * panels * PANEL,
        };
        let panels_made = match self.reading() {
            Reading::InPlace | Reading::Registers => 0,
            Reading::Decoded => panels,
        };
        Buffers {
            panels: panels_made * panel,
            strip,
            terms,
            tiles,
        }
    }
}

/// The tasks and blocks of a product, and the buffers of a task.
pub(super) struct Plan {
    pub cut: Cut,
    /// In words of four bytes.
    pub buffers: Buffers<usize>,
    /// Of quantising the first operand.
    integers: Option<ScratchNeed>,
}

impl Plan {
    pub(super) fn scratch(&self) -> ScratchNeed {
        let Buffers {
            panels,
            strip,
            terms,
            tiles,
        } = self.buffers;
        let of_tasks = ScratchNeed {
            shared: 0,
            per_thread: [panels, strip, terms, tiles]
                .map(bytes_of::<u32>)
                .iter()
                .sum(),
        };
        self.integers
            .map_or(of_tasks, |integers| integers.max(of_tasks))
    }
}

/// A task's buffers, or their lengths.
pub(super) struct Buffers<T> {
    /// Panels that are made in cache.
    pub panels: T,
    /// A strip of `a` that is copied, or all of them.
    pub strip: T,
    /// A strip of each low-rank term.
    pub terms: T,
    /// Sums that are not made in c.
    pub tiles: T,
}

/// How the work is cut.
pub(super) struct Cut {
    m: usize,
    n_panels: usize,
    n_groups: usize,
    pub rows: Rows,
    /// Of a block.
    pub depth: usize,
}

/// How rows are cut.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows {
    /// In a number of even blocks, which one group of panels after the other passes through.
    Even(usize),
    /// In blocks of some rows, whose strips are packed ahead and pass by panel for panel.
    Packed(usize),
}

impl Cut {
    fn n_row_blocks(&self) -> usize {
        match self.rows {
            Rows::Even(blocks) => blocks,
            Rows::Packed(rows) => self.m.div_ceil(rows),
        }
    }

    fn most_rows(&self) -> usize {
        match self.rows {
            Rows::Even(blocks) => self.m.div_ceil(blocks),
            Rows::Packed(rows) => rows,
        }
    }

    pub(super) fn n_tasks(&self) -> usize {
        self.n_groups * self.n_row_blocks()
    }

    /// Panels and rows of a task. Neighbouring tasks share a group of panels, or packed rows.
    pub(super) fn task(&self, task: usize) -> [Range<usize>; 2] {
        let even = |i: usize, of: usize, len: usize| i * len / of..(i + 1) * len / of;
        let panels = |group: usize| even(group, self.n_groups, self.n_panels);
        match self.rows {
            Rows::Even(blocks) => {
                let (group, block) = (task / blocks, task % blocks);
                [panels(group), even(block, blocks, self.m)]
            }
            Rows::Packed(rows) => {
                let (block, group) = (task / self.n_groups, task % self.n_groups);
                [
                    panels(group),
                    block * rows..((block + 1) * rows).min(self.m),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape([m, n, k]: [usize; 3], b: PanelForm, arithmetic: Arithmetic) -> ProductShape {
        ProductShape {
            arithmetic,
            m,
            n,
            k,
            a: Order::Rows,
            b,
            c: DType::F32,
            rank: 0,
            terms: 0,
            outliers: 0,
        }
    }

    #[test]
    fn many_threads_have_tasks_that_come_out_even() {
        let forms = [
            (PanelForm::Lines, Arithmetic::F32),
            (PanelForm::Decoded, Arithmetic::F32),
            (PanelForm::Pairs, Arithmetic::F32),
            (PanelForm::Pairs, Arithmetic::Bf16),
        ];
        for (form, arithmetic) in forms {
            for sizes in [[2048, 768, 768], [2048, 3072, 768], [2048, 768, 3072]] {
                for threads in [8, 16, 64] {
                    let tasks = shape(sizes, form, arithmetic).plan(threads).cut.n_tasks();
                    let rounds = tasks.div_ceil(threads);
                    let busy = tasks as f64 / (rounds * threads) as f64;
                    let what = format!("{tasks} tasks of {sizes:?} {form:?} for {threads}");
                    assert!(rounds >= 2 && busy > 0.85, "{what}");
                }
            }
        }
    }

    #[test]
    fn every_row_and_panel_is_in_one_task() {
        for threads in [1, 2, 4, 5, 64, 1024] {
            for [m, n] in [[1, 1], [1, 768], [5, 8], [400, 65], [2048, 8], [97, 3072]] {
                for form in [PanelForm::Lines, PanelForm::Decoded] {
                    let cut = shape([m, n, 40], form, Arithmetic::F32).plan(threads).cut;
                    let mut met = vec![0; m * n.div_ceil(PANEL)];
                    for task in 0..cut.n_tasks() {
                        let [panels, rows] = cut.task(task);
                        for row in rows {
                            let row = &mut met[row * n.div_ceil(PANEL)..][panels.clone()];
                            row.iter_mut().for_each(|met| *met += 1);
                        }
                    }
                    assert!(met.iter().all(|met| *met == 1), "{m} x {n} for {threads}");
                }
            }
        }
    }
}
