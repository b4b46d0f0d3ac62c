//! One head of one sequence: which rows and columns are its own, which keys its queries see, and
//! the tiles of its scores. It knows shapes, no values.

use super::{AttentionMask, AttentionShape};
use crate::dropout::GROUP;
use crate::matrix::MatRef;
use crate::parallel::SharedMut;
use crate::product::PANEL;
use std::ops::Range;

/// Query rows of the largest tile of any kind.
pub(super) const MOST_ROWS: usize = 128;

/// Query rows of a tile under a causal mask: the fewer, the less work is done above the diagonal.
pub(super) const CAUSAL_ROWS: usize = 48;

/// Where the tiles of one kind of scores lie in their buffers.
#[derive(Clone, Copy)]
pub struct Layout {
    /// Query rows of a tile without a causal mask, and its key columns: a multiple of the panel.
    pub blocks: [usize; 2],
    /// Distance between rows of scores and of their gradients: room for whole panels, and rows fall
    /// into different cache sets.
    pub stride: usize,
    /// Columns beside each such row, on both sides.
    pub margin: usize,
    /// Distance between rows of rounded scores, and of pairs of rows.
    pub narrow: usize,
}

/// A query head of a sequence with the key-value head that it reads.
#[derive(Clone, Copy)]
pub struct Head {
    pub num_heads: usize,
    /// The query head.
    pub head: usize,
    pub kv_head: usize,
    pub head_dim: usize,
    pub q_start: usize,
    pub q_len: usize,
    pub kv_start: usize,
    pub kv_len: usize,
    /// Queries of the first block that an earlier call has had: blocks of a prompt that comes in
    /// chunks start at multiples of the block, so that a query's tiles are the same whatever the
    /// chunks.
    pub origin: usize,
    pub scale: f32,
    pub soft_cap: Option<f32>,
    pub mask: AttentionMask,
}

impl Head {
    /// Head `head` of sequence `b`.
    #[inline]
    pub(super) fn new(shape: &AttentionShape, b: usize, head: usize) -> Self {
        // Two divisions would show beside a head of a few rows.
        let kv_head = if shape.num_heads == shape.num_key_value_heads {
            head
        } else {
            head / shape.group()
        };
        Head {
            num_heads: shape.num_heads,
            head,
            kv_head,
            head_dim: shape.head_dim,
            q_start: shape.q_offsets[b],
            q_len: shape.q_len(b),
            kv_start: shape.kv_offsets[b],
            kv_len: shape.kv_len(b),
            origin: 0,
            scale: shape.scale,
            soft_cap: shape.soft_cap,
            mask: shape.mask,
        }
    }

    /// This head's part of [q rows, H * Dh].
    #[inline]
    pub(super) fn of_q<'a, T: Copy>(&self, x: MatRef<'a, T>) -> MatRef<'a, T> {
        let first = self.head * self.head_dim;
        x.part(
            self.q_start..self.q_start + self.q_len,
            first..first + self.head_dim,
        )
    }

    /// This head's part of [kv rows, Hkv * Dh].
    #[inline]
    pub(super) fn of_kv<'a, T: Copy>(&self, x: MatRef<'a, T>) -> MatRef<'a, T> {
        let first = self.kv_head * self.head_dim;
        x.part(
            self.kv_start..self.kv_start + self.kv_len,
            first..first + self.head_dim,
        )
    }

    /// As [`Head::of_q`], to write.
    pub(super) fn of_q_mut<T>(&self, x: RowsMut<T>) -> RowsMut<T> {
        x.part(self.q_start, self.head * self.head_dim, self.head_dim)
    }

    /// As [`Head::of_kv`], to write.
    pub(super) fn of_kv_mut<T>(&self, x: RowsMut<T>) -> RowsMut<T> {
        x.part(self.kv_start, self.kv_head * self.head_dim, self.head_dim)
    }

    /// Position of query `i` in a [q rows, H] buffer.
    pub(super) fn lse_at(&self, i: usize) -> usize {
        (self.q_start + i) * self.num_heads + self.head
    }

    /// Dropout index of the first key of query `i`: a row owns 2^32 indices.
    pub(super) fn dropout_index(&self, i: usize) -> u64 {
        (self.lse_at(i) as u64) << 32
    }

    /// The keys that query `i` attends to.
    fn columns(&self, i: usize) -> Range<usize> {
        match self.mask {
            AttentionMask::Full => 0..self.kv_len,
            AttentionMask::Causal { window } => {
                let end = self.kv_len - self.q_len + i + 1;
                window.map_or(0, |keys| end.saturating_sub(keys))..end
            }
            AttentionMask::Near { reach } => {
                i.saturating_sub(reach)..(i + reach + 1).min(self.kv_len)
            }
        }
    }

    /// The first key that the first query of a block attends to, whichever call has that query.
    fn first_column(&self, block: usize) -> usize {
        match self.mask {
            AttentionMask::Full | AttentionMask::Causal { window: None } => 0,
            AttentionMask::Causal { window: Some(keys) } => {
                (self.kv_len - self.q_len - self.origin + block + 1).saturating_sub(keys)
            }
            AttentionMask::Near { reach } => block.saturating_sub(reach),
        }
    }

    /// Calls `tile` for every tile that holds a score, block of queries by block of queries, keys
    /// rising.
    #[inline(always)]
    pub(super) fn for_each_tile(&self, [rows, columns]: [usize; 2], mut tile: impl FnMut(Tile)) {
        let rows = match self.mask {
            AttentionMask::Full => rows,
            AttentionMask::Causal { .. } | AttentionMask::Near { .. } => CAUSAL_ROWS,
        };
        for block in (0..self.origin + self.q_len).step_by(rows) {
            let i = block.saturating_sub(self.origin);
            let m = (block + rows - self.origin).min(self.q_len) - i;
            let start = self.first_column(block) / PANEL * PANEL;
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
    pub(super) fn tile_columns(&self, tile: Tile, row: usize) -> Range<usize> {
        let columns = self.columns(tile.i + row);
        let within = |j: usize| j.saturating_sub(tile.j).min(tile.n);
        within(columns.start)..within(columns.end)
    }
}

/// One tile: queries i .. i + m against keys j .. j + n; j is a multiple of the panel.
#[derive(Clone, Copy)]
pub struct Tile {
    pub i: usize,
    pub m: usize,
    pub j: usize,
    pub n: usize,
    /// The first tile of these queries.
    pub is_first: bool,
    /// The last tile of these queries.
    pub is_last: bool,
}

/// Columns of a row whose dropout factors are of one group.
pub struct Run {
    /// Place of the first column's key in its sequence.
    key: usize,
    /// Place of the first column in the group.
    pub within: usize,
    pub len: usize,
}

impl Run {
    /// The one that begins at column `start` of a tile.
    #[inline(always)]
    pub(super) fn new(tile: Tile, start: usize, end: usize) -> Self {
        // A row's first key begins a group.
        let key = tile.j + start;
        let within = key % GROUP;
        let len = (end - start).min(GROUP - within);
        Self { key, within, len }
    }

    /// The group, for query `i` of the sequence.
    #[inline(always)]
    pub(super) fn group(&self, head: &Head, i: usize) -> u64 {
        (head.dropout_index(i) + self.key as u64) / GROUP as u64
    }
}

/// Rows that a task writes: [.., cols], a distance apart.
pub struct RowsMut<T = f32> {
    start: SharedMut<T>,
    stride: usize,
    cols: usize,
}

impl<T> Clone for RowsMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for RowsMut<T> {}

impl<T> RowsMut<T> {
    pub(super) fn new(start: SharedMut<T>, stride: usize, cols: usize) -> Self {
        Self {
            start,
            stride,
            cols,
        }
    }

    fn part(&self, row: usize, column: usize, cols: usize) -> Self {
        let start = self.at(row).wrapping_add(column);
        Self::new(SharedMut::of(start), self.stride, cols)
    }

    /// Distance between rows.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The first value of row `i`.
    pub(super) fn at(&self, i: usize) -> *mut T {
        self.start.get().wrapping_add(i * self.stride)
    }

    /// Row `i`.
    ///
    /// # Safety
    /// The row lies inside the buffer, which outlives the use, and nothing else uses the row
    /// meanwhile.
    #[inline(always)]
    pub(super) unsafe fn row<'a>(&self, i: usize) -> &'a mut [T] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.at(i), self.cols) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of the tiles of one head of `len` queries and keys.
    fn scores(mask: AttentionMask, len: usize) -> usize {
        let offsets = [0, len];
        let shape = AttentionShape {
            num_heads: 1,
            num_key_value_heads: 1,
            head_dim: 64,
            q_offsets: &offsets,
            kv_offsets: &offsets,
            scale: 1.0,
            soft_cap: None,
            mask,
            dropout: None,
        };
        let mut scores = 0;
        Head::new(&shape, 0, 0).for_each_tile([128, 256], |tile| scores += tile.m * tile.n);
        scores
    }

    #[test]
    fn tiles_outside_of_a_window_are_not_computed() {
        let len = 8192;
        for (mask, keys) in [
            (AttentionMask::Causal { window: Some(512) }, 512),
            (AttentionMask::Near { reach: 64 }, 129),
        ] {
            // A block's own rows and what a panel starts early are computed beside.
            let most = len * (keys + CAUSAL_ROWS + PANEL);
            let found = scores(mask, len);
            assert!(
                (len * keys * 9 / 10..most).contains(&found),
                "{mask:?}: {found}"
            );
        }
        let causal = scores(AttentionMask::Causal { window: None }, len);
        assert!(causal < len * (len + 2 * CAUSAL_ROWS) / 2, "{causal}");
        assert_eq!(scores(AttentionMask::Full, len), len * len);
    }
}
