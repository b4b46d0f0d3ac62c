//! The definition of attention.

use lowrank_kernels::reference::{self as definition, Attention, Disentangled};
use lowrank_kernels::{AttentionMask, AttentionShape};

use crate::call::{AttentionGradients, AttentionInputs, CachedAttention};
use crate::tensor::Tensor;

fn plain<'a>(inputs: &AttentionInputs<'a>) -> Attention<'a> {
    let AttentionInputs { q, k, v, .. } = inputs;
    let (q, k, v) = (q.host(), k.host(), v.host());
    let shape = inputs.shape();
    Attention { shape, q, k, v }
}

fn disentangled<'a>(inputs: &AttentionInputs<'a>) -> Option<Disentangled<'a>> {
    let positions = inputs.positions?;
    Some(Disentangled {
        shape: inputs.shape(),
        rows: positions.rows,
        q: inputs.q.host(),
        k: inputs.k.host(),
        v: inputs.v.host(),
        keys: positions.keys.map(Tensor::host),
        queries: positions.queries.map(Tensor::host),
    })
}

pub(super) fn forward(inputs: &AttentionInputs<'_>, out: &mut Tensor, lse: &mut Tensor) {
    let (values, sums) = match disentangled(inputs) {
        None => definition::attention(&plain(inputs)),
        Some(inputs) => definition::disentangled_attention(&inputs),
    };
    out.host_mut().copy_from_slice(&values);
    lse.host_mut().copy_from_slice(&sums);
}

pub(super) fn backward(
    inputs: &AttentionInputs<'_>,
    d_out: &Tensor,
    gradients: AttentionGradients<'_>,
) {
    let AttentionGradients { d_q, d_k, d_v, .. } = gradients;
    let write = |into: &mut Tensor, d: &[f64]| into.host_mut().copy_from_slice(d);
    let Some(inputs) = disentangled(inputs) else {
        let (q, k, v) = definition::attention_backward(&plain(inputs), d_out.host());
        write(d_q, &q);
        write(d_k, &k);
        write(d_v, &v);
        return;
    };
    let d = definition::disentangled_attention_backward(&inputs, d_out.host());
    write(d_q, &d.d_q);
    write(d_k, &d.d_k);
    write(d_v, &d.d_v);
    let tables = [
        (gradients.d_keys, &d.d_keys),
        (gradients.d_queries, &d.d_queries),
    ];
    for (into, d) in tables {
        if let Some(into) = into {
            write(into, d);
        }
    }
}

/// Attention of each sequence, its keys and values gathered.
pub(super) fn cached(call: CachedAttention<'_>) {
    let of_kv = call.k.cols();
    let mut rest = call.out.host_mut::<f64>();
    let mut q = call.q.host::<f64>();
    for sequence in call.shape.sequences {
        let gather = |pool: &[f64]| -> Vec<f64> {
            let rows = sequence.rows.iter().map(|&row| row as usize * of_kv);
            rows.flat_map(|start| &pool[start..start + of_kv])
                .copied()
                .collect()
        };
        let (k, v) = (gather(call.k.host()), gather(call.v.host()));
        let (mine, others) = q.split_at(sequence.queries * call.q.cols());
        let x = Attention {
            shape: AttentionShape {
                num_heads: call.shape.num_heads,
                num_key_value_heads: call.shape.num_key_value_heads,
                head_dim: call.shape.head_dim,
                q_offsets: &[0, sequence.queries],
                kv_offsets: &[0, sequence.rows.len()],
                scale: call.shape.scale,
                soft_cap: call.shape.soft_cap,
                mask: AttentionMask::Causal {
                    window: call.shape.window,
                },
                dropout: None,
            },
            q: mine,
            k: &k,
            v: &v,
        };
        let (out, after) = rest.split_at_mut(mine.len());
        out.copy_from_slice(&definition::attention(&x).0);
        (q, rest) = (others, after);
    }
}
