//! What a network's pass is given: a batch, the range of its layers that are run, and what their
//! attention reads. It knows no network.

mod causal;
mod context;
mod layer_range;

pub use crate::modules::Pass;
pub use causal::CausalBatch;
pub(crate) use causal::Continuation;
pub(crate) use context::{AttentionContext, Queries, SharedCache};
pub(crate) use layer_range::Block;
pub use layer_range::{Entry, FrozenLayers, LayerRange, Recompute};

/// Sequences laid end to end: no padding.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Token ids of all sequences `[M]`.
    pub input_ids: &'a [u32],
    /// Token types `[M]`; zeros if absent.
    pub token_type_ids: Option<&'a [u32]>,
    /// Where each sequence starts, and the end: B + 1 numbers from 0 to M.
    pub offsets: &'a [usize],
}

impl Batch<'_> {
    /// Number of sequences B.
    pub fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Number of tokens M.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Of each token the length of its sequence.
    pub(crate) fn lengths(&self) -> Vec<u32> {
        let ranges = self.offsets.windows(2).map(|range| range[1] - range[0]);
        ranges
            .flat_map(|length| std::iter::repeat_n(length as u32, length))
            .collect()
    }

    /// 0, 1, 2, … in each sequence.
    pub(crate) fn positions(&self) -> Vec<u32> {
        self.offsets
            .windows(2)
            .flat_map(|range| 0..(range[1] - range[0]) as u32)
            .collect()
    }
}
