//! Calls over single elements or rows: storage, norms and losses.

use lowrank_kernels::{self as kernels, DType, Element, Isa, LayerNormForward, bf16};

use super::with_element;
use crate::call::{CrossEntropy, ElementLoss, LayerNorm, NormInput};
use crate::space::Carver;
use crate::tensor::Tensor;

pub(super) fn fill(out: &mut Tensor, value: f32) {
    with_element!(out.dtype(), E => out.host_mut::<E>().fill(E::narrow(value)));
}

pub(super) fn convert(isa: Isa, x: &Tensor, out: &mut Tensor) {
    with_element!(x.dtype(), X => with_element!(out.dtype(), E => {
        kernels::convert(isa, out.host_mut::<E>(), x.host::<X>());
    }));
}

pub(super) fn add(isa: Isa, x: &Tensor, out: &mut Tensor) {
    with_element!(out.dtype(), E => kernels::add_assign(isa, out.host_mut::<E>(), x.host::<E>()));
}

pub(super) fn layer_norm(isa: Isa, norm: LayerNorm<'_>) {
    let LayerNorm {
        input,
        weight,
        bias,
        eps,
        y,
        mean,
        rstd,
    } = norm;
    let (weight, bias) = (weight.host(), bias.host());
    let (mean, rstd) = (mean.host_mut(), rstd.host_mut());
    with_element!(y.dtype(), E => match input {
        NormInput::Plain(z) => {
            let norm = kernels::LayerNorm {
                z: z.host::<E>(),
                weight,
                bias,
                eps,
                y: y.host_mut(),
                mean,
                rstd,
            };
            kernels::layer_norm(isa, norm);
        }
        NormInput::Residual { x, residual, dropout } => {
            let norm = LayerNormForward {
                x: x.host_mut::<E>(),
                residual: residual.map(Tensor::host),
                dropout,
                weight,
                bias,
                eps,
                y: y.host_mut(),
                mean,
                rstd,
            };
            kernels::layer_norm_forward(isa, norm);
        }
    });
}

/// Adds the losses of the rows, each an f32, in f64.
pub(super) fn cross_entropy(isa: Isa, call: CrossEntropy<'_>, mut scratch: Carver<'_>) {
    let CrossEntropy {
        logits,
        labels,
        form,
        gradient,
        sum,
    } = call;
    let (losses, classes) = (scratch.take::<f32>(labels.len()), logits.cols());
    match gradient {
        None => kernels::cross_entropy(isa, logits.host_mut(), classes, labels, form, losses),
        Some(into) => {
            let width = into.tensor.cols();
            let range = into.rows.start * width..into.rows.end * width;
            let logits = (logits.host_mut(), classes);
            match into.tensor.dtype() {
                DType::F32 => {
                    let d: &mut [f32] = &mut into.tensor.host_mut()[range];
                    kernels::cross_entropy_into(isa, logits, labels, form, losses, d);
                }
                DType::Bf16 => {
                    let d: &mut [bf16] = &mut into.tensor.host_mut()[range];
                    kernels::cross_entropy_into(isa, logits, labels, form, losses, d);
                }
            }
        }
    }
    *sum.host_mut() += sum_of(losses);
}

fn sum_of(losses: &[f32]) -> f64 {
    losses.iter().map(|&loss| f64::from(loss)).sum()
}

/// The sum of the elements' losses.
pub(super) fn element_loss(
    kind: ElementLoss,
    logits: &mut Tensor,
    (targets, grad_scale): (&[f32], f32),
    mut scratch: Carver<'_>,
) -> f64 {
    let losses = scratch.take::<f32>(targets.len());
    match kind {
        ElementLoss::Mse => kernels::mse(logits.host_mut(), targets, grad_scale, losses),
        ElementLoss::BceWithLogits => {
            kernels::bce_with_logits(logits.host_mut(), targets, grad_scale, losses);
        }
    }
    sum_of(losses)
}
