//! Strips: a few rows of the first operand as the register tile reads them, where they lie or
//! copied to cache.
//!
//! Distances are counted in words of four bytes: an f32 value, or a pair of bf16 values.

use half::bf16;

use crate::aligned::typed_mut;
use crate::element::Element;
use crate::matrix::{AnyMatRef, MatRef, each_type};
use crate::simd::{Simd, lanes_at};

use super::pack_bf16::{convert_row, in_place, pairs_of};

/// Distance between rows of a copied f32 strip and of attention's tiles: known when the kernel is
/// compiled, at least their width (the depth's block, 512), and 33 cache lines, so that rows fall
/// into different cache sets.
pub(crate) const STRIP_STRIDE: usize = 528;

/// Rows of the tallest tile of any instruction set.
pub(super) const MAX_ROWS: usize = 12;

/// Lanes of the widest vector: the last vector of packed strips is stored whole.
const MARGIN: usize = 16;

/// Columns of `a` ahead of which it is asked for, while strips are packed.
const AHEAD: usize = 16;

/// Where the rows of a strip are.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub start: *const u32,
    /// Distance between rows.
    pub row: usize,
    /// Distance between depths, or between pairs of them.
    pub depth: usize,
}

/// Words that f32 strips are copied to.
pub(super) const F32_WORDS: usize = MAX_ROWS * STRIP_STRIDE;

/// Words that a strip of pairs of some depth is converted to.
pub(super) fn pair_words(depth: usize) -> usize {
    MAX_ROWS * pair_stride(depth)
}

/// A line more than the width, so that rows fall into different cache sets.
fn pair_stride(depth: usize) -> usize {
    pairs_of(depth).next_multiple_of(16) + 16
}

/// The first rows of `a`, in f32. Contiguous rows are copied to where their distance is known
/// beforehand and no power of two (rows 4 KiB apart would evict each other), unless too few panels
/// would use the copy. bf16 is always widened.
#[inline(always)]
pub(super) fn f32_strip<S: Simd>(s: S, a: AnyMatRef, reuse: Reuse, words: &mut [u32]) -> Strip {
    let copied = Strip {
        start: words.as_ptr(),
        row: STRIP_STRIDE,
        depth: 1,
    };
    match a {
        AnyMatRef::F32(a) if a.col_stride() == 1 && reuse == Reuse::Many => {
            let depth = a.cols();
            for i in 0..a.rows() {
                let row = &a.data()[i * a.row_stride()..][..depth];
                typed_mut::<f32, u32>(&mut words[i * STRIP_STRIDE..][..depth]).copy_from_slice(row);
            }
            copied
        }
        AnyMatRef::F32(a) => Strip {
            start: a.as_ptr().cast(),
            row: a.row_stride(),
            depth: a.col_stride(),
        },
        AnyMatRef::Bf16(a) if a.row_stride() == 1 && a.col_stride() != 1 => {
            let rows = a.rows();
            assert!(rows <= S::GEMM_ROWS && words.len() >= a.cols() * S::GEMM_ROWS + MARGIN);
            for kk in 0..a.cols() {
                for i in (0..rows).step_by(S::LANES) {
                    // SAFETY: column kk of the view is `rows` contiguous elements; a vector stored
                    // ends within the margin, and lines are written in order.
                    unsafe {
                        let column = a.as_ptr().add(kk * a.col_stride() + i);
                        let v = bf16::load_n(s, column, lanes_at::<S>(i, rows));
                        s.store(
                            words.as_mut_ptr().cast::<f32>().add(kk * S::GEMM_ROWS + i),
                            v,
                        );
                    }
                }
            }
            Strip {
                start: words.as_ptr(),
                row: 1,
                depth: S::GEMM_ROWS,
            }
        }
        AnyMatRef::Bf16(a) => {
            for i in 0..a.rows() {
                let row = &mut words[i * STRIP_STRIDE..][..a.cols()];
                widen_row(s, a, i, typed_mut(row));
            }
            copied
        }
    }
}

/// How many panels a strip is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// Too few for a copy to pay.
    Few,
    /// Enough.
    Many,
}

impl Reuse {
    pub(super) fn of(n_panels: usize) -> Self {
        if n_panels > 2 {
            Reuse::Many
        } else {
            Reuse::Few
        }
    }
}

/// dst = row i of `a`.
#[inline(always)]
fn widen_row<S: Simd>(s: S, a: MatRef<bf16>, i: usize, dst: &mut [f32]) {
    if a.col_stride() != 1 {
        for (kk, value) in dst.iter_mut().enumerate() {
            *value = a.at(i, kk).widen();
        }
        return;
    }
    let row = &a.data()[i * a.row_stride()..][..dst.len()];
    for at in (0..row.len()).step_by(S::LANES) {
        let n = lanes_at::<S>(at, row.len());
        crate::simd::store_at(s, dst, at, crate::simd::load_at(s, row, at, n), n);
    }
}

/// The first rows of `a`, times `scale`, in bf16 pairs: where they lie if they are bf16 rows of
/// whole pairs, else converted.
#[inline(always)]
pub(super) fn pair_strip<S: Simd>(s: S, a: AnyMatRef, scale: f32, words: &mut [u32]) -> Strip {
    if let AnyMatRef::Bf16(a) = a
        && let Some(start) = in_place(&a)
        && scale == 1.0
    {
        return Strip {
            start: start.cast(),
            row: a.row_stride() / 2,
            depth: 1,
        };
    }
    let (stride, pairs) = (pair_stride(a.cols()), pairs_of(a.cols()));
    for i in 0..a.rows() {
        let dst = typed_mut::<bf16, u32>(&mut words[i * stride..][..pairs]);
        each_type!(a, a => convert_row(s, a, i, scale, dst));
    }
    converted(words, a.cols())
}

/// The strip that [`pair_strip`] has converted, rather than left where it lies.
#[inline(always)]
pub(super) fn converted(words: &[u32], depth: usize) -> Strip {
    Strip {
        start: words.as_ptr(),
        row: pair_stride(depth),
        depth: 1,
    }
}

/// Words of packed strips of some rows, whatever the instruction set's tile.
pub(super) fn packed_words(rows: usize, depth: usize) -> usize {
    // The lowest tile has 4 rows.
    (rows + MAX_ROWS) * pairs_of(depth) + rows.div_ceil(4) * MARGIN
}

/// Words of one packed strip.
#[inline(always)]
fn packed_strip_words<S: Simd>(depth: usize) -> usize {
    pairs_of(depth) * S::GEMM_ROWS + MARGIN
}

/// Strip `i` of what [`pack_strips`] wrote.
#[inline(always)]
pub(super) fn packed_strip<S: Simd>(i: usize, depth: usize, words: &[u32]) -> Strip {
    let len = packed_strip_words::<S>(depth);
    Strip {
        start: words[i * len..][..len].as_ptr(),
        row: 1,
        depth: S::GEMM_ROWS,
    }
}

/// Packs rows of a view with contiguous columns, times `scale`, into strips of `GEMM_ROWS`: pair p
/// of row i at `p * GEMM_ROWS + i` of its strip, which ends [`MARGIN`] further.
#[inline(always)]
pub(super) fn pack_strips<S: Simd, A: Element>(
    s: S,
    rows: MatRef<A>,
    scale: f32,
    words: &mut [u32],
) {
    let (m, k) = (rows.rows(), rows.cols());
    let strip_len = packed_strip_words::<S>(k);
    assert!(rows.row_stride() == 1 && S::LANES <= MARGIN);
    assert!(words.len() >= m.div_ceil(S::GEMM_ROWS) * strip_len);
    let factor = s.splat(scale);
    for pair in 0..pairs_of(k) {
        let column = |kk: usize| rows.as_ptr().wrapping_add(kk * rows.col_stride());
        let (low, high) = (column(2 * pair), column(2 * pair + 1));
        let has_high = 2 * pair + 1 < k;
        for line in (0..m * size_of::<A>()).step_by(64) {
            let ahead = AHEAD * rows.col_stride() * size_of::<A>() + line;
            s.prefetch(low.wrapping_byte_add(ahead).cast());
            s.prefetch(high.wrapping_byte_add(ahead).cast());
        }
        for (strip, first) in (0..m).step_by(S::GEMM_ROWS).enumerate() {
            let rows = (m - first).min(S::GEMM_ROWS);
            for i in (0..rows).step_by(S::LANES) {
                let lanes = (rows - i).min(S::LANES);
                // SAFETY: column kk < k of the view is m contiguous elements. A vector stored at a
                // line of GEMM_ROWS pairs ends at most LANES behind the line's last pair, inside
                // the strip's margin; lines are written in order, so that what it leaves in the
                // next line is overwritten.
                unsafe {
                    let a = s.mul(A::load_n(s, low.add(first + i), lanes), factor);
                    let b = if has_high {
                        s.mul(A::load_n(s, high.add(first + i), lanes), factor)
                    } else {
                        s.splat(0.0)
                    };
                    let at = strip * strip_len + pair * S::GEMM_ROWS + i;
                    s.store_u(words.as_mut_ptr().add(at), s.pair(a, b));
                }
            }
        }
    }
}
