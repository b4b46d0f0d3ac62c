//! Attention over a KV cache, for generation: no backward. Shapes: q, out [M, H·Dh]; keys and
//! values of the cache [rows, Hkv·Dh].

use lowrank_kernels::CachedShape;
pub use lowrank_kernels::{CachedSequence, QueryRole};

use crate::call::{CachedAttention, Call};
use crate::kv_cache::KvCache;
use crate::ops::attention::{AttentionForm, AttentionMask};
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

/// Forward of the attention of some sequences' last tokens, prompts in chunks and new tokens in any
/// mixture, over their own rows of the cache. Panics if the shapes disagree, if the mask is not
/// causal, or if nothing was written.
pub fn cached_attention(
    tape: &Tape<'_>,
    q: &Var,
    cache: CachedLayer<'_>,
    form: &AttentionForm,
    sequences: &[CachedSequence<'_>],
) -> Var {
    let AttentionMask::Causal { window } = form.mask else {
        panic!("a token that came before does not attend to those that come");
    };
    let shape = CachedShape {
        num_heads: form.num_heads,
        num_key_value_heads: form.num_key_value_heads,
        head_dim: form.head_dim,
        scale: form.scale,
        soft_cap: form.soft_cap,
        window,
        sequences,
    };
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
