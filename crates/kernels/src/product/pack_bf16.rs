//! The packed form of bf16 matrices: `[ceil(n / PANEL)][ceil(k / 2)][PANEL][2]`, zero padded, the
//! same for every instruction set.

use super::panels::{PANEL, PanelPart};
use super::weights::{PackedOf, Side};
use crate::element::{DType, Element};
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::for_each_chunk;
use crate::simd::{Simd, SimdOp, dispatch, lanes_at};
use half::bf16;

/// Pairs that k values make.
pub(crate) fn pairs_of(k: usize) -> usize {
    k.div_ceil(2)
}

/// Length of the packed form of b [n, k].
pub fn packed_bf16_len(n: usize, k: usize) -> usize {
    n.div_ceil(PANEL) * pairs_of(k) * 2 * PANEL
}

/// Packs b [n, k], for example a weight [out, in], rounding where it is wider. Panics if `dst` is
/// not [`packed_bf16_len`] long.
pub fn pack_bf16<E: Element>(isa: Isa, b: MatRef<E>, dst: &mut [bf16]) {
    let (n, k) = (b.rows(), b.cols());
    assert_eq!(dst.len(), packed_bf16_len(n, k), "packed [{n}, {k}]");
    if dst.is_empty() {
        return;
    }
    let panel_len = 2 * PANEL * pairs_of(k);
    for_each_chunk(dst, panel_len, |start, panel| {
        let first = start / panel_len * PANEL;
        let rows = b.rows_range(first..(first + PANEL).min(n));
        dispatch(isa, PackPanel { rows, panel });
    });
}

struct PackPanel<'a, E> {
    rows: MatRef<'a, E>,
    panel: &'a mut [bf16],
}

impl<E: Element> SimdOp for PackPanel<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.rows.row_stride() == 1 {
            pack_columns(s, self.rows, self.panel);
        } else {
            pack_rows_of(s, self.rows, self.panel);
        }
    }
}

/// Packs at most PANEL rows into one panel, from a view whose columns are contiguous: two of them
/// make a line of pairs.
#[inline(always)]
pub(crate) fn pack_columns<S: Simd, E: Element>(s: S, rows: MatRef<E>, panel: &mut [bf16]) {
    assert_eq!(panel.len(), 2 * PANEL * pairs_of(rows.cols()));
    for (pair, line) in panel.chunks_exact_mut(2 * PANEL).enumerate() {
        pair_columns(s, rows, pair, line);
    }
}

/// Pairs of a row that are converted at once, on the stack.
const CHUNK: usize = 64;

/// Packs at most PANEL rows into one panel, from any view; fastest where rows are contiguous.
#[inline(always)]
pub(crate) fn pack_rows_of<S: Simd, E: Element>(s: S, rows: MatRef<E>, panel: &mut [bf16]) {
    let (n, k) = (rows.rows(), rows.cols());
    let pairs = pairs_of(k);
    assert!(n <= PANEL && panel.len() == 2 * PANEL * pairs);
    if n == PANEL
        && let Some(start) = in_place(&rows)
    {
        // SAFETY: PANEL rows of whole pairs lie at this distance; the panel holds `pairs` lines of
        // PANEL pairs.
        unsafe {
            let (from, to) = (start.cast(), panel.as_mut_ptr().cast());
            transpose_u(s, from, rows.row_stride() / 2, [PANEL, pairs], to);
        }
        return;
    }
    let mut buffer = [bf16::ZERO; PANEL * 2 * CHUNK];
    for (chunk, lines) in panel.chunks_mut(2 * PANEL * CHUNK).enumerate() {
        let (first, chunk_pairs) = (2 * CHUNK * chunk, lines.len() / (2 * PANEL));
        let columns = rows.cols_range(first..(first + 2 * CHUNK).min(k));
        let len = 2 * chunk_pairs;
        for i in 0..n {
            convert_row(s, columns, i, 1.0, &mut buffer[i * len..][..len]);
        }
        buffer[n * len..PANEL * len].fill(bf16::ZERO);
        // SAFETY: the buffer holds PANEL rows of `chunk_pairs` pairs, `lines` as many lines of
        // PANEL pairs.
        unsafe {
            let (from, to) = (buffer.as_ptr().cast(), lines.as_mut_ptr().cast());
            transpose_u(s, from, chunk_pairs, [PANEL, chunk_pairs], to);
        }
    }
}

/// The first element of `a` if its rows are bf16 and whole pairs, so that they can be read where
/// they lie.
#[inline(always)]
pub(crate) fn in_place<E: Element>(a: &MatRef<E>) -> Option<*const bf16> {
    let even = a.cols().is_multiple_of(2) && a.row_stride().is_multiple_of(2);
    let fits = E::DTYPE == DType::Bf16 && a.col_stride() == 1 && even;
    fits.then(|| a.as_ptr().cast::<bf16>())
}

/// Line `pair` of a panel from a view whose columns are contiguous.
#[inline(always)]
fn pair_columns<S: Simd, E: Element>(s: S, rows: MatRef<E>, pair: usize, line: &mut [bf16]) {
    let (n, k) = (rows.rows(), rows.cols());
    assert!(line.len() == 2 * PANEL && n <= PANEL && rows.row_stride() == 1 && 2 * pair < k);
    line.fill(bf16::ZERO);
    let column = |kk: usize| rows.as_ptr().wrapping_add(kk * rows.col_stride());
    let (low, high) = (column(2 * pair), column(2 * pair + 1));
    let has_high = 2 * pair + 1 < k;
    let mut i = 0;
    while i < n {
        let lanes = lanes_at::<S>(i, n);
        // SAFETY: column kk < k of the view is n contiguous elements; whole vectors end within the
        // line of PANEL pairs, as LANES divides PANEL.
        unsafe {
            let a = E::load_n(s, low.add(i), lanes);
            let b = if has_high {
                E::load_n(s, high.add(i), lanes)
            } else {
                s.splat(0.0)
            };
            s.store_u(line.as_mut_ptr().cast::<u32>().add(i), s.pair(a, b));
        }
        i += S::LANES;
    }
}

/// dst = scale * row i of `a`, zero up to whole pairs.
#[inline(always)]
pub(crate) fn convert_row<S: Simd, E: Element>(
    s: S,
    a: MatRef<E>,
    i: usize,
    scale: f32,
    dst: &mut [bf16],
) {
    let k = a.cols();
    assert!(i < a.rows() && dst.len() == 2 * pairs_of(k));
    if a.col_stride() == 1 {
        let factor = s.splat(scale);
        let mut at = 0;
        while at < k {
            let n = lanes_at::<S>(at, k);
            // SAFETY: elements at .. at + n of row i lie inside the view, and inside dst.
            unsafe {
                let v = E::load_n(s, a.as_ptr().add(i * a.row_stride() + at), n);
                bf16::store_n(s, dst.as_mut_ptr().add(at), s.mul(v, factor), n);
            }
            at += S::LANES;
        }
    } else {
        for (kk, value) in dst[..k].iter_mut().enumerate() {
            *value = bf16::narrow(scale * a.at(i, kk).widen());
        }
    }
    dst[k..].fill(bf16::ZERO);
}

/// dst[j, i] = src[i, j] of pairs: src [rows, cols] with rows `stride` apart, dst [cols, rows];
/// rows are a multiple of `LANES`.
///
/// # Safety
/// src holds the rows at their distance, dst rows * cols pairs.
#[inline(always)]
unsafe fn transpose_u<S: Simd>(
    s: S,
    src: *const u32,
    stride: usize,
    [rows, cols]: [usize; 2],
    dst: *mut u32,
) {
    let whole = cols / S::LANES * S::LANES;
    // SAFETY: the caller's contract; blocks lie inside both. Pairs travel as f32 bits: nothing
    // computes with them.
    unsafe {
        for j in (0..whole).step_by(S::LANES) {
            for i in (0..rows).step_by(S::LANES) {
                let (from, to) = (src.add(i * stride + j), dst.add(j * rows + i));
                s.transpose(from.cast(), stride, to.cast(), rows);
            }
        }
        for j in whole..cols {
            for i in 0..rows {
                let value = src.add(i * stride + j).read_unaligned();
                dst.add(j * rows + i).write_unaligned(value);
            }
        }
    }
}

/// Pairs in a panel's width.
const HALF: usize = PANEL / 2;

/// Two rows of 16 pairs along n → 32 pairs along k: line[2 j] = (a[j].low, b[j].low), line[2 j +
/// 1] = (a[j].high, b[j].high).
#[inline(always)]
fn interleave(rows: &[u32], line: &mut [bf16]) {
    let (a, b) = rows.split_at(HALF);
    for ((out, &a), &b) in line.chunks_exact_mut(4).zip(a).zip(b) {
        out[0] = bf16::from_bits(a as u16);
        out[1] = bf16::from_bits(b as u16);
        out[2] = bf16::from_bits((a >> 16) as u16);
        out[3] = bf16::from_bits((b >> 16) as u16);
    }
}

/// The row-major [n, k] matrix of a packed form. Panics if a length disagrees.
pub fn unpack_bf16(packed: &[bf16], n: usize, k: usize, dst: &mut [f32]) {
    assert_eq!(packed.len(), packed_bf16_len(n, k), "packed [{n}, {k}]");
    assert_eq!(dst.len(), n * k);
    for i in 0..n {
        let panel = &packed[i / PANEL * 2 * PANEL * pairs_of(k)..];
        for kk in 0..k {
            dst[i * k + kk] = panel[(kk / 2 * PANEL + i % PANEL) * 2 + kk % 2].widen();
        }
    }
}

/// A part of a panel of packed weights, straight or transposed.
pub(super) fn pairs(isa: Isa, w: &PackedOf<bf16>, side: Side, part: &PanelPart, out: &mut [bf16]) {
    match side {
        Side::Straight => out.copy_from_slice(straight(w, part)),
        Side::Transposed => {
            let source = transposed(w, part);
            dispatch(isa, TransposePairs { source, out });
        }
    }
}

/// The same, widened to lines.
pub(super) fn widen(isa: Isa, w: &PackedOf<bf16>, side: Side, part: &PanelPart, out: &mut [f32]) {
    match side {
        Side::Straight => {
            let pairs = straight(w, part);
            dispatch(isa, WidenPairs { pairs, out });
        }
        Side::Transposed => {
            let source = transposed(w, part);
            dispatch(isa, WidenTransposed { source, out });
        }
    }
}

/// A part of a panel where it lies: whole pairs.
fn straight<'a>(w: &PackedOf<'a, bf16>, part: &PanelPart) -> &'a [bf16] {
    let panel = &w.values[part.panel * 2 * PANEL * pairs_of(w.depth)..];
    &panel[part.depth.start * PANEL..][..2 * PANEL * pairs_of(part.depth.len())]
}

/// The panels of w whose rows are a part's depth, which starts with one of them.
fn transposed<'a>(w: &PackedOf<'a, bf16>, part: &PanelPart) -> PanelsOf<'a> {
    assert!(part.depth.end <= w.rows, "the panel's depth");
    let start = packed_bf16_len(part.depth.start, w.depth);
    PanelsOf {
        packed: &w.values[start..][..packed_bf16_len(part.depth.len(), w.depth)],
        shape: [part.depth.len(), w.depth],
        panel: part.panel,
    }
}

/// The columns of one panel of wᵀ in the packed form of w.
struct PanelsOf<'a> {
    packed: &'a [bf16],
    shape: [usize; 2],
    panel: usize,
}

/// A block of a panel, and its transpose.
struct Lines {
    /// Lines behind those that exist stay zero.
    block: [u32; HALF * PANEL],
    lines: [u32; PANEL * HALF],
}

impl Lines {
    const ZERO: Self = Self {
        block: [0; HALF * PANEL],
        lines: [0; PANEL * HALF],
    };
}

impl PanelsOf<'_> {
    /// Panel p's columns, transposed: row i of the panel's [`PANEL`] rows as a line of pairs of
    /// neighbouring columns.
    #[inline(always)]
    fn lines_of<S: Simd>(&self, s: S, p: usize, into: &mut Lines) {
        let source_pairs = pairs_of(self.shape[1]);
        let first = self.panel * HALF;
        let depth = source_pairs.saturating_sub(first).min(HALF);
        let src = &self.packed[2 * (p * source_pairs + first) * PANEL..][..2 * depth * PANEL];
        let Lines { block, lines } = into;
        // SAFETY: `src` holds depth <= HALF lines of PANEL pairs; `block` holds HALF.
        unsafe {
            std::ptr::copy_nonoverlapping(
                src.as_ptr().cast::<u8>(),
                block.as_mut_ptr().cast::<u8>(),
                2 * src.len(),
            );
            transpose_u(s, block.as_ptr(), PANEL, [HALF, PANEL], lines.as_mut_ptr());
        }
    }
}

/// A panel of the packed form of wᵀ.
struct TransposePairs<'a> {
    source: PanelsOf<'a>,
    out: &'a mut [bf16],
}

impl SimdOp for TransposePairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.out.len(), 2 * PANEL * pairs_of(self.source.shape[0]));
        let mut lines = Lines::ZERO;
        for (p, out) in self.out.chunks_mut(2 * PANEL * HALF).enumerate() {
            self.source.lines_of(s, p, &mut lines);
            for (pair, line) in out.chunks_exact_mut(2 * PANEL).enumerate() {
                interleave(&lines.lines[2 * pair * HALF..][..2 * HALF], line);
            }
        }
    }
}

/// A panel of wᵀ in f32: a line of pairs of neighbouring columns is a line of bf16 values.
struct WidenTransposed<'a> {
    source: PanelsOf<'a>,
    out: &'a mut [f32],
}

impl SimdOp for WidenTransposed<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.out.len(), PANEL * self.source.shape[0]);
        let mut lines = Lines::ZERO;
        for (p, out) in self.out.chunks_mut(PANEL * PANEL).enumerate() {
            self.source.lines_of(s, p, &mut lines);
            for at in (0..out.len()).step_by(S::LANES) {
                // SAFETY: `lines` holds PANEL * PANEL values, of which `out` is at most as many
                // whole lines; LANES divides PANEL.
                unsafe {
                    let v = s.load_bf16(lines.lines.as_ptr().cast::<bf16>().add(at));
                    s.store(out.as_mut_ptr().add(at), v);
                }
            }
        }
    }
}

/// Pairs of a panel, widened.
struct WidenPairs<'a> {
    pairs: &'a [bf16],
    out: &'a mut [f32],
}

impl SimdOp for WidenPairs<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let upper = s.splat_u(0xffff_0000);
        let lines = self.out.chunks_mut(2 * PANEL);
        for (pairs, lines) in self.pairs.chunks_exact(2 * PANEL).zip(lines) {
            for j in (0..PANEL).step_by(S::LANES) {
                // SAFETY: a chunk holds PANEL pairs, `lines` PANEL values or twice as many; LANES
                // divides PANEL.
                unsafe {
                    let pair = s.load_u(pairs.as_ptr().cast::<u32>().add(j));
                    let out = lines.as_mut_ptr().add(j);
                    s.store(out, s.of_bits(s.shl16_u(pair)));
                    if lines.len() > PANEL {
                        s.store(out.add(PANEL), s.of_bits(s.and_u(pair, upper)));
                    }
                }
            }
        }
    }
}

/// sum += a row of packed weights.
pub(super) fn add_row(w: &PackedOf<bf16>, row: usize, sum: &mut [f32]) {
    let len = 2 * PANEL * pairs_of(w.depth);
    let panel = &w.values[row / PANEL * len..][..len];
    for (sum, line) in sum.chunks_mut(2).zip(panel.chunks_exact(2 * PANEL)) {
        let pair = &line[2 * (row % PANEL)..];
        sum.iter_mut()
            .zip(pair)
            .for_each(|(sum, v)| *sum += v.widen());
    }
}
