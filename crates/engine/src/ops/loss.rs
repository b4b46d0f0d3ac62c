//! The losses: the end of the tape. Each gives the sum over counted targets and turns the logits
//! into their gradient.
//! Shapes: logits, d_logits [N, C]. Losses are summed in f64.

pub use lowrank_kernels::IGNORE_INDEX;

use lowrank_kernels::CrossEntropyForm;

use crate::call::{Call, CrossEntropy, ElementLoss};
use crate::meter::Purpose;
use crate::tape::Var;
use crate::tensor::{Scalar, Tensor};

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

/// The loss of one micro-batch.
pub struct LossOutput {
    /// Sum over the counted targets; 0 on the dry device.
    pub sum: f64,
    /// How many targets were counted.
    pub count: usize,
    /// d(sum · grad_scale) / d(logits).
    pub d_logits: Tensor,
}

/// The loss of `logits` against `targets`. With `grad_scale` = 1 / (targets of the whole optimizer
/// step), gradients summed over micro-batches are those of the mean over the step. Panics if the
/// numbers disagree.
pub fn loss(logits: &Var, targets: Targets<'_>, grad_scale: f32) -> LossOutput {
    let device = logits.tensor().device();
    let mut d_logits = logits.tensor().to_f32(Purpose::Activations);
    let mut sum = Scalar::zero(device);
    let mut of_elements = |kind, targets| {
        device.run(Call::ElementLoss {
            kind,
            logits: &mut d_logits,
            targets,
            grad_scale,
            sum: &mut sum,
        });
    };
    match targets {
        Targets::Value(values) => of_elements(ElementLoss::Mse, values),
        Targets::Multi(values) => of_elements(ElementLoss::BceWithLogits, values),
        Targets::Class(labels) => device.run(Call::CrossEntropy(CrossEntropy {
            logits: &mut d_logits,
            labels,
            form: CrossEntropyForm {
                grad_scale,
                smoothing: 0.0,
            },
            gradient: None,
            sum: &mut sum,
        })),
    }
    LossOutput {
        sum: sum.read(),
        count: targets.count(),
        d_logits,
    }
}
