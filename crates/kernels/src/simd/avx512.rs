//! Sixteen lanes: AVX-512 F, BW, DQ, VL; with BF16 or without.

use super::{Simd, SimdOp, round_bf16_by_integers};
use half::bf16;
use std::arch::x86_64::*;

/// The token of AVX-512, `BF16` with its products of bf16 pairs.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The machine has AVX2, FMA, F16C and AVX-512 F, BW, DQ, VL, and AVX-512 BF16 if `BF16`.
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline(never)]
fn run<O: SimdOp>(s: Avx512<false>, op: O) -> O::Output {
    op.run(s)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
#[inline(never)]
fn run_bf16<O: SimdOp>(s: Avx512<true>, op: O) -> O::Output {
    op.run(s)
}

#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    debug_assert!(n <= 16);
    ((1u32 << n) - 1) as __mmask16
}

/// Wraps intrinsics that need nothing but the instruction set.
macro_rules! pure {
    ($($body:tt)*) => {{
        // SAFETY: the token proves that the machine has the instructions (see `Avx512::new`).
        unsafe { $($body)* }
    }};
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    type U = __m512i;
    const LANES: usize = 16;
    const GEMM_ROWS: usize = 12;
    const GEMM_VECS: usize = 2;

    #[inline(always)]
    fn call<O: SimdOp>(self, op: O) -> O::Output {
        // The token's kind is known when this is compiled: one of the two calls is left.
        if BF16 {
            pure!(run_bf16(Avx512(()), op))
        } else {
            pure!(run(Avx512(()), op))
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        pure!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: the caller's contract, and the token; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: __m512, n: usize) {
        // SAFETY: the caller's contract, and the token; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(p, mask(n), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        pure!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        pure!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        pure!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        pure!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        pure!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        pure!(_mm512_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        pure!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        pure!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        pure!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        pure!(_mm512_abs_ps(a))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        pure!(_mm512_roundscale_ps::<
            { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
        >(a))
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        pure!(_mm512_mask_blend_ps(
            _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b),
            y,
            x
        ))
    }
    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        pure!({
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        })
    }
    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        pure!(_mm512_reduce_add_ps(a))
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        pure!(_mm512_reduce_max_ps(a))
    }
    #[inline(always)]
    fn splat_u(self, x: u32) -> __m512i {
        pure!(_mm512_set1_epi32(x as i32))
    }
    #[inline(always)]
    fn iota_u(self, x: u32) -> __m512i {
        pure!({
            let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            _mm512_add_epi32(_mm512_set1_epi32(x as i32), lanes)
        })
    }
    #[inline(always)]
    fn xor_u(self, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn mul_wide_u(self, a: __m512i, b: __m512i) -> (__m512i, __m512i) {
        pure!({
            let even = _mm512_mul_epu32(a, b);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), _mm512_srli_epi64::<32>(b));
            let (even, odd) = (_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd));
            // One masked move each: a lane's other half comes from its neighbour.
            let high = _mm512_mask_movehdup_ps(odd, 0x5555, even);
            let low = _mm512_mask_moveldup_ps(even, 0xaaaa, odd);
            (_mm512_castps_si512(high), _mm512_castps_si512(low))
        })
    }
    #[inline(always)]
    fn keep(self, word: __m512i, threshold: u32, value: __m512) -> __m512 {
        pure!({
            let keep = _mm512_cmpge_epu32_mask(word, _mm512_set1_epi32(threshold as i32));
            _mm512_maskz_mov_ps(keep, value)
        })
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const f32) {
        pure!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
    }
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        pure!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    unsafe fn load_u(self, p: *const u32) -> __m512i {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_u(self, p: *mut u32, v: __m512i) {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> __m512i {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    fn shr_u(self, a: __m512i, n: u32) -> __m512i {
        pure!(_mm512_srl_epi32(a, _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    fn shl_u(self, a: __m512i, n: u32) -> __m512i {
        pure!(_mm512_sll_epi32(a, _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        pure!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, v: __m512i) {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v)) }
    }
    #[inline(always)]
    fn add_u(self, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn and_u(self, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or_u(self, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shl16_u(self, a: __m512i) -> __m512i {
        pure!(_mm512_slli_epi32::<16>(a))
    }
    #[inline(always)]
    fn shr16_u(self, a: __m512i) -> __m512i {
        pure!(_mm512_srli_epi32::<16>(a))
    }
    #[inline(always)]
    fn to_bits(self, a: __m512) -> __m512i {
        pure!(_mm512_castps_si512(a))
    }
    #[inline(always)]
    fn of_bits(self, a: __m512i) -> __m512 {
        pure!(_mm512_castsi512_ps(a))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m512 {
        // SAFETY: the caller's contract, and the token.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_n(self, p: *const bf16, n: usize) -> __m512 {
        // SAFETY: the caller's contract, and the token; masked lanes are not read.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask(n), p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, v: __m512) {
        let halves = self.narrow(v);
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm256_storeu_si256(p.cast(), halves) }
    }
    #[inline(always)]
    unsafe fn store_bf16_n(self, p: *mut bf16, v: __m512, n: usize) {
        let halves = self.narrow(v);
        // SAFETY: the caller's contract, and the token; masked lanes are not written.
        unsafe { _mm256_mask_storeu_epi16(p.cast(), mask(n), halves) }
    }
    #[inline(always)]
    fn round_bf16(self, v: __m512) -> __m512i {
        if BF16 {
            return pure!(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
                self.narrow(v)
            )));
        }
        round_bf16_by_integers(self, v)
    }
    #[inline(always)]
    fn pair(self, a: __m512, b: __m512) -> __m512i {
        pure!({
            let low = _mm512_cvtepu16_epi32(self.narrow(a));
            let high = _mm512_cvtepu16_epi32(self.narrow(b));
            _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
        })
    }
    #[inline(always)]
    fn dot_pairs(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        if BF16 {
            // SAFETY: the token proves BF16; both types are 512 bits of 32 bf16 values.
            return unsafe {
                let a = std::mem::transmute::<__m512i, __m512bh>(a);
                let b = std::mem::transmute::<__m512i, __m512bh>(b);
                _mm512_dpbf16_ps(sum, a, b)
            };
        }
        pure!({
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let (a_low, b_low) = (_mm512_slli_epi32::<16>(a), _mm512_slli_epi32::<16>(b));
            let (a_high, b_high) = (_mm512_and_si512(a, upper), _mm512_and_si512(b, upper));
            let sum = _mm512_fmadd_ps(_mm512_castsi512_ps(a_low), _mm512_castsi512_ps(b_low), sum);
            _mm512_fmadd_ps(
                _mm512_castsi512_ps(a_high),
                _mm512_castsi512_ps(b_high),
                sum,
            )
        })
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; 16], places: __m512i) -> __m512 {
        // SAFETY: the table is a whole vector.
        let table = unsafe { self.load(table.as_ptr()) };
        pure!(_mm512_permutexvar_ps(places, table))
    }
    // Four stages of eight-byte, sixteen-byte and lane exchanges: 64 shuffles for 256 elements.
    #[inline(always)]
    unsafe fn transpose(
        self,
        src: *const f32,
        src_stride: usize,
        dst: *mut f32,
        dst_stride: usize,
    ) {
        // SAFETY: the caller's contract covers every load and store; the token covers the
        // instructions.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, row) in r.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(src.add(i * src_stride));
            }
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                let (a, b, c, d) = (
                    _mm512_castps_pd(t[4 * i]),
                    _mm512_castps_pd(t[4 * i + 1]),
                    _mm512_castps_pd(t[4 * i + 2]),
                    _mm512_castps_pd(t[4 * i + 3]),
                );
                r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            // r[4 g + j] holds, in 128-bit lane l, column 4 l + j of rows 4 g .. 4 g + 4.
            for j in 0..4 {
                let low01 = _mm512_shuffle_f32x4::<0x88>(r[j], r[4 + j]);
                let high01 = _mm512_shuffle_f32x4::<0xdd>(r[j], r[4 + j]);
                let low23 = _mm512_shuffle_f32x4::<0x88>(r[8 + j], r[12 + j]);
                let high23 = _mm512_shuffle_f32x4::<0xdd>(r[8 + j], r[12 + j]);
                t[j] = _mm512_shuffle_f32x4::<0x88>(low01, low23);
                t[8 + j] = _mm512_shuffle_f32x4::<0xdd>(low01, low23);
                t[4 + j] = _mm512_shuffle_f32x4::<0x88>(high01, high23);
                t[12 + j] = _mm512_shuffle_f32x4::<0xdd>(high01, high23);
            }
            for (j, column) in t.iter().enumerate() {
                _mm512_storeu_ps(dst.add(j * dst_stride), *column);
            }
        }
    }
}

impl<const BF16: bool> Avx512<BF16> {
    /// The values rounded to bf16.
    #[inline(always)]
    fn narrow(self, v: __m512) -> __m256i {
        if BF16 {
            // SAFETY: the token proves BF16; both types are 256 bits of sixteen bf16 values.
            return unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)) };
        }
        pure!(_mm512_cvtepi32_epi16(
            self.shr16_u(round_bf16_by_integers(self, v))
        ))
    }
}
