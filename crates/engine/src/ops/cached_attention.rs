//! Attention over a KV cache, for generation: no backward. Shapes: q, k, v, out [M, H·Dh].

pub use lowrank_kernels::{CachedSequence, CachedShape, QueryRole};

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

/// Forward of the attention of some sequences' last tokens, prompts in chunks and new tokens in any mixture, over their own rows
/// of the cache. Panics if the shapes disagree, or if nothing was written.
pub fn cached_attention(
    tape: &Tape<'_>,
    q: &Var,
    cache: CachedLayer<'_>,
    shape: CachedShape<'_>,
) -> Var {
    let mut out = Tensor::activations(tape.device(), q.rows(), q.cols());
    let [k, v] = cache.cache.pools(cache.layer);
    tape.device().run(Call::CachedAttention(CachedAttention {
        shape,
        q: q.tensor(),
        k,
        v,
        out: &mut out,
    }));
    tape.constant(out)
}
