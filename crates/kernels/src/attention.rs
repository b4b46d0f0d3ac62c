//! Attention by offsets, forward and backward, in tiles: no T x T scores are ever stored.
//!
//! A task is one head of one sequence (in the backward a head of keys and values); it walks tiles
//! of scores with a running maximum and sum (flash attention, Dao et al. 2022). A mask is a range
//! of columns for each row: tiles outside every row's range are not visited, and within a tile a
//! row works on its range alone. One body each way serves every element
//! ([`arithmetic::Arithmetic`]) and every kind of scores ([`arithmetic::ScoreSource`]).

mod arithmetic;
mod backward;
mod cached;
mod forward;
mod head;
mod pair_positions;
mod pairs;
mod positions;
mod rows;
mod shape;
mod wide;
mod wide_positions;

pub use cached::{CachedSequence, CachedShape, QueryRole, attend_cached, attend_cached_scratch};
pub use positions::RelativePositions;
pub use shape::{Attended, AttentionGradients, AttentionMask, AttentionOperands, AttentionShape};

use crate::isa::Isa;
use crate::matrix::{MatMut, MatRef};
use crate::parallel::{SharedMut, for_each_task};
use crate::scratch::{Room, Scratch, ScratchNeed, Slots};
use crate::simd::{Simd, dispatch};
use arithmetic::{Carver, HeadGradients, HeadOperands, Pass, Plainly, ScoreSource, WorkNeed};
use backward::{Backward, BackwardTask};
use forward::{Forward, ForwardTask};
use half::bf16;
use head::{Head, Layout, RowsMut};
use positions::{Side, TableGradient, Tables, WithPositions};
use shape::Deal;

/// An element that attention is written for: f32 or bf16. Its functions are here so that they are
/// compiled with this crate, not with each that calls them.
pub trait AttentionElement: WithPositions {
    /// [`attend`].
    #[doc(hidden)]
    fn forward(call: ForwardCall<Self>, shared: Room);
    /// [`attend_backward`].
    #[doc(hidden)]
    fn backward(call: BackwardCall<Self>, of_tables: [Option<&mut [Self]>; 2], shared: Room);
    /// [`attend_cached`].
    #[doc(hidden)]
    fn cached(call: cached::Call<Self>);
}

macro_rules! attention_elements {
    ($($E:ty),*) => {
        $(impl AttentionElement for $E {
            fn forward(call: ForwardCall<$E>, shared: Room) {
                call.run_all(shared);
            }
            fn backward(call: BackwardCall<$E>, of_tables: [Option<&mut [$E]>; 2], shared: Room) {
                call.run_all(of_tables, shared);
            }
            fn cached(call: cached::Call<$E>) {
                call.run();
            }
        })*
    };
}

attention_elements!(f32, bf16);

/// Rows of a head that are asked for in one go at most.
const PREFETCHED: usize = 512;

/// What [`attend`] needs; `tables` of relative positions are there.
pub fn attend_scratch<E: AttentionElement>(
    shape: &AttentionShape,
    tables: Option<usize>,
) -> ScratchNeed {
    let need = scratch::<E>(shape, Pass::Forward, tables);
    ScratchNeed {
        shared: positions::shared_bytes::<E>(shape, Pass::Forward, tables.unwrap_or(0), 0),
        per_thread: need.max(positions::slot_bytes::<E>(shape, 0)),
    }
}

/// What [`attend_backward`] needs; `tables` of relative positions are there, each of `table_rows`
/// rows, and the gradients of `trained` of them are wanted.
pub fn attend_backward_scratch<E: AttentionElement>(
    shape: &AttentionShape,
    tables: Option<usize>,
    trained: usize,
    table_rows: usize,
) -> ScratchNeed {
    let need = scratch::<E>(shape, Pass::Backward, tables);
    let tables = tables.unwrap_or(0);
    ScratchNeed {
        shared: positions::shared_bytes::<E>(shape, Pass::Backward, tables, trained),
        per_thread: need.max(positions::slot_bytes::<E>(shape, table_rows)),
    }
}

/// Bytes of a thread's buffers.
fn scratch<E: WithPositions>(shape: &AttentionShape, pass: Pass, tables: Option<usize>) -> usize {
    let layout = tables.map_or(E::PLAIN, |_| E::MARGINED);
    let need = work_need(shape, layout, pass);
    Carver::count(|carver| E::work(carver, &need))
}

fn work_need(shape: &AttentionShape, layout: Layout, pass: Pass) -> WorkNeed {
    WorkNeed {
        head_dim: shape.head_dim,
        rows: WorkNeed::rows(shape.most_queries(), &layout, shape.mask),
        kv_len: shape.most_keys(),
        layout,
        pass,
    }
}

/// out = softmax(scores) v by head and sequence; the probabilities with dropout if asked. A
/// sequence without keys gives 0.
///
/// On bf16: products of bf16 pairs summed in f32, softmax in f32, probabilities rounded to bf16
/// before they meet the values.
///
/// Shapes: out [q rows, H * Dh]; lse [q rows, H]; scratch as [`attend_scratch`] says. Panics if a
/// shape disagrees, a sequence is longer than the positions' reach, or a row is past the end of a
/// table.
pub fn attend<E: AttentionElement>(
    isa: Isa,
    shape: &AttentionShape,
    x: &AttentionOperands<E>,
    mut out: MatMut<E>,
    lse: &mut [f32],
    scratch: &mut Scratch,
) {
    shape.check(x, &[[out.rows(), out.cols()]], lse);
    let tables = x.positions.as_ref().map(|positions| {
        positions.check(shape);
        positions.count()
    });
    if shape.width() == 0 {
        return;
    }
    let (shared, slots) = scratch.split(attend_scratch::<E>(shape, tables));
    let call = ForwardCall {
        isa,
        shape,
        x,
        out: RowsMut::new(out.shared(), out.row_stride(), out.cols()),
        lse: SharedMut::new(lse),
        slots: &slots,
    };
    E::forward(call, shared);
}

/// A forward call, checked.
pub struct ForwardCall<'a, E> {
    isa: Isa,
    shape: &'a AttentionShape<'a>,
    x: &'a AttentionOperands<'a, E>,
    out: RowsMut<E>,
    lse: SharedMut,
    slots: &'a Slots<'a>,
}

impl<E: WithPositions> ForwardCall<'_, E> {
    fn run_all(&self, mut shared: Room) {
        match &self.x.positions {
            None => self.run(|_| Plainly),
            Some(positions) => {
                let pass = Pass::Forward;
                let tables = Tables::prepare(
                    self.isa,
                    self.shape,
                    positions,
                    pass,
                    &mut shared,
                    self.slots,
                );
                self.run(|h| tables.head(h, [None; 2]));
            }
        }
    }

    fn run<Z: ScoreSource<E>>(&self, source: impl Fn(usize) -> Z + Sync + Send) {
        let (shape, mask) = (self.shape, self.shape.mask_of_dropout());
        let need = work_need(shape, Z::LAYOUT, Pass::Forward);
        let deal = Deal::of_heads(shape, shape.num_heads);
        for_each_task(deal.tasks(), |task| {
            let mut slot = self.slots.take();
            let mut work = E::work(&mut Carver::of(slot.room()), &need);
            for ((b, h), next) in deal.pieces(task) {
                let next = next.filter(|_| E::ASKS_AHEAD);
                let head = Head::new(shape, b, h);
                let task = Forward {
                    head,
                    source: source(h),
                    mask: mask.as_ref(),
                    x: self.of(&head),
                    next: next.map(|(b, h)| self.of(&Head::new(shape, b, h))),
                    out: head.of_q_mut(self.out),
                    lse: Some(self.lse),
                };
                let work = &mut work;
                dispatch(self.isa, ForwardTask { task: &task, work });
            }
        });
    }

    fn of(&self, head: &Head) -> HeadOperands<'_, E> {
        head_operands(self.x, head)
    }
}

fn head_operands<'a, E: Copy>(x: &AttentionOperands<'a, E>, head: &Head) -> HeadOperands<'a, E> {
    HeadOperands {
        q: head.of_q(x.q),
        k: head.of_kv(x.k),
        v: head.of_kv(x.v),
    }
}

/// The gradients of the operands, overwritten. Scores are computed again from the operands and lse,
/// dropout from its key. Each task adds up the gradients of the tables over its own sequences;
/// tasks are summed in their order, in f32, and rounded once.
///
/// Shapes: d_out [q rows, H * Dh]; scratch as [`attend_backward_scratch`] says. Panics if a shape
/// disagrees.
pub fn attend_backward<E: AttentionElement>(
    isa: Isa,
    shape: &AttentionShape,
    saved: &Attended<E>,
    d_out: MatRef<E>,
    gradients: AttentionGradients<E>,
    scratch: &mut Scratch,
) {
    let x = &saved.operands;
    let AttentionGradients {
        mut d_q,
        mut d_k,
        mut d_v,
        d_keys,
        d_queries,
    } = gradients;
    let of_q = [
        [saved.out.rows(), saved.out.cols()],
        [d_out.rows(), d_out.cols()],
        [d_q.rows(), d_q.cols()],
    ];
    shape.check(x, &of_q, saved.lse);
    for x in [saved.out, d_out] {
        assert_eq!(x.col_stride(), 1, "contiguous rows");
    }
    for d in [&d_k, &d_v] {
        assert_eq!(
            [d.rows(), d.cols()],
            [x.k.rows(), x.k.cols()],
            "the shape of k"
        );
    }
    let wanted = |d: &Option<&mut [E]>| d.as_ref().map_or(0, |d| d.len());
    let trained = usize::from(d_keys.is_some()) + usize::from(d_queries.is_some());
    let table_rows = wanted(&d_keys).max(wanted(&d_queries)) / shape.width().max(1);
    let tables = x.positions.as_ref().map(|positions| {
        positions.check(shape);
        positions.count()
    });
    if shape.width() == 0 {
        return;
    }
    let need = attend_backward_scratch::<E>(shape, tables, trained, table_rows);
    let (shared, slots) = scratch.split(need);
    let rows = |d: &mut MatMut<E>| RowsMut::new(d.shared(), d.row_stride(), d.cols());
    let call = BackwardCall {
        isa,
        shape,
        saved,
        d_out,
        d_q: rows(&mut d_q),
        d_k: rows(&mut d_k),
        d_v: rows(&mut d_v),
        slots: &slots,
    };
    E::backward(call, [d_keys, d_queries], shared);
}

/// A backward call, checked.
pub struct BackwardCall<'a, E> {
    isa: Isa,
    shape: &'a AttentionShape<'a>,
    saved: &'a Attended<'a, E>,
    d_out: MatRef<'a, E>,
    d_q: RowsMut<E>,
    d_k: RowsMut<E>,
    d_v: RowsMut<E>,
    slots: &'a Slots<'a>,
}

impl<E: WithPositions> BackwardCall<'_, E> {
    fn run_all(&self, of_tables: [Option<&mut [E]>; 2], mut shared: Room) {
        let (isa, shape, slots) = (self.isa, self.shape, self.slots);
        let [d_keys, d_queries] = of_tables;
        let Some(positions) = &self.saved.operands.positions else {
            let is_none = d_keys.is_none() && d_queries.is_none();
            assert!(is_none, "gradients of tables that are not there");
            let deal = Deal::of_heads(shape, shape.num_key_value_heads);
            self.run(&deal, |_| {}, |_, _| Plainly);
            return;
        };
        let tables = Tables::prepare(isa, shape, positions, Pass::Backward, &mut shared, slots);
        let sides = [
            (d_keys, positions.keys, Side::Keys),
            (d_queries, positions.queries, Side::Queries),
        ];
        let mut of_tables = sides.map(|(d, table, side)| {
            let (d, table) = (d?, table.expect("a gradient of a table that is there"));
            assert_eq!(d.len(), table.len(), "a table's gradient");
            Some((d, TableGradient::take::<E>(shape, side, &mut shared)))
        });
        let partial = of_tables.each_mut().map(|of_table| {
            let (_, gradient) = of_table.as_mut()?;
            Some((SharedMut::new(gradient.partial), gradient.head_len))
        });
        // Each gradient has a part for every task: `of_groups` numbers them so.
        let part = |task: usize| {
            let at =
                move |(all, len): (SharedMut, usize)| (all.get().wrapping_add(task * len), len);
            partial.map(|gradient| gradient.map(at))
        };
        let begin = |task: usize| {
            for (start, len) in part(task).into_iter().flatten() {
                // SAFETY: a part of the gradient, the task's own.
                unsafe { std::slice::from_raw_parts_mut(start, len) }.fill(0.0);
            }
        };
        let source = |task: usize, h| tables.head(h, part(task).map(|part| part.map(|(at, _)| at)));
        self.run(&Deal::of_groups(shape), begin, source);
        for (d, gradient) in of_tables.into_iter().flatten() {
            gradient.sum(isa, shape, positions, d, slots);
        }
    }

    /// `begin` begins a task, `source` is that of a task and a head. Pieces are key-value heads.
    fn run<Z: ScoreSource<E>>(
        &self,
        deal: &Deal,
        begin: impl Fn(usize) + Sync + Send,
        source: impl Fn(usize, usize) -> Z + Sync + Send,
    ) {
        let (shape, mask) = (self.shape, self.shape.mask_of_dropout());
        let (group, need) = (shape.group(), work_need(shape, Z::LAYOUT, Pass::Backward));
        for_each_task(deal.tasks(), |task| {
            let mut slot = self.slots.take();
            let mut work = E::work(&mut Carver::of(slot.room()), &need);
            begin(task);
            for ((b, kv_head), next) in deal.pieces(task) {
                for h in kv_head * group..(kv_head + 1) * group {
                    let head = Head::new(shape, b, h);
                    let is_last = h + 1 == (kv_head + 1) * group;
                    let next = if is_last {
                        next.map(|(b, kv_head)| (b, kv_head * group))
                    } else {
                        Some((b, h + 1))
                    };
                    let next = next.filter(|_| E::ASKS_AHEAD);
                    let backward = Backward {
                        head,
                        source: source(task, h),
                        mask: mask.as_ref(),
                        lse: self.saved.lse,
                        x: self.of(&head),
                        next: next.map(|(b, h)| self.of(&Head::new(shape, b, h))),
                    };
                    let op = BackwardTask {
                        task: &backward,
                        is_first: h == kv_head * group,
                        is_last,
                        work: &mut work,
                    };
                    dispatch(self.isa, op);
                }
            }
        });
    }

    fn of(&self, head: &Head) -> HeadGradients<'_, E> {
        HeadGradients {
            x: head_operands(&self.saved.operands, head),
            out: head.of_q(self.saved.out),
            d_out: head.of_q(self.d_out),
            d_q: head.of_q_mut(self.d_q),
            d_k: head.of_kv_mut(self.d_k),
            d_v: head.of_kv_mut(self.d_v),
        }
    }
}

/// Asks for a head's rows that will soon be read: their distance defeats the machine's own
/// prefetching.
#[inline(always)]
fn prefetch_rows<S: Simd, E: Copy>(s: S, x: MatRef<E>) {
    for row in 0..x.rows().min(PREFETCHED) {
        for line in (0..x.cols()).step_by(64 / size_of::<E>()) {
            let at = row * x.row_stride() + line;
            s.prefetch(x.as_ptr().wrapping_add(at).cast());
        }
    }
}

/// Asks for `len` values from `start` on, which a later task reads or writes. Tasks of a few rows
/// far apart wait for memory otherwise (measured: a sixth of the time of rows of 30 tokens).
#[inline(always)]
fn prefetch_row<S: Simd, E>(s: S, start: *const E, len: usize) {
    for at in (0..len).step_by(64 / size_of::<E>()) {
        s.prefetch_far(start.wrapping_add(at).cast());
    }
}
