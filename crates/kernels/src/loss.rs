//! Losses that turn their logits into gradients in place.

use crate::element::Element;
use crate::isa::Isa;
use crate::math::exp;
use crate::parallel::rows_per_task;
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};
use crate::tasks::each_task;
use rayon::prelude::*;

/// A label that does not count. Source: PyTorch's `ignore_index`.
pub const IGNORE_INDEX: i64 = -100;

/// How the cross entropy and its gradient are scaled.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropyForm {
    /// Multiplies the gradient.
    pub grad_scale: f32,
    /// ε: the target is (1 - ε) onehot + ε / c. Source: Szegedy et al. 2016; transformers'
    /// `LabelSmoother`.
    pub smoothing: f32,
}

/// Cross entropy of each row. Shapes: logits [n, c]; labels, losses `[n]`.
///
/// `losses[i] = ln Σ exp(logits[i]) - Σ target logits[i]`, 0 where the label is -100; logits become
/// (softmax - target) grad_scale, 0 in ignored rows. Panics if a length disagrees or a label is not
/// -100 nor below c.
pub fn cross_entropy(
    isa: Isa,
    logits: &mut [f32],
    c: usize,
    labels: &[i64],
    form: CrossEntropyForm,
    losses: &mut [f32],
) {
    check(logits, c, labels, losses);
    if labels.is_empty() || c == 0 {
        losses.fill(0.0);
        return;
    }
    let rows = rows_per_task(c);
    (logits.par_chunks_mut(rows * c))
        .zip(labels.par_chunks(rows))
        .zip(losses.par_chunks_mut(rows))
        .for_each(each_task(|((logits, labels), losses)| {
            let d = None::<&mut [f32]>;
            dispatch(
                isa,
                CrossEntropy {
                    logits,
                    labels,
                    form,
                    losses,
                    d,
                },
            );
        }));
}

/// As [`cross_entropy`], but the gradient goes to `d` [n, c or wider], rounded if that is narrower,
/// with zeros behind column c; the logits are left without meaning. Panics also if `d` is not n
/// rows.
pub fn cross_entropy_into<E: Element>(
    isa: Isa,
    logits: &mut [f32],
    labels: &[i64],
    form: CrossEntropyForm,
    losses: &mut [f32],
    d: &mut [E],
) {
    let c = logits.len() / labels.len().max(1);
    check(logits, c, labels, losses);
    if labels.is_empty() || c == 0 {
        losses.fill(0.0);
        d.fill(E::narrow(0.0));
        return;
    }
    let (rows, width) = (rows_per_task(c), d.len() / labels.len());
    assert!(
        width >= c && d.len() == width * labels.len(),
        "rows of the gradient"
    );
    (logits.par_chunks_mut(rows * c))
        .zip(labels.par_chunks(rows))
        .zip(losses.par_chunks_mut(rows))
        .zip(d.par_chunks_mut(rows * width))
        .for_each(each_task(|(((logits, labels), losses), d)| {
            let d = Some(d);
            dispatch(
                isa,
                CrossEntropy {
                    logits,
                    labels,
                    form,
                    losses,
                    d,
                },
            );
        }));
}

fn check(logits: &[f32], c: usize, labels: &[i64], losses: &[f32]) {
    assert_eq!(logits.len(), labels.len() * c);
    assert_eq!(losses.len(), labels.len());
    for &label in labels {
        assert!(
            label == IGNORE_INDEX || (0..c as i64).contains(&label),
            "label {label} of {c} classes"
        );
    }
}

/// Rows that are neither none nor empty.
struct CrossEntropy<'a, E> {
    logits: &'a mut [f32],
    labels: &'a [i64],
    form: CrossEntropyForm,
    losses: &'a mut [f32],
    /// Where the gradient goes, if not to the logits.
    d: Option<&'a mut [E]>,
}

impl<E: Element> SimdOp for CrossEntropy<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let n = self.labels.len();
        let c = self.logits.len() / n;
        let rows = (self.logits.chunks_exact_mut(c))
            .zip(self.labels)
            .zip(self.losses);
        for (i, ((row, &label), loss)) in rows.enumerate() {
            let d = self.d.as_deref_mut().map(|d| {
                let width = d.len() / n;
                &mut d[i * width..][..width]
            });
            let Ok(label) = usize::try_from(label) else {
                *loss = 0.0;
                match d {
                    None => row.fill(0.0),
                    Some(d) => d.fill(E::narrow(0.0)),
                }
                continue;
            };
            let at_label;
            let slope;
            (*loss, at_label, slope) = exponents(s, row, label, self.form);
            match d {
                None => {
                    // SAFETY: the row is its own destination.
                    unsafe { slope.apply(s, row.as_ptr(), c, row.as_mut_ptr()) };
                    row[label] = at_label;
                }
                Some(d) => {
                    // SAFETY: d is at least as wide as the row.
                    unsafe { slope.apply(s, row.as_ptr(), c, d.as_mut_ptr()) };
                    d[label] = E::narrow(at_label);
                    d[c..].fill(E::narrow(0.0));
                }
            }
        }
    }
}

/// The gradient off the label: factor · e + shift.
struct Slope {
    factor: f32,
    shift: f32,
}

impl Slope {
    #[inline(always)]
    fn at(&self, e: f32) -> f32 {
        self.factor * e + self.shift
    }

    /// # Safety
    /// `e` holds n values, `d` has room for as many; both may be the same place.
    #[inline(always)]
    unsafe fn apply<S: Simd, E: Element>(&self, s: S, e: *const f32, n: usize, d: *mut E) {
        let (factor, shift) = (s.splat(self.factor), s.splat(self.shift));
        let mut at = 0;
        while at < n {
            let lanes = lanes_at::<S>(at, n);
            // SAFETY: the caller's contract.
            unsafe {
                let v = s.add(s.mul(f32::load_n(s, e.add(at), lanes), factor), shift);
                E::store_n(s, d.add(at), v, lanes);
            }
            at += S::LANES;
        }
    }
}

/// The loss of a row that is not empty, the gradient at its label, and how it is made elsewhere
/// from the exponentials that the logits become.
#[inline(always)]
fn exponents<S: Simd>(
    s: S,
    row: &mut [f32],
    label: usize,
    form: CrossEntropyForm,
) -> (f32, f32, Slope) {
    let CrossEntropyForm {
        grad_scale,
        smoothing,
    } = form;
    let c = row.len() as f32;
    let at_label = row[label];
    let max = row_max(s, row);
    let mean = if smoothing > 0.0 {
        max - row_shortfall(s, row, max) / c
    } else {
        at_label
    };
    let sum = exp_sum(s, row, max);
    let expected = at_label + smoothing * (mean - at_label);
    let slope = Slope {
        factor: grad_scale / sum,
        shift: -grad_scale * smoothing / c,
    };
    let gradient = slope.at(row[label]) - grad_scale * (1.0 - smoothing);
    (sum.ln() + (max - expected), gradient, slope)
}

/// Values whose exponentials are summed in f32. A large vocabulary has many that are small beside
/// the sum so far and would be lost one by one: 262,144 logits of Gemma 3 lost 3e-5 of
/// their loss.
const SUM_BLOCK: usize = 1024;

/// x = exp(x - shift); returns their sum.
#[inline(always)]
fn exp_sum<S: Simd>(s: S, x: &mut [f32], shift: f32) -> f32 {
    let blocks = x.chunks_mut(SUM_BLOCK);
    let sum: f64 = blocks
        .map(|block| f64::from(exp_in_place(s, block, shift)))
        .sum();
    sum as f32
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

/// Squared error, element by element: losses = (x - t)²; logits become 2 (x - t) grad_scale. Panics
/// if lengths differ.
pub fn mse(logits: &mut [f32], targets: &[f32], grad_scale: f32, losses: &mut [f32]) {
    assert_eq!(logits.len(), targets.len());
    assert_eq!(logits.len(), losses.len());
    for ((x, &target), loss) in logits.iter_mut().zip(targets).zip(losses) {
        let difference = *x - target;
        *loss = difference * difference;
        *x = 2.0 * difference * grad_scale;
    }
}

/// Binary cross entropy on logits, element by element: losses = max(x, 0) - x t + ln(1 + e^-|x|);
/// logits become (sigmoid(x) - t) grad_scale. Panics if lengths differ.
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
