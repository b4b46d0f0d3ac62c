//! Attention over cached keys and values: what generation does. They lie in pools of rows; each
//! sequence names its own, so that sequences may share the rows of what they have in common.
//! Prompts, whole or in chunks, and new tokens mix in a call.

use super::arithmetic::{Carver, HeadOperands, Pass, Plainly, WorkNeed};
use super::forward::{Forward, ForwardTask};
use super::head::{CAUSAL_ROWS, Head, RowsMut};
use super::positions::WithPositions;
use super::rows::{CapInPlace, row_of};
use super::{AttentionElement, AttentionMask, AttentionOperands};
use crate::element::Element;
use crate::elementwise::convert_in;
use crate::isa::Isa;
use crate::loss::{exp_in_place, row_max};
use crate::matrix::{MatMut, MatRef};
use crate::parallel::for_each_task;
use crate::scratch::{Room, Scratch, ScratchNeed, Slots, bytes_of};
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};
use std::ops::Range;

/// How the queries of a sequence are worked on, which decides their bits: not what else is in the
/// call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryRole {
    /// A prompt or a chunk of one, in tiles: the same bits whatever the chunks, and as
    /// [`super::attend`] gives them.
    Prompt,
    /// New tokens, one by one.
    NewToken,
}

/// Some queries of a sequence, the last of those that have keys.
#[derive(Clone, Copy, Debug)]
pub struct CachedSequence<'a> {
    /// How many.
    pub queries: usize,
    /// The pools' rows of its keys, in their order; the last query's is the last.
    pub rows: &'a [u32],
    /// How they are worked on.
    pub role: QueryRole,
}

/// What attention over cached keys does.
#[derive(Clone, Copy, Debug)]
pub struct CachedShape<'a> {
    /// H.
    pub num_heads: usize,
    /// Hkv, as in [`super::AttentionShape`].
    pub num_key_value_heads: usize,
    /// Dh.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// As in [`super::AttentionShape`].
    pub soft_cap: Option<f32>,
    /// How many keys a query sees at most, itself among them; at least 1.
    pub window: Option<usize>,
    /// Whose queries lie end to end.
    pub sequences: &'a [CachedSequence<'a>],
}

/// Tasks that few queries are cut into, about.
const FEW_TASKS: usize = 8;

/// Rows of values that are added at a time.
const ROWS: usize = 4;

/// How many rows ahead memory is asked for: a sequence's rows lie apart, which the machine's own
/// prefetching does not see.
const AHEAD: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

impl CachedShape<'_> {
    /// Pairs of query and key that attend, over all sequences.
    pub fn pairs(&self) -> u64 {
        let most = self.window.map_or(u64::MAX, |keys| keys as u64);
        let of = |x: &CachedSequence| -> u64 {
            let keys = x.rows.len() as u64;
            (keys - x.queries as u64..keys)
                .map(|i| (i + 1).min(most))
                .sum()
        };
        self.sequences.iter().map(of).sum()
    }

    fn queries(&self) -> usize {
        self.sequences.iter().map(|x| x.queries).sum()
    }

    fn group(&self) -> usize {
        self.num_heads / self.num_key_value_heads.max(1)
    }

    fn mask(&self) -> AttentionMask {
        AttentionMask::Causal {
            window: self.window,
        }
    }

    fn check<E: Copy>(&self, x: &AttentionOperands<E>, out: [usize; 2]) {
        let Self {
            num_heads,
            num_key_value_heads,
            head_dim,
            ..
        } = *self;
        assert!(
            self.group() * num_key_value_heads == num_heads,
            "{num_heads} heads of queries, {num_key_value_heads} of keys"
        );
        assert!(x.positions.is_none(), "no relative positions");
        assert_ne!(self.window, Some(0), "a window of no keys");
        let of_q = [self.queries(), num_heads * head_dim];
        assert_eq!([[x.q.rows(), x.q.cols()], out], [of_q; 2], "the shape of q");
        for pool in [x.k, x.v] {
            assert_eq!(
                [pool.rows(), pool.cols()],
                [x.k.rows(), num_key_value_heads * head_dim]
            );
        }
        for x in [x.q, x.k, x.v] {
            assert_eq!(x.col_stride(), 1, "contiguous rows");
        }
        for sequence in self.sequences {
            assert!(sequence.queries <= sequence.rows.len(), "a key a query");
            let last = sequence.rows.iter().max();
            let is_inside = last.is_none_or(|&row| (row as usize) < x.k.rows());
            assert!(is_inside, "a row outside the pool");
        }
    }

    /// What prompts want of a thread's buffers.
    fn work_need<E: WithPositions>(&self) -> WorkNeed {
        let prompts = self.sequences.iter();
        let prompts = prompts.filter(|x| x.role == QueryRole::Prompt);
        let queries = prompts.clone().map(|x| x.queries).max().unwrap_or(0);
        WorkNeed {
            head_dim: self.head_dim,
            rows: WorkNeed::rows(queries, &E::PLAIN, self.mask()),
            kv_len: prompts.map(|x| x.rows.len()).max().unwrap_or(0),
            layout: E::PLAIN,
            pass: Pass::Forward,
        }
    }

    /// The calls' pieces of work, prompts first.
    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut first = 0;
        let tokens = (self.sequences.iter()).filter(|x| x.role == QueryRole::NewToken);
        let tokens: usize = tokens.map(|x| x.queries).sum();
        // A piece is one new token, whose rows are then read from end to end; of few, some of the
        // heads.
        let wanted = (FEW_TASKS / tokens.max(1)).max(1);
        let mut parts = (1..=wanted.min(self.num_heads)).rev();
        let parts = parts.find(|n| self.num_heads.is_multiple_of(*n));
        let of_token = self.num_heads / parts.unwrap_or(1);
        for (sequence, x) in self.sequences.iter().enumerate() {
            let heads = match x.role {
                // Several small heads a task, or a task's cost would show.
                QueryRole::Prompt => (4096 / (x.queries * x.rows.len()).max(1)).clamp(1, 16),
                QueryRole::NewToken => of_token,
            };
            let queries = match x.role {
                QueryRole::Prompt => x.queries.min(1),
                QueryRole::NewToken => x.queries,
            };
            for query in 0..queries {
                for head in (0..self.num_heads).step_by(heads) {
                    pieces.push(Piece {
                        sequence,
                        first,
                        query,
                        heads: head..(head + heads).min(self.num_heads),
                    });
                }
            }
            first += x.queries;
        }
        pieces.sort_by_key(|piece| self.sequences[piece.sequence].role == QueryRole::NewToken);
        pieces
    }
}

/// Some heads of a prompt, or of one new token.
struct Piece {
    sequence: usize,
    /// Row of the sequence's first query in q.
    first: usize,
    /// The new token's place among the sequence's queries.
    query: usize,
    heads: Range<usize>,
}

/// What [`attend_cached`] needs.
pub fn attend_cached_scratch<E: AttentionElement>(shape: &CachedShape) -> ScratchNeed {
    let need = shape.work_need::<E>();
    let gathered = 2 * bytes_of::<E>(need.kv_len * shape.head_dim);
    let prompts = match need.kv_len {
        0 => 0,
        _ => gathered + Carver::count(|carver| E::work(carver, &need)),
    };
    let tokens = shape
        .sequences
        .iter()
        .filter(|x| x.role == QueryRole::NewToken);
    let keys = tokens.map(|x| x.rows.len()).max().unwrap_or(0);
    let width = shape.num_heads * shape.head_dim;
    let tokens = 2 * bytes_of::<f32>(width) + bytes_of::<f32>(shape.num_heads * keys);
    ScratchNeed {
        shared: 0,
        per_thread: prompts.max(tokens),
    }
}

/// out = softmax(scores) v by head, each query over the keys up to its own. Sums are f32.
///
/// Shapes: q, out [queries, H * Dh]; k, v [pool rows, Hkv * Dh]; scratch as
/// [`attend_cached_scratch`] says. Panics if a shape disagrees, if a sequence has fewer rows than
/// queries, or if a row is outside the pool.
pub fn attend_cached<E: AttentionElement>(
    isa: Isa,
    shape: &CachedShape,
    x: &AttentionOperands<E>,
    mut out: MatMut<E>,
    scratch: &mut Scratch,
) {
    shape.check(x, [out.rows(), out.cols()]);
    if out.rows() == 0 || out.cols() == 0 {
        return;
    }
    let (_, slots) = scratch.split(attend_cached_scratch::<E>(shape));
    E::cached(Call {
        isa,
        shape,
        x,
        out: RowsMut::new(out.shared(), out.row_stride(), out.cols()),
        slots: &slots,
    });
}

/// A call, checked.
pub struct Call<'a, E> {
    isa: Isa,
    shape: &'a CachedShape<'a>,
    x: &'a AttentionOperands<'a, E>,
    out: RowsMut<E>,
    slots: &'a Slots<'a>,
}

impl<E: WithPositions> Call<'_, E> {
    pub(super) fn run(&self) {
        let (shape, pieces) = (self.shape, self.shape.pieces());
        for_each_task(pieces.len(), |task| {
            let (piece, mut slot) = (&pieces[task], self.slots.take());
            match shape.sequences[piece.sequence].role {
                QueryRole::Prompt => self.prompt(piece, slot.room()),
                QueryRole::NewToken => self.token(piece, slot.room()),
            }
        });
    }

    fn prompt(&self, piece: &Piece, mut room: Room) {
        let (shape, x) = (self.shape, self.x);
        let sequence = &shape.sequences[piece.sequence];
        let (rows, d) = (sequence.rows, shape.head_dim);
        let need = shape.work_need::<E>();
        let mut gathered = [(); 2].map(|()| room.take::<E>(need.kv_len * d));
        let mut work = E::work(&mut Carver::of(room), &need);
        for h in piece.heads.clone() {
            let head = Head {
                num_heads: shape.num_heads,
                head: h,
                kv_head: h / shape.group(),
                head_dim: d,
                q_start: piece.first,
                q_len: sequence.queries,
                kv_start: rows[0] as usize,
                kv_len: rows.len(),
                origin: (rows.len() - sequence.queries) % CAUSAL_ROWS,
                scale: shape.scale,
                soft_cap: shape.soft_cap,
                mask: shape.mask(),
            };
            let mut pools = [x.k, x.v].into_iter().zip(&mut gathered);
            let [k, v] = [(); 2].map(|()| {
                let (pool, buffer) = pools.next().expect("keys and values");
                of_rows(pool, rows, &head, buffer)
            });
            let task = Forward {
                head,
                source: Plainly,
                mask: None,
                x: HeadOperands {
                    q: head.of_q(x.q),
                    k,
                    v,
                },
                next: None,
                out: head.of_q_mut(self.out),
                lse: None,
            };
            let work = &mut work;
            dispatch(self.isa, ForwardTask { task: &task, work });
        }
    }

    fn token(&self, piece: &Piece, mut room: Room) {
        let (shape, d) = (self.shape, self.shape.head_dim);
        let sequence = &shape.sequences[piece.sequence];
        let end = sequence.rows.len() - sequence.queries + piece.query + 1;
        let start = shape.window.map_or(0, |keys| end.saturating_sub(keys));
        let rows = &sequence.rows[start..end];
        let columns = piece.heads.start * d..piece.heads.end * d;
        let query = piece.first + piece.query;
        let out = &self.out;
        let op = Token {
            heads: Heads {
                rows,
                heads: piece.heads.clone(),
                group: shape.group(),
                head_dim: d,
            },
            shape,
            x: self.x,
            q: &row_of(self.x.q, query)[columns.clone()],
            buffers: [room.take(columns.len()), room.take(columns.len())],
            scores: room.take(piece.heads.len() * rows.len()),
            // SAFETY: the row lies inside out, whose shape the entry asserted, and no other piece
            // has these columns of it.
            out: unsafe { &mut out.row(query)[columns] },
        };
        dispatch(self.isa, op);
    }
}

/// A head's keys or values of some rows, where they lie if that is end to end.
fn of_rows<'a, E: Element>(
    pool: MatRef<'a, E>,
    rows: &[u32],
    head: &Head,
    buffer: &'a mut [E],
) -> MatRef<'a, E> {
    if rows.windows(2).all(|pair| pair[0] + 1 == pair[1]) {
        return head.of_kv(pool);
    }
    let d = head.head_dim;
    let buffer = &mut buffer[..rows.len() * d];
    for (row, to) in rows.iter().zip(buffer.chunks_exact_mut(d)) {
        to.copy_from_slice(&row_of(pool, *row as usize)[head.kv_head * d..][..d]);
    }
    MatRef::new(buffer, rows.len(), d)
}

/// Some heads of one new token.
struct Token<'a, E> {
    heads: Heads<'a>,
    shape: &'a CachedShape<'a>,
    x: &'a AttentionOperands<'a, E>,
    /// The heads' columns, as those of out.
    q: &'a [E],
    /// Of q and of out in f32.
    buffers: [&'a mut [f32]; 2],
    /// [heads, rows].
    scores: &'a mut [f32],
    out: &'a mut [E],
}

impl<E: Element> SimdOp for Token<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (shape, heads, scores) = (self.shape, &self.heads, self.scores);
        let [q, out] = self.buffers;
        convert_in(s, q, self.q);
        heads.scores(s, q, self.x.k, shape.scale, scores);
        for scores in scores.chunks_exact_mut(heads.rows.len()) {
            if let Some(cap) = shape.soft_cap {
                s.call(CapInPlace {
                    scores: &mut *scores,
                    cap,
                    factor: 1.0,
                });
            }
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
        out.fill(0.0);
        heads.values(s, scores, self.x.v, out);
        convert_in(s, self.out, out);
    }
}

/// The columns of some heads in the pools' rows that a query attends to.
struct Heads<'a> {
    rows: &'a [u32],
    heads: Range<usize>,
    /// Query heads of a key-value head.
    group: usize,
    head_dim: usize,
}

impl Heads<'_> {
    /// The columns of a pool that these heads read.
    #[inline(always)]
    fn columns(&self) -> Range<usize> {
        let (first, last) = (
            self.heads.start / self.group,
            (self.heads.end - 1) / self.group,
        );
        first * self.head_dim..(last + 1) * self.head_dim
    }

    /// Of each of these heads the first of its columns within [`Heads::columns`], the next after
    /// `at`.
    #[inline(always)]
    fn next_column(&self, head: usize, at: usize) -> usize {
        let is_last_of_group = self.group == 1 || (head + 1).is_multiple_of(self.group);
        at + if is_last_of_group { self.head_dim } else { 0 }
    }

    /// The columns in row `i` of these rows.
    #[inline(always)]
    fn row<'p, E: Copy>(&self, pool: MatRef<'p, E>, columns: &Range<usize>, i: usize) -> &'p [E] {
        let start = self.rows[i] as usize * pool.row_stride();
        &pool.data()[start + columns.start..start + columns.end]
    }

    /// Asks for the columns of a row that comes soon.
    #[inline(always)]
    fn prefetch<S: Simd, E: Copy>(&self, s: S, pool: MatRef<E>, columns: &Range<usize>, i: usize) {
        let Some(&row) = self.rows.get(i) else { return };
        let start = row as usize * pool.row_stride() + columns.start;
        let start = pool.as_ptr().wrapping_add(start);
        for at in (0..columns.len()).step_by(LINE / size_of::<E>()) {
            s.prefetch(start.wrapping_add(at).cast());
        }
    }

    /// scores[head, row] = scale · q·k.
    #[inline(always)]
    fn scores<S: Simd, E: Element>(
        &self,
        s: S,
        q: &[f32],
        k: MatRef<E>,
        scale: f32,
        scores: &mut [f32],
    ) {
        let (n, d, columns) = (self.rows.len(), self.head_dim, self.columns());
        for i in 0..n {
            self.prefetch(s, k, &columns, i + AHEAD);
            let k = self.row(k, &columns, i);
            let mut first_of_k = 0;
            let mut at_score = i;
            for (head, q) in self.heads.clone().zip(q.chunks_exact(d)) {
                let k = &k[first_of_k..first_of_k + d];
                let mut sum = s.splat(0.0);
                let mut at = 0;
                while at < d {
                    let lanes = lanes_at::<S>(at, d);
                    let (q, k) = (load_at(s, q, at, lanes), load_at(s, k, at, lanes));
                    sum = s.mul_add(q, k, sum);
                    at += S::LANES;
                }
                scores[at_score] = scale * s.reduce_add(sum);
                at_score += n;
                first_of_k = self.next_column(head, first_of_k);
            }
        }
    }

    /// out += p·v by head, in the order of the rows.
    #[inline(always)]
    fn values<S: Simd, E: Element>(&self, s: S, p: &[f32], v: MatRef<E>, out: &mut [f32]) {
        let (n, d, columns) = (self.rows.len(), self.head_dim, self.columns());
        let mut i = 0;
        while i < n {
            for ahead in i..i + ROWS {
                self.prefetch(s, v, &columns, ahead + AHEAD);
            }
            let count = (n - i).min(ROWS);
            // Behind the last row, the first of these stands in and counts nothing.
            let mut rows = [self.row(v, &columns, i); ROWS];
            for (j, row) in rows.iter_mut().enumerate().take(count) {
                *row = self.row(v, &columns, i + j);
            }
            let mut first_of_v = 0;
            let mut at_p = i;
            for (head, out) in self.heads.clone().zip(out.chunks_exact_mut(d)) {
                let mut weights = [0.0; ROWS];
                weights[..count].copy_from_slice(&p[at_p..at_p + count]);
                let mut at = 0;
                while at < d {
                    let lanes = lanes_at::<S>(at, d);
                    let mut sum = load_at(s, out, at, lanes);
                    for (p, row) in weights.iter().zip(&rows) {
                        let v = load_at(s, row, first_of_v + at, lanes);
                        sum = s.mul_add(s.splat(*p), v, sum);
                    }
                    store_at(s, out, at, sum, lanes);
                    at += S::LANES;
                }
                at_p += n;
                first_of_v = self.next_column(head, first_of_v);
            }
            i += ROWS;
        }
    }
}
