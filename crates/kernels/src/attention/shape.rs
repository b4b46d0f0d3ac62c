//! What attention does to which rows: its shape, its operands, and how its work is dealt to tasks.

use super::RelativePositions;
use crate::dropout::{Dropout, Mask};
use crate::matrix::{MatMut, MatRef};
use std::cmp::Reverse;

/// Backward tasks with relative positions, about: heads times groups of sequences, each with a
/// gradient of the tables of its own.
const BACKWARD_TASKS: usize = 32;

/// Which keys of its sequence a query attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionMask {
    /// All of them.
    Full,
    /// Those up to its own place. The queries are the last of their sequence: the last one sees the
    /// last key.
    Causal {
        /// How many keys it sees at most, itself among them; at least 1.
        window: Option<usize>,
    },
    /// Those at most so far from its own place, on both sides. A sequence has as many queries as
    /// keys.
    Near {
        /// The largest distance.
        reach: usize,
    },
}

/// What attention does to which rows. Sequence b's queries `q_offsets[b]..q_offsets[b + 1]` attend
/// to its keys alone.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape<'a> {
    /// H: heads of the queries.
    pub num_heads: usize,
    /// Hkv: heads of keys and values, which divide H. Neighbouring query heads share one: h reads h
    /// / (H / Hkv).
    pub num_key_value_heads: usize,
    /// Dh.
    pub head_dim: usize,
    /// `[B + 1]`, rising from 0 to the rows of q.
    pub q_offsets: &'a [usize],
    /// `[B + 1]`, rising from 0 to the rows of k and v.
    pub kv_offsets: &'a [usize],
    /// Factor of the scores, usually 1 / √Dh.
    pub scale: f32,
    /// A scaled score s becomes cap * tanh(s / cap). Source: transformers `Gemma2Attention`,
    /// `attn_logit_softcapping`.
    pub soft_cap: Option<f32>,
    /// Which keys a query attends to.
    pub mask: AttentionMask,
    /// Dropout of the probabilities; an element's index is a function of the query's row, the head
    /// and the key's place in its sequence.
    pub dropout: Option<Dropout>,
}

/// Operands of attention. Shapes: q [q rows, H * Dh]; k, v [kv rows, Hkv * Dh]; rows are
/// contiguous.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOperands<'a, E = f32> {
    /// Queries.
    pub q: MatRef<'a, E>,
    /// Keys.
    pub k: MatRef<'a, E>,
    /// Values.
    pub v: MatRef<'a, E>,
    /// Relative positions, if scores have terms of them: disentangled attention.
    pub positions: Option<RelativePositions<'a, E>>,
}

/// What the backward needs of the forward. Shapes: out [q rows, H * Dh]; lse [q rows, H].
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a, E = f32> {
    /// The operands.
    pub operands: AttentionOperands<'a, E>,
    /// The forward's result.
    pub out: MatRef<'a, E>,
    /// Logarithm of each row's sum of exponentials.
    pub lse: &'a [f32],
}

/// Gradients of the operands, of their shapes, all overwritten.
#[derive(Debug)]
pub struct AttentionGradients<'a, E = f32> {
    /// Of the queries.
    pub d_q: MatMut<'a, E>,
    /// Of the keys.
    pub d_k: MatMut<'a, E>,
    /// Of the values.
    pub d_v: MatMut<'a, E>,
    /// Of the positions' keys, if it is wanted; only where there are such.
    pub d_keys: Option<&'a mut [E]>,
    /// Of the positions' queries, likewise.
    pub d_queries: Option<&'a mut [E]>,
}

impl AttentionShape<'_> {
    /// H * Dh.
    pub(super) fn width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Hkv * Dh.
    pub(super) fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Query heads of a key-value head.
    pub(super) fn group(&self) -> usize {
        self.num_heads / self.num_key_value_heads.max(1)
    }

    pub(super) fn sequences(&self) -> usize {
        self.q_offsets.len().saturating_sub(1)
    }

    pub(super) fn q_len(&self, b: usize) -> usize {
        self.q_offsets[b + 1] - self.q_offsets[b]
    }

    pub(super) fn kv_len(&self, b: usize) -> usize {
        self.kv_offsets[b + 1] - self.kv_offsets[b]
    }

    /// Queries of the sequence with the most.
    pub(super) fn most_queries(&self) -> usize {
        let sequences = 0..self.sequences();
        sequences.map(|b| self.q_len(b)).max().unwrap_or(0)
    }

    /// Keys of the longest sequence.
    pub(super) fn most_keys(&self) -> usize {
        { 0..self.sequences() }
            .map(|b| self.kv_len(b))
            .max()
            .unwrap_or(0)
    }

    pub(super) fn mask_of_dropout(&self) -> Option<Mask> {
        self.dropout.filter(|d| d.p > 0.0).map(Mask::new)
    }

    /// Rows of q and of k. Panics unless the offsets rise from 0, a causal sequence has a key for
    /// each query, one with a reach as many, and the heads of keys divide those of queries.
    fn rows(&self) -> (usize, usize) {
        assert_eq!(self.q_offsets.len(), self.kv_offsets.len());
        for offsets in [self.q_offsets, self.kv_offsets] {
            assert!(offsets.first().is_none_or(|&first| first == 0));
            assert!(offsets.windows(2).all(|pair| pair[0] <= pair[1]));
        }
        let mut sequences = 0..self.sequences();
        match self.mask {
            AttentionMask::Full => {}
            AttentionMask::Causal { window } => {
                assert!(window != Some(0), "a window of no keys");
                assert!(sequences.all(|b| self.q_len(b) <= self.kv_len(b)));
            }
            AttentionMask::Near { .. } => {
                assert!(sequences.all(|b| self.q_len(b) == self.kv_len(b)));
            }
        }
        let (heads, of_kv) = (self.num_heads, self.num_key_value_heads);
        assert!(
            self.group() * of_kv == heads && (heads == 0) == (of_kv == 0),
            "{heads} heads of queries, {of_kv} of keys"
        );
        assert!(
            self.soft_cap.is_none_or(|cap| cap > 0.0),
            "a soft cap of 0 or less"
        );
        let last = |offsets: &[usize]| offsets.last().copied().unwrap_or(0);
        (last(self.q_offsets), last(self.kv_offsets))
    }

    /// Panics unless operands and results have the shapes that they say.
    pub(super) fn check<E: Copy>(
        &self,
        x: &AttentionOperands<E>,
        of_q: &[[usize; 2]],
        lse: &[f32],
    ) {
        let (q_rows, kv_rows) = self.rows();
        for x in [x.q, x.k, x.v] {
            assert_eq!(x.col_stride(), 1, "contiguous rows");
        }
        let shape = |x: MatRef<E>| [x.rows(), x.cols()];
        for found in of_q.iter().copied().chain([shape(x.q)]) {
            assert_eq!(found, [q_rows, self.width()], "the shape of q");
        }
        for found in [shape(x.k), shape(x.v)] {
            assert_eq!(found, [kv_rows, self.kv_width()], "the shape of k and v");
        }
        assert_eq!(lse.len(), q_rows * self.num_heads, "one value a query");
    }

    /// The sequences, the most scores first: the long ones must not come last.
    fn longest_first(&self) -> Vec<usize> {
        let mut sequences: Vec<usize> = (0..self.sequences()).collect();
        sequences.sort_by_key(|&b| Reverse(self.q_len(b) * self.kv_len(b)));
        sequences
    }

    /// Groups of sequences in the backward with relative positions: a function of the shape alone.
    pub(super) fn groups(&self) -> usize {
        let groups = BACKWARD_TASKS.div_ceil(self.num_heads.max(1));
        groups.min(self.sequences())
    }
}

/// A call's pieces of work, (sequence, head), dealt to tasks: a function of the shape alone.
pub(super) struct Deal {
    pieces: Vec<(usize, usize)>,
    /// Where each task's pieces begin.
    starts: Vec<usize>,
}

impl Deal {
    /// Each piece on its own, but several small ones to a task, or a task's cost would show: at
    /// least 64 x 64 scores. A piece is a head of `heads`.
    pub(super) fn of_heads(shape: &AttentionShape, heads: usize) -> Self {
        let sequences = shape.longest_first();
        let is_work = |b: usize| shape.q_len(b) > 0 || shape.kv_len(b) > 0;
        let group = shape.num_heads / heads.max(1);
        let largest = sequences
            .first()
            .map_or(0, |&b| shape.q_len(b) * shape.kv_len(b));
        let per_task = (4096 / (group * largest).max(1)).clamp(1, 16);
        let sequences = sequences.into_iter().filter(|&b| is_work(b));
        let pieces: Vec<_> = sequences
            .flat_map(|b| (0..heads).map(move |h| (b, h)))
            .collect();
        let starts = (0..pieces.len()).step_by(per_task).collect();
        Self { pieces, starts }
    }

    /// A task for each group of sequences and head, whose index is `group * heads + head`.
    pub(super) fn of_groups(shape: &AttentionShape) -> Self {
        let (sequences, groups) = (shape.longest_first(), shape.groups());
        let (mut pieces, mut starts) = (Vec::new(), Vec::new());
        for group in 0..groups {
            for head in 0..shape.num_heads {
                starts.push(pieces.len());
                let mine = sequences.iter().skip(group).step_by(groups);
                pieces.extend(mine.map(|&b| (b, head)));
            }
        }
        Self { pieces, starts }
    }

    pub(super) fn tasks(&self) -> usize {
        self.starts.len()
    }

    /// A task's pieces, each with the one that follows it in the call.
    pub(super) fn pieces(
        &self,
        task: usize,
    ) -> impl Iterator<Item = ((usize, usize), Option<(usize, usize)>)> {
        let end = self.starts.get(task + 1).copied();
        let range = self.starts[task]..end.unwrap_or(self.pieces.len());
        range.map(|i| (self.pieces[i], self.pieces.get(i + 1).copied()))
    }
}
