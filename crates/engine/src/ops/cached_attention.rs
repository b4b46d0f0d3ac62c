//! Attention over a KV cache, for generation: no backward. Shapes: q, k, v, out [M, H·Dh].

use crate::call::{CachedAttention, Call};
use crate::kv_cache::KvCache;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The keys and values of one layer.
#[derive(Clone, Copy, Debug)]
pub struct CachedLayer<'a> {
    /// All layers.
    pub cache: &'a KvCache,
    /// Which one.
    pub layer: usize,
}

/// What one step of generation attends to.
#[derive(Clone, Copy, Debug)]
pub struct CachedSpec<'a> {
    /// H.
    pub num_heads: usize,
    /// Dh.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// The rows of the pool that each query attends to, `[M]`; at least one each.
    pub rows: &'a [&'a [u32]],
}

/// Forward of the attention of each row of `q` over its own rows of the cache. Panics if the shapes disagree, or if nothing was
/// written.
pub fn cached_attention(
    tape: &Tape<'_>,
    q: &Var,
    cache: CachedLayer<'_>,
    spec: CachedSpec<'_>,
) -> Var {
    let mut out = Tensor::activations(tape.device(), q.rows(), q.cols());
    let [k, v] = cache.cache.pools(cache.layer);
    tape.device().run(Call::CachedAttention(CachedAttention {
        num_heads: spec.num_heads,
        head_dim: spec.head_dim,
        scale: spec.scale,
        q: q.tensor(),
        k,
        v,
        rows: spec.rows,
        out: &mut out,
    }));
    tape.constant(out)
}
