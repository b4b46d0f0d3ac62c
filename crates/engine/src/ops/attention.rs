//! out = softmax(scores)·v per head and sequence, block-diagonal by offsets, causal if asked; no
//! T×T matrix is stored. The scores are q·kᵀ·scale or, with relative positions,
//! `scale·(q_i·k_j + q_i·pos_k[r] + k_j·pos_q[r])`, where r is the row of the distance i - j; each
//! table of relative positions may be absent.
//! Shapes: q [Mq, H·Dh], k, v [M, Hkv·Dh], pos_k, pos_q [R, H·Dh], out [Mq, H·Dh], lse [Mq, H]; the
//! row ranges of sequence b are `q_offsets[b]..q_offsets[b+1]` and
//! `kv_offsets[b]..kv_offsets[b+1]`, so that a query may be one row of its sequence. Saved: q, k,
//! v, the tables, out, lse. Source: Vaswani et al. 2017; the tiling of Dao et al. 2022; He et al.
//! 2020, "DeBERTa", equations 2 to 4.

use std::sync::Arc;

pub use lowrank_kernels::AttentionMask;
use lowrank_kernels::Dropout;

use crate::call::{AttentionGradients, AttentionInputs, Call, PositionTables};
use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// What the attention of one layer does, whatever rows it is given.
#[derive(Debug, Clone, Copy)]
pub struct AttentionForm {
    /// H.
    pub num_heads: usize,
    /// Hkv, a divisor of H: so many heads of keys and values, each shared by H/Hkv heads of
    /// queries.
    pub num_key_value_heads: usize,
    /// Dh.
    pub head_dim: usize,
    /// Multiplies the scores: 1/√Dh.
    pub scale: f32,
    /// c of c·tanh(score/c), after the scale.
    pub soft_cap: Option<f32>,
    /// Which keys of its sequence a query attends to.
    pub mask: AttentionMask,
    /// Probability of dropping an attention probability.
    pub dropout: f32,
}

/// The attention of one layer over one batch.
#[derive(Debug, Clone)]
pub struct AttentionSpec {
    /// What it does.
    pub form: AttentionForm,
    /// Row ranges of the queries, one entry more than there are sequences.
    pub q_offsets: Arc<[usize]>,
    /// Row ranges of keys and values.
    pub kv_offsets: Arc<[usize]>,
}

/// The projected relative positions of one layer, shared by all sequences.
pub struct Positions {
    /// The tables' row for each distance i - j, from -(reach - 1) to reach - 1. No sequence is
    /// longer than reach.
    pub rows: Arc<[u32]>,
    /// pos_k: content to position.
    pub keys: Option<Var>,
    /// pos_q: position to content.
    pub queries: Option<Var>,
}

/// Forward of attention. Panics if the offsets do not cover the rows.
pub fn attention(tape: &mut Tape<'_>, q: Var, k: Var, v: Var, spec: AttentionSpec) -> Var {
    run(tape, [q, k, v], None, spec)
}

/// Forward of attention with relative positions. Query i of a sequence stands at its position i.
/// Panics if the offsets do not cover the rows or if a sequence is longer than the reach.
pub fn disentangled_attention(
    tape: &mut Tape<'_>,
    qkv: [Var; 3],
    positions: Positions,
    spec: AttentionSpec,
) -> Var {
    run(tape, qkv, Some(positions), spec)
}

fn run(
    tape: &mut Tape<'_>,
    qkv: [Var; 3],
    positions: Option<Positions>,
    spec: AttentionSpec,
) -> Var {
    let device = tape.device().clone();
    let dropout = tape.dropout(spec.form.dropout);
    let [q, ..] = &qkv;
    let mut out = Tensor::activations(&device, q.rows(), q.cols());
    let mut lse = Tensor::uninit(&device, q.rows(), spec.form.num_heads, Purpose::Activations);
    let input = |var: &Var| Input {
        node: var.node(),
        value: var.shared(),
    };
    let operands = Operands {
        qkv: [0, 1, 2].map(|i| input(&qkv[i])),
        tables: positions.map(|positions| Tables {
            keys: positions.keys.as_ref().map(input),
            queries: positions.queries.as_ref().map(input),
            rows: positions.rows,
        }),
        spec,
        dropout,
    };
    drop(qkv);
    device.run(Call::Attention {
        inputs: operands.inputs(),
        out: &mut out,
        lse: &mut lse,
    });
    let out = Arc::new(out);
    tape.push_shared(out.clone(), operands.requires_grad(), || {
        AttentionBackward { operands, out, lse }
    })
}

struct Input {
    node: Option<usize>,
    value: Arc<Tensor>,
}

struct Tables {
    rows: Arc<[u32]>,
    keys: Option<Input>,
    queries: Option<Input>,
}

struct Operands {
    qkv: [Input; 3],
    tables: Option<Tables>,
    spec: AttentionSpec,
    dropout: Option<Dropout>,
}

impl Operands {
    fn inputs(&self) -> AttentionInputs<'_> {
        fn tensor(input: &Input) -> &Tensor {
            &input.value
        }
        let [q, k, v] = &self.qkv;
        AttentionInputs {
            spec: &self.spec,
            dropout: self.dropout,
            q: tensor(q),
            k: tensor(k),
            v: tensor(v),
            positions: self.tables.as_ref().map(|tables| PositionTables {
                rows: &tables.rows,
                keys: tables.keys.as_ref().map(tensor),
                queries: tables.queries.as_ref().map(tensor),
            }),
        }
    }

    /// pos_k and pos_q.
    fn tables(&self) -> [Option<&Input>; 2] {
        let tables = self.tables.as_ref();
        [
            tables.and_then(|tables| tables.keys.as_ref()),
            tables.and_then(|tables| tables.queries.as_ref()),
        ]
    }

    fn requires_grad(&self) -> bool {
        let tables = self.tables().into_iter().flatten();
        self.qkv
            .iter()
            .chain(tables)
            .any(|input| input.node.is_some())
    }
}

struct AttentionBackward {
    operands: Operands,
    out: Arc<Tensor>,
    lse: Tensor,
}

impl Backward for AttentionBackward {
    fn backward(self: Box<Self>, d_out: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let Self { operands, .. } = &*self;
        let like = |input: &Input| input.value.uninit_like(Purpose::Activations);
        let [mut d_q, mut d_k, mut d_v] = [0, 1, 2].map(|i| like(&operands.qkv[i]));
        let wanted = |table: Option<&Input>| table.filter(|table| table.node.is_some()).map(like);
        let [mut d_keys, mut d_queries] = operands.tables().map(wanted);
        cx.device.run(Call::AttentionBackward {
            inputs: operands.inputs(),
            out: &self.out,
            lse: &self.lse,
            d_out: &d_out,
            gradients: AttentionGradients {
                d_q: &mut d_q,
                d_k: &mut d_k,
                d_v: &mut d_v,
                d_keys: d_keys.as_mut(),
                d_queries: d_queries.as_mut(),
            },
        });
        drop(d_out);
        let nodes = [0, 1, 2].map(|i| operands.qkv[i].node);
        let table_nodes = operands
            .tables()
            .map(|table| table.and_then(|table| table.node));
        drop(self);
        for (node, d) in nodes.into_iter().zip([d_q, d_k, d_v]) {
            cx.add(node, d);
        }
        for (node, d) in table_nodes.into_iter().zip([d_keys, d_queries]) {
            if let Some(d) = d {
                cx.add(node, d);
            }
        }
    }
}
