//! Attention of single new tokens over keys and values that were kept: what generation does at each step. Keys and values
//! lie in a pool of rows; each query names its own, so that sequences may share the rows of what they have in common.

use super::at_least;
use crate::isa::Isa;
use crate::loss::{exp_in_place, row_max};
use crate::parallel::for_each_chunk;
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};
use std::cell::RefCell;

/// Operands of [`attention_cached`]. Shapes: q [n, H * Dh]; k, v [pool rows, H * Dh].
#[derive(Clone, Copy, Debug)]
pub struct CachedAttention<'a> {
    /// H.
    pub num_heads: usize,
    /// Dh.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Queries.
    pub q: &'a [f32],
    /// The pool of keys.
    pub k: &'a [f32],
    /// The pool of values.
    pub v: &'a [f32],
    /// The pool's rows that each query attends to, `[n]`; at least one each.
    pub rows: &'a [&'a [u32]],
}

/// out = softmax(scale q kᵀ) v by head, over each query's own rows. Shape: out [n, H * Dh].
///
/// Panics if a length disagrees, or if a row is outside the pool.
pub fn attention_cached(isa: Isa, args: &CachedAttention, out: &mut [f32]) {
    let width = args.num_heads * args.head_dim;
    assert_eq!(args.q.len(), args.rows.len() * width);
    assert_eq!(out.len(), args.q.len());
    assert_eq!(args.k.len(), args.v.len());
    assert!(args.rows.iter().all(|rows| !rows.is_empty()));
    if width == 0 {
        return;
    }
    // A task is one head of one query.
    for_each_chunk(out, args.head_dim, |start, out| {
        SCORES.with_borrow_mut(|scores| {
            let op = OneHead {
                args: *args,
                query: start / width,
                column: start % width,
                scores: at_least(scores, args.rows[start / width].len()),
                out,
            };
            dispatch(isa, op);
        });
    });
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = RefCell::default();
}

struct OneHead<'a> {
    args: CachedAttention<'a>,
    query: usize,
    /// The head's first column.
    column: usize,
    scores: &'a mut [f32],
    out: &'a mut [f32],
}

impl SimdOp for OneHead<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (args, d) = (self.args, self.args.head_dim);
        let width = args.num_heads * d;
        let rows = args.rows[self.query];
        let q = &args.q[self.query * width + self.column..][..d];
        for (score, &row) in self.scores.iter_mut().zip(rows) {
            let k = &args.k[row as usize * width + self.column..][..d];
            let mut sum = s.splat(0.0);
            let mut at = 0;
            while at < d {
                let n = lanes_at::<S>(at, d);
                sum = s.mul_add(load_at(s, q, at, n), load_at(s, k, at, n), sum);
                at += S::LANES;
            }
            *score = args.scale * s.reduce_add(sum);
        }
        let max = row_max(s, self.scores);
        let sum = exp_in_place(s, self.scores, max);
        self.out.fill(0.0);
        for (p, &row) in self.scores.iter().zip(rows) {
            let p = s.splat(p / sum);
            let v = &args.v[row as usize * width + self.column..][..d];
            let mut at = 0;
            while at < d {
                let n = lanes_at::<S>(at, d);
                let value = s.mul_add(p, load_at(s, v, at, n), load_at(s, self.out, at, n));
                store_at(s, self.out, at, value, n);
                at += S::LANES;
            }
        }
    }
}
