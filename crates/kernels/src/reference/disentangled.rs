//! The definition of disentangled attention in `f64`, forward and backward.

use super::{dropout_factor, score};

/// Operands; the shapes are those of [`crate::AttentionOperands`].
#[derive(Clone, Copy)]
pub struct Disentangled<'a> {
    /// Heads, offsets, scale and dropout.
    pub shape: crate::AttentionShape<'a>,
    /// The tables' row for each distance.
    pub rows: &'a [u32],
    /// Queries.
    pub q: &'a [f64],
    /// Keys.
    pub k: &'a [f64],
    /// Values.
    pub v: &'a [f64],
    /// pos_k, if there is one.
    pub keys: Option<&'a [f64]>,
    /// pos_q, if there is one.
    pub queries: Option<&'a [f64]>,
}

/// Gradients of the operands; those of absent tables are empty.
#[derive(Default)]
pub struct DisentangledGradients {
    /// Of the queries.
    pub d_q: Vec<f64>,
    /// Of the keys.
    pub d_k: Vec<f64>,
    /// Of the values.
    pub d_v: Vec<f64>,
    /// Of pos_k.
    pub d_keys: Vec<f64>,
    /// Of pos_q.
    pub d_queries: Vec<f64>,
}

/// One query of one head, and what its sequence's keys are to it.
struct Row {
    /// Position of the query in q.
    q: usize,
    keys: Vec<Key>,
    lse: f64,
    /// Position in lse.
    lse_at: usize,
}

/// What a key is to a query.
struct Key {
    /// Position in k.
    k: usize,
    /// Its row's position in the tables.
    table: usize,
    p: f64,
    /// Of dropout.
    factor: f64,
    /// Of the score over the sum of products.
    slope: f64,
}

impl Disentangled<'_> {
    fn for_each_row(&self, mut visit: impl FnMut(Row)) {
        let shape = &self.shape;
        for b in 0..shape.q_offsets.len().saturating_sub(1) {
            for h in 0..shape.num_heads {
                for i in 0..shape.q_offsets[b + 1] - shape.q_offsets[b] {
                    visit(self.row(b, h, i));
                }
            }
        }
    }

    fn row(&self, b: usize, h: usize, i: usize) -> Row {
        let shape = &self.shape;
        let d = shape.head_dim;
        let at = |row: usize| (row * shape.num_heads + h) * d;
        let dot = |x: &[f64], from: usize, y: &[f64], to: usize| -> f64 {
            (0..d).map(|c| x[from + c] * y[to + c]).sum()
        };
        let q = at(shape.q_offsets[b] + i);
        let lse_at = (shape.q_offsets[b] + i) * shape.num_heads + h;
        let kv = shape.kv_offsets[b]..shape.kv_offsets[b + 1];
        let mut scores = Vec::new();
        let mut places = Vec::new();
        for (j, row) in kv.enumerate() {
            let distance = i as isize - j as isize + (self.rows.len() / 2) as isize;
            let (k, r) = (at(row), at(self.rows[distance as usize] as usize));
            let sum = dot(self.q, q, self.k, k)
                + self.keys.map_or(0.0, |keys| dot(self.q, q, keys, r))
                + self
                    .queries
                    .map_or(0.0, |queries| dot(self.k, k, queries, r));
            scores.push(score(shape, sum));
            places.push((k, r));
        }
        let max = (scores.iter()).fold(f64::NEG_INFINITY, |max, (score, _)| max.max(*score));
        let sum: f64 = scores.iter().map(|(score, _)| (score - max).exp()).sum();
        let factor = |j: usize| {
            let index = ((lse_at as u64) << 32) + j as u64;
            (shape.dropout).map_or(1.0, |dropout| dropout_factor(dropout, index))
        };
        let keys = places.iter().zip(&scores).enumerate();
        let keys = keys.map(|(j, (&(k, table), (score, slope)))| Key {
            k,
            table,
            p: (score - max).exp() / sum,
            factor: factor(j),
            slope: *slope,
        });
        Row {
            q,
            keys: keys.collect(),
            lse: max + sum.ln(),
            lse_at,
        }
    }
}

/// (out, lse) of disentangled attention.
pub fn disentangled_attention(x: &Disentangled) -> (Vec<f64>, Vec<f64>) {
    let d = x.shape.head_dim;
    let (mut out, mut lse) = (vec![0.0; x.q.len()], vec![0.0; x.q.len() / d.max(1)]);
    x.for_each_row(|row| {
        lse[row.lse_at] = row.lse;
        for Key { k, p, factor, .. } in row.keys {
            (0..d).for_each(|c| out[row.q + c] += p * factor * x.v[k + c]);
        }
    });
    (out, lse)
}

/// Gradients of disentangled attention.
pub fn disentangled_attention_backward(x: &Disentangled, d_out: &[f64]) -> DisentangledGradients {
    let d = x.shape.head_dim;
    let zeros = |x: &[f64]| vec![0.0; x.len()];
    let mut g = DisentangledGradients {
        d_q: zeros(x.q),
        d_k: zeros(x.k),
        d_v: zeros(x.v),
        d_keys: x.keys.map(zeros).unwrap_or_default(),
        d_queries: x.queries.map(zeros).unwrap_or_default(),
    };
    x.for_each_row(|row| {
        let q = row.q;
        let d_p = |k: usize, factor: f64| {
            let dot: f64 = (0..d).map(|c| d_out[q + c] * x.v[k + c]).sum();
            dot * factor
        };
        let keys = row.keys.iter();
        let delta: f64 = keys.map(|key| key.p * d_p(key.k, key.factor)).sum();
        for key in &row.keys {
            let (k, r, p, factor) = (key.k, key.table, key.p, key.factor);
            let d_score = p * (d_p(k, factor) - delta) * key.slope;
            for c in 0..d {
                g.d_v[k + c] += p * factor * d_out[q + c];
                g.d_q[q + c] += d_score * x.k[k + c];
                g.d_k[k + c] += d_score * x.q[q + c];
                if let Some(keys) = x.keys {
                    g.d_q[q + c] += d_score * keys[r + c];
                    g.d_keys[r + c] += d_score * x.q[q + c];
                }
                if let Some(queries) = x.queries {
                    g.d_k[k + c] += d_score * queries[r + c];
                    g.d_queries[r + c] += d_score * x.k[k + c];
                }
            }
        }
    });
    g
}
