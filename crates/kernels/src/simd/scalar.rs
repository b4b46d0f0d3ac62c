//! One lane, plain Rust.

use super::{Simd, SimdOp};
use half::bf16;

/// The token of plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type V = f32;
    type U = u32;
    const LANES: usize = 1;
    const GEMM_ROWS: usize = 4;
    const GEMM_VECS: usize = 8;

    #[inline(never)]
    fn call<O: SimdOp>(self, op: O) -> O::Output {
        op.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> f32 {
        // SAFETY: the caller's contract.
        unsafe { p.read() }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> f32 {
        if n == 0 {
            0.0
        } else {
            // SAFETY: the caller's contract; n is 1.
            unsafe { p.read() }
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32) {
        // SAFETY: the caller's contract.
        unsafe { p.write(v) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, v: f32, n: usize) {
        if n > 0 {
            // SAFETY: the caller's contract; n is 1.
            unsafe { p.write(v) }
        }
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    // Not `f32::mul_add`: without hardware FMA that is a library call per element.
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
    #[inline(always)]
    fn neg_mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        c - a * b
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        a.sqrt()
    }
    #[inline(always)]
    fn abs(self, a: f32) -> f32 {
        a.abs()
    }
    #[inline(always)]
    fn round(self, a: f32) -> f32 {
        a.round_ties_even()
    }
    #[inline(always)]
    fn select_lt(self, a: f32, b: f32, x: f32, y: f32) -> f32 {
        if a < b { x } else { y }
    }
    #[inline(always)]
    fn pow2(self, n: f32) -> f32 {
        // Other numbers come from lanes behind the last that counts; as with vectors, any result
        // will do.
        f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23)
    }
    #[inline(always)]
    fn reduce_add(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn reduce_max(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn splat_u(self, x: u32) -> u32 {
        x
    }
    #[inline(always)]
    fn iota_u(self, x: u32) -> u32 {
        x
    }
    #[inline(always)]
    fn xor_u(self, a: u32, b: u32) -> u32 {
        a ^ b
    }
    #[inline(always)]
    fn mul_wide_u(self, a: u32, b: u32) -> (u32, u32) {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    }
    #[inline(always)]
    fn keep(self, word: u32, threshold: u32, value: f32) -> f32 {
        if word >= threshold { value } else { 0.0 }
    }
    #[inline(always)]
    unsafe fn load_u(self, p: *const u32) -> u32 {
        // SAFETY: the caller's contract.
        unsafe { p.read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_u(self, p: *mut u32, v: u32) {
        // SAFETY: the caller's contract.
        unsafe { p.write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> u32 {
        // SAFETY: the caller's contract.
        u32::from(unsafe { p.read() })
    }
    #[inline(always)]
    fn shr_u(self, a: u32, n: u32) -> u32 {
        a >> n
    }
    #[inline(always)]
    fn shl_u(self, a: u32, n: u32) -> u32 {
        a << n
    }
    #[inline(always)]
    fn to_f32(self, a: u32) -> f32 {
        a as f32
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, v: u32) {
        // SAFETY: the caller's contract.
        unsafe { p.write(v as u8) }
    }
    #[inline(always)]
    fn add_u(self, a: u32, b: u32) -> u32 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn and_u(self, a: u32, b: u32) -> u32 {
        a & b
    }
    #[inline(always)]
    fn or_u(self, a: u32, b: u32) -> u32 {
        a | b
    }
    #[inline(always)]
    fn shl16_u(self, a: u32) -> u32 {
        a << 16
    }
    #[inline(always)]
    fn shr16_u(self, a: u32) -> u32 {
        a >> 16
    }
    #[inline(always)]
    fn to_bits(self, a: f32) -> u32 {
        a.to_bits()
    }
    #[inline(always)]
    fn of_bits(self, a: u32) -> f32 {
        f32::from_bits(a)
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> f32 {
        // SAFETY: the caller's contract.
        f32::from_bits(u32::from(unsafe { p.read() }.to_bits()) << 16)
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, v: f32) {
        let upper = self.round_bf16(v) >> 16;
        // SAFETY: the caller's contract.
        unsafe { p.write(bf16::from_bits(upper as u16)) }
    }
    #[inline(always)]
    unsafe fn transpose(
        self,
        src: *const f32,
        _src_stride: usize,
        dst: *mut f32,
        _dst_stride: usize,
    ) {
        // SAFETY: the caller's contract.
        unsafe { dst.write(src.read()) }
    }
}
