//! What a stored value may be: f32, or bf16 that is widened when read and rounded when written.
//! Arithmetic is always f32.

use crate::aligned::Plain;
use crate::simd::Simd;
use half::bf16;
use serde::{Deserialize, Serialize};

/// The storage of an activation: `f32` or [`bf16`]. Sealed: kernels are written for these two.
pub trait Element:
    sealed::Sealed + Plain + Default + Send + Sync + std::fmt::Debug + 'static
{
    /// The storage.
    const DTYPE: DType;
    /// The value as f32, exactly.
    fn widen(self) -> f32;
    /// The nearest storable value, ties to even.
    fn narrow(x: f32) -> Self;
    /// The values as they would come back from the storage.
    #[doc(hidden)]
    fn round<S: Simd>(s: S, v: S::V) -> S::V;
    /// The values, if they are of this type.
    #[doc(hidden)]
    fn of(values: Values<'_>) -> Option<&[Self]>;
    /// The values to be written, if they are of this type.
    #[doc(hidden)]
    fn of_mut(values: ValuesMut<'_>) -> Option<&mut [Self]>;
    /// # Safety
    /// `p` is valid for reads of `LANES` values.
    #[doc(hidden)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
    /// # Safety
    /// `p` is valid for reads of `n <= LANES` values.
    #[doc(hidden)]
    unsafe fn load_n<S: Simd>(s: S, p: *const Self, n: usize) -> S::V;
    /// # Safety
    /// `p` is valid for writes of `LANES` values.
    #[doc(hidden)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::V);
    /// # Safety
    /// `p` is valid for writes of `n <= LANES` values.
    #[doc(hidden)]
    unsafe fn store_n<S: Simd>(s: S, p: *mut Self, v: S::V, n: usize);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn round<S: Simd>(_: S, v: S::V) -> S::V {
        v
    }
    fn of(values: Values<'_>) -> Option<&[f32]> {
        match values {
            Values::F32(x) => Some(x),
            Values::Bf16(_) => None,
        }
    }
    fn of_mut(values: ValuesMut<'_>) -> Option<&mut [f32]> {
        match values {
            ValuesMut::F32(x) => Some(x),
            ValuesMut::Bf16(_) => None,
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's contract.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    unsafe fn load_n<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
        // SAFETY: the caller's contract.
        unsafe { s.load_n(p, n) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut f32, v: S::V) {
        // SAFETY: the caller's contract.
        unsafe { s.store(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n<S: Simd>(s: S, p: *mut f32, v: S::V, n: usize) {
        // SAFETY: the caller's contract.
        unsafe { s.store_n(p, v, n) }
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, v: S::V) -> S::V {
        s.of_bits(s.round_bf16(v))
    }
    fn of(values: Values<'_>) -> Option<&[bf16]> {
        match values {
            Values::Bf16(x) => Some(x),
            Values::F32(_) => None,
        }
    }
    fn of_mut(values: ValuesMut<'_>) -> Option<&mut [bf16]> {
        match values {
            ValuesMut::Bf16(x) => Some(x),
            ValuesMut::F32(_) => None,
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const bf16) -> S::V {
        // SAFETY: the caller's contract.
        unsafe { s.load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn load_n<S: Simd>(s: S, p: *const bf16, n: usize) -> S::V {
        // SAFETY: the caller's contract.
        unsafe { s.load_bf16_n(p, n) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut bf16, v: S::V) {
        // SAFETY: the caller's contract.
        unsafe { s.store_bf16(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n<S: Simd>(s: S, p: *mut bf16, v: S::V, n: usize) {
        // SAFETY: the caller's contract.
        unsafe { s.store_bf16_n(p, v, n) }
    }
}

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// f32.
    F32,
    /// bf16.
    Bf16,
}

impl DType {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 => 2,
        }
    }

    /// x as it is stored.
    pub fn round(self, x: f32) -> f32 {
        match self {
            DType::F32 => x,
            DType::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// The name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
        }
    }
}

/// Values in either storage, for callers that learn which at run time.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bf16.
    Bf16(&'a [bf16]),
}

impl Values<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Values::F32(x) => x.len(),
            Values::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Values in either storage, to be written.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// f32.
    F32(&'a mut [f32]),
    /// bf16.
    Bf16(&'a mut [bf16]),
}

impl ValuesMut<'_> {
    /// Their type.
    pub fn dtype(&self) -> DType {
        match self {
            ValuesMut::F32(_) => DType::F32,
            ValuesMut::Bf16(_) => DType::Bf16,
        }
    }
}
