//! Integer tiles on x86-64.

use std::arch::x86_64::*;

use super::{IntegerTile, PANEL};
use crate::product::tile_f32::each_row;

/// Calls a tile of as many rows as there are, at most `$most` at a time.
macro_rules! by_rows {
    ($tile:expr, $most:literal, $run:ident: $($m:literal)*) => {
        for first in (0..$tile.rows).step_by($most) {
            match ($tile.rows - first).min($most) {
                $($m => $run::<$m>($tile, first),)*
                _ => unreachable!("rows of a tile"),
            }
        }
    };
}

/// # Safety
/// As `IntegerUnit::run`, and the machine has AVX-512 F and VNNI.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn avx512_vnni(tile: &IntegerTile) {
    // SAFETY: the caller's contract.
    unsafe { by_rows!(tile, 12, avx512_rows: 1 2 3 4 5 6 7 8 9 10 11 12) }
}

/// # Safety
/// As [`avx512_vnni`], for M rows.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline(never)]
unsafe fn avx512_rows<const M: usize>(tile: &IntegerTile, first: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let zero = _mm512_setzero_si512();
        let mut sums = [[zero; 2]; M];
        each_row!(M, I, {
            let start = _mm512_set1_epi32(tile.row_sums[first + I].wrapping_mul(-128));
            sums[I] = [start; 2];
        });
        let mut a = tile.a.add(first * tile.a_row);
        let mut b = tile.b;
        for _ in 0..tile.groups {
            let b0 = _mm512_loadu_si512(b.cast());
            let b1 = _mm512_loadu_si512(b.add(16).cast());
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(8 * PANEL).cast());
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(8 * PANEL + 16).cast());
            each_row!(M, I, {
                let x = _mm512_set1_epi32(a.add(I * tile.a_row).read() as i32);
                sums[I][0] = _mm512_dpbusd_epi32(sums[I][0], b0, x);
                sums[I][1] = _mm512_dpbusd_epi32(sums[I][1], b1, x);
            });
            a = a.wrapping_add(1);
            b = b.wrapping_add(PANEL);
        }
        each_row!(M, I, {
            let i = first + I;
            let row = _mm512_set1_ps(tile.row_scales[i]);
            for (half, sum) in sums[I].iter().enumerate() {
                let mut v = _mm512_cvtepi32_ps(*sum);
                if !tile.column_scales.is_null() {
                    v = _mm512_mul_ps(v, _mm512_loadu_ps(tile.column_scales.add(16 * half)));
                }
                v = _mm512_mul_ps(v, row);
                let c = tile.c.add(i * tile.c_row + 16 * half);
                if tile.accumulate {
                    v = _mm512_add_ps(_mm512_loadu_ps(c), v);
                }
                _mm512_storeu_ps(c, v);
            }
        });
    }
}

/// # Safety
/// As `IntegerUnit::run`, and the machine has AVX2 and AVX-VNNI.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn avx_vnni(tile: &IntegerTile) {
    // SAFETY: the caller's contract.
    unsafe { by_rows!(tile, 6, avx_vnni_rows: 1 2 3 4 5 6) }
}

/// # Safety
/// As [`avx_vnni`], for M rows.
#[target_feature(enable = "avx2,avxvnni")]
#[inline(never)]
unsafe fn avx_vnni_rows<const M: usize>(tile: &IntegerTile, first: usize) {
    for j in (0..PANEL).step_by(16) {
        // SAFETY: the caller's contract.
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); 2]; M];
            each_row!(M, I, {
                let start = _mm256_set1_epi32(tile.row_sums[first + I].wrapping_mul(-128));
                sums[I] = [start; 2];
            });
            let mut a = tile.a.add(first * tile.a_row);
            let mut b = tile.b.add(j);
            for _ in 0..tile.groups {
                let b0 = _mm256_loadu_si256(b.cast());
                let b1 = _mm256_loadu_si256(b.add(8).cast());
                each_row!(M, I, {
                    let x = _mm256_set1_epi32(a.add(I * tile.a_row).read() as i32);
                    sums[I][0] = _mm256_dpbusd_avx_epi32(sums[I][0], b0, x);
                    sums[I][1] = _mm256_dpbusd_avx_epi32(sums[I][1], b1, x);
                });
                a = a.wrapping_add(1);
                b = b.wrapping_add(PANEL);
            }
            each_row!(M, I, { store(tile, first + I, j, sums[I]) });
        }
    }
}

/// # Safety
/// As `IntegerUnit::run`, and the machine has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn avx2(tile: &IntegerTile) {
    // SAFETY: the caller's contract.
    unsafe { by_rows!(tile, 4, avx2_rows: 1 2 3 4) }
}

/// # Safety
/// As [`avx2`], for M rows.
#[target_feature(enable = "avx2")]
#[inline(never)]
unsafe fn avx2_rows<const M: usize>(tile: &IntegerTile, first: usize) {
    for j in (0..PANEL).step_by(16) {
        // SAFETY: the caller's contract.
        unsafe {
            let (bias, ones) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1));
            let mut sums = [[_mm256_setzero_si256(); 2]; M];
            let mut a = tile.a.add(first * tile.a_row);
            let mut b = tile.b.add(j);
            for _ in 0..tile.groups {
                let signed = [
                    _mm256_xor_si256(_mm256_loadu_si256(b.cast()), bias),
                    _mm256_xor_si256(_mm256_loadu_si256(b.add(8).cast()), bias),
                ];
                let magnitudes = [_mm256_abs_epi8(signed[0]), _mm256_abs_epi8(signed[1])];
                each_row!(M, I, {
                    let x = _mm256_set1_epi32(a.add(I * tile.a_row).read() as i32);
                    for half in 0..2 {
                        // |b| · (a with the sign of b): at most 2 · 127², which i16 holds.
                        let x = _mm256_sign_epi8(x, signed[half]);
                        let pairs = _mm256_maddubs_epi16(magnitudes[half], x);
                        let quads = _mm256_madd_epi16(pairs, ones);
                        sums[I][half] = _mm256_add_epi32(sums[I][half], quads);
                    }
                });
                a = a.wrapping_add(1);
                b = b.wrapping_add(PANEL);
            }
            each_row!(M, I, { store(tile, first + I, j, sums[I]) });
        }
    }
}

/// Takes sixteen sums of row `i` from column `j` on.
///
/// # Safety
/// As [`avx2`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn store(tile: &IntegerTile, i: usize, j: usize, sums: [__m256i; 2]) {
    for (half, sums) in sums.into_iter().enumerate() {
        let j = j + 8 * half;
        // SAFETY: the caller's contract.
        unsafe {
            let mut v = _mm256_cvtepi32_ps(sums);
            if !tile.column_scales.is_null() {
                v = _mm256_mul_ps(v, _mm256_loadu_ps(tile.column_scales.add(j)));
            }
            v = _mm256_mul_ps(v, _mm256_set1_ps(tile.row_scales[i]));
            let c = tile.c.add(i * tile.c_row + j);
            if tile.accumulate {
                v = _mm256_add_ps(_mm256_loadu_ps(c), v);
            }
            _mm256_storeu_ps(c, v);
        }
    }
}
