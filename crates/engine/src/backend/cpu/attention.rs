//! Attention: plain and disentangled, in f32 and bf16, and over a cache.

use lowrank_kernels::{
    self as kernels, Attended, AttentionElement, AttentionOperands, Element, Isa, MatMut, MatRef,
    RelativePositions, Scratch, ScratchNeed,
};

use super::with_element;
use crate::call::{AttentionGradients, AttentionInputs, CachedAttention, PositionTables};
use crate::tensor::Tensor;

/// What forward gave, and what arrives.
pub(super) struct Saved<'a> {
    pub out: &'a Tensor,
    pub lse: &'a Tensor,
    pub d_out: &'a Tensor,
}

fn view<E: Element>(x: &Tensor) -> MatRef<'_, E> {
    MatRef::new(x.host(), x.rows(), x.cols())
}

fn view_mut<E: Element>(x: &mut Tensor) -> MatMut<'_, E> {
    let (rows, cols) = (x.rows(), x.cols());
    MatMut::new(x.host_mut(), rows, cols)
}

fn operands<'a, E: Element>(inputs: &AttentionInputs<'a>) -> AttentionOperands<'a, E> {
    let positions = |x: PositionTables<'a>| RelativePositions {
        rows: x.rows,
        keys: x.keys.map(Tensor::host),
        queries: x.queries.map(Tensor::host),
    };
    AttentionOperands {
        q: view(inputs.q),
        k: view(inputs.k),
        v: view(inputs.v),
        positions: inputs.positions.map(positions),
    }
}

pub(super) fn forward_scratch(inputs: &AttentionInputs<'_>) -> ScratchNeed {
    let tables = inputs.positions.map(|positions| positions.count());
    with_element!(inputs.q.dtype(), E => kernels::attend_scratch::<E>(&inputs.shape(), tables))
}

pub(super) fn backward_scratch(
    inputs: &AttentionInputs<'_>,
    gradients: &AttentionGradients<'_>,
) -> ScratchNeed {
    let tables = inputs.positions.map(|positions| positions.count());
    let of_tables = gradients.d_keys.iter().chain(&gradients.d_queries);
    let table_rows = of_tables.map(|d| d.rows()).max().unwrap_or(0);
    let (shape, trained) = (inputs.shape(), gradients.tables());
    with_element!(inputs.q.dtype(), E => {
        kernels::attend_backward_scratch::<E>(&shape, tables, trained, table_rows)
    })
}

pub(super) fn cached_scratch(call: &CachedAttention<'_>) -> ScratchNeed {
    with_element!(call.q.dtype(), E => kernels::attend_cached_scratch::<E>(&call.shape))
}

pub(super) fn forward(
    isa: Isa,
    inputs: &AttentionInputs<'_>,
    out: &mut Tensor,
    lse: &mut Tensor,
    scratch: &mut Scratch<'_>,
) {
    let (shape, lse) = (inputs.shape(), lse.host_mut());
    with_element!(out.dtype(), E => {
        kernels::attend::<E>(isa, &shape, &operands(inputs), view_mut(out), lse, scratch);
    });
}

pub(super) fn backward(
    isa: Isa,
    inputs: &AttentionInputs<'_>,
    saved: &Saved<'_>,
    gradients: AttentionGradients<'_>,
    scratch: &mut Scratch<'_>,
) {
    with_element!(saved.d_out.dtype(), E => {
        backward_in::<E>(isa, inputs, saved, gradients, scratch);
    });
}

fn backward_in<E: AttentionElement>(
    isa: Isa,
    inputs: &AttentionInputs<'_>,
    saved: &Saved<'_>,
    gradients: AttentionGradients<'_>,
    scratch: &mut Scratch<'_>,
) {
    let attended = Attended {
        operands: operands::<E>(inputs),
        out: view(saved.out),
        lse: saved.lse.host(),
    };
    let gradients = kernels::AttentionGradients {
        d_q: view_mut(gradients.d_q),
        d_k: view_mut(gradients.d_k),
        d_v: view_mut(gradients.d_v),
        d_keys: gradients.d_keys.map(Tensor::host_mut),
        d_queries: gradients.d_queries.map(Tensor::host_mut),
    };
    let (shape, d_out) = (inputs.shape(), view(saved.d_out));
    kernels::attend_backward(isa, &shape, &attended, d_out, gradients, scratch);
}

pub(super) fn cached(isa: Isa, call: CachedAttention<'_>, scratch: &mut Scratch<'_>) {
    with_element!(call.q.dtype(), E => {
        let x = AttentionOperands {
            q: view(call.q),
            k: view(call.k),
            v: view(call.v),
            positions: None,
        };
        kernels::attend_cached::<E>(isa, &call.shape, &x, view_mut(call.out), scratch);
    });
}
