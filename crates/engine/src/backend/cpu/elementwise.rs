//! Calls over single elements or rows: storage, rotations, gates and losses.

use lowrank_kernels::{self as kernels, Activation, Element, Isa};

use super::with_element;
use crate::call::{CrossEntropy, ElementLoss, GateUp, GateUpGradients, Rotation, RotationSense};
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

pub(super) fn scale(isa: Isa, x: &mut Tensor, factor: f32) {
    with_element!(x.dtype(), E => kernels::scale(isa, x.host_mut::<E>(), factor));
}

pub(super) fn rotate(isa: Isa, rotation: &Rotation<'_>, sense: RotationSense, x: &mut Tensor) {
    let rope = kernels::Rope {
        head_dim: rotation.form.head_dim,
        rotary_dim: rotation.form.rotary_dim,
        layout: rotation.form.layout,
        cos: rotation.cos.host(),
        sin: rotation.sin.host(),
        positions: rotation.positions,
    };
    with_element!(x.dtype(), E => match sense {
        RotationSense::Forward => kernels::rope_forward::<E>(isa, &rope, x.host_mut()),
        RotationSense::Backward => kernels::rope_backward::<E>(isa, &rope, x.host_mut()),
    });
}

fn gate_up<'a, E: Element>(x: &GateUp<'a>) -> kernels::GateUp<'a, E> {
    match x {
        GateUp::Separate(gate, up) => kernels::GateUp::Separate {
            gate: gate.host(),
            up: up.host(),
        },
        GateUp::Halves(x) => kernels::GateUp::Halves(x.host()),
    }
}

pub(super) fn gated(isa: Isa, kind: Activation, x: &GateUp<'_>, y: &mut Tensor) {
    let width = y.cols();
    with_element!(y.dtype(), E => {
        kernels::gated_forward::<E>(isa, kind, gate_up(x), width, y.host_mut());
    });
}

pub(super) fn gated_backward(
    isa: Isa,
    kind: Activation,
    x: &GateUp<'_>,
    d_y: &Tensor,
    d_x: GateUpGradients<'_>,
) {
    with_element!(d_y.dtype(), E => {
        let args = kernels::GatedBackward::<E> {
            kind,
            x: gate_up(x),
            width: d_y.cols(),
            d_y: d_y.host(),
        };
        let d_x = match d_x {
            GateUpGradients::Separate(d_gate, d_up) => kernels::GateUpGradients::Separate {
                d_gate: d_gate.host_mut(),
                d_up: d_up.host_mut(),
            },
            GateUpGradients::Halves(d) => kernels::GateUpGradients::Halves(d.host_mut()),
        };
        kernels::gated_backward(isa, &args, d_x);
    });
}

/// Adds the losses of the rows in f64. Each is an f32 in `losses`, of as many rows.
pub(super) fn cross_entropy(isa: Isa, call: CrossEntropy<'_>, losses: &mut [f32]) {
    let CrossEntropy {
        logits,
        labels,
        form,
        gradient,
        sum,
    } = call;
    let classes = logits.cols();
    match gradient {
        None => kernels::cross_entropy(isa, logits.host_mut(), classes, labels, form, losses),
        Some(into) => {
            let width = into.tensor.cols();
            let range = into.rows.start * width..into.rows.end * width;
            let logits = logits.host_mut();
            with_element!(into.tensor.dtype(), E => {
                let d = &mut into.tensor.host_mut::<E>()[range];
                kernels::cross_entropy_into(isa, logits, labels, form, losses, d);
            });
        }
    }
    *sum.host_mut() += sum_of(losses);
}

fn sum_of(losses: &[f32]) -> f64 {
    losses.iter().map(|&loss| f64::from(loss)).sum()
}

/// The sum of the elements' losses, each of which is an f32 in `losses`.
pub(super) fn element_loss(
    kind: ElementLoss,
    logits: &mut Tensor,
    targets: &[f32],
    grad_scale: f32,
    losses: &mut [f32],
) -> f64 {
    match kind {
        ElementLoss::Mse => kernels::mse(logits.host_mut(), targets, grad_scale, losses),
        ElementLoss::BceWithLogits => {
            kernels::bce_with_logits(logits.host_mut(), targets, grad_scale, losses);
        }
    }
    sum_of(losses)
}
