//! The losses: the end of the tape. Each gives the sum over counted targets and turns the logits into their gradient.
//! Shapes: logits, d_logits [N, C]. Losses are summed in f64.

use lowrank_kernels as kernels;
use lowrank_kernels::{CrossEntropyForm, Isa};

use crate::meter::Purpose;
use crate::tape::Var;
use crate::tensor::Tensor;

/// What the logits are compared with.
#[derive(Debug, Clone, Copy)]
pub enum Targets<'a> {
    /// One class a row `[N]`; -100 is not counted. Cross-entropy.
    Class(&'a [i64]),
    /// One value a logit [N·C]. Mean squared error.
    Value(&'a [f32]),
    /// One value in 0..=1 a logit [N·C]. Binary cross-entropy with logits.
    Multi(&'a [f32]),
}

impl Targets<'_> {
    /// How many targets count in the loss: rows for classes, elements otherwise.
    pub fn count(&self) -> usize {
        match self {
            Targets::Class(labels) => labels
                .iter()
                .filter(|&&label| label != IGNORE_INDEX)
                .count(),
            Targets::Value(values) | Targets::Multi(values) => values.len(),
        }
    }
}

/// A label that the loss does not count. Source: PyTorch's `ignore_index`.
pub const IGNORE_INDEX: i64 = -100;

/// The loss of one micro-batch.
pub struct LossOutput {
    /// Sum over the counted targets; 0 on the dry device.
    pub sum: f64,
    /// How many targets were counted.
    pub count: usize,
    /// d(sum · grad_scale) / d(logits).
    pub d_logits: Tensor,
}

/// The loss of `logits` against `targets`. With `grad_scale` = 1 / (targets of the whole optimizer step), gradients
/// summed over micro-batches are those of the mean over the step. Panics if the numbers disagree.
pub fn loss(logits: &Var, targets: Targets<'_>, grad_scale: f32) -> LossOutput {
    let logits = logits.tensor();
    let device = logits.device();
    let (rows, cols) = (logits.rows(), logits.cols());
    let mut d_logits = logits.to_f32(Purpose::Activations);
    let (expected, found) = match targets {
        Targets::Class(labels) => (rows, labels.len()),
        Targets::Value(values) | Targets::Multi(values) => (rows * cols, values.len()),
    };
    assert_eq!(found, expected, "loss: the logits are [{rows}, {cols}]");
    let mut losses = Tensor::uninit(device, 1, expected, Purpose::Workspace);
    let mut sum = 0.0;
    device.exec("loss", 0, |isa: Isa| {
        let (d, losses) = (d_logits.data_mut(), losses.data_mut());
        match targets {
            Targets::Class(labels) => {
                let form = CrossEntropyForm {
                    grad_scale,
                    smoothing: 0.0,
                };
                kernels::cross_entropy(isa, d, cols, labels, form, losses)
            }
            Targets::Value(values) => kernels::mse(d, values, grad_scale, losses),
            Targets::Multi(values) => kernels::bce_with_logits(d, values, grad_scale, losses),
        }
        sum = losses.iter().map(|&l| f64::from(l)).sum();
    });
    LossOutput {
        sum,
        count: targets.count(),
        d_logits,
    }
}
