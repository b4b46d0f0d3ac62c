//! The vector interface that every kernel body is written in, once, and its dispatch by instruction
//! set.
//!
//! A type that implements [`Simd`] is a token: holding one proves that the machine has its
//! instructions, which is what makes its methods safe to call. Bodies are `#[inline(always)]` and
//! generic over the token; only [`dispatch`] and [`Simd::call`] put a function boundary with
//! `#[target_feature]` around them. Bodies hold no closures: a closure is a function of its own and
//! would be compiled without the features.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use crate::element::Element;
use crate::isa::Isa;
use half::bf16;
pub(crate) use scalar::Scalar;

/// A kernel body with its arguments, generic over the instruction set. Implementations mark `run`
/// `#[inline(always)]`.
pub trait SimdOp {
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
        Isa::Avx512 => unsafe { avx512::Avx512::<false>::new() }.call(op),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the assertion above established that the machine has the AVX-512 features and
        // BF16.
        Isa::Avx512Bf16 => unsafe { avx512::Avx512::<true>::new() }.call(op),
        #[cfg(not(target_arch = "aarch64"))]
        Isa::Neon => unreachable!("asserted available above"),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => unreachable!("asserted available above"),
    }
}

/// Vectors of `LANES` f32 (`V`) and u32 (`U`) values.
pub trait Simd: Copy + Send + Sync {
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
    /// word >= threshold ? value : 0, lane by lane, unsigned.
    fn keep(self, word: Self::U, threshold: u32, value: Self::V) -> Self::V;

    /// # Safety
    /// `p` is valid for reads of `LANES` values; it need not be aligned.
    unsafe fn load_u(self, p: *const u32) -> Self::U;
    /// # Safety
    /// `p` is valid for writes of `LANES` values; it need not be aligned.
    unsafe fn store_u(self, p: *mut u32, v: Self::U);
    /// Writes the low byte of each lane.
    /// # Safety
    /// `p` is valid for writes of `LANES` bytes.
    unsafe fn store_low_bytes(self, p: *mut u8, v: Self::U);
    fn add_u(self, a: Self::U, b: Self::U) -> Self::U;
    fn and_u(self, a: Self::U, b: Self::U) -> Self::U;
    fn or_u(self, a: Self::U, b: Self::U) -> Self::U;
    /// a << 16, lane by lane.
    fn shl16_u(self, a: Self::U) -> Self::U;
    /// a >> 16, lane by lane.
    fn shr16_u(self, a: Self::U) -> Self::U;
    /// The lanes' bits.
    fn to_bits(self, a: Self::V) -> Self::U;
    /// The values of the lanes' bits.
    fn of_bits(self, a: Self::U) -> Self::V;
    /// `LANES` bf16 values, widened.
    /// # Safety
    /// `p` is valid for reads of `LANES` values.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;
    /// Rounds to bf16 (to nearest, ties to even).
    /// # Safety
    /// `p` is valid for writes of `LANES` values.
    unsafe fn store_bf16(self, p: *mut bf16, v: Self::V);

    /// As [`Simd::load_bf16`] for the first `n <= LANES` values; the other lanes are zero.
    /// # Safety
    /// `p` is valid for reads of `n` values.
    #[inline(always)]
    unsafe fn load_bf16_n(self, p: *const bf16, n: usize) -> Self::V {
        let mut values = [bf16::ZERO; 16];
        // SAFETY: the caller's contract; `values` holds n <= LANES <= 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, values.as_mut_ptr(), n);
            self.load_bf16(values.as_ptr())
        }
    }
    /// As [`Simd::store_bf16`] for the first `n <= LANES` values.
    /// # Safety
    /// `p` is valid for writes of `n` values.
    #[inline(always)]
    unsafe fn store_bf16_n(self, p: *mut bf16, v: Self::V, n: usize) {
        let mut values = [bf16::ZERO; 16];
        // SAFETY: `values` holds LANES <= 16; the caller's contract.
        unsafe {
            self.store_bf16(values.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(values.as_ptr(), p, n);
        }
    }

    /// The bits of the values rounded to bf16, in the upper half of each lane; the lower half is
    /// zero.
    #[inline(always)]
    fn round_bf16(self, v: Self::V) -> Self::U {
        round_bf16_by_integers(self, v)
    }
    /// Pairs of bf16 values: `a` rounded in the lower half of each lane, `b` in the upper.
    #[inline(always)]
    fn pair(self, a: Self::V, b: Self::V) -> Self::U {
        self.or_u(self.shr16_u(self.round_bf16(a)), self.round_bf16(b))
    }
    /// sum + a.low * b.low + a.high * b.high over pairs of bf16 values, in f32.
    #[inline(always)]
    fn dot_pairs(self, sum: Self::V, a: Self::U, b: Self::U) -> Self::V {
        let upper = self.splat_u(0xffff_0000);
        let (a_low, b_low) = (self.shl16_u(a), self.shl16_u(b));
        let sum = self.mul_add(self.of_bits(a_low), self.of_bits(b_low), sum);
        let (a_high, b_high) = (self.and_u(a, upper), self.and_u(b, upper));
        self.mul_add(self.of_bits(a_high), self.of_bits(b_high), sum)
    }

    /// Asks for the cache line of an address, valid or not.
    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        let _ = p;
    }

    /// Asks for the cache line of an address, valid or not, that is needed later: no nearer than
    /// the L2 cache.
    #[inline(always)]
    fn prefetch_far(self, p: *const f32) {
        let _ = p;
    }

    /// `LANES` bytes, one in each lane.
    /// # Safety
    /// `p` points to `LANES` readable bytes.
    unsafe fn load_bytes(self, p: *const u8) -> Self::U;
    /// a >> n, for n below 32.
    fn shr_u(self, a: Self::U, n: u32) -> Self::U;
    /// a << n, for n below 32.
    fn shl_u(self, a: Self::U, n: u32) -> Self::U;
    /// Values below 2³¹ as f32, rounded to the nearest.
    fn to_f32(self, a: Self::U) -> Self::V;
    /// The values of a table at places below 16.
    #[inline(always)]
    fn lookup(self, table: &[f32; 16], places: Self::U) -> Self::V {
        let (mut at, mut values) = ([0u32; 16], [0.0f32; 16]);
        // SAFETY: a vector has at most 16 lanes.
        unsafe { self.store_u(at.as_mut_ptr(), places) };
        for (value, at) in values.iter_mut().zip(at) {
            *value = table[at as usize & 15];
        }
        // SAFETY: as above.
        unsafe { self.load(values.as_ptr()) }
    }

    /// Writes the transpose of a `LANES` x `LANES` block:
    /// `dst[j * dst_stride + i] = src[i * src_stride + j]`.
    /// # Safety
    /// Every element named by the strides is valid for reads in `src` and for writes in `dst`.
    unsafe fn transpose(self, src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize);
}

/// [`Simd::round_bf16`] where the machine has no instruction for it.
#[inline(always)]
fn round_bf16_by_integers<S: Simd>(s: S, v: S::V) -> S::U {
    let bits = s.to_bits(v);
    let odd = s.and_u(s.shr16_u(bits), s.splat_u(1));
    let rounded = s.add_u(bits, s.add_u(odd, s.splat_u(0x7fff)));
    // Rounding could carry a NaN into infinity or zero: it becomes quiet instead.
    let quiet = s.or_u(bits, s.splat_u(0x0040_0000));
    let (rounded, quiet) = (s.of_bits(rounded), s.of_bits(quiet));
    let kept = s.select_lt(s.splat(-1.0), s.abs(v), rounded, quiet);
    s.and_u(s.to_bits(kept), s.splat_u(0xffff_0000))
}

/// The first `n` values of a slice at `at`, zeros behind. `n` is at most `LANES`. Bounds are
/// asserted.
#[inline(always)]
pub(crate) fn load_at<S: Simd, E: Element>(s: S, x: &[E], at: usize, n: usize) -> S::V {
    assert!(n <= S::LANES && at + n <= x.len());
    // SAFETY: at + n <= len was asserted, and a full load is used only when n is a whole vector.
    unsafe {
        let p = x.as_ptr().add(at);
        if n == S::LANES {
            E::load(s, p)
        } else {
            E::load_n(s, p, n)
        }
    }
}

/// Stores the first `n` lanes to a slice at `at`. `n` is at most `LANES`. Bounds are asserted.
#[inline(always)]
pub(crate) fn store_at<S: Simd, E: Element>(s: S, x: &mut [E], at: usize, v: S::V, n: usize) {
    assert!(n <= S::LANES && at + n <= x.len());
    // SAFETY: at + n <= len was asserted, and a full store is used only when n is a whole vector.
    unsafe {
        let p = x.as_mut_ptr().add(at);
        if n == S::LANES {
            E::store(s, p, v);
        } else {
            E::store_n(s, p, v, n);
        }
    }
}

/// Lanes to process at `at` of `len`: a whole vector, or what is left.
#[inline(always)]
pub(crate) fn lanes_at<S: Simd>(at: usize, len: usize) -> usize {
    (len - at).min(S::LANES)
}
