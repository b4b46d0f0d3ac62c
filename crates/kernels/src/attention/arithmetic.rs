//! What an element's rows and products are made with, and what scores are made of: the two seams of
//! the bodies.

use super::AttentionMask;
use super::head::{CAUSAL_ROWS, Head, Layout, RowsMut, Tile};
use super::rows::RowState;
use crate::aligned::Plain;
use crate::dropout::Mask;
use crate::element::Element;
use crate::matrix::MatRef;
use crate::scratch::{Room, bytes_of};
use crate::simd::Simd;

/// Operands of one head. Shapes: q [T, Dh]; k, v [S, Dh].
#[derive(Clone, Copy)]
pub struct HeadOperands<'a, E> {
    pub q: MatRef<'a, E>,
    pub k: MatRef<'a, E>,
    pub v: MatRef<'a, E>,
}

/// What the backward of one head reads and writes beside its operands.
#[derive(Clone, Copy)]
pub struct HeadGradients<'a, E> {
    pub x: HeadOperands<'a, E>,
    pub out: MatRef<'a, E>,
    pub d_out: MatRef<'a, E>,
    pub d_q: RowsMut<E>,
    pub d_k: RowsMut<E>,
    pub d_v: RowsMut<E>,
}

/// A tile of a head, where its scores lie, and the dropout of its probabilities.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub head: &'a Head,
    pub tile: Tile,
    /// Whether the keys' gradients hold what earlier heads and tiles gave: else they are
    /// overwritten.
    pub adds_to_keys: bool,
    pub layout: Layout,
    pub(super) mask: Option<&'a Mask>,
}

impl At<'_> {
    /// The tile's rows of what has the queries' rows.
    pub fn queries<'a, E: Copy>(&self, x: MatRef<'a, E>) -> MatRef<'a, E> {
        x.rows_range(self.tile.i..self.tile.i + self.tile.m)
    }

    /// The tile's rows of what has the keys' rows.
    pub fn keys<'a, E: Copy>(&self, x: MatRef<'a, E>) -> MatRef<'a, E> {
        x.rows_range(self.tile.j..self.tile.j + self.tile.n)
    }
}

/// Which pass buffers and operands are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Forward,
    Backward,
}

/// A product of rows of queries' shape with all keys or values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// q kᵀ, the scores.
    Scores = 0,
    /// d_out vᵀ, the gradients of probabilities.
    Gradients = 1,
}

/// What a thread's buffers must hold.
#[derive(Clone, Copy)]
pub struct WorkNeed {
    pub head_dim: usize,
    /// Query rows of the largest tile: see [`WorkNeed::rows`].
    pub rows: usize,
    /// Of the longest sequence.
    pub kv_len: usize,
    pub layout: Layout,
    pub pass: Pass,
}

impl WorkNeed {
    /// Query rows of the largest tile of sequences with at most so many queries, up to whole
    /// vectors.
    pub(super) fn rows(queries: usize, layout: &Layout, mask: AttentionMask) -> usize {
        let most = match mask {
            AttentionMask::Full => layout.blocks[0],
            AttentionMask::Causal { .. } | AttentionMask::Near { .. } => CAUSAL_ROWS,
        };
        queries.next_multiple_of(MOST_LANES).min(most)
    }

    /// Values of a tile of scores.
    pub(super) fn tile_len(&self) -> usize {
        self.rows * self.layout.stride
    }
}

/// Of a vector of any instruction set.
const MOST_LANES: usize = 16;

const _: () = assert!(CAUSAL_ROWS.is_multiple_of(MOST_LANES));

/// Takes buffers out of a room, or only counts the bytes that they need.
pub struct Carver<'r> {
    room: Option<Room<'r>>,
    bytes: usize,
}

impl<'r> Carver<'r> {
    pub(super) fn of(room: Room<'r>) -> Self {
        Self {
            room: Some(room),
            bytes: 0,
        }
    }

    /// The bytes of what `take` takes.
    pub(super) fn count<T>(take: impl FnOnce(&mut Carver<'r>) -> T) -> usize {
        let mut carver = Self {
            room: None,
            bytes: 0,
        };
        take(&mut carver);
        carver.bytes
    }

    /// A buffer of `len` values, whatever they hold; an empty one where bytes are only counted.
    pub(super) fn take<T: Plain>(&mut self, len: usize) -> &'r mut [T] {
        self.bytes += bytes_of::<T>(len);
        self.room.as_mut().map_or(&mut [], |room| room.take(len))
    }
}

/// How attention multiplies rows of an element: f32 where they lie, bf16 as pairs in forms of their
/// own.
///
/// Methods that are unsafe want the buffers of a [`WorkNeed`] that fits the head, prepared for the
/// pass, and what they write to be the caller's alone.
pub trait Arithmetic: Element {
    /// A thread's buffers.
    type Work<'w>;
    /// Tiles of scores without terms of positions.
    const PLAIN: Layout;
    /// Tiles of scores with them: skewed products reach into the margins.
    const MARGINED: Layout;
    /// Whether memory that comes next is asked for row by row.
    const ASKS_AHEAD: bool;

    fn work<'w>(carver: &mut Carver<'w>, need: &WorkNeed) -> Self::Work<'w>;

    /// Brings the keys and values of a sequence into the forms that the pass wants.
    fn prepare<S: Simd>(s: S, w: &mut Self::Work<'_>, x: &HeadOperands<Self>, pass: Pass);

    /// Takes over a block's rows before its first tile: queries, and in the backward d_out.
    fn take_rows<S: Simd>(
        s: S,
        w: &mut Self::Work<'_>,
        q: MatRef<Self>,
        d_out: Option<MatRef<Self>>,
    );

    /// A product of the tile, into (or, if the scores hold terms already, onto) its scores or their
    /// gradients.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn multiply<S: Simd>(
        s: S,
        w: &mut Self::Work<'_>,
        at: &At,
        which: Product,
        rows: MatRef<Self>,
        accumulate: bool,
    );

    /// A row of scores becomes exponentials less the running maximum, zero outside its columns,
    /// with dropout; the running sum follows, and the row of sums so far is brought to the new
    /// maximum.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn softmax<S: Simd>(
        s: S,
        w: &mut Self::Work<'_>,
        at: &At,
        row: usize,
        state: &mut RowState,
        out: RowsMut<Self>,
    );

    /// The sums (=|+=) what the tile's exponentials give with the values.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn weigh<S: Simd>(
        s: S,
        w: &mut Self::Work<'_>,
        at: &At,
        v: MatRef<Self>,
        out: RowsMut<Self>,
    );

    /// Row `row` of the block: out = sums * factor.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn finish<S: Simd>(s: S, w: &Self::Work<'_>, row: usize, factor: f32, out: &mut [Self]);

    /// Makes the gradients of keys and values ready to be added to.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn begin_keys(w: &mut Self::Work<'_>, head: &Head, x: &HeadGradients<Self>);

    /// Row `row` of scores and gradients of probabilities becomes dropped-out probabilities, and
    /// the gradients of scores.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn gradients<S: Simd>(
        s: S,
        w: &mut Self::Work<'_>,
        at: &At,
        row: usize,
        lse: &[f32],
        deltas: &[f32],
    );

    /// d_v += pᵀ d_out, d_k += d_sᵀ q, d_q (=|+=) d_s k.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn add_gradients<S: Simd>(
        s: S,
        w: &mut Self::Work<'_>,
        at: &At,
        x: &HeadGradients<Self>,
    );

    /// Stores the block's sums of d_q.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store_queries<S: Simd>(s: S, w: &Self::Work<'_>, at: &At, d_q: RowsMut<Self>);

    /// Stores the sums of d_k and d_v.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store_keys<S: Simd>(s: S, w: &Self::Work<'_>, head: &Head, x: &HeadGradients<Self>);
}

/// What the scores of a head are made of.
pub trait ScoreSource<E: Arithmetic>: Copy {
    /// Where its tiles lie.
    const LAYOUT: Layout;

    /// As [`Arithmetic::prepare`], for what only this source wants.
    fn prepare<S: Simd>(&self, s: S, w: &mut E::Work<'_>, k: MatRef<E>);

    /// The scores of a tile.
    ///
    /// # Safety
    /// As the methods of [`Arithmetic`].
    unsafe fn scores<S: Simd>(&self, s: S, w: &mut E::Work<'_>, at: &At, x: &HeadOperands<E>);

    /// Adds what the gradients of scores give beside what [`Arithmetic::add_gradients`] adds.
    ///
    /// # Safety
    /// As the methods of [`Arithmetic`].
    unsafe fn add_gradients<S: Simd>(
        &self,
        s: S,
        w: &mut E::Work<'_>,
        at: &At,
        x: &HeadGradients<E>,
    );
}

/// Scores are q kᵀ alone.
#[derive(Clone, Copy)]
pub struct Plainly;

impl<E: Arithmetic> ScoreSource<E> for Plainly {
    const LAYOUT: Layout = E::PLAIN;

    #[inline(always)]
    fn prepare<S: Simd>(&self, _: S, _: &mut E::Work<'_>, _: MatRef<E>) {}

    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, s: S, w: &mut E::Work<'_>, at: &At, x: &HeadOperands<E>) {
        // SAFETY: the caller's contract.
        unsafe { E::multiply(s, w, at, Product::Scores, at.queries(x.q), false) };
    }

    #[inline(always)]
    unsafe fn add_gradients<S: Simd>(
        &self,
        _: S,
        _: &mut E::Work<'_>,
        _: &At,
        _: &HeadGradients<E>,
    ) {
    }
}
