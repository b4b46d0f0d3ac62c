//! Attention, over the rows of a batch and over a cache.

use lowrank_kernels::{AttentionMask, AttentionShape, CachedShape, Dropout};

use crate::ops::attention::AttentionSpec;
use crate::tensor::Tensor;

/// Tables of relative positions, as disentangled attention reads them.
#[derive(Clone, Copy, Debug)]
pub struct PositionTables<'a> {
    /// The tables' row for each distance i - j, from -(reach - 1) to reach - 1.
    pub rows: &'a [u32],
    /// pos_k [R, H·Dh]: content to position.
    pub keys: Option<&'a Tensor>,
    /// pos_q [R, H·Dh]: position to content.
    pub queries: Option<&'a Tensor>,
}

impl PositionTables<'_> {
    /// How many tables there are.
    pub fn count(&self) -> usize {
        self.keys.iter().chain(&self.queries).count()
    }
}

/// The operands of attention. Shapes: q [Mq, H·Dh]; k, v [M, Hkv·Dh].
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// Heads, offsets, scale and mask.
    pub spec: &'a AttentionSpec,
    /// Dropout of the probabilities.
    pub dropout: Option<Dropout>,
    /// Queries.
    pub q: &'a Tensor,
    /// Keys.
    pub k: &'a Tensor,
    /// Values.
    pub v: &'a Tensor,
    /// Of disentangled attention.
    pub positions: Option<PositionTables<'a>>,
}

impl<'a> AttentionInputs<'a> {
    pub(super) fn check(&self) {
        let AttentionSpec {
            q_offsets,
            kv_offsets,
            ..
        } = self.spec;
        let ends = (q_offsets.last(), kv_offsets.last());
        assert_eq!(
            q_offsets.len(),
            kv_offsets.len(),
            "attention: one range a sequence"
        );
        assert_eq!(
            ends,
            (Some(&self.q.rows()), Some(&self.k.rows())),
            "attention: the offsets cover the rows"
        );
        assert_eq!(self.v.rows(), self.k.rows(), "attention: a value a key");
    }

    /// The form as the kernels and their definition take it.
    pub(crate) fn shape(&self) -> AttentionShape<'a> {
        let form = &self.spec.form;
        AttentionShape {
            num_heads: form.num_heads,
            num_key_value_heads: form.num_key_value_heads,
            head_dim: form.head_dim,
            q_offsets: &self.spec.q_offsets,
            kv_offsets: &self.spec.kv_offsets,
            scale: form.scale,
            soft_cap: form.soft_cap,
            mask: form.mask,
            dropout: self.dropout,
        }
    }

    pub(super) fn tables(&self) -> usize {
        self.positions.map_or(0, |positions| positions.count())
    }

    /// Pairs of query and key that are not masked, over all sequences.
    fn pairs(&self) -> u64 {
        let offsets = (self.spec.q_offsets.windows(2)).zip(self.spec.kv_offsets.windows(2));
        let pairs = offsets.map(|(q, kv)| {
            let (queries, keys) = ((q[1] - q[0]) as u64, (kv[1] - kv[0]) as u64);
            match self.spec.form.mask {
                AttentionMask::Full => queries * keys,
                AttentionMask::Causal { window } => {
                    let most = window.map_or(u64::MAX, |keys| keys as u64);
                    (keys - queries..keys).map(|i| (i + 1).min(most)).sum()
                }
                AttentionMask::Near { reach } => {
                    let reach = reach as u64;
                    let seen = |i: u64| (i + reach + 1).min(keys) - i.saturating_sub(reach);
                    (0..keys).map(seen).sum()
                }
            }
        });
        pairs.sum()
    }

    pub(super) fn flops(&self, matmuls: usize) -> u64 {
        let form = &self.spec.form;
        2 * matmuls as u64 * self.pairs() * (form.num_heads * form.head_dim) as u64
    }

    pub(super) fn name(&self) -> &'static str {
        match self.positions {
            None => "attention",
            Some(_) => "disentangled_attention",
        }
    }

    pub(super) fn for_each<'s>(&'s self, visit: &mut dyn FnMut(&'s Tensor)) {
        [self.q, self.k, self.v].into_iter().for_each(&mut *visit);
        let tables = self.positions.iter();
        tables
            .flat_map(|p| p.keys.iter().chain(&p.queries))
            .for_each(|table| visit(table));
    }
}

/// Gradients of [`AttentionInputs`], of their shapes, all overwritten. Those of tables only where
/// they are wanted.
#[derive(Debug)]
pub struct AttentionGradients<'a> {
    /// Of the queries.
    pub d_q: &'a mut Tensor,
    /// Of the keys.
    pub d_k: &'a mut Tensor,
    /// Of the values.
    pub d_v: &'a mut Tensor,
    /// Of pos_k.
    pub d_keys: Option<&'a mut Tensor>,
    /// Of pos_q.
    pub d_queries: Option<&'a mut Tensor>,
}

impl AttentionGradients<'_> {
    /// How many tables' gradients are wanted.
    pub fn tables(&self) -> usize {
        self.d_keys.iter().chain(&self.d_queries).count()
    }
}

/// Attention of queries over rows of a pool.
#[derive(Debug)]
pub struct CachedAttention<'a> {
    /// Heads, scale, window, and whose queries these are.
    pub shape: CachedShape<'a>,
    /// Queries [M, H·Dh].
    pub q: &'a Tensor,
    /// The pool of keys.
    pub k: &'a Tensor,
    /// The pool of values.
    pub v: &'a Tensor,
    /// [M, H·Dh].
    pub out: &'a mut Tensor,
}
