//! Attention whose scores are `scale·(q_i·k_j + q_i·pos_k[r] + k_j·pos_q[r])`, where r is the row of the distance i - j; each
//! table of relative positions may be absent. By offsets, as `attention`; no T×T matrix is stored.
//! Shapes: q [Mq, H·Dh], k, v [M, H·Dh], pos_k, pos_q [R, H·Dh], out [Mq, H·Dh], lse [Mq, H].
//! Saved: q, k, v, the tables, out, lse.
//! Source: He et al. 2020, "DeBERTa", equations 2 to 4.

use std::sync::Arc;

use lowrank_kernels as kernels;
use lowrank_kernels::{
    AttentionShape, DType, DisentangledGradients, DisentangledInputs, DisentangledSaved, Dropout,
    Element, PairWorkspace, RelativePositions,
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
    let mut out = Tensor::activations(&device, q.rows(), q.cols());
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
    let shape = spec.shape(dropout);
    let mut workspace = forward_workspace(&device, &shape, n_tables);
    device.exec(
        "disentangled_attention",
        spec.flops(2 + n_tables as u64),
        |isa| {
            let lse = lse.data_mut();
            match out.dtype() {
                DType::F32 => {
                    let (inputs, workspace, out) =
                        (saved.inputs(), workspace.data_mut(), out.data_mut());
                    kernels::disentangled_attention_forward(
                        isa, &shape, &inputs, workspace, out, lse,
                    );
                }
                DType::Bf16 => {
                    let (inputs, workspace, out) =
                        (saved.inputs(), workspace.values_mut(), out.values_mut());
                    kernels::disentangled_attention_forward_bf16(
                        isa, &shape, &inputs, workspace, out, lse,
                    );
                }
            }
        },
    );
    drop(workspace);
    let out = Arc::new(out);
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

    fn inputs<E: Element>(&self) -> DisentangledInputs<'_, E> {
        DisentangledInputs {
            q: self.q.values(),
            k: self.k.values(),
            v: self.v.values(),
            positions: RelativePositions {
                rows: &self.rows,
                keys: self.keys.as_ref().map(|t| t.values()),
                queries: self.queries.as_ref().map(|t| t.values()),
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
        let like = |t: &Tensor| Tensor::activations(&cx.device, t.rows(), t.cols());
        let wanted = |table: &Option<Arc<Tensor>>, node: Option<usize>| {
            table.as_ref().filter(|_| node.is_some()).map(|t| like(t))
        };
        let mut gradients = Gradients {
            of_qkv: [&saved.q, &saved.k, &saved.v].map(|t| like(t)),
            of_keys: wanted(&saved.keys, nodes.keys),
            of_queries: wanted(&saved.queries, nodes.queries),
        };
        let n_trained = gradients.of_tables();
        let shape = self.spec.shape(self.dropout);
        let [mut tables, mut partial] =
            backward_workspace(&cx.device, &shape, saved.tables(), n_trained);
        // Of each table: its scores again, what they give to the content, and to the table.
        let matmuls = 5 + 2 * saved.tables() + n_trained;
        cx.device.exec(
            "disentangled_attention",
            self.spec.flops(matmuls as u64),
            |isa| match d_out.dtype() {
                DType::F32 => {
                    let (saved, gradients) = (self.saved(), gradients.values_mut());
                    let (d_out, workspace) = (d_out.data(), partial.data_mut());
                    kernels::disentangled_attention_backward(
                        isa, &shape, &saved, d_out, workspace, gradients,
                    );
                }
                DType::Bf16 => {
                    let (saved, gradients) = (self.saved(), gradients.values_mut());
                    let workspace = PairWorkspace {
                        tables: tables.values_mut(),
                        partial: partial.data_mut(),
                    };
                    let d_out = d_out.values();
                    kernels::disentangled_attention_backward_bf16(
                        isa, &shape, &saved, d_out, workspace, gradients,
                    );
                }
            },
        );
        drop((tables, partial, d_out));
        let Nodes { qkv, keys, queries } = self.nodes;
        drop((self.saved, self.out, self.lse));
        for (node, d) in qkv.into_iter().zip(gradients.of_qkv) {
            cx.add(node, d);
        }
        for (node, d) in [(keys, gradients.of_keys), (queries, gradients.of_queries)] {
            if let Some(d) = d {
                cx.add(node, d);
            }
        }
    }
}

impl DisentangledBackward {
    fn saved<E: Element>(&self) -> DisentangledSaved<'_, E> {
        DisentangledSaved {
            inputs: self.saved.inputs(),
            out: self.out.values(),
            lse: self.lse.data(),
        }
    }
}

struct Gradients {
    of_qkv: [Tensor; 3],
    of_keys: Option<Tensor>,
    of_queries: Option<Tensor>,
}

impl Gradients {
    fn of_tables(&self) -> usize {
        usize::from(self.of_keys.is_some()) + usize::from(self.of_queries.is_some())
    }

    fn values_mut<E: Element>(&mut self) -> DisentangledGradients<'_, E> {
        let [d_q, d_k, d_v] = &mut self.of_qkv;
        DisentangledGradients {
            d_q: d_q.values_mut(),
            d_k: d_k.values_mut(),
            d_v: d_v.values_mut(),
            d_keys: self.of_keys.as_mut().map(|t| t.values_mut()),
            d_queries: self.of_queries.as_mut().map(|t| t.values_mut()),
        }
    }
}

/// The tables by distance, in the device's precision.
fn forward_workspace(device: &Device, shape: &AttentionShape<'_>, n_tables: usize) -> Tensor {
    let len = match device.precision() {
        DType::F32 => kernels::disentangled_forward_workspace(shape, n_tables),
        DType::Bf16 => kernels::disentangled_forward_workspace_bf16(shape, n_tables),
    };
    Tensor::uninit_as(device.precision(), device, 1, len, Purpose::Workspace)
}

/// The tables by distance in bf16, and the f32 workspace, which holds the tables' gradients and in f32 the tables as well.
fn backward_workspace(
    device: &Device,
    shape: &AttentionShape<'_>,
    n_tables: usize,
    n_trained: usize,
) -> [Tensor; 2] {
    let [tables, partial] = match device.precision() {
        DType::F32 => [
            0,
            kernels::disentangled_backward_workspace(shape, n_tables, n_trained),
        ],
        DType::Bf16 => kernels::disentangled_backward_workspace_bf16(shape, n_tables, n_trained),
    };
    [
        Tensor::uninit_as(DType::Bf16, device, 1, tables, Purpose::Workspace),
        Tensor::uninit(device, 1, partial, Purpose::Workspace),
    ]
}
