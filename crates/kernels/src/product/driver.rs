//! The one way through a product: task by task, block by block of the depth, strip by strip of
//! rows, panel by panel.

use std::ops::Range;

use half::bf16;

use crate::element::Element;
use crate::isa::Isa;
use crate::matrix::{AnyMatRef, MatRef, each_type};
use crate::parallel::for_each_task;
use crate::scratch::Slots;
use crate::simd::{Simd, SimdOp, dispatch};

use super::epilogue::{Rectangle, Sink, Sums};
use super::integers::Integers;
use super::pack_bf16::{in_place, pairs_of};
use super::panels::{PANEL, PanelsInPlace};
use super::plan::{Base, Buffers, F32_DEPTH, Plan, Rows};
use super::strips::{
    Reuse, Strip, converted, f32_strip, pack_strips, packed_strip, pair_strip, pair_words,
};
use super::task_panels::Panels;
use super::terms::TermPart;
use super::tile_bf16::{Ahead, Product as PairTile, product_tile};
use super::tile_f32::{Block as F32Tile, multiply_rows, multiply_rows_of_pairs};
use super::tile_int8::IntegerTile;
use super::{Arithmetic, Product, ProductShape};

/// A product with all that its tasks share. Lengths were checked against the shapes.
pub(super) struct Job<'a> {
    pub isa: Isa,
    pub call: &'a Product<'a>,
    pub shape: ProductShape,
    pub in_place: Option<PanelsInPlace<'a>>,
    /// The first operand in integers, where the second one is such.
    pub integers: Option<&'a Integers<'a>>,
    pub plan: &'a Plan,
    pub sink: &'a Sink<'a>,
    pub slots: &'a Slots<'a>,
}

impl Job<'_> {
    pub(super) fn run(&self) {
        for_each_task(self.plan.cut.n_tasks(), |task| {
            let [panels, rows] = self.plan.cut.task(task);
            let job = self;
            dispatch(self.isa, Task { job, panels, rows });
        });
    }
}

/// The rows and panels of one task.
struct Task<'j, 'a> {
    job: &'j Job<'a>,
    panels: Range<usize>,
    rows: Range<usize>,
}

/// The part of the depth that is summed at once.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub start: usize,
    pub depth: usize,
    /// Whether sums end with it. They begin with the block that starts at 0.
    last: bool,
}

impl Block {
    fn is_first(&self) -> bool {
        self.start == 0
    }

    fn is_whole(&self) -> bool {
        self.is_first() && self.last
    }
}

impl SimdOp for Task<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (plan, k) = (self.job.plan, self.job.shape.k);
        let mut slot = self.job.slots.take();
        let mut room = slot.room();
        let mut buffers = Buffers {
            panels: room.take(plan.buffers.panels),
            strip: room.take(plan.buffers.strip),
            terms: room.take(plan.buffers.terms),
            tiles: room.take(plan.buffers.tiles),
        };
        let mut start = 0;
        loop {
            let depth = plan.cut.depth.min(k - start);
            let last = start + depth == k;
            let block = Block { start, depth, last };
            let panels = Panels::of(self.job, self.panels.clone(), block, buffers.panels);
            match plan.cut.rows {
                Rows::Even(_) => self.by_strips(s, block, panels, &mut buffers),
                Rows::Packed(_) => self.by_panels(s, block, panels, &mut buffers),
            }
            if last {
                break;
            }
            start += depth;
        }
    }
}

impl Task<'_, '_> {
    /// Adds a block's part of the product: each strip of rows meets all panels.
    #[inline(always)]
    fn by_strips<S: Simd>(
        &self,
        s: S,
        block: Block,
        panels: Panels,
        buffers: &mut Buffers<&mut [u32]>,
    ) {
        for (index, row) in self.rows.clone().step_by(S::GEMM_ROWS).enumerate() {
            s.call(StripOp {
                task: self,
                block,
                panels,
                index,
                rows: row..(row + S::GEMM_ROWS).min(self.rows.end),
                buffers,
            });
        }
    }

    /// The whole product: each panel meets all strips, which are packed ahead.
    #[inline(always)]
    fn by_panels<S: Simd>(
        &self,
        s: S,
        block: Block,
        panels: Panels,
        buffers: &mut Buffers<&mut [u32]>,
    ) {
        let call = self.job.call;
        let a = call.a.rows_range(self.rows.clone());
        each_type!(a, a => pack_strips(s, a, call.alpha, buffers.strip));
        for i in 0..self.panels.len() {
            for (index, row) in self.rows.clone().step_by(S::GEMM_ROWS).enumerate() {
                let rows = row..(row + S::GEMM_ROWS).min(self.rows.end);
                let tile = self.tile(&rows, i, buffers.tiles);
                self.job.sink.prefetch(s, tile.at);
                let strip = packed_strip::<S>(index, block.depth, buffers.strip);
                // SAFETY: the strip was packed for this depth; the panels are those of this block.
                unsafe { self.sum(s, &tile, strip, block, panels) };
                // SAFETY: the rectangle lies inside [m, n], and tasks' rectangles are disjoint.
                unsafe { self.job.sink.write(s, tile.sums, tile.at) };
            }
        }
    }

    /// The rectangle of some rows and the task's panel `i`, whose sums are made in c or in `words`.
    #[inline(always)]
    fn tile(&self, rows: &Range<usize>, i: usize, words: &mut [u32]) -> Tile {
        let (panel, column) = (i, (self.panels.start + i) * PANEL);
        let at = Rectangle {
            row: rows.start,
            column,
            rows: rows.len(),
            columns: (self.job.shape.n - column).min(PANEL),
        };
        let sums = self.job.sink.sums(at).unwrap_or(Sums {
            start: words.as_mut_ptr().cast(),
            stride: PANEL,
        });
        let ahead = Ahead::NOTHING;
        Tile {
            at,
            panel,
            sums,
            ahead,
        }
    }

    /// Adds a strip times a panel to a tile's sums, which begin with the depth.
    ///
    /// # Safety
    /// The strip and the panels cover the block's depth, the sums the tile's rows by whole vectors
    /// where they are not c.
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, s: S, tile: &Tile, strip: Strip, block: Block, panels: Panels) {
        let call = self.job.call;
        let (at, sums, b) = (tile.at, tile.sums, panels.from(tile.panel, 0));
        match self.job.shape.base() {
            Base::F32 => {
                let bias = match call.bias {
                    Some(bias) if block.is_first() => bias[at.column..][..at.columns].as_ptr(),
                    _ => std::ptr::null(),
                };
                let tile = F32Tile {
                    a: strip.start.cast(),
                    a_row: strip.row,
                    a_col: strip.depth,
                    b: b.start.cast(),
                    b_row: b.line,
                    b_panel: b.panel,
                    b_padded: b.padded,
                    c: sums.start,
                    c_row: sums.stride,
                    bias,
                    m: at.rows,
                    n: at.columns,
                    k: block.depth,
                    alpha: call.alpha,
                    accumulate: self.job.sink.adds_in_c() || !block.is_first(),
                };
                // SAFETY: the caller's contract.
                unsafe {
                    match b.depths {
                        2 => multiply_rows_of_pairs(s, &tile),
                        _ => multiply_rows(s, &tile),
                    }
                }
            }
            Base::Bf16 => {
                let tile = PairTile {
                    a: strip.start,
                    a_row: strip.row,
                    a_pair: strip.depth,
                    b: b.start,
                    pairs: pairs_of(block.depth),
                    rows: at.rows,
                    columns: at.columns,
                    c: sums.start,
                    c_row: sums.stride,
                    accumulate: !block.is_first(),
                    ahead: tile.ahead,
                };
                // SAFETY: the caller's contract.
                unsafe { product_tile(s, &tile) };
            }
            Base::Int8 => {
                let integers = self.job.integers.expect("b is integers");
                let tile = IntegerTile {
                    a: strip.start,
                    a_row: strip.row,
                    b: b.start,
                    c: sums.start,
                    c_row: sums.stride,
                    accumulate: !block.is_first(),
                    ..integers.tile(at, block.start..block.start + block.depth)
                };
                // SAFETY: the caller's contract; the unit was chosen for this machine.
                unsafe { integers.unit.run(&tile) };
            }
        }
    }
}

/// A strip's rows against one panel.
struct Tile {
    at: Rectangle,
    /// Of the task's.
    panel: usize,
    sums: Sums,
    /// What to bring nearer meanwhile.
    ahead: Ahead,
}

/// A strip of rows against all panels of a task, one block of the depth.
struct StripOp<'o, 'j, 'a, 'b> {
    task: &'o Task<'j, 'a>,
    block: Block,
    panels: Panels,
    /// Of the task's strips.
    index: usize,
    rows: Range<usize>,
    buffers: &'o mut Buffers<&'b mut [u32]>,
}

impl SimdOp for StripOp<'_, '_, '_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (task, block) = (self.task, self.block);
        let (sink, n_panels) = (task.job.sink, task.panels.len());
        let strip = self.strip(s);
        let next = self.next_pairs(s);
        for i in 0..n_panels {
            let tile = self.tile(s, i, next);
            if block.last {
                sink.prefetch(s, tile.at);
            }
            // SAFETY: the strip was made for this block and the panels are its own; a tile's words
            // hold GEMM_ROWS rows.
            unsafe { task.sum(s, &tile, strip, block, self.panels) };
            if block.last {
                self.add_terms(s, &tile);
                // SAFETY: the rectangle lies inside [m, n], and tasks' rectangles are disjoint.
                unsafe { sink.write(s, tile.sums, tile.at) };
            }
        }
    }
}

impl<'a> StripOp<'_, '_, 'a, '_> {
    /// The block's part of the rows, and at the end of the depth the strips of terms that need a
    /// copy.
    #[inline(always)]
    fn strip<S: Simd>(&mut self, s: S) -> Strip {
        let job = self.task.job;
        let (call, a) = (job.call, self.rows_of_a(self.rows.clone()));
        if self.block.last && call.arithmetic == Arithmetic::Bf16 {
            let mut words = &mut *self.buffers.terms;
            for term in TermPart::of(call.low_rank, &self.rows) {
                pair_strip(s, term.h.into(), term.scale, words);
                words = &mut words[pair_words(term.h.cols())..];
            }
        }
        match job.shape.base() {
            Base::F32 => {
                let reuse = Reuse::of(self.task.panels.len());
                f32_strip(s, a, reuse, self.buffers.strip)
            }
            Base::Bf16 => {
                if !self.block.is_whole() {
                    let next = self.rows.end..(self.rows.end + self.rows.len());
                    self.bring_near(s, next.start..next.end.min(self.task.rows.end));
                }
                pair_strip(s, a, call.alpha, self.buffers.strip)
            }
            Base::Int8 => {
                let integers = job.integers.expect("b is integers");
                let (start, row) = integers.strip(self.rows.start, self.block.start);
                let depth = 1;
                Strip { start, row, depth }
            }
        }
    }

    /// The block's columns of some rows of a.
    #[inline(always)]
    fn rows_of_a(&self, rows: Range<usize>) -> AnyMatRef<'a> {
        let Block { start, depth, .. } = self.block;
        let a = self.task.job.call.a;
        a.cols_range(start..start + depth).rows_range(rows)
    }

    /// Asks for rows that are read where they lie, a part of longer ones.
    #[inline(always)]
    fn bring_near<S: Simd>(&self, s: S, rows: Range<usize>) {
        let AnyMatRef::Bf16(a) = self.rows_of_a(rows) else {
            return;
        };
        let Some(start) = in_place(&a) else { return };
        for row in 0..a.rows() {
            for column in (0..a.cols()).step_by(32) {
                s.prefetch_far(start.wrapping_add(row * a.row_stride() + column).cast());
            }
        }
    }

    /// Tile `i`, with a share of what the next strip reads to be brought nearer.
    #[inline(always)]
    fn tile<S: Simd>(&mut self, s: S, i: usize, next: Option<Shares>) -> Tile {
        let n_panels = self.task.panels.len();
        let index = match self.block.is_whole() {
            true => 0,
            false => self.index * n_panels + i,
        };
        let words = &mut *self.buffers.tiles;
        let start = (index * S::GEMM_ROWS * PANEL).min(words.len());
        let mut tile = self.task.tile(&self.rows, i, &mut words[start..]);
        match self.task.job.shape.base() {
            Base::F32 => self.bring_next_f32(s, i),
            Base::Int8 => {}
            Base::Bf16 => {
                if let Some(next) = next {
                    tile.ahead = Ahead {
                        start: next.start.wrapping_add(next.share * i),
                        step: next.step,
                    };
                }
            }
        }
        tile
    }

    /// While panel `i` is multiplied, its share of the next strip's rows, which are copied, comes
    /// nearer.
    #[inline(always)]
    fn bring_next_f32<S: Simd>(&self, s: S, i: usize) {
        let (task, Block { start, depth, .. }) = (self.task, self.block);
        let (a, n_panels) = (task.job.call.a, task.panels.len());
        if a.col_stride() != 1 || Reuse::of(n_panels) == Reuse::Few {
            return;
        }
        let (row, column) = if self.rows.end < task.rows.end {
            (self.rows.end, start)
        } else {
            (task.rows.start, start + depth)
        };
        let len = self.rows.len();
        let rows = row + i * len / n_panels..row + (i + 1) * len / n_panels;
        each_type!(a, a => prefetch_rows(s, a, rows, column..column + depth));
    }

    /// The next strip, if it is read where it lies, to come nearer in shares while panels are
    /// multiplied. Behind the last strip the task's first rows come again: the task that follows,
    /// another group of panels, begins there.
    #[inline(always)]
    fn next_pairs<S: Simd>(&self, _: S) -> Option<Shares> {
        let (task, n_panels) = (self.task, self.task.panels.len());
        let AnyMatRef::Bf16(a) = task.job.call.a else {
            return None;
        };
        let row = if self.rows.end < task.rows.end {
            self.rows.end
        } else {
            task.rows.start
        };
        let share = S::GEMM_ROWS * a.row_stride() / n_panels;
        in_place(&a)
            .filter(|_| self.block.is_whole())
            .map(|start| Shares {
                start: start.wrapping_add(row * a.row_stride()),
                share,
                step: share.div_ceil(pairs_of(self.block.depth).max(1)),
            })
    }

    /// Adds the low-rank terms to a tile's complete sums.
    #[inline(always)]
    fn add_terms<S: Simd>(&self, s: S, tile: &Tile) {
        let (call, at) = (self.task.job.call, tile.at);
        let mut words = &*self.buffers.terms;
        for term in TermPart::of(call.low_rank, &self.rows) {
            let (h, rank) = (term.h, term.h.cols());
            let c = tile.sums.start.wrapping_add(term.first * tile.sums.stride);
            match call.arithmetic {
                Arithmetic::F32 => {
                    let panel = term.g.wrapping_add(at.column * rank);
                    for start in (0..rank).step_by(F32_DEPTH) {
                        let tile = F32Tile {
                            a: h.as_ptr().wrapping_add(start),
                            a_row: h.row_stride(),
                            a_col: 1,
                            b: panel.wrapping_add(start * PANEL).cast(),
                            b_row: PANEL,
                            b_panel: rank * PANEL,
                            b_padded: true,
                            c,
                            c_row: tile.sums.stride,
                            bias: std::ptr::null(),
                            m: h.rows(),
                            n: at.columns,
                            k: F32_DEPTH.min(rank - start),
                            alpha: term.scale,
                            accumulate: true,
                        };
                        // SAFETY: the part's rows are those of the tile from `first` on;
                        // `Product::check` compared g's shape.
                        unsafe { multiply_rows(s, &tile) };
                    }
                }
                Arithmetic::Bf16 => {
                    let strip = converted(words, rank);
                    words = &words[pair_words(rank)..];
                    let pairs = pairs_of(rank);
                    let tile = PairTile {
                        a: strip.start,
                        a_row: strip.row,
                        a_pair: strip.depth,
                        b: term.g.wrapping_add(at.column * pairs),
                        pairs,
                        rows: h.rows(),
                        columns: at.columns,
                        c,
                        c_row: tile.sums.stride,
                        accumulate: true,
                        ahead: Ahead::NOTHING,
                    };
                    // SAFETY: as above; `strip` converted the part's rows of h.
                    unsafe { product_tile(s, &tile) };
                }
            }
        }
    }
}

/// Rows to come nearer, an even share while each panel is multiplied.
#[derive(Clone, Copy)]
struct Shares {
    start: *const bf16,
    /// In values.
    share: usize,
    /// From one pair of the depth to the next.
    step: usize,
}

/// Asks for a rectangle of a matrix with contiguous rows, which may end within it.
#[inline(always)]
fn prefetch_rows<S: Simd, E: Element>(
    s: S,
    a: MatRef<E>,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    for row in rows {
        let start = a
            .as_ptr()
            .wrapping_add(row * a.row_stride() + columns.start);
        for at in (0..columns.len()).step_by(64 / size_of::<E>()) {
            s.prefetch(start.wrapping_add(at).cast());
        }
    }
}
