//! GEMM with bf16 operands and f32 sums: c = alpha·a·bᵀ + scale·h·gᵀ + bias, then what the layer does with it, in registers and cache.
//!
//! `b` is packed once into panels of [`PANEL`] columns whose k come in pairs, as the machine's product of bf16 pairs wants
//! them. A tile's sum runs over the whole depth in registers, in order, so that an element's bits depend on k alone. Rows
//! of a bf16 `a` are read where they lie; others are converted strip by strip. `h·gᵀ` is the low-rank term of an adapter:
//! r more of the depth. What happens at the end is an [`Epilogue`]: a pass over c that costs no trip to memory.

mod columns;
mod epilogue;
mod kernel;
mod packing;

use crate::activation::Activation;
use crate::aligned::Aligned;
use crate::element::Element;
use crate::gemm::PANEL;
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::for_each_task;
use crate::simd::{Simd, SimdOp, dispatch};
use epilogue::Sink;
use half::bf16;
use kernel::TILE_LEN;
pub(crate) use kernel::{Ahead, Product, product_tile};
use packing::{in_place, repack_panel};
pub use packing::{pack_bf16, packed_bf16_len, unpack_bf16};
pub(crate) use packing::{pack_columns, pack_rows_of, pairs_of};
use std::cell::RefCell;
use std::ops::Range;

/// Bytes of the packed operand that a task works on: they share the L2 cache with a strip of `a`.
const GROUP_BYTES: usize = 384 * 1024;

/// Depth up to which panels made in cache are made whole. A deeper sum, such as that over a vocabulary, goes by blocks.
const WHOLE_DEPTH: usize = 6144;

/// Depth of such a block, a multiple of [`PANEL`]: the block's panels, [`GROUP_BYTES`] at most, stay in the L2 cache.
const BLOCK_DEPTH: usize = 512;

/// Rows that a task sums by blocks at a time: the tiles wait in cache for the next block.
const BLOCK_ROWS: usize = 512;

/// Panels that a task sums by blocks: few, as their tiles wait in cache; as many as that allows, as each task reads `a` anew.
const BLOCK_PANELS: usize = 6;

/// The packed operand b [n, k].
#[derive(Clone, Copy, Debug)]
pub enum PackedBf16<'a> {
    /// The packed form of b.
    Rows(&'a [bf16]),
    /// The packed form of bᵀ [k, n]: b's panels are made from it in cache, for each task anew. The backward of a frozen
    /// weight works from the forward's packed form in this way.
    Transposed(&'a [bf16]),
}

/// The second product: h [m, r] times the packed g [n, r], h multiplied by `scale` first.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// [m, r].
    pub h: MatRef<'a>,
    /// The packed form of g [n, r].
    pub g_packed: &'a [bf16],
    /// Factor of the term.
    pub scale: f32,
}

/// One product with its terms.
#[derive(Clone, Copy, Debug)]
pub struct GemmBf16<'a, A> {
    /// [m, k]; may be any view. Fastest for bf16 rows of even length, and for the transpose of such a matrix.
    pub a: MatRef<'a, A>,
    /// Factor of a.
    pub alpha: f32,
    /// b [n, k].
    pub b: PackedBf16<'a>,
    /// Rows of b: columns of c.
    pub n: usize,
    /// The second product, if there is one.
    pub low_rank: Option<LowRank<'a>>,
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
}

/// What becomes of v = alpha·a·bᵀ + scale·h·gᵀ + bias. All matrices are [m, n].
pub enum Epilogue<'a, C> {
    /// c = v.
    Store(&'a mut [C]),
    /// c += v.
    Add(&'a mut [C]),
    /// c = f(v), and v itself is stored if its backward will need it.
    Activate {
        /// f.
        kind: Activation,
        /// v.
        pre: Option<&'a mut [C]>,
        /// f(v).
        c: &'a mut [C],
    },
    /// c = v f'(pre): the backward of an activation between two layers.
    ActivateBackward {
        /// f.
        kind: Activation,
        /// The activation's input.
        pre: &'a [C],
        /// The gradient of that input.
        c: &'a mut [C],
    },
}

/// Runs a product. Panics if a length disagrees with the shapes.
pub fn gemm_bf16<A: Element, C: Element>(isa: Isa, g: &GemmBf16<A>, epilogue: Epilogue<C>) {
    let (m, n, k) = (g.a.rows(), g.n, g.a.cols());
    match g.b {
        PackedBf16::Rows(b) => assert_eq!(b.len(), packed_bf16_len(n, k), "packed [{n}, {k}]"),
        PackedBf16::Transposed(b) => {
            assert_eq!(b.len(), packed_bf16_len(k, n), "packed [{k}, {n}]");
        }
    }
    if let Some(term) = &g.low_rank {
        assert_eq!(term.h.rows(), m, "rows of the low-rank term");
        let r = term.h.cols();
        assert_eq!(
            term.g_packed.len(),
            packed_bf16_len(n, r),
            "packed [{n}, {r}]"
        );
    }
    if let Some(bias) = g.bias {
        assert_eq!(bias.len(), n, "bias");
    }
    let sink = Sink::new(epilogue, m, n, g.bias);
    if m == 0 || n == 0 {
        return;
    }
    if columns::fits(g) {
        return columns::run(isa, g, &sink);
    }
    let transposed = matches!(g.b, PackedBf16::Transposed(_));
    let plan = if transposed && k > WHOLE_DEPTH {
        TaskPlan::by_blocks(m, n)
    } else {
        TaskPlan::new(m, n, k, transposed)
    };
    for_each_task(plan.n_groups * plan.n_row_blocks, |task| {
        let (panels, rows) = plan.task(task);
        dispatch(
            isa,
            Task {
                g,
                sink: &sink,
                panels,
                rows,
            },
        );
    });
}

/// How the work is cut. An element's sum does not depend on it, so it may follow the number of threads.
struct TaskPlan {
    m: usize,
    n_panels: usize,
    n_groups: usize,
    n_row_blocks: usize,
}

impl TaskPlan {
    fn new(m: usize, n: usize, k: usize, transposed: bool) -> Self {
        let threads = rayon::current_num_threads();
        let n_panels = n.div_ceil(PANEL);
        let per_group = (GROUP_BYTES / (pairs_of(k) * PANEL * 4).max(1)).clamp(1, 12);
        let mut n_groups = n_panels.div_ceil(per_group);
        if threads == 1 {
            return Self {
                m,
                n_panels,
                n_groups,
                n_row_blocks: 1,
            };
        }
        // Several tasks for each thread even out their ends. Panels that are made anew in each task are cut by columns
        // first, others by rows.
        let wanted = 6 * threads;
        if transposed || m < 64 * threads {
            n_groups = n_groups.max(wanted.min(n_panels));
        }
        let n_row_blocks = wanted.div_ceil(n_groups).min(m.div_ceil(48)).max(1);
        let n_row_blocks = if transposed && n_groups >= 2 * threads {
            1
        } else {
            n_row_blocks
        };
        Self {
            m,
            n_panels,
            n_groups,
            n_row_blocks,
        }
    }

    /// For sums by blocks of the depth.
    fn by_blocks(m: usize, n: usize) -> Self {
        let n_panels = n.div_ceil(PANEL);
        let wanted = 2 * rayon::current_num_threads();
        Self {
            m,
            n_panels,
            n_groups: n_panels.div_ceil(BLOCK_PANELS).max(wanted.min(n_panels)),
            n_row_blocks: m.div_ceil(BLOCK_ROWS),
        }
    }

    /// Panels and rows of a task. Neighbouring tasks share a group of panels.
    fn task(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let (group, block) = (task / self.n_row_blocks, task % self.n_row_blocks);
        let cut = |i: usize, of: usize, len: usize| i * len / of;
        let panels =
            cut(group, self.n_groups, self.n_panels)..cut(group + 1, self.n_groups, self.n_panels);
        let rows = cut(block, self.n_row_blocks, self.m)..cut(block + 1, self.n_row_blocks, self.m);
        (panels, rows)
    }
}

struct Task<'a, A, C> {
    g: &'a GemmBf16<'a, A>,
    sink: &'a Sink<'a, C>,
    panels: Range<usize>,
    rows: Range<usize>,
}

/// Buffers that a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    panels: Aligned<bf16>,
    strip: Aligned<bf16>,
    low_rank: Aligned<bf16>,
    tiles: Aligned<[f32; TILE_LEN]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<A: Element, C: Element> SimdOp for Task<'_, A, C> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut scratch = SCRATCH.take();
        self.run_with(s, &mut scratch);
        SCRATCH.set(scratch);
    }
}

/// A stretch of the depth, and whether sums begin or end with it.
struct Block<'a> {
    first: bool,
    last: bool,
    /// Columns of a.
    columns: Range<usize>,
    /// The task's panels, this depth of each.
    panels: &'a [bf16],
}

impl<A: Element, C: Element> Task<'_, A, C> {
    #[inline(always)]
    fn run_with<S: Simd>(&self, s: S, scratch: &mut Scratch) {
        let (n, k) = (self.g.n, self.g.a.cols());
        let b = match self.g.b {
            PackedBf16::Rows(b) => {
                let panel_len = 2 * PANEL * pairs_of(k);
                let panels = &b[self.panels.start * panel_len..self.panels.end * panel_len];
                return self.multiply(s, scratch, &Block::whole(k, panels));
            }
            PackedBf16::Transposed(b) => b,
        };
        let deepest = if k > WHOLE_DEPTH { BLOCK_DEPTH } else { k };
        let mut buffer = std::mem::take(&mut scratch.panels);
        let mut start = 0;
        // An empty depth is one block too: c is then the bias.
        while start == 0 || start < k {
            let depth = deepest.min(k - start);
            let panel_len = 2 * PANEL * pairs_of(depth);
            let len = self.panels.len() * panel_len;
            let panels = buffer.at_least(len);
            let source = &b[packed_bf16_len(start, n)..][..packed_bf16_len(depth, n)];
            for (i, panel) in self.panels.clone().enumerate() {
                let dst = &mut panels[i * panel_len..][..panel_len];
                repack_panel(s, source, [depth, n], panel, dst);
            }
            let block = Block {
                first: start == 0,
                last: start + depth == k,
                columns: start..start + depth,
                panels,
            };
            self.multiply(s, scratch, &block);
            start += depth.max(1);
        }
        scratch.panels = buffer;
    }

    /// The task's rows times one block. Unless it is the last, the sums are left in the scratch's tiles.
    #[inline(always)]
    fn multiply<S: Simd>(&self, s: S, scratch: &mut Scratch, block: &Block) {
        let (g, n) = (self.g, self.g.n);
        let (a, whole) = (g.a.cols_range(block.columns.clone()), block.is_whole());
        let (pairs, n_panels) = (pairs_of(a.cols()), self.panels.len());
        let panel_len = 2 * PANEL * pairs;
        let n_tiles = if whole {
            1
        } else {
            self.rows.len().div_ceil(S::GEMM_ROWS) * n_panels
        };
        scratch.tiles.at_least(n_tiles);
        let mut next_tile = 0;
        let mut row = self.rows.start;
        while row < self.rows.end {
            let rows = (self.rows.end - row).min(S::GEMM_ROWS);
            let strip = strip_of(s, a, row, rows, g.alpha, &mut scratch.strip);
            let low_rank = g.low_rank.filter(|_| block.last).map(|term| {
                let h = strip_of(s, term.h, row, rows, term.scale, &mut scratch.low_rank);
                (h, term.g_packed, 2 * PANEL * pairs_of(term.h.cols()))
            });
            let next = Next::new(&a, row + rows, S::GEMM_ROWS, &self.rows).filter(|_| whole);
            if !whole {
                bring_near(s, &a, row + rows..(row + 2 * rows).min(self.rows.end));
            }
            for i in 0..n_panels {
                let column = (self.panels.start + i) * PANEL;
                let columns = (n - column).min(PANEL);
                if block.last {
                    self.sink.prefetch(s, row, rows, column);
                }
                let tile = &mut scratch.tiles[next_tile];
                next_tile += usize::from(!whole);
                let mut product = Product {
                    a: strip.start.cast(),
                    a_row: strip.stride / 2,
                    a_pair: 1,
                    b: block.panels[i * panel_len..].as_ptr().cast(),
                    pairs,
                    rows,
                    columns,
                    c: tile.as_mut_ptr(),
                    c_row: PANEL,
                    accumulate: !block.first,
                    ahead: match next {
                        Some(next) => next.share(i, n_panels, pairs),
                        None => Ahead::NOTHING,
                    },
                };
                // SAFETY: `strip_of` and the asserted lengths cover rows x pairs of a and the whole panel of b.
                unsafe { product_tile(s, &product) };
                if let Some((h, packed, len)) = low_rank {
                    product = Product {
                        a: h.start.cast(),
                        a_row: h.stride / 2,
                        b: packed[(self.panels.start + i) * len..].as_ptr().cast(),
                        pairs: len / (2 * PANEL),
                        accumulate: true,
                        ahead: Ahead::NOTHING,
                        ..product
                    };
                    // SAFETY: as above, of h and g.
                    unsafe { product_tile(s, &product) };
                }
                if block.last {
                    // SAFETY: the rectangle lies inside [m, n], and tasks' rectangles are disjoint.
                    unsafe { (self.sink).write(s, tile, [row, column], [rows, columns]) };
                }
            }
            row += rows;
        }
    }
}

impl<'a> Block<'a> {
    fn whole(depth: usize, panels: &'a [bf16]) -> Self {
        Self {
            first: true,
            last: true,
            columns: 0..depth,
            panels,
        }
    }

    fn is_whole(&self) -> bool {
        self.first && self.last
    }
}

/// Asks for rows that are read where they lie, a part of longer ones.
#[inline(always)]
fn bring_near<S: Simd, A: Element>(s: S, a: &MatRef<A>, rows: Range<usize>) {
    let Some(start) = in_place(a) else { return };
    for row in rows {
        for column in (0..a.cols()).step_by(32) {
            s.prefetch_far(start.wrapping_add(row * a.row_stride() + column).cast());
        }
    }
}

/// Where a strip's rows are, in bf16, whole pairs.
#[derive(Clone, Copy)]
struct StripRows {
    start: *const bf16,
    stride: usize,
}

/// Rows `row .. row + rows` of `a`, times `scale`: where they lie if they are bf16 rows of whole pairs, else converted.
#[inline(always)]
fn strip_of<S: Simd, A: Element>(
    s: S,
    a: MatRef<A>,
    row: usize,
    rows: usize,
    scale: f32,
    buffer: &mut Aligned<bf16>,
) -> StripRows {
    let k = a.cols();
    if let Some(start) = in_place(&a)
        && scale == 1.0
    {
        return StripRows {
            start: start.wrapping_add(row * a.row_stride()),
            stride: a.row_stride(),
        };
    }
    // A line more than the width, so that rows fall into different cache sets.
    let stride = (2 * pairs_of(k)).next_multiple_of(32) + 32;
    buffer.at_least(rows * stride);
    for i in 0..rows {
        let dst = &mut buffer[i * stride..][..2 * pairs_of(k)];
        packing::convert_row(s, a, row + i, scale, dst);
    }
    StripRows {
        start: buffer.as_ptr(),
        stride,
    }
}

/// The next strip, to be asked for in shares while this one is multiplied.
#[derive(Clone, Copy)]
struct Next {
    start: *const bf16,
    len: usize,
}

impl Next {
    /// Of the next `rows` rows, if they are read where they lie. Behind the last strip the task's first rows come again: the
    /// task that follows, another group of panels, begins there.
    #[inline(always)]
    fn new<A: Element>(
        a: &MatRef<A>,
        row: usize,
        rows: usize,
        of_task: &Range<usize>,
    ) -> Option<Self> {
        let row = if row < of_task.end {
            row
        } else {
            of_task.start
        };
        Some(Next {
            start: in_place(a)?.wrapping_add(row * a.row_stride()),
            len: rows * a.row_stride(),
        })
    }

    /// Share `i` of `n`.
    #[inline(always)]
    fn share(&self, i: usize, n: usize, pairs: usize) -> Ahead {
        Ahead {
            start: self.start.wrapping_add(self.len / n * i),
            step: (self.len / n).div_ceil(pairs.max(1)),
        }
    }
}
