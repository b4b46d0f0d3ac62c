//! The vector interface that every kernel body is written in, once, and its dispatch by instruction set.
//!
//! A type that implements [`Simd`] is a token: holding one proves that the machine has its instructions, which is what
//! makes its methods safe to call. Bodies are `#[inline(always)]` and generic over the token; only [`dispatch`] and
//! [`Simd::call`] put a function boundary with `#[target_feature]` around them. Bodies hold no closures: a closure is a
//! function of its own and would be compiled without the features.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use crate::isa::Isa;
pub(crate) use scalar::Scalar;

/// A kernel body with its arguments, generic over the instruction set. Implementations mark `run` `#[inline(always)]`.
pub(crate) trait SimdOp {
    /// What the body returns.
    type Output;

    /// The body.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs a body with the given instruction set. Panics if the machine lacks it.
pub(crate) fn dispatch<O: SimdOp>(isa: Isa, op: O) -> O::Output {
    assert!(
        isa.is_available(),
        "this machine has no `{}` instructions",
        isa.name()
    );
    match isa {
        Isa::Scalar => Scalar.call(op),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the assertion above established that the machine has NEON.
        Isa::Neon => unsafe { neon::Neon::new() }.call(op),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the assertion above established that the machine has AVX2, FMA and F16C.
        Isa::Avx2 => unsafe { avx2::Avx2::new() }.call(op),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the assertion above established that the machine has the AVX-512 features.
        Isa::Avx512 => unsafe { avx512::Avx512::new() }.call(op),
        #[cfg(not(target_arch = "aarch64"))]
        Isa::Neon => unreachable!("asserted available above"),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 => unreachable!("asserted available above"),
    }
}

/// Vectors of `LANES` f32 (`V`) and u32 (`U`) values.
pub(crate) trait Simd: Copy + Send + Sync {
    /// f32 lanes.
    type V: Copy;
    /// u32 lanes.
    type U: Copy;
    /// Values in a vector; a power of two, at most 16.
    const LANES: usize;
    /// Rows of the GEMM tile.
    const GEMM_ROWS: usize;
    /// Vectors across the GEMM tile; `GEMM_VECS * LANES` divides the panel's width.
    const GEMM_VECS: usize;

    /// Runs a body behind a function boundary of its own, compiled for this instruction set.
    fn call<O: SimdOp>(self, op: O) -> O::Output;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `p` is valid for reads of `LANES` values.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// The first `n <= LANES` values; the other lanes are zero.
    /// # Safety
    /// `p` is valid for reads of `n` values.
    unsafe fn load_n(self, p: *const f32, n: usize) -> Self::V;
    /// # Safety
    /// `p` is valid for writes of `LANES` values.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// # Safety
    /// `p` is valid for writes of `n <= LANES` values.
    unsafe fn store_n(self, p: *mut f32, v: Self::V, n: usize);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, fused where the instruction set has it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// c - a * b, fused where the instruction set has it.
    fn neg_mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// a < b ? x : y, lane by lane; `y` where either is NaN.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// 2^n for integral n in -126..=127.
    fn pow2(self, n: Self::V) -> Self::V;
    /// Sum of the lanes in a fixed order.
    fn reduce_add(self, a: Self::V) -> f32;
    /// Largest lane.
    fn reduce_max(self, a: Self::V) -> f32;

    fn splat_u(self, x: u32) -> Self::U;
    /// x, x + 1, ... lane by lane, wrapping.
    fn iota_u(self, x: u32) -> Self::U;
    fn xor_u(self, a: Self::U, b: Self::U) -> Self::U;
    /// High and low words of the lanes' 64-bit products.
    fn mul_wide_u(self, a: Self::U, b: Self::U) -> (Self::U, Self::U);
    /// (word >> 8) >= threshold ? value : 0, lane by lane.
    fn keep(self, word: Self::U, threshold: u32, value: Self::V) -> Self::V;

    /// Asks for the cache line of an address, valid or not.
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        let _ = p;
    }

    /// Writes the transpose of a `LANES` x `LANES` block: `dst[j * dst_stride + i] = src[i * src_stride + j]`.
    /// # Safety
    /// Every element named by the strides is valid for reads in `src` and for writes in `dst`.
    unsafe fn transpose(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize);
}

/// The first `n` values of a slice at `at`, zeros behind. `n` is at most `LANES`. Bounds are asserted.
#[inline(always)]
pub(crate) fn load_at<S: Simd>(s: S, x: &[f32], at: usize, n: usize) -> S::V {
    assert!(n <= S::LANES && at + n <= x.len());
    // SAFETY: at + n <= len was asserted, and a full load is used only when n is a whole vector.
    unsafe {
        let p = x.as_ptr().add(at);
        if n == S::LANES {
            s.load(p)
        } else {
            s.load_n(p, n)
        }
    }
}

/// Stores the first `n` lanes to a slice at `at`. `n` is at most `LANES`. Bounds are asserted.
#[inline(always)]
pub(crate) fn store_at<S: Simd>(s: S, x: &mut [f32], at: usize, v: S::V, n: usize) {
    assert!(n <= S::LANES && at + n <= x.len());
    // SAFETY: at + n <= len was asserted, and a full store is used only when n is a whole vector.
    unsafe {
        let p = x.as_mut_ptr().add(at);
        if n == S::LANES {
            s.store(p, v);
        } else {
            s.store_n(p, v, n);
        }
    }
}

/// Lanes to process at `at` of `len`: a whole vector, or what is left.
#[inline(always)]
pub(crate) fn lanes_at<S: Simd>(at: usize, len: usize) -> usize {
    (len - at).min(S::LANES)
}
