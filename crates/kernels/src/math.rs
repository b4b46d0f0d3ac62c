//! Vector exp, tanh, sigmoid and the normal distribution function, each with a stated and tested
//! error.

use crate::simd::Simd;

/// Below it `exp` is 0, above -`LOWEST` it saturates: 2^n stays a normal number on both sides.
const LOWEST: f32 = -87.336_54;
const HIGHEST: f32 = 88.376_26;

/// Coefficients of exp(r) = 1 + r + r² P(r) on |r| <= ln 2 / 2. Source: Moshier's Cephes, `expf`.
const EXP: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];

/// e^x. Relative error <= 2e-7 within [-87.3, 88.3]; 0 below, saturated above (at 2.4e38). NaN
/// gives NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let lowest = s.splat(LOWEST);
    // The constant first: `max` and `min` return their second argument for NaN.
    let clamped = s.min(s.splat(HIGHEST), s.max(lowest, x));
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts; the first has so few bits that n times it is exact.
    let r = s.neg_mul_add(n, s.splat(0.693_359_4), clamped);
    let r = s.neg_mul_add(n, s.splat(-2.121_944_4e-4), r);
    let p = polynomial(s, r, &EXP);
    let y = s.add(s.mul_add(p, s.mul(r, r), r), s.splat(1.0));
    let y = s.mul(y, s.pow2(n));
    s.select_lt(x, lowest, s.splat(0.0), y)
}

/// Coefficients of 2^f on |f| <= 1/2, highest first: degree 4, the largest relative error made
/// least.
const EXP2: [f32; 5] = [
    9.570_101e-3,
    5.591_786e-2,
    2.402_474_4e-1,
    6.931_218e-1,
    9.999_993e-1,
];

/// 2^x for x up to 127 and results that are rounded to bf16: relative error <= 3e-6 from -126 on,
/// 2^-126 below. NaN gives NaN.
#[inline(always)]
pub(crate) fn exp2_for_bf16<S: Simd>(s: S, x: S::V) -> S::V {
    // The constant first: `max` returns its second argument for NaN.
    let clamped = s.max(s.splat(-126.0), x);
    let n = s.round(clamped);
    let y = polynomial(s, s.sub(clamped, n), &EXP2);
    s.mul(y, s.pow2(n))
}

/// Horner's rule, highest coefficient first.
#[inline(always)]
fn polynomial<S: Simd>(s: S, x: S::V, coefficients: &[f32]) -> S::V {
    let mut y = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        y = s.mul_add(y, x, s.splat(c));
    }
    y
}

/// 1 / (1 + e^-x). Absolute error <= 1.5e-7, and the same relative to the result.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// Coefficients of tanh(x) = x + x³ P(x²) on |x| < 0.625. Source: Moshier's Cephes, `tanhf`.
const TANH: [f32; 5] = [
    -5.704_988_7e-3,
    2.063_909e-2,
    -5.373_971_6e-2,
    1.333_144_2e-1,
    -3.333_328e-1,
];

/// tanh x. Relative error <= 3e-7.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    let magnitude = s.abs(x);
    let square = s.mul(x, x);
    let small = s.mul_add(s.mul(x, square), polynomial(s, square, &TANH), x);
    let e = exp(s, s.add(magnitude, magnitude));
    let one = s.splat(1.0);
    let large = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    let large = s.select_lt(x, zero, s.sub(zero, large), large);
    s.select_lt(s.splat(0.625), magnitude, large, small)
}

/// Coefficients of ln(2 Φ(-t)) = t P(t) for t >= 0, highest first. Fitted by us: reweighted least
/// squares at 4,000 Chebyshev points of [0, 8], weighted by Φ(-t) max(1, t); the error of Φ is
/// 3.6e-8 there, and the leading coefficient is negative, so that Φ(-t) goes on to 0 beyond.
const LOG_NORMAL: [f32; 8] = [
    -8.594_941_3e-7,
    1.468_732_1e-5,
    -7.266_133_6e-5,
    -2.211_304_1e-4,
    5.045_332_3e-3,
    -3.647_804e-2,
    -3.182_741_5e-1,
    -7.978_875e-1,
];

/// The normal distribution function Φ(x) = (1 + erf(x / √2)) / 2. Absolute error <= 1.5e-7, times
/// max(1, |x|) for x < 0 too.
#[inline(always)]
pub(crate) fn normal_cdf<S: Simd>(s: S, x: S::V) -> S::V {
    let t = s.abs(x);
    let log = s.mul(t, polynomial(s, t, &LOG_NORMAL));
    let tail = s.mul(s.splat(0.5), exp(s, log));
    s.select_lt(x, s.splat(0.0), tail, s.sub(s.splat(1.0), tail))
}

/// The normal density e^(-x²/2) / √(2π).
#[inline(always)]
pub(crate) fn normal_pdf<S: Simd>(s: S, x: S::V) -> S::V {
    let half_square = s.mul(s.mul(x, x), s.splat(-0.5));
    s.mul(exp(s, half_square), s.splat(0.398_942_3))
}

/// An odd function that is 1/2 from `end` on: x P(x²) below.
pub(crate) struct Odd {
    /// Where it reaches 1/2.
    pub end: f32,
    /// Of P, highest first.
    pub coefficients: [f32; 9],
}

/// The value of an [`Odd`]. NaN gives NaN.
#[inline(always)]
pub(crate) fn odd<S: Simd>(s: S, x: S::V, f: &Odd) -> S::V {
    let (low, high) = (s.splat(-f.end), s.splat(f.end));
    // The constants first: a NaN stays one.
    let x = s.max(low, s.min(high, x));
    s.mul(x, polynomial(s, s.mul(x, x), &f.coefficients))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::simd::{SimdOp, dispatch, load_at, store_at};

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Exp2,
        Sigmoid,
        Tanh,
        NormalCdf,
        NormalPdf,
    }

    struct Map<'a>(Function, &'a mut [f32]);

    impl SimdOp for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for at in (0..self.1.len()).step_by(S::LANES) {
                let n = (self.1.len() - at).min(S::LANES);
                let x = load_at(s, self.1, at, n);
                let y = match self.0 {
                    Function::Exp => exp(s, x),
                    Function::Exp2 => exp2_for_bf16(s, x),
                    Function::Sigmoid => sigmoid(s, x),
                    Function::Tanh => tanh(s, x),
                    Function::NormalCdf => normal_cdf(s, x),
                    Function::NormalPdf => normal_pdf(s, x),
                };
                store_at(s, self.1, at, y, n);
            }
        }
    }

    /// The largest error / scale(x, y) over every `step`-th f32 within the range, both signs.
    fn worst(
        isa: Isa,
        f: Function,
        range: (f32, f32),
        exact: fn(f64) -> f64,
        scale: fn(f64, f64) -> f64,
    ) -> f64 {
        const STEP: u32 = 509;
        let mut worst = 0.0f64;
        let mut x = Vec::new();
        let mut y = Vec::new();
        let check = |x: &mut Vec<f32>, y: &mut Vec<f32>, worst: &mut f64| {
            y.clear();
            y.extend_from_slice(x);
            dispatch(isa, Map(f, y));
            for (&x, &y) in x.iter().zip(y.iter()) {
                let e = exact(f64::from(x));
                let error = (f64::from(y) - e).abs() / scale(f64::from(x), e);
                assert!(error.is_finite(), "{x} gives {y}");
                *worst = worst.max(error);
            }
            x.clear();
        };
        let top = range.0.abs().max(range.1).to_bits();
        for bits in (0..=top).step_by(STEP as usize) {
            for v in [f32::from_bits(bits), -f32::from_bits(bits)] {
                if v >= range.0 && v <= range.1 {
                    x.push(v);
                }
            }
            if x.len() >= 4096 {
                check(&mut x, &mut y, &mut worst);
            }
        }
        check(&mut x, &mut y, &mut worst);
        worst
    }

    /// Every 509th f32 of the range: 16,000 mantissas of each octave.
    #[test]
    fn stated_errors_hold() {
        fn cdf(x: f64) -> f64 {
            0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
        }
        fn pdf(x: f64) -> f64 {
            (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
        }
        fn relative(_: f64, y: f64) -> f64 {
            y.abs().max(1.2e-38)
        }
        for isa in Isa::available() {
            let exp = worst(isa, Function::Exp, (-87.3, 88.3), f64::exp, relative);
            let sigmoid = worst(
                isa,
                Function::Sigmoid,
                (-80.0, 80.0),
                |x| 1.0 / (1.0 + (-x).exp()),
                relative,
            );
            let tanh = worst(isa, Function::Tanh, (-1e30, 1e30), f64::tanh, relative);
            let cdf = worst(isa, Function::NormalCdf, (-1e30, 1e30), cdf, |x, _| {
                1.0 / x.abs().max(1.0)
            });
            let pdf = worst(isa, Function::NormalPdf, (-1e18, 1e18), pdf, |_, _| 1.0);
            println!(
                "{}: exp {exp:.2e} sigmoid {sigmoid:.2e} tanh {tanh:.2e} cdf {cdf:.2e} pdf {pdf:.2e}",
                isa.name()
            );
            let exp2 = worst(isa, Function::Exp2, (-126.0, 127.0), f64::exp2, relative);
            println!("{}: exp2 for bf16 {exp2:.2e}", isa.name());
            assert!(exp2 <= 3e-6);
            assert!(exp <= 2e-7 && sigmoid <= 3e-7 && tanh <= 3e-7);
            assert!(cdf <= 3e-7 && pdf <= 1.5e-7);
        }
    }

    #[test]
    fn ends_of_the_range() {
        for isa in Isa::available() {
            let mut x = [
                f32::NEG_INFINITY,
                -200.0,
                0.0,
                200.0,
                f32::INFINITY,
                f32::NAN,
            ];
            dispatch(isa, Map(Function::Exp, &mut x));
            assert_eq!(x[..3], [0.0, 0.0, 1.0]);
            assert!(x[3] > 2e38 && x[4] > 2e38 && x[5].is_nan());
            let mut x = [f32::NEG_INFINITY, -200.0, f32::NAN];
            dispatch(isa, Map(Function::Exp2, &mut x));
            assert!(x[..2].iter().all(|&v| v > 0.0 && v < 1.2e-38) && x[2].is_nan());
            let mut x = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -0.0];
            dispatch(isa, Map(Function::Tanh, &mut x));
            assert_eq!(x[..2], [-1.0, 1.0]);
            assert!(x[2].is_nan() && x[3] == 0.0);
            let mut x = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0];
            dispatch(isa, Map(Function::NormalCdf, &mut x));
            assert_eq!(x[..2], [0.0, 1.0]);
            assert!(x[2].is_nan() && x[3] == 0.5);
        }
    }
}
