//! out = softmax(q·kᵀ·scale)·v per head and sequence, block-diagonal by offsets, causal if asked; no T×T matrix is stored.
//! Shapes: q [Mq, H·Dh], k, v [M, H·Dh], out [Mq, H·Dh], lse [Mq, H]; the row ranges of sequence b are
//! `q_offsets[b]..q_offsets[b+1]` and `kv_offsets[b]..kv_offsets[b+1]`, so that a query may be one row of its sequence.
//! Saved: q, k, v, out, lse. Source: Vaswani et al. 2017; the tiling of Dao et al. 2022.

use std::sync::Arc;

use lowrank_kernels as kernels;
pub use lowrank_kernels::AttentionMask;
use lowrank_kernels::{AttentionSaved, AttentionShape, DType, Dropout, Element};

use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// The form of one attention.
#[derive(Debug, Clone)]
pub struct AttentionSpec {
    /// H.
    pub num_heads: usize,
    /// Dh.
    pub head_dim: usize,
    /// Row ranges of the queries, one entry more than there are sequences.
    pub q_offsets: Arc<[usize]>,
    /// Row ranges of keys and values.
    pub kv_offsets: Arc<[usize]>,
    /// Multiplies the scores: 1/√Dh.
    pub scale: f32,
    /// Which keys of its sequence a query attends to.
    pub mask: AttentionMask,
    /// Probability of dropping an attention probability.
    pub dropout: f32,
}

impl AttentionSpec {
    pub(crate) fn shape(&self, dropout: Option<Dropout>) -> AttentionShape<'_> {
        AttentionShape {
            num_heads: self.num_heads,
            num_key_value_heads: self.num_heads,
            head_dim: self.head_dim,
            q_offsets: &self.q_offsets,
            kv_offsets: &self.kv_offsets,
            scale: self.scale,
            soft_cap: None,
            mask: self.mask,
            dropout,
        }
    }

    /// Pairs of query and key that are not masked, over all sequences.
    fn pairs(&self) -> u64 {
        let sequences = self.q_offsets.windows(2).zip(self.kv_offsets.windows(2));
        let pairs = sequences.map(|(q, kv)| {
            let (queries, keys) = ((q[1] - q[0]) as u64, (kv[1] - kv[0]) as u64);
            match self.mask {
                AttentionMask::Full => queries * keys,
                AttentionMask::Causal { window } => {
                    let most = window.map_or(u64::MAX, |keys| keys as u64);
                    (keys - queries..keys).map(|i| (i + 1).min(most)).sum()
                }
            }
        });
        pairs.sum()
    }

    pub(crate) fn flops(&self, matmuls: u64) -> u64 {
        2 * matmuls * self.pairs() * (self.num_heads * self.head_dim) as u64
    }

    /// Panics if the offsets do not cover the rows.
    pub(crate) fn check(&self, q: &Var, k: &Var) {
        assert_eq!(
            self.q_offsets.len(),
            self.kv_offsets.len(),
            "attention: one range a sequence"
        );
        assert_eq!(
            self.q_offsets.last(),
            Some(&q.rows()),
            "attention: the offsets cover the queries"
        );
        assert_eq!(
            self.kv_offsets.last(),
            Some(&k.rows()),
            "attention: the offsets cover the keys"
        );
    }
}

/// Forward of attention. Panics if the offsets do not cover the rows.
pub fn attention(tape: &mut Tape<'_>, q: Var, k: Var, v: Var, spec: AttentionSpec) -> Var {
    let device = tape.device().clone();
    let dropout = tape.dropout(spec.dropout);
    spec.check(&q, &k);
    let mut out = Tensor::activations(&device, q.rows(), q.cols());
    let mut lse = Tensor::uninit(&device, q.rows(), spec.num_heads, Purpose::Activations);
    device.exec("attention", spec.flops(2), |isa| {
        let (shape, lse) = (spec.shape(dropout), lse.data_mut());
        let (q, k, v) = (q.tensor(), k.tensor(), v.tensor());
        match out.dtype() {
            DType::F32 => {
                let (q, k, v) = (q.data(), k.data(), v.data());
                kernels::attention_forward(isa, &shape, q, k, v, out.data_mut(), lse);
            }
            DType::Bf16 => {
                let inputs = [q.values(), k.values(), v.values()];
                kernels::attention_forward_bf16(isa, &shape, inputs, out.values_mut(), lse);
            }
        }
    });
    let out = Arc::new(out);
    let needed = q.requires_grad() || k.requires_grad() || v.requires_grad();
    tape.push_shared(out.clone(), needed, || AttentionBackward {
        nodes: [q.node(), k.node(), v.node()],
        q: q.shared(),
        k: k.shared(),
        v: v.shared(),
        out,
        lse,
        spec,
        dropout,
    })
}

struct AttentionBackward {
    nodes: [Option<usize>; 3],
    q: Arc<Tensor>,
    k: Arc<Tensor>,
    v: Arc<Tensor>,
    out: Arc<Tensor>,
    lse: Tensor,
    spec: AttentionSpec,
    dropout: Option<Dropout>,
}

impl AttentionBackward {
    fn saved<E: Element>(&self) -> AttentionSaved<'_, E> {
        AttentionSaved {
            q: self.q.values(),
            k: self.k.values(),
            v: self.v.values(),
            out: self.out.values(),
            lse: self.lse.data(),
        }
    }
}

impl Backward for AttentionBackward {
    fn backward(self: Box<Self>, d_out: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let like = |t: &Tensor| Tensor::activations(&cx.device, t.rows(), t.cols());
        let (mut d_q, mut d_k, mut d_v) = (like(&self.q), like(&self.k), like(&self.v));
        cx.device.exec("attention", self.spec.flops(5), |isa| {
            let shape = self.spec.shape(self.dropout);
            match d_q.dtype() {
                DType::F32 => {
                    let saved = self.saved();
                    let (d_q, d_k, d_v) = (d_q.data_mut(), d_k.data_mut(), d_v.data_mut());
                    kernels::attention_backward(isa, &shape, &saved, d_out.data(), d_q, d_k, d_v);
                }
                DType::Bf16 => {
                    let saved = self.saved();
                    let gradients = [d_q.values_mut(), d_k.values_mut(), d_v.values_mut()];
                    let d_out = d_out.values();
                    kernels::attention_backward_bf16(isa, &shape, &saved, d_out, gradients);
                }
            }
        });
        let nodes = self.nodes;
        drop(self);
        for (node, d) in nodes.into_iter().zip([d_q, d_k, d_v]) {
            cx.add(node, d);
        }
    }
}
