//! Keys and values that generation keeps: a pool of rows for each layer, and for each live sequence the numbers of its rows.
//! Sequences that have a beginning in common share its rows, so that following several costs a list of numbers each.

use lowrank_engine::ops::cached_attention::KeptRows;

/// What was computed of the live sequences.
#[derive(Default)]
pub struct Kept {
    layers: Vec<KeptRows>,
    sequences: Vec<Vec<u32>>,
    pool_rows: u32,
}

impl Kept {
    /// Nothing yet, of `sequences` sequences.
    pub(crate) fn new(layers: usize, sequences: usize) -> Self {
        Kept {
            layers: (0..layers).map(|_| KeptRows::default()).collect(),
            sequences: vec![Vec::new(); sequences],
            pool_rows: 0,
        }
    }

    /// Tokens of each sequence.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().map(Vec::len)
    }

    /// Gives each sequence the rows that the layers will append for the new tokens from `offsets[i]` on. Panics if there are
    /// not as many ranges as sequences, or if one is empty.
    pub(crate) fn add_rows(&mut self, offsets: &[usize]) {
        assert_eq!(
            offsets.len(),
            self.sequences.len() + 1,
            "a range a sequence"
        );
        for (rows, range) in self.sequences.iter_mut().zip(offsets.windows(2)) {
            assert!(range[0] < range[1], "no new token");
            rows.extend((range[0]..range[1]).map(|row| self.pool_rows + row as u32));
        }
        self.pool_rows += offsets[offsets.len() - 1] as u32;
    }

    /// The rows that each sequence's last token attends to.
    pub(crate) fn rows(&self, window: Option<usize>) -> Vec<&[u32]> {
        let visible = |rows: &'_ Vec<u32>| rows.len().saturating_sub(window.unwrap_or(usize::MAX));
        let sequences = self.sequences.iter();
        sequences.map(|rows| &rows[visible(rows)..]).collect()
    }

    /// The keys and values of a layer.
    pub(crate) fn layer(&self, i: usize) -> &KeptRows {
        &self.layers[i]
    }

    /// The keys and values of a layer, to append to them.
    pub(crate) fn layer_mut(&mut self, i: usize) -> &mut KeptRows {
        &mut self.layers[i]
    }

    /// Goes on with the sequences of these numbers: some may end, some may be followed several times.
    pub(crate) fn select(&mut self, parents: &[usize]) {
        let of = |&parent: &usize| self.sequences[parent].clone();
        self.sequences = parents.iter().map(of).collect();
    }
}
