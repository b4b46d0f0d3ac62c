//! Eight lanes: AVX2 with FMA and F16C.

use super::{Simd, SimdOp};
use half::bf16;
use std::arch::x86_64::*;

/// The token of AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine has AVX2, FMA and F16C.
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn run<O: SimdOp>(s: Avx2, op: O) -> O::Output {
    op.run(s)
}

const MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// Wraps intrinsics that need nothing but the instruction set.
macro_rules! pure {
    ($($body:tt)*) => {{
        // SAFETY: the token proves that the machine has the instructions (see `Avx2::new`).
        unsafe { $($body)* }
    }};
}

#[inline(always)]
fn mask(n: usize) -> __m256i {
    let masks = &MASKS[8 - n..][..8];
    // SAFETY: the slice holds eight values; the callers hold the token.
    unsafe { _mm256_loadu_si256(masks.as_ptr().cast()) }
}

impl Simd for Avx2 {
    type V = __m256;
    type U = __m256i;
    const LANES: usize = 8;
    const GEMM_ROWS: usize = 6;
    const GEMM_VECS: usize = 2;

    #[inline(always)]
    fn call<O: SimdOp>(self, op: O) -> O::Output {
        pure!(run(self, op))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        pure!(_mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: the caller's contract, and the token; masked lanes are not read.
        unsafe { _mm256_maskload_ps(p, mask(n)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: __m256, n: usize) {
        // SAFETY: the caller's contract, and the token; masked lanes are not written.
        unsafe { _mm256_maskstore_ps(p, mask(n), v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        pure!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        pure!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        pure!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        pure!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        pure!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        pure!(_mm256_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        pure!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        pure!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        pure!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        pure!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        pure!(_mm256_round_ps::<
            { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
        >(a))
    }
    #[inline(always)]
    fn select_lt(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
        pure!(_mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    fn pow2(self, n: __m256) -> __m256 {
        pure!({
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        })
    }
    #[inline(always)]
    fn reduce_add(self, a: __m256) -> f32 {
        pure!({
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        pure!({
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    #[inline(always)]
    fn splat_u(self, x: u32) -> __m256i {
        pure!(_mm256_set1_epi32(x as i32))
    }
    #[inline(always)]
    fn iota_u(self, x: u32) -> __m256i {
        pure!({
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_add_epi32(_mm256_set1_epi32(x as i32), lanes)
        })
    }
    #[inline(always)]
    fn xor_u(self, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_xor_si256(a, b))
    }
    #[inline(always)]
    fn mul_wide_u(self, a: __m256i, b: __m256i) -> (__m256i, __m256i) {
        pure!({
            let even = _mm256_mul_epu32(a, b);
            let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
            let high = _mm256_blend_epi32::<0xaa>(_mm256_srli_epi64::<32>(even), odd);
            let low = _mm256_blend_epi32::<0xaa>(even, _mm256_slli_epi64::<32>(odd));
            (high, low)
        })
    }
    #[inline(always)]
    fn keep(self, word: __m256i, threshold: u32, value: __m256) -> __m256 {
        pure!({
            // The larger of the two is the word itself: there is no unsigned comparison.
            let larger = _mm256_max_epu32(word, _mm256_set1_epi32(threshold as i32));
            let keep = _mm256_cmpeq_epi32(larger, word);
            _mm256_and_ps(_mm256_castsi256_ps(keep), value)
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
    unsafe fn load_u(self, p: *const u32) -> __m256i {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_u(self, p: *mut u32, v: __m256i) {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm256_storeu_si256(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> __m256i {
        // SAFETY: the caller's contract, and the token.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())) }
    }
    #[inline(always)]
    fn shr_u(self, a: __m256i, n: u32) -> __m256i {
        pure!(_mm256_srl_epi32(a, _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    fn shl_u(self, a: __m256i, n: u32) -> __m256i {
        pure!(_mm256_sll_epi32(a, _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    fn to_f32(self, a: __m256i) -> __m256 {
        pure!(_mm256_cvtepi32_ps(a))
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, v: __m256i) {
        // SAFETY: the caller's contract, and the token.
        unsafe {
            let low = _mm256_set1_epi32(0x0c08_0400);
            let bytes = _mm256_shuffle_epi8(v, low);
            let halves = [
                _mm_cvtsi128_si32(_mm256_castsi256_si128(bytes)),
                _mm_cvtsi128_si32(_mm256_extracti128_si256::<1>(bytes)),
            ];
            p.cast::<[i32; 2]>().write_unaligned(halves);
        }
    }
    #[inline(always)]
    fn add_u(self, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn and_u(self, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn or_u(self, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn shl16_u(self, a: __m256i) -> __m256i {
        pure!(_mm256_slli_epi32::<16>(a))
    }
    #[inline(always)]
    fn shr16_u(self, a: __m256i) -> __m256i {
        pure!(_mm256_srli_epi32::<16>(a))
    }
    #[inline(always)]
    fn to_bits(self, a: __m256) -> __m256i {
        pure!(_mm256_castps_si256(a))
    }
    #[inline(always)]
    fn of_bits(self, a: __m256i) -> __m256 {
        pure!(_mm256_castsi256_ps(a))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m256 {
        // SAFETY: the caller's contract, and the token.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, v: __m256) {
        let upper = self.shr16_u(self.round_bf16(v));
        // SAFETY: the caller's contract, and the token.
        unsafe {
            let packed = _mm_packus_epi32(
                _mm256_castsi256_si128(upper),
                _mm256_extracti128_si256::<1>(upper),
            );
            _mm_storeu_si128(p.cast(), packed);
        }
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; 16], places: __m256i) -> __m256 {
        // SAFETY: the table is two vectors.
        let [low, high] = unsafe { [self.load(table.as_ptr()), self.load(table.as_ptr().add(8))] };
        pure!({
            let low = _mm256_permutevar8x32_ps(low, places);
            let high = _mm256_permutevar8x32_ps(high, places);
            // The fourth bit of a place becomes a sign, by which lanes are chosen.
            let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(places));
            _mm256_blendv_ps(low, high, is_high)
        })
    }
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
            let mut r = [_mm256_setzero_ps(); 8];
            for (i, row) in r.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(src.add(i * src_stride));
            }
            let mut t = r;
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..2 {
                r[4 * i] = _mm256_shuffle_ps::<0x44>(t[4 * i], t[4 * i + 2]);
                r[4 * i + 1] = _mm256_shuffle_ps::<0xee>(t[4 * i], t[4 * i + 2]);
                r[4 * i + 2] = _mm256_shuffle_ps::<0x44>(t[4 * i + 1], t[4 * i + 3]);
                r[4 * i + 3] = _mm256_shuffle_ps::<0xee>(t[4 * i + 1], t[4 * i + 3]);
            }
            for j in 0..4 {
                t[j] = _mm256_permute2f128_ps::<0x20>(r[j], r[4 + j]);
                t[4 + j] = _mm256_permute2f128_ps::<0x31>(r[j], r[4 + j]);
            }
            for (j, column) in t.iter().enumerate() {
                _mm256_storeu_ps(dst.add(j * dst_stride), *column);
            }
        }
    }
}
