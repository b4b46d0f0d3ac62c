//! The packed form of bf16 matrices: `[ceil(n / PANEL)][ceil(k / 2)][PANEL][2]`, zero padded, the same for every
//! instruction set.

use crate::element::{DType, Element};
use crate::gemm::PANEL;
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::for_each_chunk;
use crate::simd::{Simd, SimdOp, dispatch, lanes_at};
use half::bf16;
use std::cell::RefCell;

/// Pairs that k values make.
pub(crate) fn pairs_of(k: usize) -> usize {
    k.div_ceil(2)
}

/// Length of the packed form of b [n, k].
pub fn packed_bf16_len(n: usize, k: usize) -> usize {
    n.div_ceil(PANEL) * pairs_of(k) * 2 * PANEL
}

/// Packs b [n, k], for example a weight [out, in], rounding where it is wider. Panics if `dst` is not [`packed_bf16_len`]
/// long.
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

/// Packs at most PANEL rows into one panel, from a view whose columns are contiguous: two of them make a line of pairs.
#[inline(always)]
pub(crate) fn pack_columns<S: Simd, E: Element>(s: S, rows: MatRef<E>, panel: &mut [bf16]) {
    assert_eq!(panel.len(), 2 * PANEL * pairs_of(rows.cols()));
    for (pair, line) in panel.chunks_exact_mut(2 * PANEL).enumerate() {
        pair_columns(s, rows, pair, line);
    }
}

thread_local! {
    /// Rows of a panel, converted: kept between panels.
    static ROWS: RefCell<Vec<bf16>> = RefCell::default();
}

/// Packs at most PANEL rows into one panel, from any view; fastest where rows are contiguous.
#[inline(always)]
pub(crate) fn pack_rows_of<S: Simd, E: Element>(s: S, rows: MatRef<E>, panel: &mut [bf16]) {
    let (n, k) = (rows.rows(), rows.cols());
    let pairs = pairs_of(k);
    assert!(n <= PANEL && panel.len() == 2 * PANEL * pairs);
    if n == PANEL
        && let Some(start) = in_place(&rows)
    {
        // SAFETY: PANEL rows of whole pairs lie at this distance; the panel holds `pairs` lines of PANEL pairs.
        unsafe {
            let (from, to) = (start.cast(), panel.as_mut_ptr().cast());
            transpose_u(s, from, rows.row_stride() / 2, [PANEL, pairs], to);
        }
        return;
    }
    let mut buffer = ROWS.take();
    buffer.clear();
    buffer.resize(PANEL * 2 * pairs, bf16::ZERO);
    for i in 0..n {
        convert_row(s, rows, i, 1.0, &mut buffer[i * 2 * pairs..][..2 * pairs]);
    }
    // SAFETY: the buffer holds PANEL rows of `pairs` pairs, the panel `pairs` lines of PANEL pairs.
    unsafe {
        let (from, to) = (buffer.as_ptr().cast(), panel.as_mut_ptr().cast());
        transpose_u(s, from, pairs, [PANEL, pairs], to);
    }
    ROWS.set(buffer);
}

/// The first element of `a` if its rows are bf16 and whole pairs, so that they can be read where they lie.
#[inline(always)]
pub(super) fn in_place<E: Element>(a: &MatRef<E>) -> Option<*const bf16> {
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
        // SAFETY: column kk < k of the view is n contiguous elements; whole vectors end within the line of PANEL pairs,
        // as LANES divides PANEL.
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
pub(super) fn convert_row<S: Simd, E: Element>(
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

/// dst[j, i] = src[i, j] of pairs: src [rows, cols] with rows `stride` apart, dst [cols, rows]; rows are a multiple of `LANES`.
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
    // SAFETY: the caller's contract; blocks lie inside both. Pairs travel as f32 bits: nothing computes with them.
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

/// Panel `panel` of the packed form of wᵀ [n, k], from the packed form of w [k, n]: columns `PANEL * panel ..` of w, paired
/// along its rows.
#[inline(always)]
pub(super) fn repack_panel<S: Simd>(
    s: S,
    packed: &[bf16],
    [k, n]: [usize; 2],
    panel: usize,
    dst: &mut [bf16],
) {
    /// Pairs in a panel's width.
    const HALF: usize = PANEL / 2;
    let source_pairs = pairs_of(n);
    assert_eq!(packed.len(), packed_bf16_len(k, n));
    assert_eq!(dst.len(), 2 * PANEL * pairs_of(k));
    // Source: [k / PANEL][n / 2][PANEL][2]. This panel's columns of w are pairs `first ..` of each source panel.
    let first = panel * HALF;
    let depth = source_pairs.saturating_sub(first).min(HALF);
    let mut block = [0u32; HALF * PANEL];
    let mut turned = [0u32; PANEL * HALF];
    for (p, dst) in dst.chunks_mut(2 * PANEL * HALF).enumerate() {
        let src = &packed[2 * (p * source_pairs + first) * PANEL..][..2 * depth * PANEL];
        // SAFETY: `src` holds depth <= HALF lines of PANEL pairs; `block` holds HALF.
        unsafe {
            std::ptr::copy_nonoverlapping(
                src.as_ptr().cast::<u8>(),
                block.as_mut_ptr().cast::<u8>(),
                2 * src.len(),
            );
            transpose_u(s, block.as_ptr(), PANEL, [HALF, PANEL], turned.as_mut_ptr());
        }
        for (pair, line) in dst.chunks_exact_mut(2 * PANEL).enumerate() {
            let rows = &turned[2 * pair * HALF..][..2 * HALF];
            interleave(rows, line);
        }
    }
}

/// Two rows of 16 pairs along n → 32 pairs along k: line[2 j] = (a[j].low, b[j].low), line[2 j + 1] = (a[j].high, b[j].high).
#[inline(always)]
fn interleave(rows: &[u32], line: &mut [bf16]) {
    let (a, b) = rows.split_at(PANEL / 2);
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
