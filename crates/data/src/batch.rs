//! Padding-free batches: sequences end to end with their offsets, and which rows go together.

use serde::{Deserialize, Serialize};

use crate::labels::Label;
use crate::load::Example;
use crate::order::{Cursor, Order};

/// The labels of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchLabels {
    /// None.
    None,
    /// A class for each sequence.
    Class(Vec<i64>),
    /// 0 or 1 for each sequence and class, `[B, width]`.
    Multi {
        /// The values, row by row.
        values: Vec<f32>,
        /// Number of classes.
        width: usize,
    },
    /// A number for each sequence.
    Value(Vec<f32>),
    /// A class or [`crate::IGNORE_INDEX`] for each token, `[total_tokens]`.
    Tokens(Vec<i64>),
}

/// Sequences laid end to end.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedBatch {
    /// Token ids, `[total_tokens]`.
    pub input_ids: Vec<u32>,
    /// Token types, `[total_tokens]`.
    pub token_type_ids: Vec<u32>,
    /// Where each sequence begins, and the end of the last: `[B + 1]`.
    pub offsets: Vec<usize>,
    /// The labels.
    pub labels: BatchLabels,
    /// The row that each sequence came from, `[B]`.
    pub rows: Vec<usize>,
}

impl PackedBatch {
    /// Packs the examples with these numbers, in this order.
    pub fn from_rows(examples: &[Example], rows: &[u32]) -> Self {
        let rows: Vec<usize> = rows.iter().map(|row| *row as usize).collect();
        let chosen: Vec<&Example> = rows.iter().map(|row| &examples[*row]).collect();
        pack(&chosen, &rows)
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Tokens in all.
    pub fn total_tokens(&self) -> usize {
        self.input_ids.len()
    }
}

/// Lays examples end to end; `rows` are their row numbers.
///
/// Panics if there are not as many rows as examples, or if the examples' labels are of different
/// kinds; those of one [`crate::Loaded`] never are.
pub fn pack(examples: &[&Example], rows: &[usize]) -> PackedBatch {
    assert_eq!(
        examples.len(),
        rows.len(),
        "one row number for each example"
    );
    let total = examples.iter().map(|example| example.input_ids.len()).sum();
    let mut batch = PackedBatch {
        input_ids: Vec::with_capacity(total),
        token_type_ids: Vec::with_capacity(total),
        offsets: Vec::with_capacity(examples.len() + 1),
        labels: empty_labels(examples),
        rows: rows.to_vec(),
    };
    batch.offsets.push(0);
    for example in examples {
        batch.input_ids.extend_from_slice(&example.input_ids);
        let end = batch.input_ids.len();
        match &example.token_type_ids {
            Some(types) => {
                assert_eq!(
                    types.len(),
                    example.input_ids.len(),
                    "one token type for each id"
                );
                batch.token_type_ids.extend_from_slice(types);
            }
            None => batch.token_type_ids.resize(end, 0),
        }
        batch.offsets.push(end);
        match (&mut batch.labels, &example.label) {
            (BatchLabels::None, Label::None) => {}
            (BatchLabels::Class(classes), Label::Class(class)) => classes.push((*class).into()),
            (BatchLabels::Multi { values, width }, Label::Multi(row)) => {
                assert_eq!(row.len(), *width, "one value for each class");
                values.extend_from_slice(row);
            }
            (BatchLabels::Value(values), Label::Value(value)) => values.push(*value),
            (BatchLabels::Tokens(labels), Label::Tokens(row)) => {
                assert_eq!(
                    row.len(),
                    example.input_ids.len(),
                    "one label for each token"
                );
                labels.extend_from_slice(row);
            }
            (labels, label) => {
                panic!("labels of different kinds in one batch: {labels:?} and {label:?}")
            }
        }
    }
    batch
}

fn empty_labels(examples: &[&Example]) -> BatchLabels {
    match examples.first().map(|example| &example.label) {
        None | Some(Label::None) => BatchLabels::None,
        Some(Label::Class(_)) => BatchLabels::Class(Vec::new()),
        Some(Label::Multi(row)) => BatchLabels::Multi {
            values: Vec::new(),
            width: row.len(),
        },
        Some(Label::Value(_)) => BatchLabels::Value(Vec::new()),
        Some(Label::Tokens(_)) => BatchLabels::Tokens(Vec::new()),
    }
}

/// Positions `start..end` of each batch in an epoch of `n_rows`; the last batch may be smaller.
///
/// Panics if `batch_size` is 0.
pub fn batches(
    n_rows: usize,
    batch_size: usize,
) -> impl ExactSizeIterator<Item = std::ops::Range<usize>> {
    assert!(batch_size > 0, "a batch has at least one row");
    (0..n_rows.div_ceil(batch_size))
        .map(move |i| i * batch_size..((i + 1) * batch_size).min(n_rows))
}

/// Which rows go together in each optimizer step of a run. Training and its plan both ask here, so
/// that they cannot differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batching {
    order: Order,
    batch_size: usize,
    accumulation: usize,
    n_rows: usize,
    /// The epoch that was asked for last, and its rows in their order.
    epoch: Option<(u64, Vec<u32>)>,
}

impl Batching {
    /// Steps of `accumulation` batches of `batch_size` rows over `n_rows` rows. Panics if a batch
    /// or a step has nothing.
    pub fn new(order: Order, n_rows: usize, batch_size: usize, accumulation: usize) -> Self {
        assert!(batch_size > 0, "a batch has at least one row");
        assert!(accumulation > 0, "a step has at least one batch");
        Self {
            order,
            batch_size,
            accumulation,
            n_rows,
            epoch: None,
        }
    }

    /// The rows of each batch of the step that begins at `cursor`. An epoch's last batch and last
    /// step may be smaller.
    pub fn step(&mut self, cursor: Cursor) -> impl ExactSizeIterator<Item = &[u32]> {
        if self.epoch.as_ref().map(|(epoch, _)| *epoch) != Some(cursor.epoch) {
            self.epoch = Some((cursor.epoch, self.order.epoch(cursor.epoch, self.n_rows)));
        }
        let rows = self.epoch.as_ref().map_or(&[][..], |(_, rows)| rows);
        let next = usize::try_from(cursor.next_row).unwrap_or(usize::MAX);
        let rest = &rows[next.min(rows.len())..];
        rest.chunks(self.batch_size).take(self.accumulation)
    }
}

/// What padding each batch to its longest sequence would cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Padding {
    /// Real tokens.
    pub tokens: u64,
    /// Tokens with padding.
    pub padded_tokens: u64,
}

impl Padding {
    /// Counts over batches of `batch_size` rows in the order given. Panics if `batch_size` is 0.
    pub fn of(lengths: &[usize], batch_size: usize) -> Self {
        let mut padding = Self::default();
        for batch in lengths.chunks(batch_size) {
            let longest = batch.iter().copied().max().unwrap_or(0);
            padding.tokens += batch.iter().sum::<usize>() as u64;
            padding.padded_tokens += (longest * batch.len()) as u64;
        }
        padding
    }

    /// The share of padded tokens that are padding, from 0 to 1.
    pub fn share(&self) -> f64 {
        if self.padded_tokens == 0 {
            return 0.0;
        }
        (self.padded_tokens - self.tokens) as f64 / self.padded_tokens as f64
    }
}
