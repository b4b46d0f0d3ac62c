//! Integer tiles on aarch64.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{IntegerTile, PANEL};

/// Sixteen products of integers, added by fours.
trait Dot {
    /// # Safety
    /// The machine has the instructions.
    unsafe fn add(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t;
}

/// `smull` and `sadalp`: two products of pairs stay within i16.
struct Long;

impl Dot for Long {
    #[inline(always)]
    unsafe fn add(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: aarch64 has NEON.
        unsafe {
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
            let high = vpaddlq_s16(vmull_high_s8(a, b));
            vaddq_s32(sums, vpaddq_s32(low, high))
        }
    }
}

/// `sdot`.
struct Short;

impl Dot for Short {
    #[inline(always)]
    unsafe fn add(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: the caller's contract; the intrinsic is not stable yet.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
                sums = inout(vreg) sums,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }
}

/// # Safety
/// As `IntegerUnit::run`.
pub(super) unsafe fn neon(tile: &IntegerTile) {
    // SAFETY: the caller's contract.
    unsafe { rows::<Long>(tile) }
}

/// # Safety
/// As `IntegerUnit::run`, and the machine has `sdot`.
#[target_feature(enable = "dotprod")]
pub(super) unsafe fn neon_dot(tile: &IntegerTile) {
    // SAFETY: the caller's contract.
    unsafe { rows::<Short>(tile) }
}

/// Vectors of four columns of a tile.
const VECTORS: usize = 4;

/// # Safety
/// As `IntegerUnit::run`, and the machine has what `D` needs.
#[inline(always)]
unsafe fn rows<D: Dot>(tile: &IntegerTile) {
    for first in (0..tile.rows).step_by(4) {
        for j in (0..PANEL).step_by(4 * VECTORS) {
            // SAFETY: the caller's contract.
            unsafe {
                match tile.rows - first {
                    1 => block::<D, 1>(tile, first, j),
                    2 => block::<D, 2>(tile, first, j),
                    3 => block::<D, 3>(tile, first, j),
                    _ => block::<D, 4>(tile, first, j),
                }
            }
        }
    }
}

/// # Safety
/// As [`rows`], for M rows.
#[inline(always)]
unsafe fn block<D: Dot, const M: usize>(tile: &IntegerTile, first: usize, j: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let bias = vdupq_n_u8(128);
        let mut sums = [[vdupq_n_s32(0); VECTORS]; M];
        for g in 0..tile.groups {
            let b = tile.b.add(g * PANEL + j);
            let mut columns = [vdupq_n_s8(0); VECTORS];
            for (v, column) in columns.iter_mut().enumerate() {
                let biased = vld1q_u8(b.add(4 * v).cast());
                *column = vreinterpretq_s8_u8(veorq_u8(biased, bias));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = tile.a.add((first + i) * tile.a_row + g).read();
                let a = vreinterpretq_s8_u32(vdupq_n_u32(a));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = D::add(*sum, a, column);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let mut values = [0; 4];
                vst1q_s32(values.as_mut_ptr(), *sum);
                tile.store(first + i, j + 4 * v, &values);
            }
        }
    }
}
