//! What generation asks of the scores of one row over the vocabulary. Single rows: callers spread
//! them over threads.

use crate::isa::Isa;
use crate::loss::row_max;
use crate::math::exp;
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};

/// The place of the first of the largest values. Panics if there are none; NaNs make it
/// unspecified.
pub fn argmax(isa: Isa, x: &[f32]) -> usize {
    assert!(!x.is_empty(), "the largest of no values");
    let max = dispatch(isa, Max(x));
    x.iter().position(|v| *v == max).unwrap_or(0)
}

/// x = ln softmax(x). Sums are f32, lane by lane; x is finite or -∞, not all of it -∞.
pub fn log_softmax(isa: Isa, x: &mut [f32]) {
    if !x.is_empty() {
        dispatch(isa, LogSoftmax(x));
    }
}

struct Max<'a>(&'a [f32]);

impl SimdOp for Max<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        row_max(s, self.0)
    }
}

struct LogSoftmax<'a>(&'a mut [f32]);

impl SimdOp for LogSoftmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = self.0;
        let max = row_max(s, x);
        let shift = s.splat(max);
        let mut sum = s.splat(0.0);
        let whole = x.len() / S::LANES * S::LANES;
        let mut at = 0;
        while at < whole {
            sum = s.add(sum, exp(s, s.sub(load_at(s, x, at, S::LANES), shift)));
            at += S::LANES;
        }
        let mut rest = 0.0;
        if whole < x.len() {
            let lanes = lanes_at::<S>(whole, x.len());
            // The lanes behind the end are zeros, not values: their exponential is not summed.
            let mut tail = [0.0; 16];
            tail[..lanes].copy_from_slice(&x[whole..]);
            tail[lanes..].fill(f32::NEG_INFINITY);
            let e = exp(s, s.sub(load_at(s, &tail, 0, S::LANES), shift));
            rest = s.reduce_add(e);
        }
        let sum = s.reduce_add(sum) + rest;
        let shift = s.splat(max + sum.ln());
        let mut at = 0;
        while at < x.len() {
            let n = lanes_at::<S>(at, x.len());
            store_at(s, x, at, s.sub(load_at(s, x, at, n), shift), n);
            at += S::LANES;
        }
    }
}
