//! The definition of attention.

use lowrank_kernels::reference::{self as definition, Attention, Disentangled};

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

pub(super) fn cached(call: CachedAttention<'_>) {
    let (heads, d) = (call.num_heads, call.head_dim);
    let (q, k, v) = (
        call.q.host::<f64>(),
        call.k.host::<f64>(),
        call.v.host::<f64>(),
    );
    let out = call.out.host_mut::<f64>();
    for (i, rows) in call.rows.iter().enumerate() {
        for h in 0..heads {
            let at = |row: usize| (row * heads + h) * d..(row * heads + h + 1) * d;
            let query = &q[at(i)];
            let score = |&row: &u32| -> f64 {
                let dot = query.iter().zip(&k[at(row as usize)]).map(|(a, b)| a * b);
                f64::from(call.scale) * dot.sum::<f64>()
            };
            let scores: Vec<f64> = rows.iter().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            let into = &mut out[at(i)];
            into.fill(0.0);
            for (&row, score) in rows.iter().zip(&scores) {
                let p = (score - max).exp() / sum;
                let value = &v[at(row as usize)];
                into.iter_mut().zip(value).for_each(|(o, v)| *o += p * v);
            }
        }
    }
}
