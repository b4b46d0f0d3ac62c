//! Attention by offsets, bidirectional or causal, forward and backward, in tiles: no T x T scores are ever stored.
//!
//! A task is one head of one sequence; it walks tiles of at most [`Q_BLOCK`] x [`KV_BLOCK`] scores with a running maximum
//! and sum (flash attention, Dao et al. 2022). A mask is a range of columns for each row: tiles outside every row's
//! range are not visited, and within a tile a row works on its range alone.

mod backward;
mod backward_bf16;
mod cached;
mod disentangled;
mod forward;
mod forward_bf16;
mod pairs;
mod rows_bf16;

pub use cached::{CachedAttention, attention_cached};

use crate::aligned::Aligned;
use crate::dropout::{Dropout, GROUP, Mask};
use crate::gemm::{PANEL, STRIP_STRIDE, pack_rows, packed_len};
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::{SharedMut, for_each_task};
use crate::simd::{Simd, dispatch};
pub use disentangled::{
    DisentangledGradients, DisentangledInputs, DisentangledSaved, PairWorkspace, RelativePositions,
    disentangled_attention_backward, disentangled_attention_backward_bf16,
    disentangled_attention_forward, disentangled_attention_forward_bf16,
    disentangled_backward_workspace, disentangled_backward_workspace_bf16,
    disentangled_forward_workspace, disentangled_forward_workspace_bf16,
};
use half::bf16;
use std::cell::RefCell;
use std::ops::Range;

/// Query rows of a tile.
const Q_BLOCK: usize = 96;

/// Query rows of the largest tile of any kind.
const MOST_ROWS: usize = 128;

/// Query rows of a tile under a causal mask: the fewer, the less work is done above the diagonal.
const CAUSAL_Q_BLOCK: usize = 48;

/// Key rows of a tile; a multiple of the panel.
const KV_BLOCK: usize = 512;

// A masked tile starts at a multiple of the panel, and still holds the first column of each of its rows.
const _: () = assert!(CAUSAL_Q_BLOCK + PANEL <= pairs::BLOCKS[1] && pairs::BLOCKS[1] <= KV_BLOCK);

/// Distance between rows of a tile: the one that the product's kernel knows.
const TILE_STRIDE: usize = STRIP_STRIDE;

/// Which keys of its sequence a query attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionMask {
    /// All of them.
    Full,
    /// Those up to its own place. The queries are the last of their sequence: the last one sees the last key.
    Causal {
        /// How many keys it sees at most, itself among them; at least 1.
        window: Option<usize>,
    },
}

/// What attention does to which rows. Sequence b's queries `q_offsets[b]..q_offsets[b + 1]` attend to its keys alone.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape<'a> {
    /// H.
    pub num_heads: usize,
    /// Dh.
    pub head_dim: usize,
    /// `[B + 1]`, rising from 0 to the rows of q.
    pub q_offsets: &'a [usize],
    /// `[B + 1]`, rising from 0 to the rows of k and v.
    pub kv_offsets: &'a [usize],
    /// Factor of the scores, usually 1 / √Dh.
    pub scale: f32,
    /// Which keys a query attends to.
    pub mask: AttentionMask,
    /// Dropout of the probabilities; an element's index is a function of the query's row, the head and the key's place in
    /// its sequence.
    pub dropout: Option<Dropout>,
}

/// What the backward needs. Shapes: q, out [q rows, H * Dh]; k, v [kv rows, H * Dh]; lse [q rows, H].
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a, E = f32> {
    /// Queries.
    pub q: &'a [E],
    /// Keys.
    pub k: &'a [E],
    /// Values.
    pub v: &'a [E],
    /// The forward's result.
    pub out: &'a [E],
    /// Logarithm of each row's sum of exponentials.
    pub lse: &'a [f32],
}

impl AttentionShape<'_> {
    fn width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Rows of q and of k. Panics unless the offsets rise from 0 and a causal sequence has a key for each query.
    fn check(&self) -> (usize, usize) {
        assert_eq!(self.q_offsets.len(), self.kv_offsets.len());
        for offsets in [self.q_offsets, self.kv_offsets] {
            assert!(offsets.first().is_none_or(|&first| first == 0));
            assert!(offsets.windows(2).all(|pair| pair[0] <= pair[1]));
        }
        if let AttentionMask::Causal { window } = self.mask {
            assert!(window != Some(0), "a window of no keys");
            let sequences = 0..self.q_offsets.len().saturating_sub(1);
            assert!({ sequences }.all(|b| self.q_len(b) <= self.kv_len(b)));
        }
        let last = |offsets: &[usize]| offsets.last().copied().unwrap_or(0);
        (last(self.q_offsets), last(self.kv_offsets))
    }

    /// As `check`; panics as well unless all operands have the length that their shape says: `of_q` that of q, `of_kv` that of k.
    fn check_lengths<E>(&self, of_q: &[&[E]], of_kv: &[&[E]], lse: &[f32]) {
        let (q_rows, kv_rows) = self.check();
        for (operands, rows) in [(of_q, q_rows), (of_kv, kv_rows)] {
            for x in operands {
                assert_eq!(x.len(), rows * self.width(), "{rows} rows");
            }
        }
        assert_eq!(lse.len(), q_rows * self.num_heads, "one value a query");
    }

    /// (sequence, head) pairs, the most work first: the long ones must not come last.
    fn tasks(&self) -> Vec<(usize, usize)> {
        let n = self.q_offsets.len().saturating_sub(1);
        let mut sequences: Vec<usize> = (0..n).collect();
        sequences.sort_by_key(|&b| std::cmp::Reverse(self.q_len(b) * self.kv_len(b)));
        let heads = 0..self.num_heads;
        sequences
            .into_iter()
            .flat_map(|b| heads.clone().map(move |h| (b, h)))
            .collect()
    }

    /// Head h of sequence b.
    fn head(&self, b: usize, h: usize) -> Head {
        Head {
            num_heads: self.num_heads,
            head: h,
            head_dim: self.head_dim,
            width: self.width(),
            q_start: self.q_offsets[b],
            q_len: self.q_len(b),
            kv_start: self.kv_offsets[b],
            kv_len: self.kv_len(b),
            scale: self.scale,
            attends: self.mask,
        }
    }

    fn q_len(&self, b: usize) -> usize {
        self.q_offsets[b + 1] - self.q_offsets[b]
    }

    fn kv_len(&self, b: usize) -> usize {
        self.kv_offsets[b + 1] - self.kv_offsets[b]
    }
}

/// out = softmax(scale q kᵀ) v by head and sequence; the probabilities with dropout if asked. A sequence without keys gives 0.
///
/// Shapes: q, out [q rows, H * Dh]; k, v [kv rows, H * Dh]; lse [q rows, H]. Panics if a length disagrees.
pub fn attention_forward(
    isa: Isa,
    shape: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    shape.check_lengths(&[q, out], &[k, v], lse);
    let mask = make_mask(shape);
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    run_tasks(shape, |head, scratch| {
        let op = forward::Forward {
            head,
            mask,
            q,
            k,
            v,
            out,
            lse,
            scratch,
        };
        dispatch(isa, op);
    });
}

/// The gradients of q, k and v, overwritten. Scores are computed again from q, k and lse, dropout from its key.
///
/// Shapes: d_out, d_q [q rows, H * Dh]; d_k, d_v [kv rows, H * Dh]. Panics if a length disagrees.
pub fn attention_backward(
    isa: Isa,
    shape: &AttentionShape,
    saved: &AttentionSaved,
    d_out: &[f32],
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
) {
    let of_q = [saved.q, saved.out, d_out, d_q];
    shape.check_lengths(&of_q, &[saved.k, saved.v, d_k, d_v], saved.lse);
    let mask = make_mask(shape);
    let (d_q, d_k, d_v) = (
        SharedMut::new(d_q),
        SharedMut::new(d_k),
        SharedMut::new(d_v),
    );
    run_tasks(shape, |head, scratch| {
        let op = backward::Backward {
            head,
            mask,
            saved: *saved,
            d_out,
            d_q,
            d_k,
            d_v,
            scratch,
        };
        dispatch(isa, op);
    });
}

/// As [`attention_forward`] for bf16: products of bf16 pairs summed in f32, softmax in f32, probabilities rounded to bf16
/// before they meet the values. Panics if a length disagrees.
pub fn attention_forward_bf16(
    isa: Isa,
    shape: &AttentionShape,
    [q, k, v]: [&[bf16]; 3],
    out: &mut [bf16],
    lse: &mut [f32],
) {
    shape.check_lengths(&[q, out], &[k, v], lse);
    let mask = make_mask(shape);
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    run_tasks(shape, |head, scratch| {
        let op = forward_bf16::Forward {
            head,
            mask,
            q,
            k,
            v,
            out,
            lse,
            scratch,
        };
        dispatch(isa, op);
    });
}

/// As [`attention_backward`] for bf16; the gradients are d_q, d_k, d_v. Panics if a length disagrees.
pub fn attention_backward_bf16(
    isa: Isa,
    shape: &AttentionShape,
    saved: &AttentionSaved<bf16>,
    d_out: &[bf16],
    [d_q, d_k, d_v]: [&mut [bf16]; 3],
) {
    let of_q = [saved.q, saved.out, d_out, d_q];
    shape.check_lengths(&of_q, &[saved.k, saved.v, d_k, d_v], saved.lse);
    let mask = make_mask(shape);
    let gradients = [d_q, d_k, d_v].map(SharedMut::new);
    run_tasks(shape, |head, scratch| {
        let op = backward_bf16::Backward {
            head,
            mask,
            saved: *saved,
            d_out,
            gradients,
            scratch,
        };
        dispatch(isa, op);
    });
}

fn make_mask(shape: &AttentionShape) -> Option<Mask> {
    shape.dropout.filter(|d| d.p > 0.0).map(Mask::new)
}

/// One head of one sequence: where its rows are.
#[derive(Clone, Copy)]
struct Head {
    num_heads: usize,
    head: usize,
    head_dim: usize,
    width: usize,
    q_start: usize,
    q_len: usize,
    kv_start: usize,
    kv_len: usize,
    scale: f32,
    attends: AttentionMask,
}

impl Head {
    /// Position of query `i` of the sequence in a [q rows, H * Dh] buffer.
    fn q_at(&self, i: usize) -> usize {
        (self.q_start + i) * self.width + self.head * self.head_dim
    }

    /// Position of key `j` of the sequence in a [kv rows, H * Dh] buffer.
    fn kv_at(&self, j: usize) -> usize {
        (self.kv_start + j) * self.width + self.head * self.head_dim
    }

    /// Position of query `i` in a [q rows, H] buffer.
    fn lse_at(&self, i: usize) -> usize {
        (self.q_start + i) * self.num_heads + self.head
    }

    /// The keys that query `i` attends to.
    fn columns(&self, i: usize) -> Range<usize> {
        match self.attends {
            AttentionMask::Full => 0..self.kv_len,
            AttentionMask::Causal { window } => {
                let end = self.kv_len - self.q_len + i + 1;
                window.map_or(0, |keys| end.saturating_sub(keys))..end
            }
        }
    }

    /// Calls `tile` for every tile that holds a score, block of queries by block of queries, keys rising.
    #[inline(always)]
    fn for_each_tile(&self, [rows, columns]: [usize; 2], mut tile: impl FnMut(Tile)) {
        let rows = match self.attends {
            AttentionMask::Full => rows,
            AttentionMask::Causal { .. } => CAUSAL_Q_BLOCK,
        };
        for i in (0..self.q_len).step_by(rows) {
            let m = (self.q_len - i).min(rows);
            let start = self.columns(i).start / PANEL * PANEL;
            let end = self.columns(i + m - 1).end;
            for j in (start..end).step_by(columns) {
                let n = (end - j).min(columns);
                let (is_first, is_last) = (j == start, j + n == end);
                tile(Tile {
                    i,
                    m,
                    j,
                    n,
                    is_first,
                    is_last,
                });
            }
        }
    }

    /// The columns within a tile that row `row` of it attends to.
    fn tile_columns(&self, tile: Tile, row: usize) -> Range<usize> {
        let columns = self.columns(tile.i + row);
        let within = |j: usize| j.saturating_sub(tile.j).min(tile.n);
        within(columns.start)..within(columns.end)
    }

    /// Dropout index of the first key of query `i`: a row owns 2^32 indices.
    fn dropout_index(&self, i: usize) -> u64 {
        (self.lse_at(i) as u64) << 32
    }

    /// This head's keys or values, [kv_len, Dh].
    fn kv_rows<'a, T: Copy>(&self, x: &'a [T]) -> MatRef<'a, T> {
        MatRef::strided(
            &x[self.kv_at(0)..],
            self.kv_len,
            self.head_dim,
            self.width,
            1,
        )
    }

    /// This head's queries (or what has their shape) `i .. i + m`, [m, Dh].
    fn q_rows<'a, T: Copy>(&self, x: &'a [T], i: usize, m: usize) -> MatRef<'a, T> {
        MatRef::strided(&x[self.q_at(i)..], m, self.head_dim, self.width, 1)
    }
}

/// Columns of a row whose dropout factors are of one group.
struct Run {
    /// Place of the first column's key in its sequence.
    key: usize,
    /// Place of the first column in the group.
    within: usize,
    len: usize,
}

impl Run {
    /// The one that begins at column `start` of a tile.
    #[inline(always)]
    fn new(tile: Tile, start: usize, end: usize) -> Self {
        // A row's first key begins a group.
        let key = tile.j + start;
        let within = key % GROUP;
        let len = (end - start).min(GROUP - within);
        Self { key, within, len }
    }

    /// The group, for query `i` of the sequence.
    #[inline(always)]
    fn group(&self, head: &Head, i: usize) -> u64 {
        (head.dropout_index(i) + self.key as u64) / GROUP as u64
    }
}

/// Buffers that a thread keeps between tasks: fresh ones of this size would be mapped and faulted in each time.
#[derive(Default)]
struct Scratch {
    keys: Aligned<f32>,
    values: Aligned<f32>,
    scores: Aligned<f32>,
    d_scores: Aligned<f32>,
    pairs: pairs::PairScratch,
    skewed: disentangled::SkewScratch,
    positions: Aligned<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn run_tasks(shape: &AttentionShape, run: impl Fn(Head, &mut Scratch) + Sync + Send) {
    if shape.width() == 0 {
        return;
    }
    let tasks = shape.tasks();
    // Several small heads a task, or a task's cost would show: at least 64 x 64 scores.
    let heads_per_task = match tasks.first() {
        None => return,
        Some(&(b, _)) => {
            let largest = shape.q_len(b) * shape.kv_len(b);
            (4096 / largest.max(1)).clamp(1, 16)
        }
    };
    for_each_task(tasks.len().div_ceil(heads_per_task), |index| {
        SCRATCH.with_borrow_mut(|scratch| {
            let first = index * heads_per_task;
            let last = (first + heads_per_task).min(tasks.len());
            for &(b, h) in &tasks[first..last] {
                let head = shape.head(b, h);
                if head.q_len > 0 || head.kv_len > 0 {
                    run(head, scratch);
                }
            }
        });
    });
}

/// Packs [len, Dh] rows into panels of PANEL rows: the b operand of q kᵀ.
#[inline(always)]
fn pack_panels<S: Simd>(s: S, rows: MatRef, buffer: &mut Aligned<f32>) {
    let (n, d) = (rows.rows(), rows.cols());
    let packed = buffer.at_least(packed_len(n, d));
    for (p, panel) in packed.chunks_exact_mut(d * PANEL).enumerate() {
        let range = p * PANEL..((p + 1) * PANEL).min(n);
        pack_rows(s, rows.rows_range(range), panel, PANEL);
    }
}

/// Asks for this head's part of rows that will soon be read: their distance defeats the machine's own prefetching.
#[inline(always)]
fn prefetch_rows<S: Simd, T>(s: S, x: &[T], first: usize, rows: usize, head: &Head) {
    for row in 0..rows.min(KV_BLOCK) {
        for line in (0..head.head_dim).step_by(64 / size_of::<T>()) {
            s.prefetch(
                x.as_ptr()
                    .wrapping_add(first + row * head.width + line)
                    .cast(),
            );
        }
    }
}

/// Asks for row `row` of the part of `x` that starts at `first`: a later task reads or writes it. Tasks of a few rows far
/// apart wait for memory otherwise (measured: a sixth of the time of rows of 30 tokens).
#[inline(always)]
fn prefetch_row<S: Simd>(s: S, x: *const bf16, first: usize, row: usize, head: &Head) {
    for line in (0..head.head_dim).step_by(32) {
        let at = first + row * head.width + line;
        s.prefetch_far(x.wrapping_add(at).cast());
    }
}

/// One tile: queries i .. i + m against keys j .. j + n; j is a multiple of the panel.
#[derive(Clone, Copy)]
struct Tile {
    i: usize,
    m: usize,
    j: usize,
    n: usize,
    /// The first tile of these queries.
    is_first: bool,
    /// The last tile of these queries.
    is_last: bool,
}
