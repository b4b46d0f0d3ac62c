//! The live sequences of one generation, in a KV cache.

use lowrank_engine::ops::cached_attention::CachedLayer;
use lowrank_engine::{KvCache, SequenceId, Var};

/// What was computed of the live sequences.
#[derive(Default)]
pub struct Kept {
    cache: KvCache,
    sequences: Vec<SequenceId>,
    /// The sequences with as many tokens as the layers are about to write of each.
    new: Vec<(SequenceId, usize)>,
}

impl Kept {
    /// Nothing yet, of `sequences` sequences.
    pub(crate) fn new(layers: usize, sequences: usize) -> Self {
        let mut cache = KvCache::new(layers);
        Kept {
            sequences: (0..sequences).map(|_| cache.add()).collect(),
            cache,
            new: Vec::new(),
        }
    }

    /// Tokens of each sequence.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().map(|&id| self.cache.len(id))
    }

    /// Makes a place in each sequence for the new tokens from `offsets[i]` on, which the layers then write. Panics if there are
    /// not as many ranges as sequences, or if one is empty.
    pub(crate) fn extend(&mut self, offsets: &[usize]) {
        assert_eq!(
            offsets.len(),
            self.sequences.len() + 1,
            "a range a sequence"
        );
        let tokens = offsets.windows(2).map(|range| range[1] - range[0]);
        self.new = self.sequences.iter().copied().zip(tokens).collect();
        for &(id, tokens) in &self.new {
            assert!(tokens > 0, "no new token");
            self.cache.extend(id, tokens);
        }
    }

    /// Writes the new tokens' keys and values in one layer.
    pub(crate) fn write(&mut self, layer: usize, k: &Var, v: &Var) {
        self.cache.write(layer, k, v, &self.new);
    }

    /// The rows that each sequence's last token attends to.
    pub(crate) fn rows(&self, window: Option<usize>) -> Vec<&[u32]> {
        let visible = |rows: &'_ [u32]| rows.len().saturating_sub(window.unwrap_or(usize::MAX));
        let all = self.sequences.iter().map(|&id| self.cache.rows(id));
        all.map(|rows| &rows[visible(rows)..]).collect()
    }

    /// The keys and values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> CachedLayer<'_> {
        let cache = &self.cache;
        CachedLayer { cache, layer }
    }

    /// Goes on with the sequences of these numbers: some may end, some may be followed several times.
    pub(crate) fn select(&mut self, parents: &[usize]) {
        let mut unused: Vec<Option<SequenceId>> =
            self.sequences.iter().copied().map(Some).collect();
        let follow = |&parent: &usize| match unused[parent].take() {
            Some(id) => id,
            None => {
                let id = self.sequences[parent];
                self.cache.fork(id, self.cache.len(id))
            }
        };
        let sequences = parents.iter().map(follow).collect();
        unused
            .into_iter()
            .flatten()
            .for_each(|id| self.cache.remove(id));
        self.sequences = sequences;
    }
}
