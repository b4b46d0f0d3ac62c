//! Attention of single new tokens over keys and values that were kept: what generation does at each step. Keys and values
//! lie in a pool of rows; each query names its own, so that sequences may share the rows of what they have in common.

use crate::aligned::Aligned;
use crate::element::Element;
use crate::isa::Isa;
use crate::loss::{exp_in_place, row_max};
use crate::parallel::for_each_chunk;
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};
use std::cell::RefCell;

/// Operands of [`attention_cached`]. Shapes: q [n, H * Dh]; k, v [pool rows, H * Dh].
#[derive(Clone, Copy, Debug)]
pub struct CachedAttention<'a, E> {
    /// H.
    pub num_heads: usize,
    /// Dh.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Queries.
    pub q: &'a [E],
    /// The pool of keys.
    pub k: &'a [E],
    /// The pool of values.
    pub v: &'a [E],
    /// The pool's rows that each query attends to, `[n]`; at least one each.
    pub rows: &'a [&'a [u32]],
}

/// Tasks that few queries are cut into, about.
const FEW_TASKS: usize = 8;

/// Rows of values that are added at a time.
const ROWS: usize = 4;

/// How many rows ahead memory is asked for: a sequence's rows lie apart, which the machine's own prefetching does not see.
const AHEAD: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// out = softmax(scale q kᵀ) v by head, over each query's own rows. Shape: out [n, H * Dh]. Sums are f32.
///
/// Panics if a length disagrees, or if a row is outside the pool.
pub fn attention_cached<E: Element>(isa: Isa, args: &CachedAttention<E>, out: &mut [E]) {
    let width = args.num_heads * args.head_dim;
    assert_eq!(args.q.len(), args.rows.len() * width);
    assert_eq!(out.len(), args.q.len());
    assert_eq!(args.k.len(), args.v.len());
    assert!(args.rows.iter().all(|rows| !rows.is_empty()));
    if width == 0 || out.is_empty() {
        return;
    }
    // A task is one query, whose kept rows are then read from end to end; of few queries, some of the heads.
    let wanted = (FEW_TASKS / args.rows.len()).max(1);
    let mut parts = (1..=wanted.min(args.num_heads)).rev();
    let parts = parts.find(|n| args.num_heads.is_multiple_of(*n));
    let columns = width / parts.unwrap_or(1);
    for_each_chunk(out, columns, |start, out| {
        SCRATCH.with_borrow_mut(|scratch| {
            let op = Heads {
                args: *args,
                query: start / width,
                column: start % width,
                scratch,
                out,
            };
            dispatch(isa, op);
        });
    });
}

/// Buffers that a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    q: Aligned<f32>,
    /// [heads, rows].
    scores: Aligned<f32>,
    out: Aligned<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Some heads of one query.
struct Heads<'a, E> {
    args: CachedAttention<'a, E>,
    query: usize,
    /// The first head's first column.
    column: usize,
    scratch: &'a mut Scratch,
    out: &'a mut [E],
}

impl<E: Element> SimdOp for Heads<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (args, columns) = (self.args, self.out.len());
        let width = args.num_heads * args.head_dim;
        let rows = args.rows[self.query];
        let from = self.query * width + self.column;
        let q = self.scratch.q.at_least(columns);
        copy(s, q, &args.q[from..from + columns]);
        let n_scores = columns / args.head_dim * rows.len();
        let scores = self.scratch.scores.at_least(n_scores);
        let part = Part {
            rows,
            width,
            column: self.column,
            columns,
            head_dim: args.head_dim,
        };
        part.scores(s, q, args.k, args.scale, scores);
        for scores in scores.chunks_exact_mut(rows.len()) {
            let max = row_max(s, scores);
            let sum = s.splat(exp_in_place(s, scores, max));
            let mut at = 0;
            while at < scores.len() {
                let n = lanes_at::<S>(at, scores.len());
                let p = s.div(load_at(s, scores, at, n), sum);
                store_at(s, scores, at, p, n);
                at += S::LANES;
            }
        }
        let out = self.scratch.out.at_least(columns);
        out.fill(0.0);
        part.values(s, scores, args.v, out);
        copy(s, self.out, out);
    }
}

/// into = from, in another storage.
#[inline(always)]
fn copy<S: Simd, A: Element, B: Element>(s: S, into: &mut [A], from: &[B]) {
    let mut at = 0;
    while at < from.len() {
        let n = lanes_at::<S>(at, from.len());
        store_at(s, into, at, load_at(s, from, at, n), n);
        at += S::LANES;
    }
}

/// The columns of some heads in the pool's rows that a query attends to.
#[derive(Clone, Copy)]
struct Part<'a> {
    rows: &'a [u32],
    /// Of a row of the pool.
    width: usize,
    column: usize,
    columns: usize,
    head_dim: usize,
}

impl Part<'_> {
    /// The columns in row `i` of these rows.
    #[inline(always)]
    fn row<'p, E>(&self, pool: &'p [E], i: usize) -> &'p [E] {
        &pool[self.rows[i] as usize * self.width + self.column..][..self.columns]
    }

    /// Asks for the columns of a row that comes soon.
    #[inline(always)]
    fn prefetch<S: Simd, E: Element>(&self, s: S, pool: &[E], i: usize) {
        let Some(&row) = self.rows.get(i) else { return };
        let start = pool
            .as_ptr()
            .wrapping_add(row as usize * self.width + self.column);
        for at in (0..self.columns).step_by(LINE / size_of::<E>()) {
            s.prefetch(start.wrapping_add(at).cast());
        }
    }

    /// scores[head, row] = scale · q·k.
    #[inline(always)]
    fn scores<S: Simd, E: Element>(
        &self,
        s: S,
        q: &[f32],
        k: &[E],
        scale: f32,
        scores: &mut [f32],
    ) {
        let (n, d) = (self.rows.len(), self.head_dim);
        for i in 0..n {
            self.prefetch(s, k, i + AHEAD);
            let k = self.row(k, i);
            let mut first = 0;
            let mut at_score = i;
            while first < self.columns {
                let end = first + d;
                let mut sum = s.splat(0.0);
                let mut at = first;
                while at < end {
                    let lanes = lanes_at::<S>(at, end);
                    let (q, k) = (load_at(s, q, at, lanes), load_at(s, k, at, lanes));
                    sum = s.mul_add(q, k, sum);
                    at += S::LANES;
                }
                scores[at_score] = scale * s.reduce_add(sum);
                at_score += n;
                first = end;
            }
        }
    }

    /// out += p·v by head, in the order of the rows.
    #[inline(always)]
    fn values<S: Simd, E: Element>(&self, s: S, p: &[f32], v: &[E], out: &mut [f32]) {
        let (n, d) = (self.rows.len(), self.head_dim);
        let mut i = 0;
        while i < n {
            for ahead in i..i + ROWS {
                self.prefetch(s, v, ahead + AHEAD);
            }
            let count = (n - i).min(ROWS);
            let mut first = 0;
            let mut at_p = i;
            while first < self.columns {
                let end = first + d;
                // Behind the last row, the first of these stands in and counts nothing.
                let mut weights = [0.0; ROWS];
                weights[..count].copy_from_slice(&p[at_p..at_p + count]);
                let mut rows = [self.row(v, i); ROWS];
                for (j, row) in rows.iter_mut().enumerate().take(count) {
                    *row = self.row(v, i + j);
                }
                let mut at = first;
                while at < end {
                    let lanes = lanes_at::<S>(at, end);
                    let mut sum = load_at(s, out, at, lanes);
                    for (p, row) in weights.iter().zip(&rows) {
                        sum = s.mul_add(s.splat(*p), load_at(s, row, at, lanes), sum);
                    }
                    store_at(s, out, at, sum, lanes);
                    at += S::LANES;
                }
                at_p += n;
                first = end;
            }
            i += ROWS;
        }
    }
}
