//! Products whose `a` lies with its columns end to end, as where a weight's gradient sums over tokens: a = d_yᵀ.
//!
//! A task packs its strips of rows once, as pairs in the order in which the tile reads them, into as much as the L2 cache
//! holds, and all panels of b pass by. Rows copied one by one, anew for each group of panels, ran at a fifth of the speed.

use super::{Ahead, GROUP_BYTES, GemmBf16, PackedBf16, Product, Sink, pairs_of, product_tile};
use crate::aligned::Aligned;
use crate::element::Element;
use crate::gemm::PANEL;
use crate::gemm_bf16::kernel::TILE_LEN;
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::for_each_task;
use crate::simd::{Simd, SimdOp, dispatch};
use std::cell::RefCell;
use std::ops::Range;

/// Rows of a task are a multiple of every instruction set's tile: 12, 8, 6 and 4.
const ROWS: usize = 24;

/// Rows of a task at most: beyond, a panel's way into the cache is paid for.
const MOST_ROWS: usize = 192;

/// Columns of `a` ahead of which it is asked for, while strips are packed.
const AHEAD: usize = 16;

/// Lanes of the widest vector: a strip's last pair may be stored whole.
const MARGIN: usize = 16;

/// Whether a product is one of these.
pub(super) fn fits<A: Element>(g: &GemmBf16<A>) -> bool {
    let columns = g.a.row_stride() == 1 && g.a.col_stride() != 1;
    columns && g.low_rank.is_none() && matches!(g.b, PackedBf16::Rows(_))
}

/// Runs a product that [`fits`], whose lengths [`super::gemm_bf16`] has asserted.
pub(super) fn run<A: Element, C: Element>(isa: Isa, g: &GemmBf16<A>, sink: &Sink<C>) {
    let PackedBf16::Rows(b) = g.b else {
        unreachable!("`fits` was asked")
    };
    let (m, n_panels) = (g.a.rows(), g.n.div_ceil(PANEL));
    let wanted = 4 * rayon::current_num_threads();
    let in_cache = GROUP_BYTES / (4 * pairs_of(g.a.cols()).max(1));
    let rows = in_cache.min(MOST_ROWS).min(m.div_ceil(wanted));
    let rows = rows.next_multiple_of(ROWS);
    let n_blocks = m.div_ceil(rows);
    // Too few rows for all threads: the panels are cut too, and each part packs its strips.
    let n_groups = wanted.div_ceil(n_blocks).min(n_panels);
    for_each_task(n_blocks * n_groups, |task| {
        let (block, group) = (task / n_groups, task % n_groups);
        let cut = |i: usize| i * n_panels / n_groups;
        let op = Task {
            g,
            b,
            sink,
            rows: block * rows..((block + 1) * rows).min(m),
            panels: cut(group)..cut(group + 1),
        };
        dispatch(isa, op);
    });
}

struct Task<'a, A, C> {
    g: &'a GemmBf16<'a, A>,
    b: &'a [half::bf16],
    sink: &'a Sink<'a, C>,
    rows: Range<usize>,
    panels: Range<usize>,
}

thread_local! {
    /// Packed strips: kept between tasks.
    static STRIPS: RefCell<Aligned<u32>> = RefCell::default();
}

impl<A: Element, C: Element> SimdOp for Task<'_, A, C> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (g, n) = (self.g, self.g.n);
        let pairs = pairs_of(g.a.cols());
        let strip_len = pairs * S::GEMM_ROWS + MARGIN;
        let n_strips = self.rows.len().div_ceil(S::GEMM_ROWS);
        let mut strips = STRIPS.take();
        let rows = g.a.rows_range(self.rows.clone());
        pack_strips(s, rows, g.alpha, strips.at_least(n_strips * strip_len));
        let mut tile = [0.0f32; TILE_LEN];
        for panel in self.panels.clone() {
            let column = panel * PANEL;
            let columns = (n - column).min(PANEL);
            for (i, strip) in strips.chunks_exact(strip_len).take(n_strips).enumerate() {
                let row = self.rows.start + i * S::GEMM_ROWS;
                let rows = (self.rows.end - row).min(S::GEMM_ROWS);
                self.sink.prefetch(s, row, rows, column);
                let product = Product {
                    a: strip.as_ptr(),
                    a_row: 1,
                    a_pair: S::GEMM_ROWS,
                    b: self.b[panel * 2 * PANEL * pairs..].as_ptr().cast(),
                    pairs,
                    rows,
                    columns,
                    c: tile.as_mut_ptr(),
                    c_row: PANEL,
                    accumulate: false,
                    ahead: Ahead::NOTHING,
                };
                // SAFETY: the strip holds `pairs` lines of GEMM_ROWS pairs; the asserted length of b covers the panel.
                unsafe { product_tile(s, &product) };
                // SAFETY: the rectangle lies inside [m, n], and tasks' rectangles are disjoint.
                unsafe { self.sink.write(s, &tile, [row, column], [rows, columns]) };
            }
        }
        STRIPS.set(strips);
    }
}

/// Packs rows, times `scale`, into strips of `GEMM_ROWS`: pair p of row i at `p * GEMM_ROWS + i` of its strip, which ends
/// [`MARGIN`] further.
#[inline(always)]
fn pack_strips<S: Simd, A: Element>(s: S, rows: MatRef<A>, scale: f32, strips: &mut [u32]) {
    let (m, k) = (rows.rows(), rows.cols());
    let strip_len = pairs_of(k) * S::GEMM_ROWS + MARGIN;
    assert!(rows.row_stride() == 1 && S::LANES <= MARGIN);
    assert!(strips.len() >= m.div_ceil(S::GEMM_ROWS) * strip_len);
    let factor = s.splat(scale);
    for pair in 0..pairs_of(k) {
        let column = |kk: usize| rows.as_ptr().wrapping_add(kk * rows.col_stride());
        let (low, high) = (column(2 * pair), column(2 * pair + 1));
        let has_high = 2 * pair + 1 < k;
        for line in (0..m * size_of::<A>()).step_by(64) {
            let ahead = AHEAD * rows.col_stride() * size_of::<A>() + line;
            s.prefetch(low.wrapping_byte_add(ahead).cast());
            s.prefetch(high.wrapping_byte_add(ahead).cast());
        }
        for (strip, first) in (0..m).step_by(S::GEMM_ROWS).enumerate() {
            let rows = (m - first).min(S::GEMM_ROWS);
            for i in (0..rows).step_by(S::LANES) {
                let lanes = (rows - i).min(S::LANES);
                // SAFETY: column kk < k of the view is m contiguous elements. A vector stored at a line of GEMM_ROWS pairs
                // ends at most LANES behind the line's last pair, inside the strip's margin; lines are written in order,
                // so that what it leaves in the next line is overwritten.
                unsafe {
                    let a = s.mul(A::load_n(s, low.add(first + i), lanes), factor);
                    let b = if has_high {
                        s.mul(A::load_n(s, high.add(first + i), lanes), factor)
                    } else {
                        s.splat(0.0)
                    };
                    let at = strip * strip_len + pair * S::GEMM_ROWS + i;
                    s.store_u(strips.as_mut_ptr().add(at), s.pair(a, b));
                }
            }
        }
    }
}
