//! The forward of one head of one sequence.

use super::arithmetic::{Arithmetic, At, HeadOperands, Pass, ScoreSource};
use super::head::{Head, RowsMut, Tile};
use super::rows::RowState;
use super::{prefetch_row, prefetch_rows};
use crate::dropout::Mask;
use crate::matrix::MatRef;
use crate::parallel::SharedMut;
use crate::simd::{Simd, SimdOp};

/// What the head is and works on.
#[derive(Clone, Copy)]
pub(super) struct Forward<'a, E, Z> {
    pub head: Head,
    pub source: Z,
    pub mask: Option<&'a Mask>,
    pub x: HeadOperands<'a, E>,
    /// Operands of the piece that follows.
    pub next: Option<HeadOperands<'a, E>>,
    /// The head's rows.
    pub out: RowsMut<E>,
    /// Of all queries [q rows, H].
    pub lse: Option<SharedMut>,
}

/// A [`Forward`] with a thread's buffers.
pub(super) struct ForwardTask<'a, 't, 'w, E: Arithmetic, Z> {
    pub task: &'t Forward<'a, E, Z>,
    pub work: &'t mut E::Work<'w>,
}

impl<E: Arithmetic, Z: ScoreSource<E>> SimdOp for ForwardTask<'_, '_, '_, E, Z> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { task, work } = self;
        let x = &task.x;
        if task.head.kv_len == 0 {
            task.clear();
            return;
        }
        prefetch_rows(s, x.k);
        prefetch_rows(s, x.q);
        prefetch_rows(s, x.v);
        E::prepare(s, work, x, Pass::Forward);
        task.source.prepare(s, work, x.k);
        let mut state = RowState::default();
        task.head.for_each_tile(Z::LAYOUT.blocks, |tile| {
            s.call(ForwardTile {
                task,
                tile,
                state: &mut state,
                work: &mut *work,
            });
        });
    }
}

struct ForwardTile<'a, 't, 'w, E: Arithmetic, Z> {
    task: &'t Forward<'a, E, Z>,
    tile: Tile,
    state: &'t mut RowState,
    work: &'t mut E::Work<'w>,
}

impl<E: Arithmetic, Z: ScoreSource<E>> SimdOp for ForwardTile<'_, '_, '_, E, Z> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            task,
            tile,
            state,
            work,
        } = self;
        let at = At {
            head: &task.head,
            tile,
            adds_to_keys: false,
            layout: Z::LAYOUT,
            mask: task.mask,
        };
        if tile.is_first {
            *state = RowState::default();
            E::take_rows(s, work, at.queries(task.x.q), None);
        }
        // SAFETY: the entry asserted the operands' shapes and took buffers for its longest
        // sequence; `run` prepared them; no other task writes this head's columns of this
        // sequence's rows.
        unsafe {
            task.source.scores(s, work, &at, &task.x);
            for row in 0..tile.m {
                if E::ASKS_AHEAD && tile.is_first {
                    task.prefetch(s, tile.i + row);
                }
                E::softmax(s, work, &at, row, state, task.out);
            }
            E::weigh(s, work, &at, task.x.v, task.out);
            if tile.is_last {
                for row in 0..tile.m {
                    let out = task.out.row(tile.i + row);
                    E::finish(s, work, row, 1.0 / state.sum[row], out);
                    task.store_lse(tile.i + row, state.max[row] + state.sum[row].ln());
                }
            }
        }
    }
}

impl<E: Arithmetic, Z> Forward<'_, E, Z> {
    /// Asks for row `i` of what this task will write and of what the next one will read.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, i: usize) {
        prefetch_row(s, self.out.at(i), self.head.head_dim);
        if let Some(next) = &self.next {
            for x in [next.q, next.k, next.v] {
                prefetch_row_of(s, x, i);
            }
        }
    }

    /// The results of queries without keys.
    fn clear(&self) {
        for i in 0..self.head.q_len {
            // SAFETY: row i of this head is inside the buffer, whose shape the entry asserted, and
            // no other task writes it.
            unsafe { self.out.row(i) }.fill(E::default());
            // SAFETY: likewise.
            unsafe { self.store_lse(i, f32::NEG_INFINITY) };
        }
    }

    /// # Safety
    /// Query `i` is this task's own.
    #[inline(always)]
    unsafe fn store_lse(&self, i: usize, lse: f32) {
        if let Some(all) = self.lse {
            // SAFETY: the caller's contract; the entry asserted the length.
            unsafe { *all.get().add(self.head.lse_at(i)) = lse };
        }
    }
}

/// Asks for row `i` of a view, if it has one.
#[inline(always)]
pub(super) fn prefetch_row_of<S: Simd, E: Copy>(s: S, x: MatRef<E>, i: usize) {
    if i < x.rows() {
        prefetch_row(s, x.as_ptr().wrapping_add(i * x.row_stride()), x.cols());
    }
}
