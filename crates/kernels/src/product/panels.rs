//! Panels: the second operand of a product as the register tile reads it, whatever it is stored in.

use std::ops::Range;

use half::bf16;

use crate::element::Element;
use crate::isa::Isa;
use crate::matrix::{AnyMatRef, MatRef, each_type};
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};

use super::integers::IntegerPanels;
use super::pack_bf16::pairs_of;
use super::weights::Side;

/// Columns of a panel.
pub const PANEL: usize = 32;

/// Starts of the depths that a panel is asked for are multiples of it, so that formats may store
/// blocks of up to so many.
const DEPTH_STEP: usize = 128;

/// A stretch of the depth of one panel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanelPart {
    /// Which of the panels.
    pub panel: usize,
    /// Starts at a multiple of 128.
    pub depth: Range<usize>,
}

/// b [n, k] of a product, by panels of [`PANEL`] rows of b. What is beyond n in the last one is
/// zero.
pub trait PanelSource: Sync {
    /// [n, k].
    fn shape(&self) -> [usize; 2];

    /// The values of a part in f32, depth by depth:
    /// `out[(kk - depth.start) * PANEL + j] = b[panel * PANEL + j, kk]`.
    ///
    /// `out` holds `depth.len() * PANEL` values, all of which are written.
    fn widen(&self, isa: Isa, part: PanelPart, out: &mut [f32]);

    /// The values of a part rounded to bf16, by pairs of neighbouring depths:
    /// `out[(p * PANEL + j) * 2 + i]` is that of the depth `depth.start + 2 * p + i`, and zero
    /// beyond it.
    ///
    /// `out` holds whole pairs, all of which are written.
    fn pairs(&self, isa: Isa, part: PanelPart, out: &mut [bf16]) {
        round_pairs(self, isa, part, out);
    }

    /// All panels, where they are stored as a tile reads them.
    fn in_place(&self) -> Option<PanelsInPlace<'_>> {
        None
    }

    /// The panels, where they are integers that are multiplied as such.
    fn integers(&self) -> Option<IntegerPanels<'_>> {
        None
    }
}

/// [`PanelSource::pairs`] by way of f32.
pub(super) fn round_pairs<P: PanelSource + ?Sized>(
    source: &P,
    isa: Isa,
    part: PanelPart,
    out: &mut [bf16],
) {
    let PanelPart { panel, depth } = part;
    let mut lines = [0.0; DEPTH_STEP * PANEL];
    let parts = out.chunks_mut(DEPTH_STEP * PANEL);
    for (start, out) in depth.clone().step_by(DEPTH_STEP).zip(parts) {
        let depth = start..(start + DEPTH_STEP).min(depth.end);
        let lines = &mut lines[..depth.len() * PANEL];
        source.widen(isa, PanelPart { panel, depth }, lines);
        pair_lines(isa, lines, out);
    }
}

/// Lines of a panel as pairs, rounded. Panics if a length disagrees.
pub(super) fn pair_lines(isa: Isa, lines: &[f32], out: &mut [bf16]) {
    dispatch(isa, PairLines { lines, out });
}

/// Panels that are read where they lie.
#[derive(Clone, Copy, Debug)]
pub enum PanelsInPlace<'a> {
    /// f32: panel p, depth kk, column j at `p * panel_stride + kk * depth_stride + j`.
    Lines {
        /// The values.
        values: &'a [f32],
        /// Distance between panels.
        panel_stride: usize,
        /// Distance between depths.
        depth_stride: usize,
        /// Whether the last panel is whole, with zeros beyond n.
        padded: bool,
    },
    /// bf16 pairs, as [`PanelSource::pairs`] writes them, panel behind panel.
    Pairs(&'a [bf16]),
}

impl PanelsInPlace<'_> {
    /// Panics if there are fewer values than b [n, k] has.
    pub(super) fn check(&self, n: usize, k: usize) {
        let n_panels = n.div_ceil(PANEL);
        if n == 0 || k == 0 {
            return;
        }
        let (found, needed) = match *self {
            PanelsInPlace::Lines {
                values,
                panel_stride,
                depth_stride,
                padded,
            } => {
                let of_last = if padded {
                    PANEL
                } else {
                    n - (n_panels - 1) * PANEL
                };
                let end = |panel: usize, columns: usize| {
                    let start = panel.saturating_mul(panel_stride);
                    start
                        .saturating_add((k - 1).saturating_mul(depth_stride))
                        .saturating_add(columns)
                };
                let whole = n_panels.checked_sub(2).map_or(0, |panel| end(panel, PANEL));
                (values.len(), end(n_panels - 1, of_last).max(whole))
            }
            PanelsInPlace::Pairs(values) => (values.len(), n_panels * 2 * PANEL * pairs_of(k)),
        };
        assert!(
            found >= needed,
            "panels of [{n}, {k}]: {found} values instead of {needed}"
        );
    }

    /// How they lie.
    pub(super) fn form(&self) -> PanelForm {
        match self {
            PanelsInPlace::Lines { .. } => PanelForm::Lines,
            PanelsInPlace::Pairs(_) => PanelForm::Pairs,
        }
    }
}

/// How panels are found, without the panels: what a product's scratch depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PanelForm {
    /// In place, f32 lines.
    Lines,
    /// In place, bf16 pairs.
    Pairs,
    /// Decoded in cache.
    Decoded,
    /// Integers, in place or decoded in cache.
    Integers(Side),
}

/// Pairs of lines of a panel, rounded.
struct PairLines<'a> {
    lines: &'a [f32],
    out: &'a mut [bf16],
}

impl SimdOp for PairLines<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let depth = self.lines.len() / PANEL;
        assert_eq!(
            self.out.len(),
            2 * PANEL * pairs_of(depth),
            "pairs of a panel"
        );
        for (pair, out) in self.out.chunks_exact_mut(2 * PANEL).enumerate() {
            for j in (0..PANEL).step_by(S::LANES) {
                let low = load_at(s, self.lines, 2 * pair * PANEL + j, S::LANES);
                let high = if 2 * pair + 1 < depth {
                    load_at(s, self.lines, (2 * pair + 1) * PANEL + j, S::LANES)
                } else {
                    s.splat(0.0)
                };
                // SAFETY: `out` holds PANEL pairs, and LANES divides PANEL.
                unsafe { s.store_u(out.as_mut_ptr().cast::<u32>().add(j), s.pair(low, high)) };
            }
        }
    }
}

/// x [k, n] as it lies, with contiguous rows: the second operand of aᵀ·x.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowsOf<'a>(pub AnyMatRef<'a>);

impl PanelSource for RowsOf<'_> {
    fn shape(&self) -> [usize; 2] {
        [self.0.cols(), self.0.rows()]
    }

    fn widen(&self, isa: Isa, part: PanelPart, out: &mut [f32]) {
        each_type!(self.0, x => dispatch(isa, WidenRows::new(x, part, out)));
    }

    fn in_place(&self) -> Option<PanelsInPlace<'_>> {
        match self.0 {
            AnyMatRef::F32(x) => Some(PanelsInPlace::Lines {
                values: x.data(),
                panel_stride: PANEL,
                depth_stride: x.row_stride(),
                padded: false,
            }),
            AnyMatRef::Bf16(_) => None,
        }
    }
}

/// Some columns of a few rows, widened.
struct WidenRows<'a, E> {
    rows: MatRef<'a, E>,
    out: &'a mut [f32],
}

impl<'a, E: Element> WidenRows<'a, E> {
    fn new(x: MatRef<'a, E>, part: PanelPart, out: &'a mut [f32]) -> Self {
        let first = part.panel * PANEL;
        let columns = first..(first + PANEL).min(x.cols());
        let rows = x.rows_range(part.depth).cols_range(columns);
        assert!(
            rows.col_stride() == 1 || rows.cols() <= 1,
            "rows of x are contiguous"
        );
        assert_eq!(out.len(), rows.rows() * PANEL, "a panel's lines");
        Self { rows, out }
    }
}

impl<E: Element> SimdOp for WidenRows<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.rows;
        for (kk, line) in self.out.chunks_exact_mut(PANEL).enumerate() {
            line.fill(0.0);
            let row = &rows.data()[kk * rows.row_stride()..][..rows.cols()];
            for j in (0..row.len()).step_by(S::LANES) {
                let n = lanes_at::<S>(j, row.len());
                store_at(s, line, j, load_at(s, row, j, n), n);
            }
        }
    }
}
