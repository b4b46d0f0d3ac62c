//! Norms over rows: layer norm and RMS norm, in either storage.

use lowrank_kernels::{self as kernels, Element, Isa, LayerNormForward, ResidualSum, RmsNorm};

use super::with_element;
use crate::call::{Norm, NormForm, NormInput, NormKind, NormSaved};
use crate::tensor::Tensor;

fn rms<'a>(form: &NormForm<'a>, factor: kernels::RmsFactor) -> RmsNorm<'a> {
    let (weight, eps) = (form.weight.host(), form.eps);
    RmsNorm {
        weight,
        factor,
        eps,
    }
}

/// The mean that every layer norm has.
fn mean_of<'a>(saved: &NormSaved<'a>) -> &'a [f32] {
    saved.mean.expect("a layer norm has a mean").host()
}

pub(super) fn norm(isa: Isa, call: Norm<'_>) {
    with_element!(call.y.dtype(), E => match call.form.kind {
        NormKind::Layer { bias } => layer_norm::<E>(isa, call, bias),
        NormKind::Rms { factor } => rms_norm::<E>(isa, call, factor),
    });
}

fn layer_norm<E: Element>(isa: Isa, call: Norm<'_>, bias: &Tensor) {
    let (weight, bias, eps) = (call.form.weight.host(), bias.host(), call.form.eps);
    let mean = call.mean.expect("a layer norm has a mean").host_mut();
    let (y, rstd) = (call.y.host_mut(), call.rstd.host_mut());
    match call.input {
        NormInput::Plain(z) => {
            let norm = kernels::LayerNorm {
                z: z.host::<E>(),
                weight,
                bias,
                eps,
                y,
                mean,
                rstd,
            };
            kernels::layer_norm(isa, norm);
        }
        NormInput::Residual {
            x,
            residual,
            dropout,
        } => {
            let norm = LayerNormForward {
                x: x.host_mut::<E>(),
                residual: residual.map(Tensor::host),
                dropout,
                weight,
                bias,
                eps,
                y,
                mean,
                rstd,
            };
            kernels::layer_norm_forward(isa, norm);
        }
    }
}

fn rms_norm<E: Element>(isa: Isa, call: Norm<'_>, factor: kernels::RmsFactor) {
    let norm = rms(&call.form, factor);
    let (y, rstd) = (call.y.host_mut(), call.rstd.host_mut());
    match call.input {
        NormInput::Plain(z) => kernels::rms_norm::<E>(isa, &norm, z.host(), y, rstd),
        NormInput::Residual {
            x,
            residual,
            dropout,
        } => {
            let (x, residual) = (x.host_mut::<E>(), residual.map(Tensor::host));
            let sum = ResidualSum {
                x,
                residual,
                dropout,
            };
            kernels::rms_norm_of_sum(isa, &norm, sum, y, rstd);
        }
    }
}

pub(super) fn recompute(isa: Isa, saved: &NormSaved<'_>, form: &NormForm<'_>, y: &mut Tensor) {
    let rstd = saved.rstd.host();
    with_element!(y.dtype(), E => match form.kind {
        NormKind::Layer { bias } => {
            let (stats, params) = ([mean_of(saved), rstd], [form.weight.host(), bias.host()]);
            kernels::layer_norm_recompute(isa, saved.z.host::<E>(), stats, params, y.host_mut());
        }
        NormKind::Rms { factor } => {
            let norm = rms(form, factor);
            kernels::rms_norm_recompute(isa, &norm, saved.z.host::<E>(), rstd, y.host_mut());
        }
    });
}

pub(super) fn backward(isa: Isa, saved: &NormSaved<'_>, form: &NormForm<'_>, d: &mut Tensor) {
    let rstd = saved.rstd.host();
    with_element!(d.dtype(), E => {
        let z = saved.z.host::<E>();
        match form.kind {
            NormKind::Layer { .. } => {
                let (mean, weight) = (mean_of(saved), form.weight.host());
                kernels::layer_norm_backward(isa, z, mean, rstd, weight, d.host_mut());
            }
            NormKind::Rms { factor } => {
                kernels::rms_norm_backward(isa, &rms(form, factor), z, rstd, d.host_mut());
            }
        }
    });
}

pub(super) fn param_grads(
    isa: Isa,
    saved: &NormSaved<'_>,
    d_y: &Tensor,
    d_weight: &mut Tensor,
    d_bias: Option<&mut Tensor>,
) {
    let (rstd, d_weight) = (saved.rstd.host(), d_weight.host_mut());
    with_element!(d_y.dtype(), E => {
        let (z, d_y) = (saved.z.host::<E>(), d_y.host());
        match d_bias {
            Some(d_bias) => {
                let (mean, d_bias) = (mean_of(saved), d_bias.host_mut());
                kernels::layer_norm_param_grads(isa, z, mean, rstd, d_y, [d_weight, d_bias]);
            }
            None => kernels::rms_norm_weight_grad(isa, z, rstd, d_y, d_weight),
        }
    });
}
