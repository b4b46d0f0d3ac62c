//! AdamW.

use crate::isa::Isa;
use crate::parallel::CHUNK;
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};
use rayon::prelude::*;

use crate::tasks::{each_task, run_task};

/// The scalars of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The number of this step, from 1.
    pub step: u64,
}

/// One step of `torch.optim.AdamW` (decoupled decay, bias correction) on one parameter.
///
/// Scalars are computed in f64 and then rounded, as torch's single-tensor path does. Panics if
/// lengths differ or step is 0.
pub fn adamw_step(
    isa: Isa,
    adamw: &AdamW,
    param: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    assert!(adamw.step > 0, "steps count from 1");
    assert_eq!(param.len(), grad.len());
    assert_eq!(param.len(), m.len());
    assert_eq!(param.len(), v.len());
    let exponent = adamw.step as f64;
    let correction1 = 1.0 - adamw.beta1.powf(exponent);
    let correction2 = 1.0 - adamw.beta2.powf(exponent);
    let scalars = Scalars {
        decay: (1.0 - adamw.lr * adamw.weight_decay) as f32,
        new1: (1.0 - adamw.beta1) as f32,
        beta2: adamw.beta2 as f32,
        new2: (1.0 - adamw.beta2) as f32,
        root_correction2: correction2.sqrt() as f32,
        eps: adamw.eps as f32,
        step_size: (adamw.lr / correction1) as f32,
    };
    let task = |param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]| {
        let op = Step {
            scalars,
            param,
            grad,
            m,
            v,
        };
        dispatch(isa, op);
    };
    if param.len() <= CHUNK {
        run_task(|| task(param, grad, m, v));
    } else {
        (param.par_chunks_mut(CHUNK))
            .zip(grad.par_chunks(CHUNK))
            .zip(m.par_chunks_mut(CHUNK))
            .zip(v.par_chunks_mut(CHUNK))
            .for_each(each_task(|(((param, grad), m), v)| task(param, grad, m, v)));
    }
}

#[derive(Clone, Copy)]
struct Scalars {
    decay: f32,
    new1: f32,
    beta2: f32,
    new2: f32,
    root_correction2: f32,
    eps: f32,
    step_size: f32,
}

struct Step<'a> {
    scalars: Scalars,
    param: &'a mut [f32],
    grad: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl SimdOp for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let c = self.scalars;
        let (decay, step_size) = (s.splat(c.decay), s.splat(c.step_size));
        let (new1, beta2, new2) = (s.splat(c.new1), s.splat(c.beta2), s.splat(c.new2));
        let (root2, eps) = (s.splat(c.root_correction2), s.splat(c.eps));
        let mut at = 0;
        while at < self.param.len() {
            let n = lanes_at::<S>(at, self.param.len());
            let g = load_at(s, self.grad, at, n);
            let m = load_at(s, self.m, at, n);
            let m = s.mul_add(new1, s.sub(g, m), m);
            let v = s.mul(load_at(s, self.v, at, n), beta2);
            let v = s.mul_add(s.mul(new2, g), g, v);
            let denominator = s.add(s.div(s.sqrt(v), root2), eps);
            let param = s.mul(load_at(s, self.param, at, n), decay);
            let param = s.neg_mul_add(step_size, s.div(m, denominator), param);
            store_at(s, self.m, at, m, n);
            store_at(s, self.v, at, v, n);
            store_at(s, self.param, at, param, n);
            at += S::LANES;
        }
    }
}
