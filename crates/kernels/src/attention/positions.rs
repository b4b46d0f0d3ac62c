//! Scores with terms of relative positions (disentangled attention, He et al. 2020): a score is a
//! sum of three products, `scale (q_i·k_j + q_i·pos_k[r] + k_j·pos_q[r])`, where r is the row that
//! the distance i - j falls into.
//!
//! Nothing is gathered by pair. The tables are laid out once a call by distance, so that the
//! position scores of neighbouring rows lie on neighbouring diagonals: some rows times a run of
//! distances is a small product whose result is a parallelogram of the score tile. Rows of that
//! result one element further apart than the tile's are the tile itself, straight for the queries'
//! product and transposed for the keys'. The backward reads the gradient of the tile in the same
//! way. Margins around the tile take what the parallelogram's corners hold.

use super::arithmetic::{Arithmetic, At, HeadGradients, HeadOperands, Pass, Product, ScoreSource};
use super::head::{Layout, MOST_ROWS};
use super::{AttentionMask, AttentionShape};
use crate::elementwise::{add_in_place, convert_in};
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::{SharedMut, for_each_task};
use crate::product::PANEL;
use crate::scratch::{Room, Slots, bytes_of};
use crate::simd::{Simd, SimdOp, dispatch};

/// Distance between rows of transposed scores, of which there are [`PANEL`]: a block's queries
/// between margins, and no power of two.
pub(super) const TRANSPOSED: usize = MOST_ROWS + 2 * PANEL + 16;

/// The tables of relative positions, projected for one layer and shared by all sequences. Either
/// may be absent.
#[derive(Clone, Copy, Debug)]
pub struct RelativePositions<'a, E = f32> {
    /// `[2 reach - 1]`: the row of the tables for the distance i - j = entry - (reach - 1). No
    /// sequence is longer than reach.
    pub rows: &'a [u32],
    /// pos_k [R, H * Dh]: content to position.
    pub keys: Option<&'a [E]>,
    /// pos_q [R, H * Dh]: position to content.
    pub queries: Option<&'a [E]>,
}

/// Which table: its columns rise with j - i (keys) or with i - j (queries).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Keys,
    Queries,
}

impl<E> RelativePositions<'_, E> {
    /// The tables that there are.
    pub(super) fn count(&self) -> usize {
        usize::from(self.keys.is_some()) + usize::from(self.queries.is_some())
    }

    /// The table's row of column c in the layout by distance.
    fn row(&self, side: Side, c: usize, columns: usize) -> usize {
        let reach = self.rows.len() / 2 + 1;
        let middle = columns / 2;
        // Columns beyond the reach are never used: any row will do.
        let entry = match side {
            Side::Keys => (reach - 1 + middle).saturating_sub(c),
            Side::Queries => (reach - 1 + c).saturating_sub(middle),
        };
        self.rows[entry.min(self.rows.len() - 1)] as usize
    }

    /// Panics unless the positions reach as far as the sequences and the tables hold every row that
    /// they name.
    pub(super) fn check(&self, shape: &AttentionShape) {
        assert_eq!(shape.mask, AttentionMask::Full, "only bidirectional");
        let heads = [shape.num_heads, shape.num_key_value_heads];
        assert_eq!(heads[0], heads[1], "a head of keys for each of queries");
        assert!(self.rows.len() % 2 == 1, "an odd number of distances");
        let reach = self.rows.len() / 2 + 1;
        for b in 0..shape.sequences() {
            let longest = shape.q_len(b).max(shape.kv_len(b));
            assert!(
                longest <= reach,
                "{longest} positions, the reach is {reach}"
            );
        }
        let last = self.rows.iter().max().map_or(0, |&row| row as usize + 1);
        for table in self.keys.iter().chain(&self.queries) {
            assert!(
                table.len() >= last * shape.width(),
                "a row past the end of a table"
            );
        }
    }
}

/// Columns of a table laid out by distance: column c stands for the distance c - columns / 2.
fn columns(shape: &AttentionShape) -> usize {
    let longest = { 0..shape.sequences() }.map(|b| shape.q_len(b).max(shape.kv_len(b)));
    2 * longest.max().unwrap_or(0).next_multiple_of(PANEL)
}

/// Values of one head's table in the forms for scores and for gradients.
fn head_lens<E: WithPositions>(shape: &AttentionShape, pass: Pass) -> [usize; 2] {
    let [scores, gradients] = E::table_lens(columns(shape), shape.head_dim);
    [scores, if pass == Pass::Backward { gradients } else { 0 }]
}

/// Values of one head's gradient of a table.
fn gradient_len<E: WithPositions>(shape: &AttentionShape) -> usize {
    columns(shape) * E::gradient_width(shape.head_dim)
}

/// Bytes that tables, and the gradients of some of them, need in the memory that tasks share.
pub(super) fn shared_bytes<E: WithPositions>(
    shape: &AttentionShape,
    pass: Pass,
    tables: usize,
    trained: usize,
) -> usize {
    let lens = head_lens::<E>(shape, pass).map(|len| bytes_of::<E>(shape.num_heads * len));
    let partial = shape.groups() * shape.num_heads * gradient_len::<E>(shape);
    tables * lens.iter().sum::<usize>() + trained * bytes_of::<f32>(partial)
}

/// Bytes of a thread's slot to lay tables out, and to sum the gradients of tables of so many rows.
pub(super) fn slot_bytes<E: WithPositions>(shape: &AttentionShape, table_rows: usize) -> usize {
    let gathered = bytes_of::<E>(PANEL * row_stride(shape.head_dim));
    gathered.max(bytes_of::<f32>(table_rows * shape.head_dim))
}

/// Distance between gathered rows: whole pairs.
fn row_stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(2)
}

/// The tables by distance, head by head.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a, E> {
    keys: Option<Table<'a, E>>,
    queries: Option<Table<'a, E>>,
    columns: usize,
}

#[derive(Clone, Copy)]
struct Table<'a, E> {
    for_scores: &'a [E],
    /// Empty in the forward.
    for_gradients: &'a [E],
    /// Values of one head in each.
    head_lens: [usize; 2],
}

impl<'a, E: WithPositions> Tables<'a, E> {
    /// Lays the tables out in memory that tasks share.
    pub(super) fn prepare(
        isa: Isa,
        shape: &AttentionShape,
        positions: &RelativePositions<E>,
        pass: Pass,
        room: &mut Room<'a>,
        slots: &Slots,
    ) -> Self {
        let head_lens = head_lens::<E>(shape, pass);
        let mut make = |from: &[E], side| {
            let forms = head_lens.map(|len| room.take::<E>(shape.num_heads * len));
            let lay_out = LayOut {
                shape,
                positions,
                from,
                side,
                head_lens,
            };
            let [for_scores, for_gradients] = lay_out.run(isa, forms, slots);
            Table {
                for_scores,
                for_gradients,
                head_lens,
            }
        };
        Tables {
            keys: positions.keys.map(|x| make(x, Side::Keys)),
            queries: positions.queries.map(|x| make(x, Side::Queries)),
            columns: columns(shape),
        }
    }

    /// The source of a head's scores. `d_tables` are a task's own gradients of the keys' and the
    /// queries' table.
    pub(super) fn head(&self, h: usize, d_tables: [Option<*mut f32>; 2]) -> Relative<'a, E> {
        let part = |table: Table<'a, E>, d_table| {
            let [scores, gradients] = table.head_lens;
            HeadTable {
                for_scores: &table.for_scores[h * scores..][..scores],
                for_gradients: &table.for_gradients[h * gradients..][..gradients],
                columns: self.columns,
                d_table,
            }
        };
        Relative {
            keys: self.keys.map(|table| part(table, d_tables[0])),
            queries: self.queries.map(|table| part(table, d_tables[1])),
        }
    }
}

/// The layout of one table.
struct LayOut<'a, E> {
    shape: &'a AttentionShape<'a>,
    positions: &'a RelativePositions<'a, E>,
    from: &'a [E],
    side: Side,
    head_lens: [usize; 2],
}

impl<E: WithPositions> LayOut<'_, E> {
    fn run<'t>(&self, isa: Isa, forms: [&'t mut [E]; 2], slots: &Slots) -> [&'t [E]; 2] {
        let [for_scores, for_gradients] = forms;
        if self.head_lens[0] > 0 {
            let [scores, gradients] = [&mut *for_scores, &mut *for_gradients].map(SharedMut::new);
            for_each_task(self.shape.num_heads, |head| {
                // SAFETY: each form has a part for every head, and each task takes its own.
                let part = |form: SharedMut<E>, len: usize| unsafe {
                    std::slice::from_raw_parts_mut(form.get().add(head * len), len)
                };
                let mut slot = slots.take();
                let op = LayOutHead {
                    all: self,
                    head,
                    for_scores: part(scores, self.head_lens[0]),
                    for_gradients: part(gradients, self.head_lens[1]),
                    gathered: slot.room().take(PANEL * row_stride(self.shape.head_dim)),
                };
                dispatch(isa, op);
            });
        }
        [for_scores, for_gradients]
    }
}

/// The layout of one head of it.
struct LayOutHead<'a, E> {
    all: &'a LayOut<'a, E>,
    head: usize,
    for_scores: &'a mut [E],
    for_gradients: &'a mut [E],
    gathered: &'a mut [E],
}

impl<E: WithPositions> SimdOp for LayOutHead<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let LayOut {
            shape,
            positions,
            from,
            side,
            ..
        } = *self.all;
        let (d, columns) = (shape.head_dim, columns(shape));
        let stride = row_stride(d);
        for p in 0..columns / PANEL {
            for (i, row) in self.gathered.chunks_exact_mut(stride).enumerate() {
                let of_table = positions.row(side, p * PANEL + i, columns);
                let start = of_table * shape.width() + self.head * d;
                row[..d].copy_from_slice(&from[start..start + d]);
            }
            let rows = MatRef::strided(self.gathered, PANEL, d, stride, 1);
            E::lay_out(s, rows, p, columns, self.for_scores, self.for_gradients);
        }
    }
}

/// The gradients of one table, which each group of sequences sums on its own.
pub(super) struct TableGradient<'a> {
    pub side: Side,
    /// Per group and head.
    pub partial: &'a mut [f32],
    pub head_len: usize,
}

impl<'a> TableGradient<'a> {
    pub(super) fn take<E: WithPositions>(
        shape: &AttentionShape,
        side: Side,
        room: &mut Room<'a>,
    ) -> Self {
        let head_len = gradient_len::<E>(shape);
        Self {
            side,
            partial: room.take(shape.groups() * shape.num_heads * head_len),
            head_len,
        }
    }

    /// d = the sum over groups and columns of what belongs to each row of a table; zeros for rows
    /// that no distance names.
    pub(super) fn sum<E: WithPositions>(
        &self,
        isa: Isa,
        shape: &AttentionShape,
        positions: &RelativePositions<E>,
        d: &mut [E],
        slots: &Slots,
    ) {
        if self.head_len == 0 {
            d.fill(E::default());
            return;
        }
        let rows = d.len() / shape.width();
        let d = SharedMut::new(d);
        for_each_task(shape.num_heads, |head| {
            let mut slot = slots.take();
            let op = SumGroups {
                shape,
                positions,
                gradient: self,
                head,
                sums: slot.room().take(rows * shape.head_dim),
                d,
            };
            dispatch(isa, op);
        });
    }
}

/// The sum of one head.
struct SumGroups<'a, E> {
    shape: &'a AttentionShape<'a>,
    positions: &'a RelativePositions<'a, E>,
    gradient: &'a TableGradient<'a>,
    head: usize,
    /// Of all rows [R, Dh].
    sums: &'a mut [f32],
    d: SharedMut<E>,
}

impl<E: WithPositions> SimdOp for SumGroups<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (shape, d) = (self.shape, self.shape.head_dim);
        let (columns, len) = (columns(shape), self.gradient.head_len);
        self.sums.fill(0.0);
        for group in self.gradient.partial.chunks_exact(shape.num_heads * len) {
            let of_head = group[self.head * len..][..len].chunks_exact(E::gradient_width(d));
            for (c, from) in of_head.enumerate() {
                let row = self.positions.row(self.gradient.side, c, columns);
                add_in_place(s, &mut self.sums[row * d..][..d], &from[..d]);
            }
        }
        for (row, sums) in self.sums.chunks_exact(d).enumerate() {
            let at = row * shape.width() + self.head * d;
            // SAFETY: row `row` lies inside d, and no other task writes this head's columns.
            let to = unsafe { std::slice::from_raw_parts_mut(self.d.get().add(at), d) };
            convert_in(s, to, sums);
        }
    }
}

/// One head's table by distance.
#[derive(Clone, Copy)]
pub struct HeadTable<'a, E> {
    /// What scores are made with: panels of columns.
    pub for_scores: &'a [E],
    /// What gradients are made with.
    pub for_gradients: &'a [E],
    /// Column c stands for the distance c - columns / 2.
    pub columns: usize,
    /// The table's gradient, if it is wanted: [columns, Dh], a distance of `gradient_width` apart.
    pub d_table: Option<*mut f32>,
}

/// Products of a tile with a table by distance. Row i and column j of the tile meet the table's
/// column `first + j - i`.
///
/// Methods that are unsafe want what those of [`Arithmetic`] do, and a table that covers the
/// distances of the sequence.
pub trait WithPositions: Arithmetic {
    /// Values of a head's table in the forms for scores and for gradients.
    fn table_lens(columns: usize, head_dim: usize) -> [usize; 2];

    /// Distance between rows of a table's gradient.
    fn gradient_width(head_dim: usize) -> usize;

    /// Lays panel `p` of `columns` out: PANEL rows, at least whole pairs apart. `for_gradients` may
    /// be empty.
    fn lay_out<S: Simd>(
        s: S,
        rows: MatRef<Self>,
        p: usize,
        columns: usize,
        for_scores: &mut [Self],
        for_gradients: &mut [Self],
    );

    /// As [`ScoreSource::prepare`].
    fn prepare_positions<S: Simd>(s: S, w: &mut Self::Work<'_>, k: MatRef<Self>);

    /// Adds the queries' position scores to a tile.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn add_keys_scores<S: Simd>(
        s: S,
        w: &mut Self::Work<'_>,
        at: &At,
        q: MatRef<Self>,
        table: &HeadTable<Self>,
        first: usize,
    );

    /// Writes the keys' position scores over a tile.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn write_queries_scores<S: Simd>(
        s: S,
        w: &mut Self::Work<'_>,
        at: &At,
        k: MatRef<Self>,
        table: &HeadTable<Self>,
        first: usize,
    );

    /// Adds what the queries' position scores give to d_q and to the gradient of the keys' table.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn add_keys_gradients<S: Simd>(
        s: S,
        w: &mut Self::Work<'_>,
        at: &At,
        x: &HeadGradients<Self>,
        table: &HeadTable<Self>,
        first: usize,
    );

    /// Adds what the keys' position scores give to d_k and to the gradient of the queries' table.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn add_queries_gradients<S: Simd>(
        s: S,
        w: &mut Self::Work<'_>,
        at: &At,
        x: &HeadGradients<Self>,
        table: &HeadTable<Self>,
        first: usize,
    );
}

/// Scores with terms of relative positions.
#[derive(Clone, Copy)]
pub(super) struct Relative<'a, E> {
    keys: Option<HeadTable<'a, E>>,
    queries: Option<HeadTable<'a, E>>,
}

impl<E: WithPositions> ScoreSource<E> for Relative<'_, E> {
    const LAYOUT: Layout = E::MARGINED;

    #[inline(always)]
    fn prepare<S: Simd>(&self, s: S, w: &mut E::Work<'_>, k: MatRef<E>) {
        E::prepare_positions(s, w, k);
    }

    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, s: S, w: &mut E::Work<'_>, at: &At, x: &HeadOperands<E>) {
        let tile = at.tile;
        // SAFETY: the caller's contract.
        unsafe {
            if let Some(table) = &self.queries {
                let first = table.columns / 2 + tile.i - tile.j;
                E::write_queries_scores(s, w, at, at.keys(x.k), table, first);
            }
            let q = at.queries(x.q);
            E::multiply(s, w, at, Product::Scores, q, self.queries.is_some());
            if let Some(table) = &self.keys {
                let first = table.columns / 2 + tile.j - tile.i;
                E::add_keys_scores(s, w, at, q, table, first);
            }
        }
    }

    #[inline(always)]
    unsafe fn add_gradients<S: Simd>(
        &self,
        s: S,
        w: &mut E::Work<'_>,
        at: &At,
        x: &HeadGradients<E>,
    ) {
        let tile = at.tile;
        // SAFETY: the caller's contract; each task has its own part of the tables' gradients.
        unsafe {
            if let Some(table) = &self.keys {
                let first = table.columns / 2 + tile.j - tile.i;
                E::add_keys_gradients(s, w, at, x, table, first);
            }
            if let Some(table) = &self.queries {
                let first = table.columns / 2 + tile.i - tile.j;
                E::add_queries_gradients(s, w, at, x, table, first);
            }
        }
    }
}
