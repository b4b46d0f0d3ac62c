//! The packed form: `[ceil(n / PANEL)][k][PANEL]`, zero padded, the same for every instruction set.

use super::panels::{PANEL, PanelPart};
use super::weights::{PackedOf, Side};
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::for_each_chunk;
use crate::simd::{Simd, SimdOp, dispatch};

/// Length of the packed form of b [n, k].
pub fn packed_len(n: usize, k: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

/// Packs b [n, k], for example a weight [out, in]. Panics if `dst` is not [`packed_len`] long.
pub fn pack(isa: Isa, b: MatRef, dst: &mut [f32]) {
    let (n, k) = (b.rows(), b.cols());
    assert_eq!(dst.len(), packed_len(n, k), "packed [{n}, {k}]");
    if dst.is_empty() {
        return;
    }
    for_each_chunk(dst, k * PANEL, |start, panel| {
        let first = start / k;
        let rows = b.rows_range(first..(first + PANEL).min(n));
        dispatch(isa, PackPanel { rows, panel });
    });
}

struct PackPanel<'a> {
    rows: MatRef<'a>,
    panel: &'a mut [f32],
}

impl SimdOp for PackPanel<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        pack_rows(s, self.rows, self.panel, PANEL);
    }
}

/// Packs at most PANEL rows into one panel: dst[kk * dst_stride + i] = rows[i, kk], zeros up to
/// PANEL.
#[inline(always)]
pub(crate) fn pack_rows<S: Simd>(s: S, rows: MatRef, dst: &mut [f32], dst_stride: usize) {
    let (n, k) = (rows.rows(), rows.cols());
    assert!(n <= PANEL && PANEL <= dst_stride && dst.len() >= k * dst_stride);
    if rows.row_stride() == 1 {
        for kk in 0..k {
            let line = &mut dst[kk * dst_stride..][..PANEL];
            // SAFETY: column kk of the view is n contiguous elements inside its data; `line` is
            // PANEL >= n long.
            unsafe {
                let src = rows.as_ptr().add(kk * rows.col_stride());
                std::ptr::copy_nonoverlapping(src, line.as_mut_ptr(), n);
            }
            line[n..].fill(0.0);
        }
        return;
    }
    let blocked_k = if rows.col_stride() == 1 {
        k / S::LANES * S::LANES
    } else {
        0
    };
    for kk in (0..blocked_k).step_by(S::LANES) {
        for i in (0..PANEL).step_by(S::LANES) {
            let dst = &mut dst[kk * dst_stride + i..];
            pack_block(s, rows, [i, kk], dst, dst_stride);
        }
    }
    for kk in blocked_k..k {
        let line = &mut dst[kk * dst_stride..][..PANEL];
        for (i, value) in line.iter_mut().enumerate() {
            *value = if i < n { rows.at(i, kk) } else { 0.0 };
        }
    }
}

/// The transpose of the `LANES` x `LANES` block at [i, kk] of a view with contiguous rows, which
/// may end within it.
#[inline(always)]
fn pack_block<S: Simd>(
    s: S,
    rows: MatRef,
    [i, kk]: [usize; 2],
    dst: &mut [f32],
    dst_stride: usize,
) {
    assert!(S::LANES <= 16 && kk + S::LANES <= rows.cols() && rows.col_stride() == 1);
    assert!(dst.len() >= (S::LANES - 1) * dst_stride + S::LANES);
    let there = rows.rows().saturating_sub(i).min(S::LANES);
    let mut padded = [0.0f32; 256];
    // SAFETY: rows i .. i + there and columns kk .. kk + LANES lie inside the view, `padded` holds
    // 16 rows of 16, and the length of dst was asserted.
    unsafe {
        let start = rows.as_ptr().wrapping_add(i * rows.row_stride() + kk);
        let (src, src_stride) = if there == S::LANES {
            (start, rows.row_stride())
        } else {
            for row in 0..there {
                let values = s.load(start.add(row * rows.row_stride()));
                s.store(padded.as_mut_ptr().add(row * S::LANES), values);
            }
            (padded.as_ptr(), S::LANES)
        };
        s.transpose(src, src_stride, dst.as_mut_ptr(), dst_stride);
    }
}

/// The row-major [n, k] matrix of a packed form. Panics if a length disagrees.
pub fn unpack(packed: &[f32], n: usize, k: usize, dst: &mut [f32]) {
    assert_eq!(packed.len(), packed_len(n, k), "packed [{n}, {k}]");
    assert_eq!(dst.len(), n * k);
    for i in 0..n {
        let panel = &packed[i / PANEL * PANEL * k..];
        for kk in 0..k {
            dst[i * k + kk] = panel[kk * PANEL + i % PANEL];
        }
    }
}

/// The packed form of Wᵀ [k, n] from the packed form of W [n, k]. Panics if a length disagrees.
pub fn repack_transposed(isa: Isa, packed: &[f32], n: usize, k: usize, dst: &mut [f32]) {
    assert_eq!(packed.len(), packed_len(n, k), "packed [{n}, {k}]");
    assert_eq!(dst.len(), packed_len(k, n), "packed [{k}, {n}]");
    if dst.is_empty() {
        return;
    }
    for_each_chunk(dst, n * PANEL, |start, dst| {
        let first_k = start / n;
        let op = Repack {
            packed,
            shape: [n, k],
            first_k,
            dst,
        };
        dispatch(isa, op);
    });
}

struct Repack<'a> {
    packed: &'a [f32],
    shape: [usize; 2],
    first_k: usize,
    dst: &'a mut [f32],
}

impl SimdOp for Repack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        turn_panel(s, self.packed, self.shape, self.first_k, self.dst);
    }
}

/// One panel of Wᵀ [k, n] from the packed form of W [n, k]: PANEL columns of W from `first_k` on,
/// every row. `packed` may go on behind it. Panics if it is too short or `dst` has not n * PANEL
/// values.
#[inline(always)]
pub(crate) fn turn_panel<S: Simd>(
    s: S,
    packed: &[f32],
    [n, k]: [usize; 2],
    first_k: usize,
    dst: &mut [f32],
) {
    assert_eq!(dst.len(), n * PANEL);
    let depth = (k - first_k).min(PANEL);
    for (p, dst) in dst.chunks_mut(PANEL * PANEL).enumerate() {
        // Rows p * PANEL .. of W; in the source they are the columns of a [k, PANEL] block.
        let rows = (n - p * PANEL).min(PANEL);
        let src = &packed[(p * k + first_k) * PANEL..][..depth * PANEL];
        if rows == PANEL && depth == PANEL {
            for i in (0..PANEL).step_by(S::LANES) {
                for j in (0..PANEL).step_by(S::LANES) {
                    // SAFETY: both are PANEL x PANEL blocks with rows PANEL apart (src and dst were
                    // sliced so), and i, j + LANES <= PANEL.
                    unsafe {
                        let src = src.as_ptr().add(i * PANEL + j);
                        s.transpose(src, PANEL, dst.as_mut_ptr().add(j * PANEL + i), PANEL);
                    }
                }
            }
        } else {
            for i in 0..rows {
                for (j, value) in dst[i * PANEL..][..PANEL].iter_mut().enumerate() {
                    *value = if j < depth { src[j * PANEL + i] } else { 0.0 };
                }
            }
        }
    }
}

/// A part of a panel of packed weights, straight or transposed.
pub(super) fn widen(isa: Isa, w: &PackedOf<f32>, side: Side, part: &PanelPart, out: &mut [f32]) {
    let (panel, depth) = (part.panel, part.depth.clone());
    match side {
        Side::Straight => {
            let panel = &w.values[panel * PANEL * w.depth..];
            out.copy_from_slice(&panel[depth.start * PANEL..depth.end * PANEL]);
        }
        Side::Transposed => {
            assert!(depth.end <= w.rows, "the panel's depth");
            let op = Repack {
                // The depth starts with a panel of w.
                packed: &w.values[depth.start * w.depth..],
                shape: [depth.len(), w.depth],
                first_k: panel * PANEL,
                dst: out,
            };
            dispatch(isa, op);
        }
    }
}

/// sum += a row of packed weights.
pub(super) fn add_row(w: &PackedOf<f32>, row: usize, sum: &mut [f32]) {
    let panel = &w.values[row / PANEL * PANEL * w.depth..][..PANEL * w.depth];
    let values = panel.iter().skip(row % PANEL).step_by(PANEL);
    sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
}
