//! Losses that turn their logits into gradients in place.

use crate::isa::Isa;
use crate::math::exp;
use crate::parallel::rows_per_task;
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};
use rayon::prelude::*;

/// The label of a row that does not count.
const IGNORE_INDEX: i64 = -100;

/// How the cross entropy and its gradient are scaled.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropyForm {
    /// Multiplies the gradient.
    pub grad_scale: f32,
    /// ε: the target is (1 - ε) onehot + ε / c. Source: Szegedy et al. 2016; transformers' `LabelSmoother`.
    pub smoothing: f32,
}

/// Cross entropy of each row. Shapes: logits [n, c]; labels, losses `[n]`.
///
/// `losses[i] = ln Σ exp(logits[i]) - Σ target logits[i]`, 0 where the label is -100; logits become
/// (softmax - target) grad_scale, 0 in ignored rows. Panics if a length disagrees or a label is not -100 nor below c.
pub fn cross_entropy(
    isa: Isa,
    logits: &mut [f32],
    c: usize,
    labels: &[i64],
    form: CrossEntropyForm,
    losses: &mut [f32],
) {
    let n = labels.len();
    assert_eq!(logits.len(), n * c);
    assert_eq!(losses.len(), n);
    for &label in labels {
        assert!(
            label == IGNORE_INDEX || (0..c as i64).contains(&label),
            "label {label} of {c} classes"
        );
    }
    if n == 0 || c == 0 {
        losses.fill(0.0);
        return;
    }
    let rows = rows_per_task(c);
    let task = |logits: &mut [f32], labels: &[i64], losses: &mut [f32]| {
        let op = CrossEntropy {
            logits,
            c,
            labels,
            form,
            losses,
        };
        dispatch(isa, op);
    };
    if n <= rows {
        task(logits, labels, losses);
    } else {
        (logits.par_chunks_mut(rows * c))
            .zip(labels.par_chunks(rows))
            .zip(losses.par_chunks_mut(rows))
            .for_each(|((logits, labels), losses)| task(logits, labels, losses));
    }
}

struct CrossEntropy<'a> {
    logits: &'a mut [f32],
    c: usize,
    labels: &'a [i64],
    form: CrossEntropyForm,
    losses: &'a mut [f32],
}

impl SimdOp for CrossEntropy<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, &label) in self.labels.iter().enumerate() {
            let row = &mut self.logits[i * self.c..][..self.c];
            if label == IGNORE_INDEX {
                row.fill(0.0);
                self.losses[i] = 0.0;
                continue;
            }
            let label = label as usize;
            let CrossEntropyForm {
                grad_scale,
                smoothing,
            } = self.form;
            let at_label = row[label];
            let max = row_max(s, row);
            let mean = if smoothing > 0.0 {
                max - row_shortfall(s, row, max) / self.c as f32
            } else {
                at_label
            };
            let sum = exp_in_place(s, row, max);
            let expected = at_label + smoothing * (mean - at_label);
            self.losses[i] = sum.ln() + (max - expected);
            crate::elementwise::scale_in_place(s, row, grad_scale / sum);
            if smoothing > 0.0 {
                shift_in_place(s, row, -grad_scale * smoothing / self.c as f32);
            }
            row[label] -= grad_scale * (1.0 - smoothing);
        }
    }
}

/// The largest value of a row that is not empty.
#[inline(always)]
pub(crate) fn row_max<S: Simd>(s: S, x: &[f32]) -> f32 {
    if x.len() < S::LANES {
        let mut largest = f32::NEG_INFINITY;
        for &v in x {
            largest = if v > largest { v } else { largest };
        }
        return largest;
    }
    // The last vector may overlap the one before: a maximum does not mind.
    let last = x.len() - S::LANES;
    let mut max = load_at(s, x, last, S::LANES);
    let mut at = 0;
    while at < last {
        max = s.max(max, load_at(s, x, at, S::LANES));
        at += S::LANES;
    }
    s.reduce_max(max)
}

/// Σ (max - x): small beside Σ x where all values are large, and so exact enough for a mean.
#[inline(always)]
fn row_shortfall<S: Simd>(s: S, x: &[f32], max: f32) -> f32 {
    let from = s.splat(max);
    let mut sum = s.splat(0.0);
    let whole = x.len() / S::LANES * S::LANES;
    let mut at = 0;
    while at < whole {
        sum = s.add(sum, s.sub(from, load_at(s, x, at, S::LANES)));
        at += S::LANES;
    }
    let rest: f32 = x[whole..].iter().map(|v| max - v).sum();
    s.reduce_add(sum) + rest
}

/// x += shift.
#[inline(always)]
fn shift_in_place<S: Simd>(s: S, x: &mut [f32], shift: f32) {
    let shift = s.splat(shift);
    let mut at = 0;
    while at < x.len() {
        let n = lanes_at::<S>(at, x.len());
        store_at(s, x, at, s.add(load_at(s, x, at, n), shift), n);
        at += S::LANES;
    }
}

/// x = exp(x - shift); returns the sum.
#[inline(always)]
pub(crate) fn exp_in_place<S: Simd>(s: S, x: &mut [f32], shift: f32) -> f32 {
    let shift = s.splat(shift);
    let mut sum = s.splat(0.0);
    let whole = x.len() / S::LANES * S::LANES;
    let mut at = 0;
    while at < whole {
        let e = exp(s, s.sub(load_at(s, x, at, S::LANES), shift));
        store_at(s, x, at, e, S::LANES);
        sum = s.add(sum, e);
        at += S::LANES;
    }
    let rest = x.len() - whole;
    if rest > 0 {
        let e = exp(s, s.sub(load_at(s, x, whole, rest), shift));
        store_at(s, x, whole, e, rest);
        // Loaded again, the lanes behind the end are zero.
        sum = s.add(sum, load_at(s, x, whole, rest));
    }
    s.reduce_add(sum)
}

/// Squared error, element by element: losses = (x - t)²; logits become 2 (x - t) grad_scale. Panics if lengths differ.
pub fn mse(logits: &mut [f32], targets: &[f32], grad_scale: f32, losses: &mut [f32]) {
    assert_eq!(logits.len(), targets.len());
    assert_eq!(logits.len(), losses.len());
    for ((x, &target), loss) in logits.iter_mut().zip(targets).zip(losses) {
        let difference = *x - target;
        *loss = difference * difference;
        *x = 2.0 * difference * grad_scale;
    }
}

/// Binary cross entropy on logits, element by element: losses = max(x, 0) - x t + ln(1 + e^-|x|); logits become
/// (sigmoid(x) - t) grad_scale. Panics if lengths differ.
pub fn bce_with_logits(logits: &mut [f32], targets: &[f32], grad_scale: f32, losses: &mut [f32]) {
    assert_eq!(logits.len(), targets.len());
    assert_eq!(logits.len(), losses.len());
    for ((x, &target), loss) in logits.iter_mut().zip(targets).zip(losses) {
        let value = *x;
        let e = (-value.abs()).exp();
        *loss = value.max(0.0) - value * target + e.ln_1p();
        let sigmoid = if value >= 0.0 {
            1.0 / (1.0 + e)
        } else {
            e / (1.0 + e)
        };
        *x = (sigmoid - target) * grad_scale;
    }
}
