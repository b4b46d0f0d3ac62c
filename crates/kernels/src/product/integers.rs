//! The first operand of a product in integers: each row times a factor of its own, rounded, with
//! the columns that are kept beside left out. Quantised once a product, for all tasks.
//!
//! Sources: Dettmers et al. 2022, "LLM.int8()" (rows, and outlier columns beside); Wortsman et al.
//! 2023, "Stable and low-precision training for large-scale vision-language models" (gradients).

use std::ops::Range;

use crate::aligned::typed_mut;
use crate::dropout::{DropoutKey, Noise};
use crate::element::Element;
use crate::isa::Isa;
use crate::matrix::{MatRef, each_type};
use crate::parallel::{SharedMut, for_each_chunk, for_each_task};
use crate::scratch::{Room, ScratchNeed, Slots, bytes_of};
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};

use super::epilogue::Rectangle;
use super::pack_int8::{self, LARGEST, groups_of, scale_of};
use super::panels::{PANEL, PanelPart, pair_lines};
use super::tile_int8::{IntegerTile, IntegerUnit};
use super::weights::{PackedOf, Side};
use super::{Arithmetic, LowRankTerm, PackedWeights, Product, packed_bytes};

/// How a number becomes an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// Up or down at random, so that the mean is the number: a function of the key and of the
    /// element's place.
    Stochastic(DropoutKey),
}

/// Panels of int8 weights, and how the other operand meets them.
#[derive(Clone, Copy, Debug)]
pub struct IntegerPanels<'a> {
    pub(super) weights: PackedOf<'a, u8>,
    pub(super) side: Side,
    pub(super) outliers: &'a [u32],
    pub(super) rounding: Rounding,
}

/// Depth up to which sums stay within i32: 255 · 127 · 66,311 is the last product that does.
pub(super) const DEPTH: usize = 65_536;

/// Elements of a task that quantises.
const TASK: usize = 32 * 1024;

/// What added to a number rounds it to an integer, which the low bits then are.
const MAGIC: f32 = 12_582_912.0;

/// Distance between quantised rows, in bytes: a line more than the width, so that rows fall into
/// different cache sets.
pub(super) fn row_bytes(k: usize) -> usize {
    k.next_multiple_of(64) + 64
}

fn blocks_of(k: usize) -> usize {
    k.div_ceil(DEPTH).max(1)
}

/// What quantising a [m, k] takes for b [n, k] with some outliers, in an arithmetic of the terms.
#[derive(Clone, Copy)]
pub(super) struct Needed {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub outliers: usize,
    pub arithmetic: Arithmetic,
}

impl Needed {
    fn factor_bytes(&self) -> usize {
        packed_bytes(self.arithmetic.format(), self.n, self.outliers)
    }

    pub(super) fn scratch(&self) -> ScratchNeed {
        let Needed { m, k, outliers, .. } = *self;
        let shared = [
            bytes_of::<u8>(m * row_bytes(k)),
            bytes_of::<f32>(m),
            bytes_of::<u32>(m * blocks_of(k)),
            bytes_of::<f32>(k),
            bytes_of::<f32>(m * outliers),
            bytes_of::<u8>(self.factor_bytes()),
        ];
        ScratchNeed {
            shared: shared.iter().sum(),
            per_thread: bytes_of::<f32>(k.next_multiple_of(16).max(outliers * PANEL)),
        }
    }
}

/// A first operand in integers.
pub(super) struct Integers<'s> {
    pub(super) panels: IntegerPanels<'s>,
    pub(super) unit: IntegerUnit,
    codes: &'s [u8],
    row_bytes: usize,
    /// With the product's factor.
    scales: &'s [f32],
    /// Sums of a row's integers, block of the depth by block.
    sums: &'s [u32],
    blocks: usize,
    /// h and g of the columns that are kept beside.
    outliers: Option<(&'s [f32], PackedWeights<'s>)>,
    alpha: f32,
}

impl<'s> Integers<'s> {
    /// Quantises the rows of `a`. Panics if an outlier is no column of it.
    pub(super) fn new(
        isa: Isa,
        call: &Product<'s>,
        b: IntegerPanels<'s>,
        needed: &Needed,
        room: &mut Room<'s>,
        slots: &Slots,
    ) -> Self {
        let (a, alpha) = (call.a, call.alpha);
        let Needed { m, k, .. } = *needed;
        let codes = room.take(m * row_bytes(k));
        let scales = room.take(m);
        let sums = room.take(m * blocks_of(k));
        let factors = room.take(k);
        let h = room.take(m * needed.outliers);
        let g = room.take(needed.factor_bytes());
        b.factors(factors);
        let into = Into {
            codes: SharedMut::new(codes),
            scales: SharedMut::new(scales),
            sums: SharedMut::new(sums),
            h: SharedMut::new(h),
        };
        let rows_of_task = (TASK / k.max(1)).max(1);
        for_each_task(m.div_ceil(rows_of_task), |task| {
            let first = task * rows_of_task;
            let rows = first..(first + rows_of_task).min(m);
            let mut slot = slots.take();
            let line = slot.room().take::<f32>(k.next_multiple_of(16));
            each_type!(a, a => dispatch(isa, Quantise {
                a, alpha, b: &b, factors, rows, line, into,
            }));
        });
        b.pack_outliers(isa, needed.arithmetic, g, slots);
        let format = needed.arithmetic.format();
        let outliers = (needed.outliers > 0).then(|| {
            let g = PackedWeights::new(format, [needed.n, needed.outliers], g);
            (&*h, g)
        });
        Integers {
            panels: b,
            unit: IntegerUnit::of(isa),
            codes,
            row_bytes: row_bytes(k),
            scales,
            sums,
            blocks: blocks_of(k),
            outliers,
            alpha,
        }
    }

    /// The columns that are kept beside: a term of the product.
    pub(super) fn term<'a>(&self) -> Option<LowRankTerm<'a>>
    where
        's: 'a,
    {
        let (h, g) = self.outliers?;
        let (rows, rank) = (self.scales.len(), g.shape()[1]);
        Some(LowRankTerm {
            rows: 0..rows,
            h: MatRef::new(h, rows, rank),
            g,
            scale: self.alpha,
        })
    }

    /// Row `row` from a depth on, which starts a group, and the distance between rows, in words.
    #[inline(always)]
    pub(super) fn strip(&self, row: usize, depth: usize) -> (*const u32, usize) {
        let start = self.codes[row * self.row_bytes + depth..].as_ptr();
        (start.cast(), self.row_bytes / 4)
    }

    /// What the tile of a rectangle multiplies a depth's sums with, and starts them from. The rest
    /// is the caller's.
    #[inline(always)]
    pub(super) fn tile(&self, at: Rectangle, depth: Range<usize>) -> IntegerTile {
        let mut tile = IntegerTile {
            groups: groups_of(depth.len()),
            rows: at.rows,
            ..IntegerTile::NONE
        };
        for i in 0..at.rows {
            let row = at.row + i;
            tile.row_scales[i] = self.scales[row];
            tile.row_sums[i] = self.sums[row * self.blocks + depth.start / DEPTH] as i32;
        }
        if self.panels.side == Side::Straight {
            let panel = self.panels.panel(at.column / PANEL);
            tile.column_scales = panel.scales.as_ptr();
        }
        tile
    }
}

impl<'a> IntegerPanels<'a> {
    /// The columns of the first operand that are kept beside.
    pub(super) fn outliers(&self) -> usize {
        self.outliers.len()
    }

    /// [n, k].
    fn shape(&self) -> [usize; 2] {
        let PackedOf { rows, depth, .. } = self.weights;
        match self.side {
            Side::Straight => [rows, depth],
            Side::Transposed => [depth, rows],
        }
    }

    /// Panics if an outlier is no column of the first operand, or is named twice.
    pub(super) fn check(&self) {
        let [_, k] = self.shape();
        for (i, &kk) in self.outliers.iter().enumerate() {
            assert!((kk as usize) < k, "outlier {kk} of {k} columns");
            assert!(!self.outliers[..i].contains(&kk), "outlier {kk} twice");
        }
    }

    /// Panel `p` of W, where it is read as it lies.
    pub(super) fn panel(&self, p: usize) -> pack_int8::Panel<'a> {
        pack_int8::Panel::of(&self.weights, p)
    }

    /// Distance between the panels of W, in words.
    pub(super) fn panel_words(&self) -> usize {
        pack_int8::packed_int8_bytes(1, self.weights.depth) / 4
    }

    /// Integers of a part of a panel of Wᵀ.
    pub(super) fn transposed_words(&self, isa: Isa, part: &PanelPart, out: &mut [u32]) {
        pack_int8::transposed_words(isa, &self.weights, part, out);
    }

    /// What each column of the first operand is multiplied with before it is quantised: the scale
    /// of W's row where that is the depth, and nothing where it is kept beside.
    fn factors(&self, into: &mut [f32]) {
        match self.side {
            Side::Straight => into.fill(1.0),
            Side::Transposed => pack_int8::scales_of(&self.weights, into),
        }
        self.outliers.iter().for_each(|&kk| into[kk as usize] = 0.0);
    }

    /// The outliers' columns of b [n, k] in an arithmetic's format.
    fn pack_outliers(&self, isa: Isa, arithmetic: Arithmetic, g: &mut [u8], slots: &Slots) {
        let n_outliers = self.outliers.len();
        let [n, _] = self.shape();
        if n_outliers == 0 || n == 0 {
            return;
        }
        let panel_bytes = g.len() / n.div_ceil(PANEL);
        for_each_chunk(g, panel_bytes, |start, panel| {
            let p = start / panel_bytes;
            let mut slot = slots.take();
            let lines = slot.room().take(n_outliers * PANEL);
            pack_int8::lines(&self.weights, self.side, p, self.outliers, lines);
            match arithmetic {
                Arithmetic::F32 => typed_mut(panel).copy_from_slice(lines),
                Arithmetic::Bf16 => pair_lines(isa, lines, typed_mut(panel)),
            }
        });
    }
}

/// What quantised rows are written to: tasks have rows of their own.
#[derive(Clone, Copy)]
struct Into {
    codes: SharedMut<u8>,
    scales: SharedMut<f32>,
    sums: SharedMut<u32>,
    h: SharedMut<f32>,
}

/// Some rows.
struct Quantise<'o, 'a, E> {
    a: MatRef<'a, E>,
    alpha: f32,
    b: &'o IntegerPanels<'o>,
    factors: &'o [f32],
    rows: Range<usize>,
    line: &'o mut [f32],
    into: Into,
}

impl<E: Element> SimdOp for Quantise<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let noise = match self.b.rounding {
            Rounding::Nearest => None,
            Rounding::Stochastic(key) => Some(Noise::new(key)),
        };
        for row in self.rows.clone() {
            let (largest, poison) = self.read(s, row);
            let (scale, inverse) = scale_of(largest);
            // SAFETY: the rows of all tasks are apart, and each has a place for its scale.
            unsafe { *self.into.scales.get().add(row) = (scale + poison) * self.alpha };
            self.write(s, row, inverse, noise.as_ref());
            let n = self.b.outliers.len();
            for (i, &kk) in self.b.outliers.iter().enumerate() {
                let value = self.a.at(row, kk as usize).widen();
                // SAFETY: as above, for as many values as there are outliers.
                unsafe { *self.into.h.get().add(row * n + i) = value };
            }
        }
    }
}

impl<E: Element> Quantise<'_, '_, E> {
    /// Fills the line with a row, each column with its factor. Its largest magnitude, and zero or,
    /// where a value is not finite, NaN.
    #[inline(always)]
    fn read<S: Simd>(&mut self, s: S, row: usize) -> (f32, f32) {
        let k = self.factors.len();
        if self.a.col_stride() != 1 {
            for (kk, value) in self.line[..k].iter_mut().enumerate() {
                *value = self.a.at(row, kk).widen();
            }
        }
        let start = row * self.a.row_stride();
        let (mut largest, mut poison) = (s.splat(0.0), s.splat(0.0));
        for at in (0..k).step_by(S::LANES) {
            let n = lanes_at::<S>(at, k);
            let x = match self.a.col_stride() == 1 {
                true => load_at(s, self.a.data(), start + at, n),
                false => load_at(s, self.line, at, n),
            };
            let x = s.mul(x, load_at(s, self.factors, at, n));
            largest = s.max(s.abs(x), largest);
            poison = s.add(poison, s.mul(x, s.splat(0.0)));
            store_at(s, self.line, at, x, n);
        }
        self.line[k..].fill(0.0);
        (s.reduce_max(largest), s.reduce_add(poison))
    }

    /// Rounds the line to integers, with their sums.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, row: usize, inverse: f32, noise: Option<&Noise>) {
        let k = self.factors.len();
        let blocks = blocks_of(k);
        let codes = self.into.codes.get().wrapping_add(row * row_bytes(k));
        for block in 0..blocks {
            let end = ((block + 1) * DEPTH).min(k);
            let mut sums = s.splat_u(0);
            let mut count = 0u32;
            // Groups of random numbers start with a row.
            let mut random = [0.0; Noise::GROUP];
            for at in (block * DEPTH..end).step_by(S::LANES) {
                let within = at % Noise::GROUP;
                if let Some(noise) = noise
                    && within == 0
                {
                    let group = row * k.div_ceil(Noise::GROUP) + at / Noise::GROUP;
                    random = noise.group(s, group as u64);
                }
                let mut x = s.mul(load_at(s, self.line, at, S::LANES), s.splat(inverse));
                if noise.is_some() {
                    x = s.add(x, load_at(s, &random, within, S::LANES));
                }
                let x = s.min(s.max(x, s.splat(-LARGEST)), s.splat(LARGEST));
                let bits = s.to_bits(s.add(x, s.splat(MAGIC)));
                sums = s.add_u(sums, bits);
                count = count.wrapping_add(S::LANES as u32);
                // SAFETY: the row is this task's and has room for whole vectors.
                unsafe { s.store_low_bytes(codes.add(at), bits) };
            }
            let mut lanes = [0u32; 16];
            // SAFETY: LANES is at most 16; the sums of all rows are apart.
            unsafe {
                s.store_u(lanes.as_mut_ptr(), sums);
                let sum = lanes.iter().fold(0u32, |sum, lane| sum.wrapping_add(*lane));
                let sum = sum.wrapping_sub(count.wrapping_mul(MAGIC.to_bits()));
                *self.into.sums.get().add(row * blocks + block) = sum;
            }
        }
        // A group of the last depths is whole: behind the row come zeros.
        let (from, to) = (k.next_multiple_of(S::LANES), groups_of(k) * 4);
        for at in from..to.max(from) {
            // SAFETY: as above.
            unsafe { *codes.add(at) = 0 };
        }
    }
}
