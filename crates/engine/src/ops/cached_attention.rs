//! Attention with kept keys and values, for generation: no backward. Shapes: q, k, v, out [M, H·Dh].

use lowrank_kernels as kernels;
use lowrank_kernels::CachedAttention;

use crate::meter::Purpose;
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, with_element};

/// The keys and values of one layer: a pool of rows that grows, in f32.
#[derive(Debug, Default)]
pub struct KeptRows {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl KeptRows {
    /// Keeps the rows of keys and values; the first gets the number of rows that were there before.
    pub fn append(&mut self, k: &Var, v: &Var) {
        for (kept, new) in [(&mut self.k, k), (&mut self.v, v)] {
            let new = new.tensor();
            if !new.device().is_dry() {
                kept.extend_from_slice(new.to_f32(Purpose::Workspace).data());
            }
        }
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

/// Forward of the attention of each row of `q` over its own kept rows. Panics if the shapes disagree.
pub fn cached_attention(tape: &Tape<'_>, q: &Var, kept: &KeptRows, spec: CachedSpec<'_>) -> Var {
    let device = tape.device();
    let pairs: usize = spec.rows.iter().map(|rows| rows.len()).sum();
    let mut out = Tensor::activations(device, q.rows(), q.cols());
    let dtype = out.dtype();
    device.exec("cached_attention", (4 * pairs * q.cols()) as u64, |isa| {
        let q = q.tensor().to_f32(Purpose::Workspace);
        let mut wide = vec![0.0; q.len()];
        let args = CachedAttention {
            num_heads: spec.num_heads,
            head_dim: spec.head_dim,
            scale: spec.scale,
            q: q.data(),
            k: &kept.k,
            v: &kept.v,
            rows: spec.rows,
        };
        kernels::attention_cached(isa, &args, &mut wide);
        with_element!(dtype, E => kernels::convert(isa, out.values_mut::<E>(), &wide));
    });
    tape.constant(out)
}
