//! The definition of norms.

use lowrank_kernels::RmsFactor;
use lowrank_kernels::reference as definition;

use super::{add, dropout};
use crate::call::{Norm, NormForm, NormInput, NormKind, NormSaved};
use crate::tensor::Tensor;

/// What rows are multiplied with.
fn factor(form: &NormForm<'_>) -> Vec<f64> {
    let offset = match form.kind {
        NormKind::Layer { .. }
        | NormKind::Rms {
            factor: RmsFactor::Weight,
        } => 0.0,
        NormKind::Rms {
            factor: RmsFactor::OnePlusWeight,
        } => 1.0,
    };
    form.weight
        .host::<f64>()
        .iter()
        .map(|w| offset + w)
        .collect()
}

pub(super) fn norm(call: Norm<'_>) {
    let z = match call.input {
        NormInput::Plain(z) => z.host::<f64>(),
        NormInput::Residual {
            x,
            residual,
            dropout: mask,
        } => {
            let z = x.host_mut();
            mask.into_iter().for_each(|mask| dropout(mask, z));
            residual.into_iter().for_each(|r| add(z, r.host()));
            z
        }
    };
    let (eps, weight) = (f64::from(call.form.eps), factor(&call.form));
    let (y, rstd) = match call.form.kind {
        NormKind::Layer { bias } => {
            let result = definition::layer_norm(z, &weight, bias.host(), eps);
            if let Some(mean) = call.mean {
                mean.host_mut().copy_from_slice(&result.mean);
            }
            (result.y, result.rstd)
        }
        NormKind::Rms { .. } => definition::rms_norm(z, &weight, eps),
    };
    call.y.host_mut().copy_from_slice(&y);
    call.rstd.host_mut().copy_from_slice(&rstd);
}

/// The mean of each row; zeros for an RMS norm.
fn means(saved: &NormSaved<'_>) -> Vec<f64> {
    let zeros = || vec![0.0; saved.rstd.len()];
    saved.mean.map_or_else(zeros, |mean| mean.host().to_vec())
}

pub(super) fn recompute(saved: &NormSaved<'_>, form: &NormForm<'_>, y: &mut [f64]) {
    let (z, rstd) = (saved.z.host::<f64>(), saved.rstd.host::<f64>());
    let (mean, weight) = (means(saved), factor(form));
    let bias = match form.kind {
        NormKind::Layer { bias } => bias.host().to_vec(),
        NormKind::Rms { .. } => vec![0.0; weight.len()],
    };
    for (i, y) in y.iter_mut().enumerate() {
        let (row, j) = (i / weight.len(), i % weight.len());
        *y = (z[i] - mean[row]) * rstd[row] * weight[j] + bias[j];
    }
}

fn saved_layer_norm(saved: &NormSaved<'_>) -> definition::LayerNorm {
    definition::LayerNorm {
        z: saved.z.host().to_vec(),
        y: Vec::new(),
        mean: means(saved),
        rstd: saved.rstd.host().to_vec(),
    }
}

pub(super) fn backward(saved: &NormSaved<'_>, form: &NormForm<'_>, d: &mut [f64]) {
    let weight = factor(form);
    let d_z = match form.kind {
        NormKind::Layer { .. } => {
            definition::layer_norm_backward(&saved_layer_norm(saved), &weight, d).0
        }
        NormKind::Rms { .. } => {
            let (z, rstd) = (saved.z.host(), saved.rstd.host());
            definition::rms_norm_backward(z, &weight, rstd, d).0
        }
    };
    d.copy_from_slice(&d_z);
}

pub(super) fn param_grads(
    saved: &NormSaved<'_>,
    d_y: &[f64],
    d_weight: &mut Tensor,
    d_bias: Option<&mut Tensor>,
) {
    // The parameters' gradients do not depend on the weight.
    let ones = vec![1.0; d_weight.len()];
    match d_bias {
        Some(d_bias) => {
            let norm = saved_layer_norm(saved);
            let (_, weight, bias) = definition::layer_norm_backward(&norm, &ones, d_y);
            add(d_weight.host_mut(), &weight);
            add(d_bias.host_mut(), &bias);
        }
        None => {
            let (z, rstd) = (saved.z.host(), saved.rstd.host());
            let (_, weight) = definition::rms_norm_backward(z, &ones, rstd, d_y);
            add(d_weight.host_mut(), &weight);
        }
    }
}
