//! Four lanes: aarch64 NEON.

use super::{Simd, SimdOp};
use half::bf16;
use std::arch::aarch64::*;

/// The token of NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The machine has NEON (every aarch64 target of Rust's std has).
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

#[target_feature(enable = "neon")]
#[inline(never)]
fn run<O: SimdOp>(s: Neon, op: O) -> O::Output {
    op.run(s)
}

/// Wraps intrinsics that need nothing but the instruction set.
macro_rules! pure {
    ($($body:tt)*) => {{
        // SAFETY: the token proves that the machine has the instructions (see `Neon::new`).
        #[allow(unused_unsafe)]
        unsafe { $($body)* }
    }};
}

impl Simd for Neon {
    type V = float32x4_t;
    type U = uint32x4_t;
    const LANES: usize = 4;
    const GEMM_ROWS: usize = 8;
    const GEMM_VECS: usize = 2;

    #[inline(always)]
    fn call<O: SimdOp>(self, op: O) -> O::Output {
        pure!(run(self, op))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        pure!(vdupq_n_f32(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        // SAFETY: the caller's contract, and the token.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> float32x4_t {
        let mut lanes = [0.0f32; 4];
        // SAFETY: the caller's contract: n <= 4 readable values.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            vld1q_f32(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        // SAFETY: the caller's contract, and the token.
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: float32x4_t, n: usize) {
        let mut lanes = [0.0f32; 4];
        // SAFETY: the caller's contract: n <= 4 writable values.
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        pure!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        pure!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        pure!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        pure!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        pure!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        pure!(vfmsq_f32(c, a, b))
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        pure!(vbslq_f32(vcltq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        pure!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: float32x4_t) -> float32x4_t {
        pure!(vsqrtq_f32(a))
    }
    #[inline(always)]
    fn abs(self, a: float32x4_t) -> float32x4_t {
        pure!(vabsq_f32(a))
    }
    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        pure!(vrndnq_f32(a))
    }
    #[inline(always)]
    fn select_lt(
        self,
        a: float32x4_t,
        b: float32x4_t,
        x: float32x4_t,
        y: float32x4_t,
    ) -> float32x4_t {
        pure!(vbslq_f32(vcltq_f32(a, b), x, y))
    }
    #[inline(always)]
    fn pow2(self, n: float32x4_t) -> float32x4_t {
        pure!({
            let exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        })
    }
    #[inline(always)]
    fn reduce_add(self, a: float32x4_t) -> f32 {
        pure!(vaddvq_f32(a))
    }
    #[inline(always)]
    fn reduce_max(self, a: float32x4_t) -> f32 {
        pure!(vmaxvq_f32(a))
    }
    #[inline(always)]
    fn splat_u(self, x: u32) -> uint32x4_t {
        pure!(vdupq_n_u32(x))
    }
    #[inline(always)]
    fn iota_u(self, x: u32) -> uint32x4_t {
        let lanes = [0u32, 1, 2, 3];
        // SAFETY: four readable values, and the token.
        unsafe { vaddq_u32(vdupq_n_u32(x), vld1q_u32(lanes.as_ptr())) }
    }
    #[inline(always)]
    fn xor_u(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        pure!(veorq_u32(a, b))
    }
    #[inline(always)]
    fn mul_wide_u(self, a: uint32x4_t, b: uint32x4_t) -> (uint32x4_t, uint32x4_t) {
        pure!({
            let low = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(b)));
            let high = vreinterpretq_u32_u64(vmull_high_u32(a, b));
            (vuzp2q_u32(low, high), vuzp1q_u32(low, high))
        })
    }
    #[inline(always)]
    fn keep(self, word: uint32x4_t, threshold: u32, value: float32x4_t) -> float32x4_t {
        pure!({
            let keep = vcgeq_u32(word, vdupq_n_u32(threshold));
            vreinterpretq_f32_u32(vandq_u32(keep, vreinterpretq_u32_f32(value)))
        })
    }
    #[inline(always)]
    unsafe fn load_u(self, p: *const u32) -> uint32x4_t {
        // SAFETY: the caller's contract, and the token; bytes need no alignment.
        unsafe { vreinterpretq_u32_u8(vld1q_u8(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_u(self, p: *mut u32, v: uint32x4_t) {
        // SAFETY: the caller's contract, and the token; bytes need no alignment.
        unsafe { vst1q_u8(p.cast(), vreinterpretq_u8_u32(v)) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> uint32x4_t {
        // SAFETY: the caller's contract, and the token.
        unsafe {
            let word = p.cast::<u32>().read_unaligned();
            let bytes = vreinterpret_u8_u32(vdup_n_u32(word));
            vmovl_u16(vget_low_u16(vmovl_u8(bytes)))
        }
    }
    #[inline(always)]
    fn shr_u(self, a: uint32x4_t, n: u32) -> uint32x4_t {
        pure!(vshlq_u32(a, vdupq_n_s32(-(n as i32))))
    }
    #[inline(always)]
    fn shl_u(self, a: uint32x4_t, n: u32) -> uint32x4_t {
        pure!(vshlq_u32(a, vdupq_n_s32(n as i32)))
    }
    #[inline(always)]
    fn to_f32(self, a: uint32x4_t) -> float32x4_t {
        pure!(vcvtq_f32_u32(a))
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, v: uint32x4_t) {
        // SAFETY: the caller's contract, and the token.
        unsafe {
            let halves = vmovn_u32(v);
            let bytes = vmovn_u16(vcombine_u16(halves, halves));
            p.cast::<u32>()
                .write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_u8(bytes)));
        }
    }
    #[inline(always)]
    fn add_u(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        pure!(vaddq_u32(a, b))
    }
    #[inline(always)]
    fn and_u(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        pure!(vandq_u32(a, b))
    }
    #[inline(always)]
    fn or_u(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        pure!(vorrq_u32(a, b))
    }
    #[inline(always)]
    fn shl16_u(self, a: uint32x4_t) -> uint32x4_t {
        pure!(vshlq_n_u32::<16>(a))
    }
    #[inline(always)]
    fn shr16_u(self, a: uint32x4_t) -> uint32x4_t {
        pure!(vshrq_n_u32::<16>(a))
    }
    #[inline(always)]
    fn to_bits(self, a: float32x4_t) -> uint32x4_t {
        pure!(vreinterpretq_u32_f32(a))
    }
    #[inline(always)]
    fn of_bits(self, a: uint32x4_t) -> float32x4_t {
        pure!(vreinterpretq_f32_u32(a))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> float32x4_t {
        // SAFETY: the caller's contract, and the token.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, v: float32x4_t) {
        let rounded = self.round_bf16(v);
        // SAFETY: the caller's contract, and the token.
        unsafe { vst1_u16(p.cast(), vshrn_n_u32::<16>(rounded)) }
    }
    #[inline(always)]
    unsafe fn transpose(
        self,
        src: *const f32,
        src_stride: usize,
        dst: *mut f32,
        dst_stride: usize,
    ) {
        for i in 0..4 {
            for j in 0..4 {
                // SAFETY: the caller's contract covers every element of the block.
                unsafe {
                    dst.add(j * dst_stride + i)
                        .write(src.add(i * src_stride + j).read());
                }
            }
        }
    }
}
