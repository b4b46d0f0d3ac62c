//! The packed form of int8 matrices: whole panels, `[ceil(n / PANEL)]` of `[PANEL]` f32 scales and
//! `[ceil(k / 4)][PANEL][4]` bytes, the same for every instruction set. A value is its row's scale
//! times an integer from -127 to 127, which is stored with 128 added: what `vpdpbusd` takes as its
//! unsigned operand.

use crate::aligned::typed;
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::for_each_chunk;
use crate::simd::{Simd, SimdOp, dispatch};

use super::panels::{PANEL, PanelPart};
use super::weights::{PackedOf, Side};

/// Depths that a tile multiplies at once.
pub(super) const GROUP: usize = 4;

/// What an integer is stored with.
const BIAS: i16 = 128;

/// The largest integer; the smallest is its opposite, so that no product of two pairs leaves i16.
pub(super) const LARGEST: f32 = 127.0;

/// Magnitudes below which a row counts as zeros: beyond, 127 divided by one is finite.
const SMALLEST: f32 = 1e-30;

/// Bytes of a panel's scales.
const HEAD: usize = PANEL * size_of::<f32>();

/// Groups that k values make.
pub(super) fn groups_of(k: usize) -> usize {
    k.div_ceil(GROUP)
}

fn panel_bytes(k: usize) -> usize {
    HEAD + groups_of(k) * GROUP * PANEL
}

/// Bytes of the packed form of b [n, k].
pub(super) fn packed_int8_bytes(n: usize, k: usize) -> usize {
    n.div_ceil(PANEL) * panel_bytes(k)
}

/// The scale of a row with this largest magnitude, and what values are multiplied with to become
/// integers.
pub(super) fn scale_of(largest: f32) -> (f32, f32) {
    match largest < SMALLEST {
        true => (0.0, 0.0),
        false => (largest / LARGEST, LARGEST / largest),
    }
}

/// Packs b [n, k], a weight [out, in], rounding to the nearest. A row with a value that is not
/// finite has a scale that is not, so that it shows. Panics if `dst` is not
/// [`packed_int8_bytes`] long.
pub(super) fn pack_int8(b: MatRef, dst: &mut [u8]) {
    let (n, k) = (b.rows(), b.cols());
    assert_eq!(dst.len(), packed_int8_bytes(n, k), "packed [{n}, {k}]");
    let len = panel_bytes(k);
    for_each_chunk(dst, len, |start, panel| {
        let first = start / len * PANEL;
        pack_panel(b.rows_range(first..(first + PANEL).min(n)), panel);
    });
}

fn pack_panel(rows: MatRef, panel: &mut [u8]) {
    let (scales, codes) = panel.split_at_mut(HEAD);
    scales.fill(0);
    codes.fill(BIAS as u8);
    for j in 0..rows.rows() {
        let row = || (0..rows.cols()).map(|kk| rows.at(j, kk));
        let largest = row().fold(0.0f32, |largest, v| largest.max(v.abs()));
        let (scale, inverse) = scale_of(largest);
        let poison = row().fold(0.0f32, |sum, v| sum + v * 0.0);
        scales[4 * j..4 * j + 4].copy_from_slice(&(scale + poison).to_le_bytes());
        for (kk, v) in row().enumerate() {
            let code = (v * inverse).round_ties_even().clamp(-LARGEST, LARGEST);
            codes[place(kk, j)] = (code as i16 + BIAS) as u8;
        }
    }
}

/// Where depth `kk` of row `j` stands behind a panel's scales.
fn place(kk: usize, j: usize) -> usize {
    (kk / GROUP * PANEL + j) * GROUP + kk % GROUP
}

/// One panel of packed weights.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// Of its rows; zero behind the last.
    pub scales: &'a [f32],
    codes: &'a [u8],
}

impl<'a> Panel<'a> {
    /// Panel `p`.
    pub(super) fn of(w: &PackedOf<'a, u8>, p: usize) -> Self {
        let len = panel_bytes(w.depth);
        let (scales, codes) = w.values[p * len..][..len].split_at(HEAD);
        Panel {
            scales: typed(scales),
            codes,
        }
    }

    /// The integers, in words of four depths.
    pub(super) fn words(self) -> &'a [u32] {
        typed(self.codes)
    }

    fn at(self, kk: usize, j: usize) -> f32 {
        let code = i16::from(self.codes[place(kk, j)]) - BIAS;
        self.scales[j] * f32::from(code)
    }
}

/// Row `row`, depth `kk` of W.
fn at(w: &PackedOf<u8>, row: usize, kk: usize) -> f32 {
    Panel::of(w, row / PANEL).at(kk, row % PANEL)
}

/// The scales of all rows.
pub(super) fn scales_of(w: &PackedOf<u8>, into: &mut [f32]) {
    assert_eq!(into.len(), w.rows, "scales");
    for (p, into) in into.chunks_mut(PANEL).enumerate() {
        into.copy_from_slice(&Panel::of(w, p).scales[..into.len()]);
    }
}

/// Some depths of panel `p` of W or Wᵀ, in f32: `out[t * PANEL + j]` is that of the depth
/// `depths[t]`.
pub(super) fn lines(w: &PackedOf<u8>, side: Side, p: usize, depths: &[u32], out: &mut [f32]) {
    assert_eq!(out.len(), depths.len() * PANEL, "lines");
    for (&kk, line) in depths.iter().zip(out.chunks_exact_mut(PANEL)) {
        line_of(w, side, p, kk as usize, line);
    }
}

fn line_of(w: &PackedOf<u8>, side: Side, p: usize, kk: usize, line: &mut [f32]) {
    match side {
        Side::Straight => {
            let panel = Panel::of(w, p);
            let values = line.iter_mut().enumerate();
            values.for_each(|(j, value)| *value = panel.at(kk, j));
        }
        Side::Transposed => {
            let panel = Panel::of(w, kk / PANEL);
            for (j, value) in line.iter_mut().enumerate() {
                let column = p * PANEL + j;
                *value = match column < w.depth {
                    true => panel.at(column, kk % PANEL),
                    false => 0.0,
                };
            }
        }
    }
}

/// A part of a panel of packed weights in f32, straight or transposed.
pub(super) fn widen(w: &PackedOf<u8>, side: Side, part: &PanelPart, out: &mut [f32]) {
    for (kk, line) in part.depth.clone().zip(out.chunks_exact_mut(PANEL)) {
        line_of(w, side, part.panel, kk, line);
    }
}

/// The row-major [n, k] matrix of a packed form. Panics if a length disagrees.
pub(super) fn unpack_int8(w: &PackedOf<u8>, dst: &mut [f32]) {
    assert_eq!(dst.len(), w.rows * w.depth);
    for (row, values) in dst.chunks_exact_mut(w.depth.max(1)).enumerate() {
        let panel = Panel::of(w, row / PANEL);
        let values = values.iter_mut().enumerate();
        values.for_each(|(kk, value)| *value = panel.at(kk, row % PANEL));
    }
}

/// sum += a row of packed weights.
pub(super) fn add_row(w: &PackedOf<u8>, row: usize, sum: &mut [f32]) {
    let sums = sum.iter_mut().enumerate();
    sums.for_each(|(kk, sum)| *sum += at(w, row, kk));
}

/// Integers of one panel of Wᵀ, whose depth is some rows of W from a whole panel on: groups of four
/// such rows, in words. What lies behind the last row or column is zero.
pub(super) fn transposed_words(isa: Isa, w: &PackedOf<u8>, part: &PanelPart, out: &mut [u32]) {
    assert!(part.depth.end <= w.rows && part.depth.start.is_multiple_of(PANEL));
    let groups = groups_of(part.depth.len());
    assert_eq!(out.len(), groups * PANEL, "words of a panel");
    dispatch(isa, Transpose { w, part, out });
}

struct Transpose<'a> {
    w: &'a PackedOf<'a, u8>,
    part: &'a PanelPart,
    out: &'a mut [u32],
}

impl SimdOp for Transpose<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Transpose { w, part, out } = self;
        let first = part.panel * PANEL / GROUP;
        let wanted = (groups_of(w.depth) - first).min(PANEL / GROUP);
        for (p, out) in out.chunks_mut(PANEL / GROUP * PANEL).enumerate() {
            let words = Panel::of(w, part.depth.start / PANEL + p).words();
            let words = &words[first * PANEL..][..wanted * PANEL];
            if wanted < PANEL / GROUP {
                out.fill(u32::from_ne_bytes([BIAS as u8; GROUP]));
            }
            for (g, columns) in words.chunks_exact(PANEL).enumerate() {
                let quads = columns.chunks_exact(GROUP).zip(out.chunks_exact_mut(PANEL));
                for (from, into) in quads {
                    let into = &mut into[GROUP * g..][..GROUP];
                    transpose_quad([from[0], from[1], from[2], from[3]], into);
                }
            }
        }
    }
}

/// The transpose of 4 × 4 bytes, a row a word.
#[inline(always)]
fn transpose_quad(rows: [u32; GROUP], into: &mut [u32]) {
    let bytes = rows.map(u32::to_ne_bytes);
    for (i, into) in into.iter_mut().enumerate() {
        *into = u32::from_ne_bytes([bytes[0][i], bytes[1][i], bytes[2][i], bytes[3][i]]);
    }
}
