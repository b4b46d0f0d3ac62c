//! What attention on bf16 pairs shares: small products of pairs, and operands brought into the form that they want.

use super::{Head, Tile};
use crate::aligned::Aligned;
use crate::elementwise::convert_in;
use crate::gemm::PANEL;
use crate::gemm_bf16::{Ahead, Product, pack_columns, pack_rows_of, pairs_of, product_tile};
use crate::matrix::MatRef;
use crate::simd::{Simd, lanes_at, load_at, store_at};
use half::bf16;

/// Query rows and key rows of a tile: with both score buffers and their bf16 forms they stay in the L2 cache.
pub(super) const BLOCKS: [usize; 2] = [96, 256];

/// Distance between rows of a tile: room for whole panels, and rows fall into different cache sets.
pub(super) const STRIDE: usize = BLOCKS[1] + 16;

/// Values of a tile.
pub(super) const TILE: usize = BLOCKS[0] * STRIDE;

/// Where the rows of a tile's buffers are, in values.
pub(super) struct Layout {
    /// Distance between rows of scores and of their gradients.
    pub stride: usize,
    /// Columns before the first of each such row.
    pub margin: usize,
    /// Distance between rows of the bf16 forms, and of the pairs of rows.
    pub narrow: usize,
}

/// The layout of attention without position scores.
pub(super) const PLAIN: Layout = Layout {
    stride: STRIDE,
    margin: 0,
    narrow: STRIDE,
};

/// Buffers that a thread keeps between tasks. Shapes: m queries and n keys of a tile, T keys of the sequence.
#[derive(Default)]
pub(super) struct PairScratch {
    /// Queries, and d_out, of a tile [m, Dh], rows of whole pairs.
    pub rows: [Aligned<bf16>; 2],
    /// The same as operands whose depth is the query: panels over Dh, pairs of rows.
    pub turned: [Aligned<bf16>; 2],
    /// Keys and values as operands whose depth is Dh: panels over T.
    pub panels: [Aligned<bf16>; 2],
    /// Keys (values in forward) as operands whose depth is the key: panels over Dh, pairs of rows.
    pub keys_turned: Aligned<bf16>,
    /// Scores and their gradients [m, n].
    pub scores: [Aligned<f32>; 2],
    /// Probabilities, then the gradients of scores, in bf16 [m, n].
    pub narrow: Aligned<bf16>,
    /// Both in pairs of rows [m / 2, n].
    pub row_pairs: [Aligned<u32>; 2],
    /// Sums of out or d_q [m, Dh], of d_k and of d_v [T, Dh], rows of whole panels.
    pub sums: [Aligned<f32>; 3],
}

impl PairScratch {
    /// Row `row` of the gradients of a tile's scores in bf16, up to whole pairs.
    #[inline(always)]
    pub fn narrow_row<S: Simd>(&mut self, s: S, row: usize, n: usize, at: &Layout) {
        let values = &self.scores[1][row * at.stride + at.margin..][..n];
        let narrow = &mut self.narrow[row * at.narrow..][..2 * pairs_of(n)];
        convert_in(s, &mut narrow[..n], values);
        narrow[n..].fill(bf16::ZERO);
    }

    /// Row `row` of a tile's scores and of their gradients meets the row before it, or the tile's end; the first of two waits.
    #[inline(always)]
    pub fn pair_up<S: Simd>(&mut self, s: S, tile: Tile, row: usize, at: &Layout) {
        let is_second = row % 2 == 1;
        if !is_second && row + 1 < tile.m {
            return;
        }
        let first = row - row % 2;
        for (values, pairs) in self.scores.iter().zip(&mut self.row_pairs) {
            let row_at = |row: usize| &values[row * at.stride + at.margin..][..tile.n];
            let second = is_second.then(|| row_at(row));
            let pairs = &mut pairs[first / 2 * at.narrow..][..tile.n];
            pair_rows(s, row_at(first), second, pairs);
        }
    }

    /// `sums[0]` (=|+=) what the narrow rows of a tile give with the turned keys; the first tile of its queries overwrites.
    ///
    /// # Safety
    /// The narrow rows are those of the tile, the turned keys those of the sequence, `sums[0]` has room for m rows.
    #[inline(always)]
    pub unsafe fn meet_keys<S: Simd>(&mut self, s: S, head: &Head, tile: Tile, at: &Layout) {
        let block = PairBlock {
            a: self.narrow.as_ptr().cast(),
            a_row: at.narrow / 2,
            a_pair: 1,
            b: self.keys_turned[tile.j * PANEL..].as_ptr().cast(),
            b_panel: PANEL * pairs_of(head.kv_len),
            shape: [tile.m, head.head_dim, pairs_of(tile.n)],
            c: self.sums[0].as_mut_ptr(),
            c_row: padded(head.head_dim),
            accumulate: !tile.is_first,
        };
        // SAFETY: the narrow buffer holds m rows of whole pairs, the turned keys panels of pairs_of(T) pairs (j is even), the
        // sums rows of whole panels.
        unsafe { multiply_pairs(s, &block) };
    }

    /// d_v += pᵀ d_out, d_k += d_sᵀ q, d_q (=|+=) d_s k: `sums[2]`, `sums[1]` and `sums[0]`.
    ///
    /// # Safety
    /// As [`PairScratch::meet_keys`]; the pairs of rows and the turned rows are those of the tile, `sums[1]` and `sums[2]`
    /// have T rows.
    #[inline(always)]
    pub unsafe fn add_gradients<S: Simd>(&mut self, s: S, head: &Head, tile: Tile, at: &Layout) {
        let width = padded(head.head_dim);
        let depth = pairs_of(tile.m);
        // (pairs of rows, other operand, sums): gradients of scores meet queries, probabilities meet d_out.
        for (which, other, sums) in [(1, 0, 1), (0, 1, 2)] {
            let block = PairBlock {
                a: self.row_pairs[which].as_ptr(),
                a_row: 1,
                a_pair: at.narrow,
                b: self.turned[other].as_ptr().cast(),
                b_panel: PANEL * depth,
                shape: [tile.n, head.head_dim, depth],
                c: self.sums[sums][tile.j * width..].as_mut_ptr(),
                c_row: width,
                accumulate: true,
            };
            // SAFETY: row pairs hold pairs_of(m) rows, the turned operand panels of as many pairs, the sums T rows of whole
            // panels.
            unsafe { multiply_pairs(s, &block) };
        }
        // SAFETY: the caller's contract.
        unsafe { self.meet_keys(s, head, tile, at) };
    }
}

/// Operands of a small product. Distances are in pairs, those of c in values.
pub(super) struct PairBlock {
    /// Row i, pair p at `a + i * a_row + p * a_pair`.
    pub a: *const u32,
    pub a_row: usize,
    pub a_pair: usize,
    /// Panels of PANEL columns, `b_panel` apart; pair p, column j of one at `p * PANEL + j`.
    pub b: *const u32,
    pub b_panel: usize,
    /// Rows, columns, and depth in pairs.
    pub shape: [usize; 3],
    /// Rows with room for whole panels.
    pub c: *mut f32,
    pub c_row: usize,
    pub accumulate: bool,
}

/// c (=|+=) a·b.
///
/// # Safety
/// The pointers with their distances cover the shape, b whole panels.
#[inline(always)]
pub(super) unsafe fn multiply_pairs<S: Simd>(s: S, block: &PairBlock) {
    let [m, n, pairs] = block.shape;
    for i in (0..m).step_by(S::GEMM_ROWS) {
        for j in (0..n).step_by(PANEL) {
            // SAFETY: rows i .. and columns j .. lie inside the shape; the caller's contract covers the rest.
            unsafe {
                product_tile(
                    s,
                    &Product {
                        a: block.a.add(i * block.a_row),
                        a_row: block.a_row,
                        a_pair: block.a_pair,
                        b: block.b.add(j / PANEL * block.b_panel),
                        pairs,
                        rows: (m - i).min(S::GEMM_ROWS),
                        columns: (n - j).min(PANEL),
                        c: block.c.add(i * block.c_row + j),
                        c_row: block.c_row,
                        accumulate: block.accumulate,
                        ahead: Ahead::NOTHING,
                    },
                );
            }
        }
    }
}

/// Dh rounded up to whole panels: the distance between rows of sums.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PANEL)
}

/// Copies rows [m, Dh] end to end, each of whole pairs.
#[inline(always)]
pub(super) fn copy_rows<S: Simd>(s: S, rows: MatRef<bf16>, buffer: &mut Aligned<bf16>) {
    let (m, d) = (rows.rows(), rows.cols());
    let stride = 2 * pairs_of(d);
    let buffer = buffer.at_least(m * stride);
    for i in 0..m {
        let dst = &mut buffer[i * stride..][..stride];
        convert_in(s, &mut dst[..d], &rows.data()[i * rows.row_stride()..][..d]);
        dst[d..].fill(bf16::ZERO);
    }
}

/// Packs rows [n, Dh] as an operand whose depth is Dh: panels of PANEL rows.
#[inline(always)]
pub(super) fn pack_by_rows<S: Simd>(s: S, rows: MatRef<bf16>, buffer: &mut Aligned<bf16>) {
    let (n, len) = (rows.rows(), 2 * PANEL * pairs_of(rows.cols()));
    let packed = buffer.at_least(n.div_ceil(PANEL) * len);
    for (p, panel) in packed.chunks_exact_mut(len).enumerate() {
        let range = p * PANEL..((p + 1) * PANEL).min(n);
        pack_rows_of(s, rows.rows_range(range), panel);
    }
}

/// Packs rows [n, Dh] as an operand whose depth is the row: panels of PANEL columns of Dh.
#[inline(always)]
pub(super) fn pack_by_columns<S: Simd>(s: S, rows: MatRef<bf16>, buffer: &mut Aligned<bf16>) {
    let (n, d) = (rows.rows(), rows.cols());
    let len = 2 * PANEL * pairs_of(n);
    let packed = buffer.at_least(d.div_ceil(PANEL) * len);
    let columns = rows.transposed();
    for (p, panel) in packed.chunks_exact_mut(len).enumerate() {
        let range = p * PANEL..((p + 1) * PANEL).min(d);
        pack_columns(s, columns.rows_range(range), panel);
    }
}

/// Two rows of values become one of pairs; `second` may be absent.
#[inline(always)]
pub(super) fn pair_rows<S: Simd>(s: S, first: &[f32], second: Option<&[f32]>, pairs: &mut [u32]) {
    assert!(pairs.len() == first.len() && second.is_none_or(|x| x.len() == first.len()));
    let mut at = 0;
    while at < first.len() {
        let n = lanes_at::<S>(at, first.len());
        let a = load_at(s, first, at, n);
        let b = match second {
            Some(second) => load_at(s, second, at, n),
            None => s.splat(0.0),
        };
        store_pairs(s, pairs, at, s.pair(a, b), n);
        at += S::LANES;
    }
}

/// Stores the first `n` lanes to a slice at `at`. Bounds are asserted.
#[inline(always)]
pub(super) fn store_pairs<S: Simd>(s: S, pairs: &mut [u32], at: usize, v: S::U, n: usize) {
    assert!(n <= S::LANES && at + n <= pairs.len());
    if n == S::LANES {
        // SAFETY: a whole vector from `at` lies inside `pairs`.
        unsafe { s.store_u(pairs.as_mut_ptr().add(at), v) };
    } else {
        let mut lanes = [0u32; 16];
        // SAFETY: LANES <= 16.
        unsafe { s.store_u(lanes.as_mut_ptr(), v) };
        pairs[at..at + n].copy_from_slice(&lanes[..n]);
    }
}

/// Rounds a row of sums to where it belongs: `x[at ..]`, times `factor`.
///
/// # Safety
/// Dh values at `p` may be written, and nobody else uses them meanwhile.
#[inline(always)]
pub(super) unsafe fn store_row<S: Simd>(
    s: S,
    sums: &[f32],
    factor: f32,
    p: *mut bf16,
    head: &Head,
) {
    // SAFETY: the caller's contract.
    let row = unsafe { std::slice::from_raw_parts_mut(p, head.head_dim) };
    let factor = s.splat(factor);
    let mut at = 0;
    while at < row.len() {
        let n = lanes_at::<S>(at, row.len());
        let v = s.mul(load_at(s, sums, at, n), factor);
        store_at(s, row, at, v, n);
        at += S::LANES;
    }
}
