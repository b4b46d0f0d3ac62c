//! Activations, forward and backward, element by element.

use crate::element::{DType, Element};
use crate::isa::Isa;
use crate::math::{Odd, normal_cdf, normal_pdf, odd, sigmoid, tanh};
use crate::parallel::{CHUNK, for_each_chunk};
use crate::simd::{Simd, SimdOp, dispatch, load_at, store_at};

/// An activation function. The errors are those in f32; bf16 storage has GELUs with 1.4e-5
/// max(1, |x|), its derivatives with 2e-4, where its own rounding is up to 4e-3 of a value.
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

/// Φ(x) - 1/2, of [`Activation::Gelu`]. These four are ours: minimax fits of degree 8 in x² that
/// are 1/2 at their end.
const GELU: Odd = Odd {
    end: 4.25,
    coefficients: [
        5.657_818e-11,
        -5.379_669e-9,
        2.264_278e-7,
        -5.625_504_4e-6,
        9.322_126e-5,
        -1.106_221_1e-3,
        9.804_964e-3,
        -6.632_52e-2,
        3.988_939e-1,
    ],
};
/// Its derivative less 1/2: Φ(x) - 1/2 + x φ(x).
const GELU_DERIVATIVE: Odd = Odd {
    end: 4.375,
    coefficients: [
        4.925_418_4e-10,
        -4.853_203_7e-8,
        2.073_478_3e-6,
        -5.063_853_3e-5,
        7.856_712_3e-4,
        -8.134_067e-3,
        5.699_202_8e-2,
        -2.631_943_8e-1,
        7.970_879_7e-1,
    ],
};
/// tanh(..) / 2, of [`Activation::GeluTanh`].
const GELU_TANH: Odd = Odd {
    end: 4.125,
    coefficients: [
        7.539_665_4e-11,
        -6.860_459_3e-9,
        2.761_106_8e-7,
        -6.548_464e-6,
        1.034_697_8e-4,
        -1.173_872_4e-3,
        1.004_660_6e-2,
        -6.666_825e-2,
        3.988_995_6e-1,
    ],
};
/// Its derivative less 1/2.
const GELU_TANH_DERIVATIVE: Odd = Odd {
    end: 4.25,
    coefficients: [
        7.057_235e-10,
        -6.528_036e-8,
        2.617_954_8e-6,
        -6.007_722e-5,
        8.790_346e-4,
        -8.652_248e-3,
        5.843_44e-2,
        -2.646_242_7e-1,
        7.971_440_6e-1,
    ],
};

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

/// f(x) for a value that is stored as E: GELUs of bf16 take half the work.
#[inline(always)]
pub(crate) fn value_for<E: Element, S: Simd>(s: S, kind: Activation, x: S::V) -> S::V {
    let bell = match (E::DTYPE, kind) {
        (DType::Bf16, Activation::Gelu) => &GELU,
        (DType::Bf16, Activation::GeluTanh) => &GELU_TANH,
        (DType::F32 | DType::Bf16, _) => return value(s, kind, x),
    };
    s.mul(x, s.add(s.splat(0.5), odd(s, x, bell)))
}

/// f'(x) for a factor of a value that is stored as E: GELUs of bf16 take a third of the work.
#[inline(always)]
pub(crate) fn derivative_for<E: Element, S: Simd>(s: S, kind: Activation, x: S::V) -> S::V {
    let slope = match (E::DTYPE, kind) {
        (DType::Bf16, Activation::Gelu) => &GELU_DERIVATIVE,
        (DType::Bf16, Activation::GeluTanh) => &GELU_TANH_DERIVATIVE,
        (DType::F32 | DType::Bf16, _) => return derivative(s, kind, x),
    };
    s.add(s.splat(0.5), odd(s, x, slope))
}

/// Calls a method with the kind as its last argument, a constant: a loop for each kind, not a
/// choice for each vector.
macro_rules! for_each_kind {
    ($kind:expr, $this:ident.$method:ident($s:expr)) => {
        match $kind {
            Activation::Gelu => $this.$method($s, Activation::Gelu),
            Activation::GeluTanh => $this.$method($s, Activation::GeluTanh),
            Activation::Relu => $this.$method($s, Activation::Relu),
            Activation::Silu => $this.$method($s, Activation::Silu),
            Activation::Tanh => $this.$method($s, Activation::Tanh),
        }
    };
}
pub(crate) use for_each_kind;

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
        for_each_kind!(self.kind, self.map(s));
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
                let y = value_for::<E, S>(s, kind, load_at(s, x, at, S::LANES));
                store_at(s, self.y, at, y, S::LANES);
                at += S::LANES;
            }
            self.y[whole..].copy_from_slice(&x[whole..]);
        }
        while at < whole {
            let y = value_for::<E, S>(s, kind, load_at(s, self.y, at, S::LANES));
            store_at(s, self.y, at, y, S::LANES);
            at += S::LANES;
        }
        let y = value_for::<E, S>(s, kind, load_at(s, self.y, whole, len - whole));
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
        for_each_kind!(self.kind, self.map(s));
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
            let slope = derivative_for::<E, S>(s, kind, load_at(s, self.x, at, S::LANES));
            let d_x = s.mul(slope, load_at(s, self.d_y, at, S::LANES));
            store_at(s, self.d_y, at, d_x, S::LANES);
            at += S::LANES;
        }
        let n = len - whole;
        let slope = derivative_for::<E, S>(s, kind, load_at(s, self.x, whole, n));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use half::bf16;

    /// Every value of bf16 up to where any of them is constant, and beyond: measured 1.28e-5 and
    /// 1.94e-4.
    #[test]
    fn gelus_of_bf16_have_their_stated_errors() {
        struct Values<'a>(Activation, &'a [f32], [&'a mut [f32]; 2]);
        impl SimdOp for Values<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                let Values(kind, x, [y, slope]) = self;
                for at in (0..x.len()).step_by(S::LANES) {
                    let n = (x.len() - at).min(S::LANES);
                    let v = load_at(s, x, at, n);
                    store_at(s, y, at, value_for::<bf16, S>(s, kind, v), n);
                    store_at(s, slope, at, derivative_for::<bf16, S>(s, kind, v), n);
                }
            }
        }
        let x: Vec<f32> = (0..=u16::MAX)
            .map(|bits| bf16::from_bits(bits).to_f32())
            .filter(|x| x.abs() <= 1e6)
            .collect();
        assert!(x.len() > 30_000);
        for isa in Isa::available() {
            for kind in [Activation::Gelu, Activation::GeluTanh] {
                let (mut y, mut slope) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                dispatch(isa, Values(kind, &x, [&mut y, &mut slope]));
                let worst = |found: &[f32], exact: fn(Activation, f64) -> f64, by_size: bool| {
                    let errors = x.iter().zip(found).map(|(&x, &found)| {
                        let size = if by_size {
                            f64::from(x.abs()).max(1.0)
                        } else {
                            1.0
                        };
                        let error = (f64::from(found) - exact(kind, f64::from(x))).abs() / size;
                        assert!(error.is_finite(), "{kind:?} of {x} gives {found}");
                        error
                    });
                    errors.fold(0.0, f64::max)
                };
                let value = worst(&y, reference::activation, true);
                let derivative = worst(&slope, reference::activation_derivative, false);
                println!("{kind:?} on {}: {value:.2e} {derivative:.2e}", isa.name());
                assert!(
                    value <= 1.4e-5 && derivative <= 2e-4,
                    "{kind:?}: {value:.2e}, {derivative:.2e}"
                );
            }
        }
    }
}
