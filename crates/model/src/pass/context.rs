//! What a layer's attention reads beside the layer's input: which of its rows are queries, and
//! where their keys lie, in the batch itself or in a KV cache. It knows no network. M = tokens of
//! the batch, N = rows that go on.

use std::sync::{Arc, Mutex, MutexGuard};

use lowrank_engine::ops::attention::{
    AttentionForm, AttentionSpec, Positions, attention, disentangled_attention,
};
use lowrank_engine::ops::cached_attention::{
    CachedLayer, CachedSequence, QueryRole, cached_attention,
};
use lowrank_engine::ops::gather::gather;
use lowrank_engine::ops::rope::rope;
use lowrank_engine::{KvCache, SequenceId, Var};

use crate::modules::{Pass, RopeId};

/// A clone is cheap: the tape keeps one with each layer that it will run again.
#[derive(Clone)]
pub(crate) struct AttentionContext {
    /// The layer's number, by which the cache knows its keys.
    layer: usize,
    /// The rows of the last layer that go on; all of them where absent.
    queries: Option<Queries>,
    keys: Keys,
    /// Places of the batch's tokens in their sequences [M]; of encoders, empty.
    positions: Arc<[u32]>,
    /// One more than the largest of them.
    longest: usize,
    /// Of the same tokens, the lengths of their sequences, what is not run among them.
    lengths: Arc<[u32]>,
}

/// Rows of a batch, some of each sequence, in its order.
#[derive(Clone)]
pub(crate) struct Queries {
    pub(crate) rows: Arc<[usize]>,
    /// Where each sequence's start, and the end.
    pub(crate) offsets: Arc<[usize]>,
}

#[derive(Clone)]
enum Keys {
    /// The batch's own: where each sequence starts, and the end.
    Batch(Arc<[usize]>),
    Cache(Arc<CachedBatch>),
}

/// A KV cache that a session and the layers of its passes hold.
#[derive(Clone)]
pub(crate) struct SharedCache(Arc<Mutex<KvCache>>);

/// Tokens that sequences of a KV cache go on with.
pub(crate) struct CachedBatch {
    /// Locked by one layer at a time.
    pub(crate) cache: SharedCache,
    pub(crate) additions: Vec<Addition>,
    /// Where each sequence's tokens start in the batch, and the end.
    pub(crate) offsets: Arc<[usize]>,
}

/// Some tokens of one sequence, which has a place for them in the cache already.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addition {
    pub(crate) sequence: SequenceId,
    pub(crate) tokens: usize,
    pub(crate) role: QueryRole,
}

impl AttentionContext {
    /// Sequences attend within a batch. `queries` go on after the last layer's attention.
    pub(crate) fn of_batch(offsets: Arc<[usize]>, queries: Option<Queries>) -> Self {
        AttentionContext {
            layer: 0,
            queries,
            keys: Keys::Batch(offsets),
            positions: Arc::default(),
            longest: 0,
            lengths: Arc::default(),
        }
    }

    /// Sequences attend to their tokens in a cache, the batch's own among them.
    pub(crate) fn of_cache(batch: CachedBatch, queries: Option<Queries>) -> Self {
        AttentionContext {
            layer: 0,
            queries,
            keys: Keys::Cache(batch.into()),
            positions: Arc::default(),
            longest: 0,
            lengths: Arc::default(),
        }
    }

    /// The same with the places of the tokens in their sequences, and these sequences' lengths.
    pub(crate) fn at(self, positions: Vec<u32>, lengths: Vec<u32>) -> Self {
        AttentionContext {
            longest: positions.iter().max().map_or(0, |&last| last as usize + 1),
            positions: positions.into(),
            lengths: lengths.into(),
            ..self
        }
    }

    /// Places of the batch's tokens in their sequences [M].
    pub(crate) fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The context of layer `layer` of `count`.
    pub(crate) fn of_layer(&self, layer: usize, count: usize) -> Self {
        AttentionContext {
            layer,
            queries: self.queries.clone().filter(|_| layer + 1 == count),
            keys: self.keys.clone(),
            positions: self.positions.clone(),
            longest: self.longest,
            lengths: self.lengths.clone(),
        }
    }

    /// The rows of x that this layer computes queries, and all that follows, for; all of them where
    /// absent.
    pub(crate) fn queries(&self) -> Option<&[usize]> {
        self.queries.as_ref().map(|queries| &*queries.rows)
    }

    /// x [M, D], or the rows of it that go on [N, D].
    pub(crate) fn select(&self, pass: &mut Pass<'_, '_>, x: &Var) -> Var {
        match self.queries() {
            None => x.clone(),
            Some(rows) => gather(pass, x, rows),
        }
    }

    /// q [N, H·Dh] and k [M, Hkv·Dh] rotated by their places.
    pub(crate) fn rotate(&self, pass: &mut Pass<'_, '_>, [q, k]: [Var; 2], id: RopeId) -> [Var; 2] {
        let modules = pass.modules;
        let kind = modules.rope(id);
        let (table, of_k) = kind.table(pass.device(), self.longest, &self.positions, &self.lengths);
        let of_q = match self.queries() {
            None => of_k.clone(),
            Some(rows) => rows.iter().map(|&row| of_k[row]).collect(),
        };
        let q = rope(pass, q, &table, kind.form, of_q);
        let k = rope(pass, k, &table, kind.form, of_k);
        [q, k]
    }

    /// Where each sequence's tokens start in the batch, and the end.
    pub(crate) fn offsets(&self) -> &Arc<[usize]> {
        match &self.keys {
            Keys::Batch(offsets) => offsets,
            Keys::Cache(batch) => &batch.offsets,
        }
    }

    fn query_offsets(&self) -> &Arc<[usize]> {
        match &self.queries {
            Some(queries) => &queries.offsets,
            None => self.offsets(),
        }
    }

    fn spec(&self, form: &AttentionForm) -> AttentionSpec {
        AttentionSpec {
            form: *form,
            q_offsets: self.query_offsets().clone(),
            kv_offsets: self.offsets().clone(),
        }
    }

    /// Attention of q [N, H·Dh] over k and v [M, Hkv·Dh], which go into the cache first, where
    /// there is one.
    pub(crate) fn attend(
        &self,
        pass: &mut Pass<'_, '_>,
        [q, k, v]: [Var; 3],
        form: &AttentionForm,
    ) -> Var {
        let batch = match &self.keys {
            Keys::Batch(_) => return attention(pass, q, k, v, self.spec(form)),
            Keys::Cache(batch) => batch,
        };
        let mut cache = batch.cache.lock();
        let new: Vec<_> = (batch.additions.iter())
            .map(|addition| (addition.sequence, addition.tokens))
            .collect();
        cache.write(self.layer, &k, &v, &new);
        let queries = self.query_offsets().windows(2);
        let sequences: Vec<_> = (batch.additions.iter().zip(queries))
            .map(|(addition, range)| CachedSequence {
                queries: range[1] - range[0],
                rows: cache.rows(addition.sequence),
                role: addition.role,
            })
            .collect();
        let layer = CachedLayer {
            cache: &cache,
            layer: self.layer,
        };
        cached_attention(pass, &q, layer, form, &sequences)
    }

    /// [`AttentionContext::attend`] with relative positions. Panics over a cache: no model with
    /// them generates.
    pub(crate) fn attend_disentangled(
        &self,
        pass: &mut Pass<'_, '_>,
        qkv: [Var; 3],
        positions: Positions,
        form: &AttentionForm,
    ) -> Var {
        assert!(matches!(self.keys, Keys::Batch(_)), "relative positions");
        disentangled_attention(pass, qkv, positions, self.spec(form))
    }
}

impl Queries {
    /// The first token of each sequence.
    pub(crate) fn firsts(offsets: &[usize]) -> Self {
        Queries {
            rows: offsets[..offsets.len() - 1].into(),
            offsets: (0..offsets.len()).collect(),
        }
    }
}

impl SharedCache {
    pub(crate) fn new(layers: usize) -> Self {
        SharedCache(Arc::new(Mutex::new(KvCache::new(layers))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, KvCache> {
        self.0.lock().expect("no layer panicked in a cache")
    }
}
