//! Attention's products in f32: rows are multiplied where they lie, keys and values as panels where
//! their width is the depth. Results are summed in place.

use super::AttentionMask;
use super::arithmetic::{
    Arithmetic, At, Carver, HeadGradients, HeadOperands, Pass, Product, WorkNeed,
};
use super::head::{Head, Layout, MOST_ROWS, RowsMut};
use super::positions::TRANSPOSED;
use super::rows::{RowGradient, RowState, softmax_row};
use crate::elementwise::scale_in_place;
use crate::matrix::MatRef;
use crate::product::{Block, PANEL, STRIP_STRIDE, multiply_block, pack_rows, packed_len};
use crate::simd::Simd;

/// Distance between rows of a tile: the one that the product's kernel knows.
const STRIDE: usize = STRIP_STRIDE;

/// Key columns of a tile.
const COLUMNS: usize = 512;

/// A thread's buffers. S keys of the sequence.
pub struct WideWork<'w> {
    /// Keys and values as panels over S.
    pub panels: [&'w mut [f32]; 2],
    /// Scores and their gradients [m, n].
    pub scores: [&'w mut [f32]; 2],
    /// Some keys' position scores, then gradients of scores, transposed: [PANEL, m].
    pub transposed: &'w mut [f32],
}

/// A product of nothing, for others to be made of.
pub(super) const BLOCK: Block = Block {
    a: std::ptr::null(),
    a_row: 0,
    a_col: 1,
    b: std::ptr::null(),
    b_row: PANEL,
    b_panel: PANEL,
    b_padded: false,
    c: std::ptr::null_mut(),
    c_row: 0,
    bias: std::ptr::null(),
    m: 0,
    n: 0,
    k: 0,
    alpha: 1.0,
    accumulate: false,
};

impl WideWork<'_> {
    /// Row `row` of scores or of their gradients, with its margins.
    #[inline(always)]
    fn row(&mut self, which: Product, at: &At, row: usize) -> &mut [f32] {
        let len = at.tile.n + 2 * at.layout.margin;
        &mut self.scores[which as usize][row * STRIDE..][..len]
    }
}

/// The rows of a view as the depth of a product: its b.
pub(super) fn as_depth(x: MatRef<f32>) -> Block {
    Block {
        b: x.as_ptr(),
        b_row: x.row_stride(),
        n: x.cols(),
        k: x.rows(),
        ..BLOCK
    }
}

impl Arithmetic for f32 {
    type Work<'w> = WideWork<'w>;
    const PLAIN: Layout = Layout {
        blocks: [96, COLUMNS],
        stride: STRIDE,
        margin: 0,
        narrow: 0,
    };
    /// With both margins the columns fit between two rows.
    const MARGINED: Layout = Layout {
        blocks: [MOST_ROWS, COLUMNS - 2 * PANEL],
        margin: PANEL,
        ..Self::PLAIN
    };
    const ASKS_AHEAD: bool = false;

    fn work<'w>(carver: &mut Carver<'w>, need: &WorkNeed) -> WideWork<'w> {
        let backward = usize::from(need.pass == Pass::Backward);
        let panels = packed_len(need.kv_len, need.head_dim);
        let scores = need.tile_len();
        let transposed = need.layout.margin * TRANSPOSED;
        WideWork {
            panels: [carver.take(panels), carver.take(backward * panels)],
            scores: [carver.take(scores), carver.take(backward * scores)],
            transposed: carver.take(transposed),
        }
    }

    #[inline(always)]
    fn prepare<S: Simd>(s: S, w: &mut WideWork, x: &HeadOperands<f32>, pass: Pass) {
        pack_panels(s, x.k, w.panels[0]);
        if pass == Pass::Backward {
            pack_panels(s, x.v, w.panels[1]);
        }
    }

    #[inline(always)]
    fn take_rows<S: Simd>(_: S, _: &mut WideWork, _: MatRef<f32>, _: Option<MatRef<f32>>) {}

    #[inline(always)]
    unsafe fn multiply<S: Simd>(
        s: S,
        w: &mut WideWork,
        at: &At,
        which: Product,
        rows: MatRef<f32>,
        accumulate: bool,
    ) {
        let d = at.head.head_dim;
        let block = Block {
            a: rows.as_ptr(),
            a_row: rows.row_stride(),
            b: w.panels[which as usize][at.tile.j * d..].as_ptr(),
            b_panel: d * PANEL,
            b_padded: true,
            c: w.scores[which as usize][at.layout.margin..].as_mut_ptr(),
            c_row: STRIDE,
            m: at.tile.m,
            n: at.tile.n,
            k: d,
            alpha: match which {
                Product::Scores => at.head.scale,
                Product::Gradients => 1.0,
            },
            accumulate,
            ..BLOCK
        };
        // SAFETY: the view holds m rows, the panels S rows up to whole panels (j is a multiple of
        // PANEL), the scores m rows.
        unsafe { multiply_block(s, &block) };
    }

    #[inline(always)]
    unsafe fn softmax<S: Simd>(
        s: S,
        w: &mut WideWork,
        at: &At,
        row: usize,
        state: &mut RowState,
        out: RowsMut,
    ) {
        let p = &mut w.row(Product::Scores, at, row)[at.layout.margin..][..at.tile.n];
        // SAFETY: the caller's contract.
        let out = unsafe { out.row(at.tile.i + row) };
        softmax_row(s, at, row, p, state, out);
    }

    #[inline(always)]
    unsafe fn weigh<S: Simd>(s: S, w: &mut WideWork, at: &At, v: MatRef<f32>, out: RowsMut) {
        let block = Block {
            a: w.scores[0][at.layout.margin..].as_ptr(),
            a_row: STRIDE,
            c: out.at(at.tile.i),
            c_row: out.stride(),
            m: at.tile.m,
            accumulate: !at.tile.is_first,
            ..as_depth(at.keys(v))
        };
        // SAFETY: the scores hold m rows; the caller's contract covers out.
        unsafe { multiply_block(s, &block) };
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(s: S, _: &WideWork, _: usize, factor: f32, out: &mut [f32]) {
        scale_in_place(s, out, factor);
    }

    #[inline(always)]
    unsafe fn begin_keys(_: &mut WideWork, head: &Head, x: &HeadGradients<f32>) {
        if head.mask == AttentionMask::Full {
            return;
        }
        // A key's first tile is not the same for all keys of a tile, and some keys may have none.
        for j in 0..head.kv_len {
            for d in [x.d_k, x.d_v] {
                // SAFETY: the caller's contract.
                unsafe { d.row(j) }.fill(0.0);
            }
        }
    }

    #[inline(always)]
    unsafe fn gradients<S: Simd>(
        s: S,
        w: &mut WideWork,
        at: &At,
        row: usize,
        lse: &[f32],
        deltas: &[f32],
    ) {
        let (margin, n) = (at.layout.margin, at.tile.n);
        let gradient = RowGradient {
            row,
            lse: lse[at.head.lse_at(at.tile.i + row)],
            delta: deltas[row],
            score_factor: 1.0,
        };
        let [p, d_s] = &mut w.scores;
        let p = &mut p[row * STRIDE + margin..][..n];
        let d_s = &mut d_s[row * STRIDE..][..n + 2 * margin];
        gradient.apply(s, at, p, &mut d_s[margin..][..n]);
        d_s[..margin].fill(0.0);
        d_s[margin + n..].fill(0.0);
    }

    #[inline(always)]
    unsafe fn add_gradients<S: Simd>(s: S, w: &mut WideWork, at: &At, x: &HeadGradients<f32>) {
        let [p, d_s] = [0, 1].map(|which: usize| w.scores[which].as_ptr());
        let [p, d_s] = [p, d_s].map(|x| x.wrapping_add(at.layout.margin));
        let (d_out, q) = (at.queries(x.d_out), at.queries(x.x.q));
        // Gradients of keys and values: the transposed tile times rows of queries or of d_out.
        for (a, other, c) in [(p, d_out, x.d_v), (d_s, q, x.d_k)] {
            let block = Block {
                a,
                a_row: 1,
                a_col: STRIDE,
                c: c.at(at.tile.j),
                c_row: c.stride(),
                m: at.tile.n,
                accumulate: at.adds_to_keys,
                ..as_depth(other)
            };
            // SAFETY: the scores hold m rows; the caller's contract covers the gradients.
            unsafe { multiply_block(s, &block) };
        }
        let block = Block {
            a: d_s,
            a_row: STRIDE,
            c: x.d_q.at(at.tile.i),
            c_row: x.d_q.stride(),
            m: at.tile.m,
            accumulate: !at.tile.is_first,
            ..as_depth(at.keys(x.x.k))
        };
        // SAFETY: as above.
        unsafe { multiply_block(s, &block) };
    }

    #[inline(always)]
    unsafe fn store_queries<S: Simd>(_: S, _: &WideWork, _: &At, _: RowsMut) {}

    #[inline(always)]
    unsafe fn store_keys<S: Simd>(_: S, _: &WideWork, _: &Head, _: &HeadGradients<f32>) {}
}

/// Packs [S, Dh] rows into panels of PANEL rows: the b operand of q kᵀ.
#[inline(always)]
fn pack_panels<S: Simd>(s: S, rows: MatRef, packed: &mut [f32]) {
    let (n, d) = (rows.rows(), rows.cols());
    let packed = &mut packed[..packed_len(n, d)];
    for (p, panel) in packed.chunks_exact_mut(d * PANEL).enumerate() {
        let range = p * PANEL..((p + 1) * PANEL).min(n);
        pack_rows(s, rows.rows_range(range), panel, PANEL);
    }
}
