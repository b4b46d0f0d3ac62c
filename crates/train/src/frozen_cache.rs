//! What frozen layers give for each row, computed when the row first comes and kept for the next
//! time. A row's state does not depend on its batch, and it is kept in the storage it has in a
//! pass, so that nothing changes but the time.

use lowrank_engine::{Purpose, Tensor};
use lowrank_model::{Batch, Entry, FrozenLayers, Model, ModelError, Passes};

use crate::config::TrainConfig;

/// Tokens of each row of a run.
#[derive(Clone, Debug, Default)]
pub struct RowLengths {
    /// Of the rows to train on.
    pub train: Vec<usize>,
    /// Of the rows that are evaluated while training.
    pub validation: Vec<usize>,
}

/// The states of a run's rows.
#[derive(Debug, Default)]
pub struct FrozenCaches {
    /// Of the rows to train on.
    pub train: Option<FrozenCache>,
    /// Of the rows that are evaluated while training.
    pub validation: Option<FrozenCache>,
}

impl FrozenCaches {
    /// Places for the states of those rows that a run sees more than once, within `limit_bytes` in
    /// all. Training passes have the model's own dropout: where that is on in the frozen layers,
    /// their states differ each time and none are kept.
    pub fn new(
        model: &Model,
        config: &TrainConfig,
        lengths: &RowLengths,
        limit_bytes: u64,
    ) -> Self {
        let mut left = limit_bytes;
        let mut place = |lengths: &[usize], uses: u64, passes: Passes| {
            if uses < 2 || left == 0 {
                return None;
            }
            let frozen = model.frozen_layers(passes);
            let cache = FrozenCache::new(model, frozen, lengths.iter().copied(), left)?;
            left -= cache.bytes();
            Some(cache)
        };
        let rows = lengths.train.len();
        Self {
            train: place(&lengths.train, config.passes(rows), Passes::Training),
            validation: place(
                &lengths.validation,
                config.evaluations(rows),
                Passes::Inference,
            ),
        }
    }

    /// Bytes of all states.
    pub fn bytes(&self) -> u64 {
        let caches = self.train.iter().chain(&self.validation);
        caches.map(FrozenCache::bytes).sum()
    }
}

/// The states of one set of rows.
#[derive(Debug)]
pub struct FrozenCache {
    frozen: FrozenLayers,
    /// Where each row's tokens start among the states, and the end of the last.
    starts: Vec<usize>,
    /// Whether the row's state is there; as long as there are rows that have a place.
    is_known: Vec<bool>,
    states: Tensor,
}

impl FrozenCache {
    /// A place for the states of rows of these lengths, in order, as many as fit into
    /// `limit_bytes`. None where no layer is frozen or no row fits.
    pub fn new(
        model: &Model,
        frozen: FrozenLayers,
        lengths: impl IntoIterator<Item = usize>,
        limit_bytes: u64,
    ) -> Option<Self> {
        let mut starts = vec![0];
        starts.extend(lengths.into_iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        let most = usize::try_from(limit_bytes / token_bytes(model)).unwrap_or(usize::MAX);
        let places = starts[1..].partition_point(|&end| end <= most);
        if frozen.count == 0 || places == 0 {
            return None;
        }
        let (device, width) = (model.device(), model.config().facts.hidden_size);
        let purpose = Purpose::FrozenCache;
        let states = Tensor::uninit_as(
            device.numerics().activations,
            device,
            starts[places],
            width,
            purpose,
        );
        Some(Self {
            frozen,
            starts,
            is_known: vec![false; places],
            states,
        })
    }

    /// Bytes of the states.
    pub fn bytes(&self) -> u64 {
        (self.states.len() * self.states.dtype().bytes()) as u64
    }

    /// Rows that have a place, and rows in all.
    pub fn rows(&self) -> (usize, usize) {
        (self.is_known.len(), self.starts.len() - 1)
    }

    /// Takes every row that has a place as known: for a plan of later epochs, in which states have
    /// no values.
    pub fn assume_known(&mut self) {
        assert!(self.states.device().is_dry(), "states are not made up");
        self.is_known.fill(true);
    }

    /// What a pass over a batch starts from where states are kept: see [`FrozenCache::entry`].
    /// Without them nothing.
    ///
    /// # Errors
    /// The batch does not fit the model.
    pub fn entry_if_cached(
        kept: Option<&mut Self>,
        model: &Model,
        batch: &Batch<'_>,
        rows: &[usize],
    ) -> Result<Option<Entry>, ModelError> {
        kept.map(|cache| cache.entry(model, batch, rows))
            .transpose()
    }

    /// What a pass over a batch starts from: its sequences are the rows `rows`. States that are not
    /// known are computed, and kept if they have a place.
    ///
    /// # Errors
    /// The batch does not fit the model.
    pub fn entry(
        &mut self,
        model: &Model,
        batch: &Batch<'_>,
        rows: &[usize],
    ) -> Result<Entry, ModelError> {
        let known = |row: usize| self.is_known.get(row).is_some_and(|&known| known);
        let new: Vec<usize> = (0..rows.len()).filter(|&i| !known(rows[i])).collect();
        if new.len() == rows.len() {
            let entry = model.run_frozen_layers(self.frozen, batch)?;
            self.keep(&entry.state, rows);
            return Ok(entry);
        }
        let mut computed = None;
        if !new.is_empty() {
            let part = Part::of(batch, &new);
            computed = Some(model.run_frozen_layers(self.frozen, &part.batch())?.state);
        }
        let mut state = Tensor::activations(model.device(), batch.tokens(), self.states.cols());
        let mut next = 0;
        for (range, &row) in batch.offsets.windows(2).zip(rows) {
            let (at, length) = (range[0], range[1] - range[0]);
            match &computed {
                Some(part) if !known(row) => {
                    state.copy_rows(at, part, next..next + length);
                    next += length;
                }
                Some(_) | None => {
                    let start = self.starts[row];
                    state.copy_rows(at, &self.states, start..start + length);
                }
            }
        }
        if let Some(part) = computed {
            let new: Vec<usize> = new.into_iter().map(|i| rows[i]).collect();
            self.keep(&part, &new);
        }
        Ok(Entry {
            frozen: self.frozen,
            state,
        })
    }

    /// Keeps the states of `rows`, which lie end to end.
    fn keep(&mut self, states: &Tensor, rows: &[usize]) {
        let mut from = 0;
        for &row in rows {
            let (start, end) = (self.starts[row], self.starts[row + 1]);
            if let Some(known) = self.is_known.get_mut(row) {
                self.states
                    .copy_rows(start, states, from..from + end - start);
                *known = true;
            }
            from += end - start;
        }
    }
}

/// Bytes of the state of one token.
pub fn token_bytes(model: &Model) -> u64 {
    (model.config().facts.hidden_size * model.device().numerics().activations.bytes()) as u64
}

/// Some sequences of a batch.
struct Part {
    input_ids: Vec<u32>,
    token_type_ids: Option<Vec<u32>>,
    offsets: Vec<usize>,
}

impl Part {
    fn of(batch: &Batch<'_>, sequences: &[usize]) -> Self {
        let range = |&i: &usize| batch.offsets[i]..batch.offsets[i + 1];
        let gather = |ids: &[u32]| -> Vec<u32> {
            let parts = sequences.iter().map(range);
            parts.flat_map(|range| ids[range].to_vec()).collect()
        };
        let mut offsets = vec![0];
        offsets.extend(sequences.iter().map(range).scan(0, |end, range| {
            *end += range.len();
            Some(*end)
        }));
        Self {
            input_ids: gather(batch.input_ids),
            token_type_ids: batch.token_type_ids.map(gather),
            offsets,
        }
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            input_ids: &self.input_ids,
            token_type_ids: self.token_type_ids.as_deref(),
            offsets: &self.offsets,
        }
    }
}
