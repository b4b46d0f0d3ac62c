//! Attention's products on bf16: pairs of values along the depth, summed in f32. Operands are
//! brought into forms of their own, keys and values once a sequence, queries once a block; sums are
//! rounded once.

use super::arithmetic::{
    Arithmetic, At, Carver, HeadGradients, HeadOperands, Pass, Product, WorkNeed,
};
use super::head::{Head, Layout, MOST_ROWS, RowsMut};
use super::pair_positions::{SkewWork, skew_work};
use super::rows::{
    PairGradient, PairRows, RowGradient, RowState, SoftmaxRow, narrow_softmax_row, store_pairs,
};
use crate::elementwise::convert_in;
use crate::matrix::MatRef;
use crate::product::PANEL;
use crate::product::{Ahead, pack_columns, pack_rows_of, pairs_of, product_tile};
use crate::simd::{Simd, lanes_at, load_at, store_at};
use half::bf16;

/// A thread's buffers. Shapes: m queries and n keys of a tile, S keys of the sequence.
pub struct PairWork<'w> {
    /// Queries, and d_out, of a tile [m, Dh], rows of whole pairs.
    pub rows: [&'w mut [bf16]; 2],
    /// The same as operands whose depth is the query: panels over Dh, pairs of rows.
    pub transposed: [&'w mut [bf16]; 2],
    /// Keys and values as operands whose depth is Dh: panels over S.
    pub panels: [&'w mut [bf16]; 2],
    /// Keys (values in forward) as operands whose depth is the key: panels over Dh, pairs of rows.
    pub keys_transposed: &'w mut [bf16],
    /// Scores and their gradients [m, n].
    pub scores: [&'w mut [f32]; 2],
    /// Probabilities, then the gradients of scores, in bf16 [m, n].
    pub narrow: &'w mut [bf16],
    /// Both in pairs of rows [m / 2, n].
    pub row_pairs: [&'w mut [u32]; 2],
    /// Sums of out or d_q [m, Dh], of d_k and of d_v [S, Dh], rows of whole panels.
    pub sums: [&'w mut [f32]; 3],
    pub skew: SkewWork<'w>,
}

impl Arithmetic for bf16 {
    type Work<'w> = PairWork<'w>;
    /// With both score buffers and their bf16 forms they stay in the L2 cache.
    const PLAIN: Layout = Layout {
        blocks: [96, 256],
        stride: 256 + 16,
        margin: 0,
        narrow: 256 + 16,
    };
    const MARGINED: Layout = Layout {
        blocks: [MOST_ROWS, 192],
        stride: 192 + 2 * PANEL + 16,
        margin: PANEL,
        narrow: 192 + 16,
    };
    const ASKS_AHEAD: bool = true;

    fn work<'w>(carver: &mut Carver<'w>, need: &WorkNeed) -> PairWork<'w> {
        let (d, keys, layout) = (need.head_dim, need.kv_len, need.layout);
        let is_backward = need.pass == Pass::Backward;
        let backward = usize::from(is_backward);
        let m = need.rows;
        let rows = m * 2 * pairs_of(d);
        let transposed = backward * transposed_len(m, d);
        let panels = keys.div_ceil(PANEL) * 2 * PANEL * pairs_of(d);
        let row_pairs = backward * m / 2 * layout.narrow;
        let sums = backward * keys * padded(d);
        PairWork {
            rows: [carver.take(rows), carver.take(backward * rows)],
            transposed: [carver.take(transposed), carver.take(transposed)],
            panels: [carver.take(panels), carver.take(backward * panels)],
            keys_transposed: carver.take(transposed_len(keys, d)),
            scores: [
                carver.take(need.tile_len()),
                carver.take(backward * need.tile_len()),
            ],
            narrow: carver.take(m * layout.narrow),
            row_pairs: [carver.take(row_pairs), carver.take(row_pairs)],
            sums: [
                carver.take(m * padded(d)),
                carver.take(sums),
                carver.take(sums),
            ],
            skew: skew_work(carver, need),
        }
    }

    #[inline(always)]
    fn prepare<S: Simd>(s: S, w: &mut PairWork, x: &HeadOperands<bf16>, pass: Pass) {
        pack_by_rows(s, x.k, w.panels[0]);
        if pass == Pass::Backward {
            pack_by_rows(s, x.v, w.panels[1]);
            pack_by_columns(s, x.k, w.keys_transposed);
        } else {
            pack_by_columns(s, x.v, w.keys_transposed);
        }
    }

    #[inline(always)]
    fn take_rows<S: Simd>(s: S, w: &mut PairWork, q: MatRef<bf16>, d_out: Option<MatRef<bf16>>) {
        copy_rows(s, q, w.rows[0]);
        if let Some(d_out) = d_out {
            copy_rows(s, d_out, w.rows[1]);
            pack_by_columns(s, q, w.transposed[0]);
            pack_by_columns(s, d_out, w.transposed[1]);
        }
    }

    #[inline(always)]
    unsafe fn multiply<S: Simd>(
        s: S,
        w: &mut PairWork,
        at: &At,
        which: Product,
        _: MatRef<bf16>,
        accumulate: bool,
    ) {
        let depth = pairs_of(at.head.head_dim);
        let block = PairBlock {
            a: w.rows[which as usize].as_ptr().cast(),
            a_row: depth,
            a_pair: 1,
            b: w.panels[which as usize][2 * at.tile.j * depth..]
                .as_ptr()
                .cast(),
            b_panel: PANEL * depth,
            shape: [at.tile.m, at.tile.n, depth],
            c: w.scores[which as usize][at.layout.margin..].as_mut_ptr(),
            c_row: at.layout.stride,
            accumulate,
        };
        // SAFETY: rows hold m rows of whole pairs, panels S rows up to whole panels (j is a
        // multiple of PANEL), the scores m rows of whole panels.
        unsafe { multiply_pairs(s, &block) };
    }

    #[inline(always)]
    unsafe fn softmax<S: Simd>(
        s: S,
        w: &mut PairWork,
        at: &At,
        row: usize,
        state: &mut RowState,
        _: RowsMut<bf16>,
    ) {
        let (layout, n) = (at.layout, at.tile.n);
        let width = padded(at.head.head_dim);
        let scores = &mut w.scores[0][row * layout.stride + layout.margin..][..n];
        let narrow = &mut w.narrow[row * layout.narrow..][..2 * pairs_of(n)];
        let sums = &mut w.sums[0][row * width..][..width];
        narrow_softmax_row(s, at, row, SoftmaxRow { scores, narrow }, state, sums);
    }

    #[inline(always)]
    unsafe fn weigh<S: Simd>(s: S, w: &mut PairWork, at: &At, _: MatRef<bf16>, _: RowsMut<bf16>) {
        // SAFETY: the caller's contract.
        unsafe { w.meet_keys(s, at) };
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(s: S, w: &PairWork, row: usize, factor: f32, out: &mut [bf16]) {
        store_row(s, &w.sums[0][row * padded(out.len())..], factor, out);
    }

    #[inline(always)]
    unsafe fn begin_keys(w: &mut PairWork, head: &Head, _: &HeadGradients<bf16>) {
        for sums in &mut w.sums[1..] {
            sums[..head.kv_len * padded(head.head_dim)].fill(0.0);
        }
    }

    #[inline(always)]
    unsafe fn gradients<S: Simd>(
        s: S,
        w: &mut PairWork,
        at: &At,
        row: usize,
        lse: &[f32],
        deltas: &[f32],
    ) {
        let lse_of = |row: usize| lse[at.head.lse_at(at.tile.i + row)];
        if at.layout.margin > 0 {
            w.margined_gradients(s, at, row, [lse_of(row), deltas[row]]);
        } else if row.is_multiple_of(2) {
            // Behind an odd tile's end any row will do for the second.
            let second = (row + 1).min(at.tile.m - 1);
            let gradient = PairGradient {
                row,
                lse: [lse_of(row), lse_of(second)],
                delta: [deltas[row], deltas[second]],
            };
            gradient.apply(s, at, w.pair_of_rows(at, row));
        }
    }

    #[inline(always)]
    unsafe fn add_gradients<S: Simd>(s: S, w: &mut PairWork, at: &At, _: &HeadGradients<bf16>) {
        let (tile, d) = (at.tile, at.head.head_dim);
        let (width, depth) = (padded(d), pairs_of(tile.m));
        // (pairs of rows, other operand, sums): gradients of scores meet queries, probabilities
        // meet d_out.
        for (which, other, sums) in [(1, 0, 1), (0, 1, 2)] {
            let block = PairBlock {
                a: w.row_pairs[which].as_ptr(),
                a_row: 1,
                a_pair: at.layout.narrow,
                b: w.transposed[other].as_ptr().cast(),
                b_panel: PANEL * depth,
                shape: [tile.n, d, depth],
                c: w.sums[sums][tile.j * width..].as_mut_ptr(),
                c_row: width,
                accumulate: true,
            };
            // SAFETY: row pairs hold pairs_of(m) rows, the transposed operand panels of as many
            // pairs, the sums S rows of whole panels.
            unsafe { multiply_pairs(s, &block) };
        }
        // SAFETY: the caller's contract.
        unsafe { w.meet_keys(s, at) };
    }

    #[inline(always)]
    unsafe fn store_queries<S: Simd>(s: S, w: &PairWork, at: &At, d_q: RowsMut<bf16>) {
        let width = padded(at.head.head_dim);
        for row in 0..at.tile.m {
            // SAFETY: the caller's contract.
            let d_q = unsafe { d_q.row(at.tile.i + row) };
            store_row(s, &w.sums[0][row * width..], 1.0, d_q);
        }
    }

    #[inline(always)]
    unsafe fn store_keys<S: Simd>(s: S, w: &PairWork, head: &Head, x: &HeadGradients<bf16>) {
        let width = padded(head.head_dim);
        for j in 0..head.kv_len {
            for (d, sums) in [(x.d_k, &w.sums[1]), (x.d_v, &w.sums[2])] {
                // SAFETY: the caller's contract.
                let d = unsafe { d.row(j) };
                store_row(s, &sums[j * width..], 1.0, d);
            }
        }
    }
}

impl PairWork<'_> {
    /// `sums[0]` (=|+=) what the narrow rows of a tile give with the transposed keys; the first
    /// tile of its queries overwrites.
    ///
    /// # Safety
    /// The narrow rows are those of the tile, the transposed keys those of the sequence.
    #[inline(always)]
    unsafe fn meet_keys<S: Simd>(&mut self, s: S, at: &At) {
        let (tile, d) = (at.tile, at.head.head_dim);
        let block = PairBlock {
            a: self.narrow.as_ptr().cast(),
            a_row: at.layout.narrow / 2,
            a_pair: 1,
            b: self.keys_transposed[tile.j * PANEL..].as_ptr().cast(),
            b_panel: PANEL * pairs_of(at.head.kv_len),
            shape: [tile.m, d, pairs_of(tile.n)],
            c: self.sums[0].as_mut_ptr(),
            c_row: padded(d),
            accumulate: !tile.is_first,
        };
        // SAFETY: the narrow buffer holds m rows of whole pairs, the transposed keys panels of
        // pairs_of(S) pairs (j is even), the sums m rows of whole panels.
        unsafe { multiply_pairs(s, &block) };
    }

    /// Rows `row` and `row + 1` of a tile without margins.
    #[inline(always)]
    fn pair_of_rows(&mut self, at: &At, row: usize) -> PairRows<'_> {
        let (Layout { stride, narrow, .. }, n) = (at.layout, at.tile.n);
        let [scores, d_p] = &self.scores;
        let [p_pairs, d_pairs] = &mut self.row_pairs;
        let at_pair = row / 2 * narrow;
        let (first, second) = self.narrow[row * narrow..].split_at_mut(narrow);
        let narrow_len = 2 * pairs_of(n);
        PairRows {
            scores: [
                &scores[row * stride..][..n],
                &scores[(row + 1) * stride..][..n],
            ],
            d_p: [&d_p[row * stride..][..n], &d_p[(row + 1) * stride..][..n]],
            pairs: [&mut p_pairs[at_pair..][..n], &mut d_pairs[at_pair..][..n]],
            narrow: [&mut first[..narrow_len], &mut second[..narrow_len]],
        }
    }

    /// The gradients of a row between margins, which become zeros; with every second row the pairs
    /// of both.
    #[inline(always)]
    fn margined_gradients<S: Simd>(&mut self, s: S, at: &At, row: usize, [lse, delta]: [f32; 2]) {
        let (Layout { stride, margin, .. }, n) = (at.layout, at.tile.n);
        let gradient = RowGradient {
            row,
            lse,
            delta,
            score_factor: at.head.scale,
        };
        let [p, d_s] = &mut self.scores;
        let p = &mut p[row * stride + margin..][..n];
        let d_s = &mut d_s[row * stride..][..n + 2 * margin];
        gradient.apply(s, at, p, &mut d_s[margin..][..n]);
        d_s[..margin].fill(0.0);
        d_s[margin + n..].fill(0.0);
        let narrow = &mut self.narrow[row * at.layout.narrow..][..2 * pairs_of(n)];
        convert_in(s, &mut narrow[..n], &d_s[margin..][..n]);
        narrow[n..].fill(bf16::ZERO);
        self.pair_up(s, at, row);
    }

    /// Row `row` of a tile's scores and of their gradients meets the row before it, or the tile's
    /// end; the first of two waits.
    #[inline(always)]
    fn pair_up<S: Simd>(&mut self, s: S, at: &At, row: usize) {
        let is_second = row % 2 == 1;
        if !is_second && row + 1 < at.tile.m {
            return;
        }
        let (layout, first) = (at.layout, row - row % 2);
        for (values, pairs) in self.scores.iter().zip(&mut self.row_pairs) {
            let row_at = |row: usize| &values[row * layout.stride + layout.margin..][..at.tile.n];
            let second = is_second.then(|| row_at(row));
            let pairs = &mut pairs[first / 2 * layout.narrow..][..at.tile.n];
            pair_rows(s, row_at(first), second, pairs);
        }
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
            // SAFETY: rows i .. and columns j .. lie inside the shape; the caller's contract covers
            // the rest.
            unsafe {
                product_tile(
                    s,
                    &crate::product::PairTile {
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

/// Values of rows [n, Dh] as panels of Dh, pairs of rows.
fn transposed_len(n: usize, d: usize) -> usize {
    d.div_ceil(PANEL) * 2 * PANEL * pairs_of(n)
}

/// Copies rows [m, Dh] end to end, each of whole pairs.
#[inline(always)]
pub(super) fn copy_rows<S: Simd>(s: S, rows: MatRef<bf16>, buffer: &mut [bf16]) {
    let (m, d) = (rows.rows(), rows.cols());
    let stride = 2 * pairs_of(d);
    for i in 0..m {
        let dst = &mut buffer[i * stride..][..stride];
        convert_in(s, &mut dst[..d], &rows.data()[i * rows.row_stride()..][..d]);
        dst[d..].fill(bf16::ZERO);
    }
}

/// Packs rows [n, Dh] as an operand whose depth is Dh: panels of PANEL rows.
#[inline(always)]
fn pack_by_rows<S: Simd>(s: S, rows: MatRef<bf16>, buffer: &mut [bf16]) {
    let (n, len) = (rows.rows(), 2 * PANEL * pairs_of(rows.cols()));
    let packed = &mut buffer[..n.div_ceil(PANEL) * len];
    for (p, panel) in packed.chunks_exact_mut(len).enumerate() {
        let range = p * PANEL..((p + 1) * PANEL).min(n);
        pack_rows_of(s, rows.rows_range(range), panel);
    }
}

/// Packs rows [n, Dh] as an operand whose depth is the row: panels of PANEL columns of Dh.
#[inline(always)]
fn pack_by_columns<S: Simd>(s: S, rows: MatRef<bf16>, buffer: &mut [bf16]) {
    let (n, d) = (rows.rows(), rows.cols());
    let len = 2 * PANEL * pairs_of(n);
    let packed = &mut buffer[..transposed_len(n, d)];
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

/// row = sums * factor, rounded.
#[inline(always)]
fn store_row<S: Simd>(s: S, sums: &[f32], factor: f32, row: &mut [bf16]) {
    let factor = s.splat(factor);
    let mut at = 0;
    while at < row.len() {
        let n = lanes_at::<S>(at, row.len());
        let v = s.mul(load_at(s, sums, at, n), factor);
        store_at(s, row, at, v, n);
        at += S::LANES;
    }
}
