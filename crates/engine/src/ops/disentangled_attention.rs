//! Attention whose scores are `scale·(q_i·k_j + q_i·pos_k[r] + k_j·pos_q[r])`, where r is the row of the distance i - j; each
//! table of relative positions may be absent. By offsets, as `attention`; no T×T matrix is stored.
//! Shapes: q [Mq, H·Dh], k, v [M, H·Dh], pos_k, pos_q [R, H·Dh], out [Mq, H·Dh], lse [Mq, H].
//! Saved: q, k, v, the tables, out, lse. The arithmetic is f32: bf16 operands are widened for the call.
//! Source: He et al. 2020, "DeBERTa", equations 2 to 4.

use std::sync::Arc;

use lowrank_kernels as kernels;
use lowrank_kernels::{
    AttentionShape, DType, DisentangledGradients, DisentangledInputs, DisentangledSaved, Dropout,
    RelativePositions,
};

use super::attention::AttentionSpec;
use crate::device::Device;
use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// The projected relative positions of one layer, shared by all sequences.
pub struct Positions {
    /// The tables' row for each distance i - j, from -(reach - 1) to reach - 1. No sequence is longer than reach.
    pub rows: Arc<[u32]>,
    /// pos_k: content to position.
    pub keys: Option<Var>,
    /// pos_q: position to content.
    pub queries: Option<Var>,
}

/// Forward. Query i of a sequence stands at its position i. Panics if the offsets do not cover the rows or if a sequence
/// is longer than the reach.
pub fn disentangled_attention(
    tape: &mut Tape<'_>,
    [q, k, v]: [Var; 3],
    positions: Positions,
    spec: AttentionSpec,
) -> Var {
    let device = tape.device().clone();
    let dropout = tape.dropout(spec.dropout);
    spec.check(&q, &k);
    let purpose = working_purpose(&device);
    let mut out = Tensor::uninit(&device, q.rows(), q.cols(), purpose);
    let mut lse = Tensor::uninit(&device, q.rows(), spec.num_heads, Purpose::Activations);
    let Positions {
        rows,
        keys,
        queries,
    } = positions;
    let nodes = Nodes {
        qkv: [q.node(), k.node(), v.node()],
        keys: keys.as_ref().and_then(Var::node),
        queries: queries.as_ref().and_then(Var::node),
    };
    let saved = Operands {
        q: q.shared(),
        k: k.shared(),
        v: v.shared(),
        rows,
        keys: keys.as_ref().map(Var::shared),
        queries: queries.as_ref().map(Var::shared),
    };
    let n_tables = saved.tables();
    let wide = saved.widened();
    let shape = spec.shape(dropout);
    let len = kernels::disentangled_forward_workspace(&shape, n_tables);
    let mut workspace = Tensor::uninit(&device, 1, len, Purpose::Workspace);
    device.exec(
        "disentangled_attention",
        spec.flops(2 + n_tables as u64),
        |isa| {
            let (inputs, workspace) = (wide.inputs(), workspace.data_mut());
            let (out, lse) = (out.data_mut(), lse.data_mut());
            kernels::disentangled_attention_forward(isa, &shape, &inputs, workspace, out, lse);
        },
    );
    drop((workspace, wide));
    let out = Arc::new(stored(out));
    tape.push_shared(out.clone(), nodes.any(), || DisentangledBackward {
        nodes,
        saved,
        out,
        lse,
        spec,
        dropout,
    })
}

struct Nodes {
    qkv: [Option<usize>; 3],
    keys: Option<usize>,
    queries: Option<usize>,
}

impl Nodes {
    fn any(&self) -> bool {
        self.qkv
            .iter()
            .chain([&self.keys, &self.queries])
            .any(Option::is_some)
    }
}

struct Operands {
    q: Arc<Tensor>,
    k: Arc<Tensor>,
    v: Arc<Tensor>,
    rows: Arc<[u32]>,
    keys: Option<Arc<Tensor>>,
    queries: Option<Arc<Tensor>>,
}

impl Operands {
    fn tables(&self) -> usize {
        usize::from(self.keys.is_some()) + usize::from(self.queries.is_some())
    }

    /// The same in f32: shared where they are it already.
    fn widened(&self) -> Self {
        let wide = |t: &Arc<Tensor>| widened(t);
        Operands {
            q: wide(&self.q),
            k: wide(&self.k),
            v: wide(&self.v),
            rows: self.rows.clone(),
            keys: self.keys.as_ref().map(wide),
            queries: self.queries.as_ref().map(wide),
        }
    }

    fn inputs(&self) -> DisentangledInputs<'_> {
        DisentangledInputs {
            q: self.q.data(),
            k: self.k.data(),
            v: self.v.data(),
            positions: RelativePositions {
                rows: &self.rows,
                keys: self.keys.as_ref().map(|t| t.data()),
                queries: self.queries.as_ref().map(|t| t.data()),
            },
        }
    }
}

struct DisentangledBackward {
    nodes: Nodes,
    saved: Operands,
    out: Arc<Tensor>,
    lse: Tensor,
    spec: AttentionSpec,
    dropout: Option<Dropout>,
}

impl Backward for DisentangledBackward {
    fn backward(self: Box<Self>, d_out: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let Self { nodes, saved, .. } = &*self;
        let (wide, out, d_out) = (saved.widened(), widened(&self.out), widened(&d_out));
        let purpose = working_purpose(&cx.device);
        let like = |t: &Tensor| Tensor::uninit(&cx.device, t.rows(), t.cols(), purpose);
        let (mut d_q, mut d_k, mut d_v) = (like(&saved.q), like(&saved.k), like(&saved.v));
        let wanted = |table: &Option<Arc<Tensor>>, node: Option<usize>| {
            table.as_ref().filter(|_| node.is_some()).map(|t| like(t))
        };
        let mut d_keys = wanted(&saved.keys, nodes.keys);
        let mut d_queries = wanted(&saved.queries, nodes.queries);
        let n_trained = usize::from(d_keys.is_some()) + usize::from(d_queries.is_some());
        let shape = self.spec.shape(self.dropout);
        let mut workspace = backward_workspace(&cx.device, &shape, saved.tables(), n_trained);
        // Of each table: its scores again, what they give to the content, and to the table.
        let matmuls = 5 + 2 * saved.tables() + n_trained;
        cx.device.exec(
            "disentangled_attention",
            self.spec.flops(matmuls as u64),
            |isa| {
                let saved = DisentangledSaved {
                    inputs: wide.inputs(),
                    out: out.data(),
                    lse: self.lse.data(),
                };
                let gradients = DisentangledGradients {
                    d_q: d_q.data_mut(),
                    d_k: d_k.data_mut(),
                    d_v: d_v.data_mut(),
                    d_keys: d_keys.as_mut().map(Tensor::data_mut),
                    d_queries: d_queries.as_mut().map(Tensor::data_mut),
                };
                let workspace = workspace.data_mut();
                kernels::disentangled_attention_backward(
                    isa,
                    &shape,
                    &saved,
                    d_out.data(),
                    workspace,
                    gradients,
                );
            },
        );
        drop((workspace, wide, out, d_out));
        let Nodes { qkv, keys, queries } = self.nodes;
        drop((self.saved, self.out, self.lse));
        for (node, d) in qkv.into_iter().zip([d_q, d_k, d_v]) {
            cx.add(node, stored(d));
        }
        for (node, d) in [(keys, d_keys), (queries, d_queries)] {
            if let Some(d) = d {
                cx.add(node, stored(d));
            }
        }
    }
}

/// A tensor in f32: itself, or a copy.
fn widened(x: &Arc<Tensor>) -> Arc<Tensor> {
    match x.dtype() {
        DType::F32 => x.clone(),
        DType::Bf16 => Arc::new(x.to_f32(Purpose::Workspace)),
    }
}

/// What an f32 result counts as: in f32 it is the activation or gradient itself, in bf16 it is rounded afterwards.
fn working_purpose(device: &Device) -> Purpose {
    match device.precision() {
        DType::F32 => Purpose::Activations,
        DType::Bf16 => Purpose::Workspace,
    }
}

/// An f32 result in the device's precision: itself, or a copy.
fn stored(x: Tensor) -> Tensor {
    let device = x.device().clone();
    match device.precision() {
        DType::F32 => x,
        DType::Bf16 => {
            let mut copy = Tensor::activations(&device, x.rows(), x.cols());
            device.exec("disentangled_attention", 0, |isa| {
                kernels::convert::<kernels::bf16, f32>(isa, copy.values_mut(), x.data())
            });
            copy
        }
    }
}

fn backward_workspace(
    device: &Device,
    shape: &AttentionShape<'_>,
    n_tables: usize,
    n_trained: usize,
) -> Tensor {
    let len = kernels::disentangled_backward_workspace(shape, n_tables, n_trained);
    Tensor::uninit(device, 1, len, Purpose::Workspace)
}
