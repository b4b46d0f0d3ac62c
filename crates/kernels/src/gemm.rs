//! GEMM with packed operands: `c[m,n] = alpha * a[m,k] · b[n,k]ᵀ + bias`, f32 in, f32 accumulated.
//!
//! `b` is packed once into panels of [`PANEL`] columns; every instruction set reads the same panels. Work is cut by shape
//! into a grid of (rows of a, groups of panels). The k sum of an element runs in order over fixed blocks of [`K_BLOCK`],
//! so its bits depend on k alone: not on m, nor on the row's place, nor on the threads.

mod finish;
mod kernel;
mod packing;

use crate::aligned::Aligned;
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::{SharedMut, for_each_task};
use crate::simd::{Simd, SimdOp, dispatch};
pub use finish::Finish;
use finish::Finisher;
use kernel::Strip;
pub(crate) use kernel::{Block, each_row, multiply_block};
pub(crate) use packing::pack_rows;
use packing::turn_panel;
pub use packing::{pack, packed_len, repack_transposed, unpack};
use std::cell::RefCell;
use std::ops::Range;

/// Columns of a packed panel. Layout of the packed form: `[ceil(n / PANEL)][k][PANEL]`, zero padded.
pub const PANEL: usize = 32;

/// Depth of a block: a strip of 12 rows takes 18 KiB of the L1 cache while panels pass by (measured against 256: 1 to 2% more).
const K_BLOCK: usize = 384;

/// Distance between rows of a copied strip and of attention's tiles: known when the kernel is compiled, at least their
/// width (K_BLOCK, 512), and 33 cache lines, so that rows fall into different cache sets.
pub(crate) const STRIP_STRIDE: usize = 528;

/// Rows of a task, about.
const ROW_BLOCK: usize = 384;

/// Panels of a task, at most: with K_BLOCK deep blocks 384 KiB of the packed operand, for the L2 cache.
const PANEL_GROUP: usize = 8;

/// The packed operand b [n, k].
#[derive(Clone, Copy, Debug)]
pub enum PackedF32<'a> {
    /// The packed form of b.
    Rows(&'a [f32]),
    /// The packed form of bᵀ [k, n]: each task makes the panels that it needs in cache, one depth block at a time, once for
    /// about 384 rows of a. For an operand whose turned copy is too large to hold; [`repack_transposed`] turns it once for all rows.
    Transposed(&'a [f32]),
}

/// One product.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// [m, k]; may be a transposed view.
    pub a: MatRef<'a>,
    /// b [n, k].
    pub b: PackedF32<'a>,
    /// Rows of b: columns of c.
    pub n: usize,
    /// `[n]`, added once.
    pub bias: Option<&'a [f32]>,
    /// Factor of the product.
    pub alpha: f32,
    /// Whether c is added to, rather than overwritten.
    pub accumulate: bool,
}

/// `c[i * c_stride + j] = (accumulate ? c : 0) + alpha * Σ a[i, k] b[j, k] + bias[j]`.
///
/// Panics if a length disagrees with the shapes. Columns of c beyond n are untouched.
pub fn gemm(isa: Isa, g: &Gemm, c: &mut [f32], c_stride: usize) {
    gemm_then(isa, g, c, c_stride, Finish::Nothing);
}

/// As [`gemm`], and then what `finish` says, tile by tile in the product's wake.
pub fn gemm_then(isa: Isa, g: &Gemm, c: &mut [f32], c_stride: usize, finish: Finish<'_>) {
    let (m, k) = (g.a.rows(), g.a.cols());
    check_output(m, g.n, c, c_stride);
    if let Some(bias) = g.bias {
        assert_eq!(bias.len(), g.n, "bias");
    }
    let n = g.n;
    let b = match g.b {
        PackedF32::Rows(b) => {
            assert_eq!(b.len(), packed_len(n, k), "packed [{n}, {k}]");
            Operand::InPlace(Source::packed(b.as_ptr(), k))
        }
        PackedF32::Transposed(b) => {
            assert_eq!(b.len(), packed_len(k, n), "packed [{k}, {n}]");
            Operand::Turned(b)
        }
    };
    let finisher = Finisher::new(finish, c.len());
    run(isa, g, b, (c, c_stride), &finisher);
}

/// c += alpha * aᵀ · x, the form of a weight's gradient. Shapes: a [k, m], x [k, n], c [m, n] with rows `c_stride` apart.
///
/// Neither operand is packed by the caller. Panics if a length disagrees with the shapes.
pub fn gemm_transposed_a(
    isa: Isa,
    a: MatRef,
    x: MatRef,
    alpha: f32,
    c: &mut [f32],
    c_stride: usize,
) {
    let (k, m, n) = (a.rows(), a.cols(), x.cols());
    assert_eq!(x.rows(), k, "depth");
    check_output(m, n, c, c_stride);
    let g = Gemm {
        a: a.transposed(),
        b: PackedF32::Rows(&[]),
        n,
        bias: None,
        alpha,
        accumulate: true,
    };
    if n < PANEL && n < m && a.col_stride() == 1 {
        // Few columns would leave most lanes idle: the transposed product has few rows instead.
        let mut transposed = vec![0.0; n * m];
        gemm_transposed_a(isa, x, a, alpha, &mut transposed, m);
        for i in 0..m {
            for j in 0..n {
                c[i * c_stride + j] += transposed[j * m + i];
            }
        }
        return;
    }
    if x.col_stride() == 1 && n > 0 && k > 0 {
        let source = Source {
            base: x.as_ptr() as usize,
            panel_stride: PANEL,
            k_stride: x.row_stride(),
            padded: false,
        };
        let b = Operand::InPlace(source);
        run(isa, &g, b, (c, c_stride), &Finisher::Nothing);
    } else {
        let mut packed = vec![0.0; packed_len(n, k)];
        pack(isa, x.transposed(), &mut packed);
        gemm(
            isa,
            &Gemm {
                b: PackedF32::Rows(&packed),
                ..g
            },
            c,
            c_stride,
        );
    }
}

fn check_output(m: usize, n: usize, c: &[f32], c_stride: usize) {
    assert!(n <= c_stride || m <= 1, "rows of c overlap");
    let needed = if m == 0 { 0 } else { (m - 1) * c_stride + n };
    assert!(c.len() >= needed, "c holds {} of {needed}", c.len());
}

/// Where the kernel finds b: panel p, depth kk, column j at `base + p * panel_stride + kk * k_stride + j`.
#[derive(Clone, Copy)]
struct Source {
    /// Address of the first element; a number, so that tasks on other threads may hold it.
    base: usize,
    panel_stride: usize,
    k_stride: usize,
    /// Whether the columns beyond n exist (as zeros).
    padded: bool,
}

impl Source {
    /// Packed panels of some depth.
    fn packed(base: *const f32, depth: usize) -> Self {
        Source {
            base: base as usize,
            panel_stride: depth * PANEL,
            k_stride: PANEL,
            padded: true,
        }
    }

    /// The address of the first column of a panel at a depth.
    fn at(&self, panel: usize, kk: usize) -> *const f32 {
        (self.base as *const f32).wrapping_add(panel * self.panel_stride + kk * self.k_stride)
    }

    /// The part of it that begins there.
    fn from(self, panel: usize, kk: usize) -> Self {
        let base = self.at(panel, kk) as usize;
        Source { base, ..self }
    }
}

/// b as a task gets it.
#[derive(Clone, Copy)]
enum Operand<'a> {
    /// Read where it lies.
    InPlace(Source),
    /// The packed form of bᵀ, whose panels are turned in cache.
    Turned(&'a [f32]),
}

thread_local! {
    /// The panels that a task has turned, [panels][depth][PANEL]: at most PANEL_GROUP * K_BLOCK * PANEL values.
    static TURNED: RefCell<Aligned<f32>> = RefCell::default();
}

fn run(
    isa: Isa,
    g: &Gemm,
    b: Operand,
    (c, c_stride): (&mut [f32], usize),
    finisher: &Finisher<'_>,
) {
    let (m, n) = (g.a.rows(), g.n);
    if m == 0 || n == 0 {
        return;
    }
    let n_panels = n.div_ceil(PANEL);
    // Even groups: 24 panels in 3 groups of 8, 9 panels in 2 of 5 and 4.
    let n_groups = n_panels.div_ceil(PANEL_GROUP);
    // Few rows leave the threads idle unless the panels are split finer.
    let n_groups = if m <= ROW_BLOCK {
        n_panels.div_ceil(3).max(n_groups)
    } else {
        n_groups
    };
    let n_row_blocks = m.div_ceil(ROW_BLOCK);
    let out = SharedMut::new(c);
    for_each_task(n_groups * n_row_blocks, |task| {
        // Panel groups outermost: neighbouring tasks share a group, which is then in the cache.
        let (group, row_block) = (task / n_row_blocks, task % n_row_blocks);
        dispatch(
            isa,
            Task {
                g,
                b,
                panels: group * n_panels / n_groups..(group + 1) * n_panels / n_groups,
                rows: row_block * m / n_row_blocks..(row_block + 1) * m / n_row_blocks,
                out,
                c_stride,
                finisher,
            },
        );
    });
}

/// The rows and panels of one task.
struct Task<'a> {
    g: &'a Gemm<'a>,
    b: Operand<'a>,
    panels: Range<usize>,
    rows: Range<usize>,
    out: SharedMut,
    c_stride: usize,
    finisher: &'a Finisher<'a>,
}

impl SimdOp for Task<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let g = self.g;
        let k = g.a.cols();
        let mut strip_buffer = Vec::new();
        let mut k_start = 0;
        loop {
            let depth = (k - k_start).min(K_BLOCK);
            let block = DepthBlock { k_start, depth };
            match self.b {
                Operand::InPlace(source) => {
                    let source = source.from(self.panels.start, k_start);
                    self.multiply(s, source, block, &mut strip_buffer);
                }
                Operand::Turned(packed) => TURNED.with_borrow_mut(|turned| {
                    let task = &self;
                    let source = s.call(Turn {
                        task,
                        packed,
                        block,
                        into: turned,
                    });
                    self.multiply(s, source, block, &mut strip_buffer);
                }),
            }
            k_start += depth;
            if k_start >= k {
                break;
            }
        }
    }
}

/// The part of the depth that is summed at once.
#[derive(Clone, Copy)]
struct DepthBlock {
    k_start: usize,
    depth: usize,
}

impl Task<'_> {
    /// Adds the depth block's part of the product, strip by strip. `source` begins at the task's first panel and the block's
    /// first depth.
    #[inline(always)]
    fn multiply<S: Simd>(&self, s: S, source: Source, block: DepthBlock, buffer: &mut Vec<f32>) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            let rows = (self.rows.end - row).min(S::GEMM_ROWS);
            let strip = Strip {
                task: self,
                source,
                row,
                rows,
                k_start: block.k_start,
                depth: block.depth,
                buffer,
            };
            s.call(strip);
            row += rows;
        }
    }
}

/// Makes a task's panels of one depth block from the packed form of bᵀ; returns where they are.
struct Turn<'a, 't> {
    task: &'a Task<'t>,
    packed: &'a [f32],
    block: DepthBlock,
    into: &'a mut Aligned<f32>,
}

impl SimdOp for Turn<'_, '_> {
    type Output = Source;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Source {
        let DepthBlock { k_start, depth } = self.block;
        let (n, panels) = (self.task.g.n, self.task.panels.clone());
        let panel_len = depth * PANEL;
        let turned = self.into.at_least(panels.len() * panel_len);
        // Depth blocks are whole panels of bᵀ, each n * PANEL long.
        let packed = &self.packed[k_start * n..];
        for (i, panel) in panels.enumerate() {
            let into = &mut turned[i * panel_len..][..panel_len];
            turn_panel(s, packed, [depth, n], panel * PANEL, into);
        }
        Source::packed(turned.as_ptr(), depth)
    }
}
