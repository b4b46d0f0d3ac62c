//! Attention on operands that lie end to end, with scratch of its own: what callers use until they lend theirs.

use super::*;
use crate::scratch::ScratchBuffer;
use half::bf16;
use std::cell::RefCell;

/// What the backward needs. Shapes: q, out [q rows, H * Dh]; k, v [kv rows, H * Dh]; lse [q rows, H].
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a, E = f32> {
    /// Queries.
    pub q: &'a [E],
    /// Keys.
    pub k: &'a [E],
    /// Values.
    pub v: &'a [E],
    /// The forward's result.
    pub out: &'a [E],
    /// Logarithm of each row's sum of exponentials.
    pub lse: &'a [f32],
}

/// Operands of disentangled attention. Query i of a sequence stands at its position i. Shapes: q [q rows, H * Dh]; k, v [kv rows, H * Dh].
#[derive(Clone, Copy, Debug)]
pub struct DisentangledInputs<'a, E = f32> {
    /// Queries.
    pub q: &'a [E],
    /// Keys.
    pub k: &'a [E],
    /// Values.
    pub v: &'a [E],
    /// Projected relative positions.
    pub positions: RelativePositions<'a, E>,
}

/// What the backward needs. Shapes: out [q rows, H * Dh]; lse [q rows, H].
#[derive(Clone, Copy, Debug)]
pub struct DisentangledSaved<'a, E = f32> {
    /// The operands.
    pub inputs: DisentangledInputs<'a, E>,
    /// The forward's result.
    pub out: &'a [E],
    /// Logarithm of each row's sum of exponentials.
    pub lse: &'a [f32],
}

/// Gradients of the operands, of their shapes, all overwritten.
#[derive(Debug)]
pub struct DisentangledGradients<'a, E = f32> {
    /// Of the queries.
    pub d_q: &'a mut [E],
    /// Of the keys.
    pub d_k: &'a mut [E],
    /// Of the values.
    pub d_v: &'a mut [E],
    /// Of pos_k, if it is wanted; only where there is a pos_k.
    pub d_keys: Option<&'a mut [E]>,
    /// Of pos_q, if it is wanted; only where there is a pos_q.
    pub d_queries: Option<&'a mut [E]>,
}

/// Workspace of the backward on bf16.
#[derive(Debug)]
pub struct PairWorkspace<'a> {
    /// The tables by distance.
    pub tables: &'a mut [bf16],
    /// Their gradients, one for each group of sequences.
    pub partial: &'a mut [f32],
}

/// f32 values of workspace that the forward needs: none.
pub fn disentangled_forward_workspace(_: &AttentionShape, _: usize) -> usize {
    0
}

/// f32 values of workspace that the backward needs: none.
pub fn disentangled_backward_workspace(_: &AttentionShape, _: usize, _: usize) -> usize {
    0
}

/// bf16 values of workspace that the forward needs: none.
pub fn disentangled_forward_workspace_bf16(_: &AttentionShape, _: usize) -> usize {
    0
}

/// bf16 and f32 values of workspace that the backward needs: none.
pub fn disentangled_backward_workspace_bf16(_: &AttentionShape, _: usize, _: usize) -> [usize; 2] {
    [0, 0]
}

thread_local! {
    static BUFFER: RefCell<(usize, ScratchBuffer)> = RefCell::new((0, ScratchBuffer::new(0, 0)));
}

fn with_scratch(need: ScratchNeed, run: impl FnOnce(&mut Scratch)) {
    let threads = rayon::current_num_threads();
    let bytes = need.bytes(threads);
    let (mut len, mut buffer) = BUFFER.replace((0, ScratchBuffer::new(0, 0)));
    if len < bytes || buffer.scratch().threads() != threads {
        (len, buffer) = (bytes, ScratchBuffer::new(bytes, threads));
    }
    run(&mut buffer.scratch());
    BUFFER.set((len, buffer));
}

fn rows<'a, E: Copy>(x: &'a [E], width: usize) -> MatRef<'a, E> {
    MatRef::new(x, x.len() / width.max(1), width)
}

fn rows_mut<E>(x: &mut [E], width: usize) -> MatMut<'_, E> {
    let rows = x.len() / width.max(1);
    MatMut::new(x, rows, width)
}

fn operands<'a, E: Copy>(
    shape: &AttentionShape,
    [q, k, v]: [&'a [E]; 3],
    positions: Option<RelativePositions<'a, E>>,
) -> AttentionOperands<'a, E> {
    AttentionOperands {
        q: rows(q, shape.width()),
        k: rows(k, shape.kv_width()),
        v: rows(v, shape.kv_width()),
        positions,
    }
}

fn forward<E: WithPositions>(
    isa: Isa,
    shape: &AttentionShape,
    x: AttentionOperands<E>,
    out: &mut [E],
    lse: &mut [f32],
) {
    let need = attend_scratch::<E>(shape, x.positions.map(|p| p.count()));
    with_scratch(need, |scratch| {
        attend(isa, shape, &x, rows_mut(out, shape.width()), lse, scratch);
    });
}

fn backward<E: WithPositions>(
    isa: Isa,
    shape: &AttentionShape,
    operands: AttentionOperands<E>,
    (out, lse, d_out): (&[E], &[f32], &[E]),
    d: DisentangledGradients<E>,
) {
    let width = shape.width();
    let saved = Attended {
        operands,
        out: rows(out, width),
        lse,
    };
    let len = |d: &Option<&mut [E]>| d.as_ref().map_or(0, |d| d.len());
    let trained = usize::from(d.d_keys.is_some()) + usize::from(d.d_queries.is_some());
    let table_rows = len(&d.d_keys).max(len(&d.d_queries)) / width.max(1);
    let tables = operands.positions.map(|p| p.count());
    let need = attend_backward_scratch::<E>(shape, tables, trained, table_rows);
    let gradients = AttentionGradients {
        d_q: rows_mut(d.d_q, width),
        d_k: rows_mut(d.d_k, shape.kv_width()),
        d_v: rows_mut(d.d_v, shape.kv_width()),
        d_keys: d.d_keys,
        d_queries: d.d_queries,
    };
    with_scratch(need, |scratch| {
        attend_backward(isa, shape, &saved, rows(d_out, width), gradients, scratch);
    });
}

/// [`attend`] without positions.
pub fn attention_forward(
    isa: Isa,
    shape: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    forward(isa, shape, operands(shape, [q, k, v], None), out, lse);
}

/// [`attend_backward`] without positions.
pub fn attention_backward(
    isa: Isa,
    shape: &AttentionShape,
    saved: &AttentionSaved,
    d_out: &[f32],
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
) {
    plain_backward(isa, shape, saved, d_out, [d_q, d_k, d_v]);
}

/// [`attend`] without positions on bf16.
pub fn attention_forward_bf16(
    isa: Isa,
    shape: &AttentionShape,
    inputs: [&[bf16]; 3],
    out: &mut [bf16],
    lse: &mut [f32],
) {
    forward(isa, shape, operands(shape, inputs, None), out, lse);
}

/// [`attend_backward`] without positions on bf16.
pub fn attention_backward_bf16(
    isa: Isa,
    shape: &AttentionShape,
    saved: &AttentionSaved<bf16>,
    d_out: &[bf16],
    gradients: [&mut [bf16]; 3],
) {
    plain_backward(isa, shape, saved, d_out, gradients);
}

fn plain_backward<E: WithPositions>(
    isa: Isa,
    shape: &AttentionShape,
    saved: &AttentionSaved<E>,
    d_out: &[E],
    [d_q, d_k, d_v]: [&mut [E]; 3],
) {
    let x = operands(shape, [saved.q, saved.k, saved.v], None);
    let gradients = DisentangledGradients {
        d_q,
        d_k,
        d_v,
        d_keys: None,
        d_queries: None,
    };
    backward(isa, shape, x, (saved.out, saved.lse, d_out), gradients);
}

/// [`attend`] with positions.
pub fn disentangled_attention_forward(
    isa: Isa,
    shape: &AttentionShape,
    inputs: &DisentangledInputs,
    _: &mut [f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let qkv = [inputs.q, inputs.k, inputs.v];
    let x = operands(shape, qkv, Some(inputs.positions));
    forward(isa, shape, x, out, lse);
}

/// [`attend`] with positions on bf16.
pub fn disentangled_attention_forward_bf16(
    isa: Isa,
    shape: &AttentionShape,
    inputs: &DisentangledInputs<bf16>,
    _: &mut [bf16],
    out: &mut [bf16],
    lse: &mut [f32],
) {
    let qkv = [inputs.q, inputs.k, inputs.v];
    let x = operands(shape, qkv, Some(inputs.positions));
    forward(isa, shape, x, out, lse);
}

/// [`attend_backward`] with positions.
pub fn disentangled_attention_backward(
    isa: Isa,
    shape: &AttentionShape,
    saved: &DisentangledSaved,
    d_out: &[f32],
    _: &mut [f32],
    gradients: DisentangledGradients,
) {
    let inputs = &saved.inputs;
    let qkv = [inputs.q, inputs.k, inputs.v];
    let x = operands(shape, qkv, Some(inputs.positions));
    backward(isa, shape, x, (saved.out, saved.lse, d_out), gradients);
}

/// [`attend_backward`] with positions on bf16.
pub fn disentangled_attention_backward_bf16(
    isa: Isa,
    shape: &AttentionShape,
    saved: &DisentangledSaved<bf16>,
    d_out: &[bf16],
    _: PairWorkspace,
    gradients: DisentangledGradients<bf16>,
) {
    let inputs = &saved.inputs;
    let qkv = [inputs.q, inputs.k, inputs.v];
    let x = operands(shape, qkv, Some(inputs.positions));
    backward(isa, shape, x, (saved.out, saved.lse, d_out), gradients);
}
