//! The backward of one key-value head of one sequence, over the query heads that read it. Scores
//! are computed again.

use super::arithmetic::{Arithmetic, At, HeadGradients, Pass, Product, ScoreSource};
use super::forward::prefetch_row_of;
use super::head::{Head, MOST_ROWS, Tile};
use super::rows::dots;
use super::{AttentionMask, prefetch_row, prefetch_rows};
use crate::dropout::Mask;
use crate::simd::{Simd, SimdOp};

/// One query head.
#[derive(Clone, Copy)]
pub(super) struct Backward<'a, E, Z> {
    pub head: Head,
    pub source: Z,
    pub mask: Option<&'a Mask>,
    /// Of all queries [q rows, H].
    pub lse: &'a [f32],
    pub x: HeadGradients<'a, E>,
    /// Operands and gradients of the piece that follows.
    pub next: Option<HeadGradients<'a, E>>,
}

/// A [`Backward`] with a thread's buffers, and where it stands among the heads that share keys.
pub(super) struct BackwardTask<'a, 't, 'w, E: Arithmetic, Z> {
    pub task: &'t Backward<'a, E, Z>,
    pub is_first: bool,
    pub is_last: bool,
    pub work: &'t mut E::Work<'w>,
}

impl<E: Arithmetic, Z: ScoreSource<E>> SimdOp for BackwardTask<'_, '_, '_, E, Z> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { task, work, .. } = self;
        let (head, x) = (&task.head, &task.x);
        if head.q_len == 0 || head.kv_len == 0 {
            task.clear();
            return;
        }
        for of_q in [x.x.q, x.d_out, x.out] {
            let rows = head.q_len.min(Z::LAYOUT.blocks[0]);
            prefetch_rows(s, of_q.rows_range(0..rows));
        }
        if self.is_first {
            for of_kv in [x.x.k, x.x.v] {
                prefetch_rows(s, of_kv);
            }
            E::prepare(s, work, &x.x, Pass::Backward);
            task.source.prepare(s, work, x.x.k);
            // SAFETY: as in `BackwardTile`.
            unsafe { E::begin_keys(work, head, x) };
        }
        let mut deltas = [0.0; MOST_ROWS];
        head.for_each_tile(Z::LAYOUT.blocks, |tile| {
            s.call(BackwardTile {
                task,
                tile,
                adds_to_keys: !self.is_first || tile.i > 0 || head.mask != AttentionMask::Full,
                deltas: &mut deltas,
                work: &mut *work,
            });
        });
        if self.is_last {
            // SAFETY: as in `BackwardTile`.
            unsafe { E::store_keys(s, work, head, x) };
        }
    }
}

struct BackwardTile<'a, 't, 'w, E: Arithmetic, Z> {
    task: &'t Backward<'a, E, Z>,
    tile: Tile,
    adds_to_keys: bool,
    /// Of each query of the block its result times the gradient of it.
    deltas: &'t mut [f32],
    work: &'t mut E::Work<'w>,
}

impl<E: Arithmetic, Z: ScoreSource<E>> SimdOp for BackwardTile<'_, '_, '_, E, Z> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            task,
            tile,
            adds_to_keys,
            deltas,
            work,
        } = self;
        let at = At {
            head: &task.head,
            tile,
            adds_to_keys,
            layout: Z::LAYOUT,
            mask: task.mask,
        };
        let x = &task.x;
        let d_out = at.queries(x.d_out);
        if tile.is_first {
            E::take_rows(s, work, at.queries(x.x.q), Some(d_out));
            dots(s, at.queries(x.out), d_out, deltas);
        }
        // SAFETY: the entry asserted the operands' shapes and took buffers for its longest
        // sequence; `run` prepared them; no other task writes this head's columns of this
        // sequence's rows of d_q, nor its key-value head's of d_k and d_v.
        unsafe {
            task.source.scores(s, work, &at, &x.x);
            E::multiply(s, work, &at, Product::Gradients, d_out, false);
            for row in 0..tile.m {
                if E::ASKS_AHEAD && tile.is_first {
                    task.prefetch(s, tile.i + row);
                }
                E::gradients(s, work, &at, row, task.lse, deltas);
            }
            E::add_gradients(s, work, &at, x);
            task.source.add_gradients(s, work, &at, x);
            if tile.is_last {
                E::store_queries(s, work, &at, x.d_q);
            }
        }
    }
}

impl<E: Arithmetic, Z> Backward<'_, E, Z> {
    /// Asks for row `i` of what this task will write and of what the next one will read.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, i: usize) {
        let (x, d) = (&self.x, self.head.head_dim);
        prefetch_row(s, x.d_q.at(i), d);
        if i < self.head.kv_len {
            prefetch_row(s, x.d_k.at(i), d);
            prefetch_row(s, x.d_v.at(i), d);
        }
        if let Some(next) = &self.next {
            for x in [next.x.q, next.d_out, next.out, next.x.k, next.x.v] {
                prefetch_row_of(s, x, i);
            }
        }
    }

    /// Zero gradients: without queries or without keys, those of the other side are.
    fn clear(&self) {
        for i in 0..self.head.q_len {
            // SAFETY: the rows lie inside the buffers, whose shapes the entry asserted, and no
            // other task writes this head's columns of this sequence's rows.
            unsafe { self.x.d_q.row(i) }.fill(E::default());
        }
        for j in 0..self.head.kv_len {
            for d in [self.x.d_k, self.x.d_v] {
                // SAFETY: as above.
                unsafe { d.row(j) }.fill(E::default());
            }
        }
    }
}
