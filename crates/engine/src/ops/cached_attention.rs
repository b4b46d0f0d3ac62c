//! Attention with kept keys and values, for generation: no backward. Shapes: q, k, v, out [M, H·Dh].

use crate::call::{CachedAttention, Call};
use crate::meter::Purpose;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// Rows that a pool has room for at first.
const FIRST_ROWS: usize = 64;

/// The keys and values of one layer: a pool of rows that grows, in the precision of the device.
#[derive(Debug, Default)]
pub struct KeptRows {
    /// Keys and values, with room for more.
    pools: Option<[Tensor; 2]>,
    rows: usize,
}

impl KeptRows {
    /// Keeps the rows of keys and values; the first gets the number of rows that were there before.
    pub fn append(&mut self, k: &Var, v: &Var) {
        let (new, rows) = ([k.tensor(), v.tensor()], k.rows());
        let needed = self.rows + rows;
        let room = self.pools.as_ref().map_or(0, |[k, _]| k.rows());
        if needed > room {
            let room = needed.max(2 * room).max(FIRST_ROWS);
            let mut larger = new.map(|new| {
                let (device, dtype) = (new.device(), new.dtype());
                Tensor::uninit_as(dtype, device, room, new.cols(), Purpose::KeptRows)
            });
            for (larger, old) in larger.iter_mut().zip(self.pools.iter().flatten()) {
                larger.copy_rows(0, old, 0..self.rows);
            }
            self.pools = Some(larger);
        }
        for (pool, new) in self.pools.iter_mut().flatten().zip(new) {
            pool.copy_rows(self.rows, new, 0..rows);
        }
        self.rows = needed;
    }
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

/// Forward of the attention of each row of `q` over its own kept rows. Panics if the shapes disagree, or if nothing is kept.
pub fn cached_attention(tape: &Tape<'_>, q: &Var, kept: &KeptRows, spec: CachedSpec<'_>) -> Var {
    let mut out = Tensor::activations(tape.device(), q.rows(), q.cols());
    let [k, v] = kept.pools.as_ref().expect("attention has keys");
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
