//! Activations, forward and backward, element by element.

use crate::element::Element;
use crate::isa::Isa;
use crate::math::{normal_cdf, normal_pdf, sigmoid, tanh};
use crate::parallel::{CHUNK, for_each_chunk};
use crate::simd::{Simd, SimdOp, dispatch, load_at, store_at};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x Φ(x), the exact (erf) form. Error <= 2.5e-7 max(1, |x|).
    Gelu,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2. Error <= 2.5e-7 max(1, |x|).
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x / (1 + e^-x). Error <= 3e-7 max(1, |x|).
    Silu,
    /// tanh x. Relative error <= 3e-7.
    Tanh,
}

/// √(2/π) and the cubic's factor of the tanh form.
const GELU_SLOPE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

#[inline(always)]
pub(crate) fn value<S: Simd>(s: S, kind: Activation, x: S::V) -> S::V {
    match kind {
        Activation::Gelu => s.mul(x, normal_cdf(s, x)),
        Activation::GeluTanh => {
            let half = s.splat(0.5);
            s.mul(s.mul(half, x), s.add(s.splat(1.0), gelu_tanh_inner(s, x)))
        }
        // The constant first: a NaN stays one.
        Activation::Relu => s.max(s.splat(0.0), x),
        Activation::Silu => s.mul(x, sigmoid(s, x)),
        Activation::Tanh => tanh(s, x),
    }
}

#[inline(always)]
fn gelu_tanh_inner<S: Simd>(s: S, x: S::V) -> S::V {
    let cubic = s.mul(s.mul(x, x), s.splat(GELU_CUBIC));
    let inner = s.mul(s.splat(GELU_SLOPE), s.mul_add(x, cubic, x));
    tanh(s, inner)
}

#[inline(always)]
pub(crate) fn derivative<S: Simd>(s: S, kind: Activation, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let zero = s.splat(0.0);
    match kind {
        Activation::Gelu => s.mul_add(x, normal_pdf(s, x), normal_cdf(s, x)),
        Activation::GeluTanh => {
            let t = gelu_tanh_inner(s, x);
            let square = s.mul(x, x);
            let slope = s.mul(
                s.splat(GELU_SLOPE),
                s.mul_add(square, s.splat(3.0 * GELU_CUBIC), one),
            );
            let sech_square = s.neg_mul_add(t, t, one);
            let half = s.splat(0.5);
            let curved = s.mul(s.mul(half, x), s.mul(sech_square, slope));
            s.add(s.mul(half, s.add(one, t)), curved)
        }
        Activation::Relu => s.select_lt(zero, x, one, zero),
        Activation::Silu => {
            let y = sigmoid(s, x);
            s.mul(y, s.mul_add(x, s.sub(one, y), one))
        }
        Activation::Tanh => {
            let y = tanh(s, x);
            s.neg_mul_add(y, y, one)
        }
    }
}

/// y = f(x), or y = f(y) without x.
struct Forward<'a, E> {
    kind: Activation,
    x: Option<&'a [E]>,
    y: &'a mut [E],
}

impl<E: Element> SimdOp for Forward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // A loop for each kind, not a choice for each vector.
        match self.kind {
            Activation::Gelu => self.map(s, Activation::Gelu),
            Activation::GeluTanh => self.map(s, Activation::GeluTanh),
            Activation::Relu => self.map(s, Activation::Relu),
            Activation::Silu => self.map(s, Activation::Silu),
            Activation::Tanh => self.map(s, Activation::Tanh),
        }
    }
}

impl<E: Element> Forward<'_, E> {
    #[inline(always)]
    fn map<S: Simd>(self, s: S, kind: Activation) {
        let len = self.y.len();
        let whole = len / S::LANES * S::LANES;
        let mut at = 0;
        if let Some(x) = self.x {
            assert_eq!(x.len(), len);
            while at < whole {
                let y = value(s, kind, load_at(s, x, at, S::LANES));
                store_at(s, self.y, at, y, S::LANES);
                at += S::LANES;
            }
            self.y[whole..].copy_from_slice(&x[whole..]);
        }
        while at < whole {
            let y = value(s, kind, load_at(s, self.y, at, S::LANES));
            store_at(s, self.y, at, y, S::LANES);
            at += S::LANES;
        }
        let y = value(s, kind, load_at(s, self.y, whole, len - whole));
        store_at(s, self.y, whole, y, len - whole);
    }
}

struct Backward<'a, E> {
    kind: Activation,
    x: &'a [E],
    d_y: &'a mut [E],
}

impl<E: Element> SimdOp for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.kind {
            Activation::Gelu => self.map(s, Activation::Gelu),
            Activation::GeluTanh => self.map(s, Activation::GeluTanh),
            Activation::Relu => self.map(s, Activation::Relu),
            Activation::Silu => self.map(s, Activation::Silu),
            Activation::Tanh => self.map(s, Activation::Tanh),
        }
    }
}

impl<E: Element> Backward<'_, E> {
    #[inline(always)]
    fn map<S: Simd>(self, s: S, kind: Activation) {
        let len = self.d_y.len();
        assert_eq!(self.x.len(), len);
        let whole = len / S::LANES * S::LANES;
        let mut at = 0;
        while at < whole {
            let slope = derivative(s, kind, load_at(s, self.x, at, S::LANES));
            let d_x = s.mul(slope, load_at(s, self.d_y, at, S::LANES));
            store_at(s, self.d_y, at, d_x, S::LANES);
            at += S::LANES;
        }
        let n = len - whole;
        let slope = derivative(s, kind, load_at(s, self.x, whole, n));
        let d_x = s.mul(slope, load_at(s, self.d_y, whole, n));
        store_at(s, self.d_y, whole, d_x, n);
    }
}

/// y = f(x). Panics if the lengths differ.
pub fn activation_forward<E: Element>(isa: Isa, kind: Activation, x: &[E], y: &mut [E]) {
    assert_eq!(x.len(), y.len());
    for_each_chunk(y, CHUNK, |start, y| {
        let x = Some(&x[start..start + y.len()]);
        dispatch(isa, Forward { kind, x, y });
    });
}

/// x = f(x).
pub fn activation_forward_in_place<E: Element>(isa: Isa, kind: Activation, x: &mut [E]) {
    for_each_chunk(x, CHUNK, |_, y| dispatch(isa, Forward { kind, x: None, y }));
}

/// d_x = f'(x) d_y, in place of d_y. `x` is the pre-activation. Panics if the lengths differ.
pub fn activation_backward<E: Element>(isa: Isa, kind: Activation, x: &[E], d_y: &mut [E]) {
    assert_eq!(x.len(), d_y.len());
    for_each_chunk(d_y, CHUNK, |start, d_y| {
        let x = &x[start..start + d_y.len()];
        dispatch(isa, Backward { kind, x, d_y });
    });
}
