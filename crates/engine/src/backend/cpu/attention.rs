//! Attention: plain and disentangled, in f32 and bf16, and over a cache.

use lowrank_kernels::{
    self as kernels, AttentionSaved, DType, DisentangledGradients, DisentangledInputs,
    DisentangledSaved, Element, Isa, PairWorkspace, RelativePositions, bf16,
};

use super::with_element;
use crate::call::{AttentionGradients, AttentionInputs, CachedAttention, PositionTables};
use crate::space::{Carver, Plain};
use crate::tensor::Tensor;

/// What forward gave, and what arrives.
pub(super) struct Saved<'a> {
    pub out: &'a Tensor,
    pub lse: &'a Tensor,
    pub d_out: &'a Tensor,
}

fn operands<'a, E: Element + Plain>(
    inputs: &AttentionInputs<'a>,
    positions: PositionTables<'a>,
) -> DisentangledInputs<'a, E> {
    DisentangledInputs {
        q: inputs.q.host(),
        k: inputs.k.host(),
        v: inputs.v.host(),
        positions: RelativePositions {
            rows: positions.rows,
            keys: positions.keys.map(Tensor::host),
            queries: positions.queries.map(Tensor::host),
        },
    }
}

/// Values of the tables by distance.
fn forward_len(inputs: &AttentionInputs<'_>, positions: &PositionTables<'_>) -> usize {
    let (shape, tables) = (inputs.shape(), positions.count());
    match inputs.q.dtype() {
        DType::F32 => kernels::disentangled_forward_workspace(&shape, tables),
        DType::Bf16 => kernels::disentangled_forward_workspace_bf16(&shape, tables),
    }
}

/// bf16 values of the tables by distance, and f32 values of the tables' gradients and in f32 of the tables as well.
fn backward_lens(
    inputs: &AttentionInputs<'_>,
    positions: &PositionTables<'_>,
    trained: usize,
) -> [usize; 2] {
    let (shape, tables) = (inputs.shape(), positions.count());
    match inputs.q.dtype() {
        DType::F32 => {
            let len = kernels::disentangled_backward_workspace(&shape, tables, trained);
            [0, len]
        }
        DType::Bf16 => kernels::disentangled_backward_workspace_bf16(&shape, tables, trained),
    }
}

pub(super) fn forward_scratch_bytes(inputs: &AttentionInputs<'_>) -> usize {
    let Some(positions) = &inputs.positions else {
        return 0;
    };
    let len = forward_len(inputs, positions);
    with_element!(inputs.q.dtype(), E => Carver::bytes::<E>(len))
}

pub(super) fn backward_scratch_bytes(
    inputs: &AttentionInputs<'_>,
    gradients: &AttentionGradients<'_>,
) -> usize {
    let Some(positions) = &inputs.positions else {
        return 0;
    };
    let [tables, partial] = backward_lens(inputs, positions, gradients.tables());
    Carver::bytes::<bf16>(tables) + Carver::bytes::<f32>(partial)
}

pub(super) fn forward(
    isa: Isa,
    inputs: &AttentionInputs<'_>,
    out: &mut Tensor,
    lse: &mut Tensor,
    mut scratch: Carver<'_>,
) {
    let (shape, lse, dtype) = (inputs.shape(), lse.host_mut(), out.dtype());
    let AttentionInputs { q, k, v, .. } = inputs;
    let Some(positions) = inputs.positions else {
        match dtype {
            DType::F32 => {
                let (q, k, v) = (q.host(), k.host(), v.host());
                kernels::attention_forward(isa, &shape, q, k, v, out.host_mut(), lse);
            }
            DType::Bf16 => {
                let inputs = [q.host(), k.host(), v.host()];
                kernels::attention_forward_bf16(isa, &shape, inputs, out.host_mut(), lse);
            }
        }
        return;
    };
    let len = forward_len(inputs, &positions);
    match dtype {
        DType::F32 => {
            let (inputs, workspace) = (operands(inputs, positions), scratch.take(len));
            let out = out.host_mut();
            kernels::disentangled_attention_forward(isa, &shape, &inputs, workspace, out, lse);
        }
        DType::Bf16 => {
            let (inputs, workspace) = (operands(inputs, positions), scratch.take(len));
            let out = out.host_mut();
            kernels::disentangled_attention_forward_bf16(isa, &shape, &inputs, workspace, out, lse);
        }
    }
}

pub(super) fn backward(
    isa: Isa,
    inputs: &AttentionInputs<'_>,
    saved: &Saved<'_>,
    gradients: AttentionGradients<'_>,
    scratch: Carver<'_>,
) {
    match inputs.positions {
        None => plain_backward(isa, inputs, saved, gradients),
        Some(positions) => {
            disentangled_backward(isa, (inputs, positions), saved, gradients, scratch)
        }
    }
}

fn plain_backward(
    isa: Isa,
    inputs: &AttentionInputs<'_>,
    saved: &Saved<'_>,
    gradients: AttentionGradients<'_>,
) {
    fn of<'a, E: Element + Plain>(
        inputs: &AttentionInputs<'a>,
        saved: &Saved<'a>,
    ) -> AttentionSaved<'a, E> {
        AttentionSaved {
            q: inputs.q.host(),
            k: inputs.k.host(),
            v: inputs.v.host(),
            out: saved.out.host(),
            lse: saved.lse.host(),
        }
    }
    let AttentionGradients { d_q, d_k, d_v, .. } = gradients;
    let (shape, d_out) = (inputs.shape(), saved.d_out);
    match d_q.dtype() {
        DType::F32 => {
            let (saved, d_out) = (of(inputs, saved), d_out.host());
            let (d_q, d_k, d_v) = (d_q.host_mut(), d_k.host_mut(), d_v.host_mut());
            kernels::attention_backward(isa, &shape, &saved, d_out, d_q, d_k, d_v);
        }
        DType::Bf16 => {
            let (saved, d_out) = (of(inputs, saved), d_out.host());
            let gradients = [d_q.host_mut(), d_k.host_mut(), d_v.host_mut()];
            kernels::attention_backward_bf16(isa, &shape, &saved, d_out, gradients);
        }
    }
}

fn disentangled_backward(
    isa: Isa,
    (inputs, positions): (&AttentionInputs<'_>, PositionTables<'_>),
    saved: &Saved<'_>,
    gradients: AttentionGradients<'_>,
    mut scratch: Carver<'_>,
) {
    fn of<'a, E: Element + Plain>(
        inputs: &AttentionInputs<'a>,
        positions: PositionTables<'a>,
        saved: &Saved<'a>,
    ) -> DisentangledSaved<'a, E> {
        DisentangledSaved {
            inputs: operands(inputs, positions),
            out: saved.out.host(),
            lse: saved.lse.host(),
        }
    }
    fn into<E: Element + Plain>(gradients: AttentionGradients<'_>) -> DisentangledGradients<'_, E> {
        DisentangledGradients {
            d_q: gradients.d_q.host_mut(),
            d_k: gradients.d_k.host_mut(),
            d_v: gradients.d_v.host_mut(),
            d_keys: gradients.d_keys.map(Tensor::host_mut),
            d_queries: gradients.d_queries.map(Tensor::host_mut),
        }
    }
    let (shape, d_out) = (inputs.shape(), saved.d_out);
    let [tables, partial] = backward_lens(inputs, &positions, gradients.tables());
    let (tables, partial) = (scratch.take(tables), scratch.take(partial));
    match d_out.dtype() {
        DType::F32 => {
            let (saved, gradients) = (of(inputs, positions, saved), into(gradients));
            let d_out = d_out.host();
            kernels::disentangled_attention_backward(
                isa, &shape, &saved, d_out, partial, gradients,
            );
        }
        DType::Bf16 => {
            let (saved, gradients) = (of(inputs, positions, saved), into(gradients));
            let (d_out, workspace) = (d_out.host(), PairWorkspace { tables, partial });
            kernels::disentangled_attention_backward_bf16(
                isa, &shape, &saved, d_out, workspace, gradients,
            );
        }
    }
}

pub(super) fn cached(isa: Isa, call: CachedAttention<'_>) {
    with_element!(call.q.dtype(), E => {
        let args = kernels::CachedAttention {
            num_heads: call.num_heads,
            head_dim: call.head_dim,
            scale: call.scale,
            q: call.q.host::<E>(),
            k: call.k.host(),
            v: call.v.host(),
            rows: call.rows,
        };
        kernels::attention_cached(isa, &args, call.out.host_mut());
    });
}
