//! The tables of rotary positions that a model's layers share: they grow to the longest sequence
//! that was met, so that a model of 131,072 positions costs no more than the rows that are trained
//! on. It knows no family.

use std::sync::{Arc, Mutex};

use lowrank_engine::Device;
use lowrank_engine::ops::rope::{RopeForm, RopeTable};

/// Positions of the first table.
const FIRST_POSITIONS: usize = 256;

/// Names one kind of rotation in its model's modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RopeId(pub(super) usize);

/// The angles of one kind of rotation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopeKind {
    /// Of each pair: half as many as elements of a head are rotated.
    pub(crate) inverse_frequencies: Vec<f32>,
    /// What long sequences have in their place.
    pub(crate) long: Option<LongFrequencies>,
    /// Multiplies cosines and sines.
    pub(crate) attention_scaling: f32,
}

/// Frequencies of sequences beyond a length, for all of their tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LongFrequencies {
    /// The longest sequence that has the others.
    pub(crate) beyond: usize,
    pub(crate) inverse_frequencies: Vec<f32>,
}

/// One kind of rotation, with its table.
#[derive(Debug)]
pub(crate) struct Rope {
    pub(crate) form: RopeForm,
    kind: RopeKind,
    /// The longest sequence.
    max_positions: usize,
    table: Mutex<Option<Arc<RopeTable>>>,
}

impl Rope {
    pub(crate) fn new(form: RopeForm, kind: RopeKind, max_positions: usize) -> Self {
        Rope {
            form,
            kind,
            max_positions,
            table: Mutex::default(),
        }
    }

    /// The longest sequence that has the frequencies of short ones; none where all have them.
    pub(crate) fn beyond(&self) -> Option<usize> {
        self.kind.long.as_ref().map(|long| long.beyond)
    }

    /// A table of the first `positions` positions at least, and the rows in it of tokens at these
    /// places in sequences of these lengths.
    pub(crate) fn table(
        &self,
        device: &Device,
        positions: usize,
        places: &Arc<[u32]>,
        lengths: &[u32],
    ) -> (Arc<RopeTable>, Arc<[u32]>) {
        let Some(beyond) = self.beyond() else {
            return (self.table_of(device, positions, 1), places.clone());
        };
        let is_long = |length: &u32| *length as usize > beyond;
        let sets = 1 + usize::from(lengths.iter().any(is_long));
        let table = self.table_of(device, positions, sets);
        let row = |(place, length): (&u32, &u32)| match is_long(length) {
            true => place + table.positions() as u32,
            false => *place,
        };
        let rows = places.iter().zip(lengths).map(row).collect();
        (table, rows)
    }

    fn table_of(&self, device: &Device, positions: usize, sets: usize) -> Arc<RopeTable> {
        let mut held = self.table.lock().expect("no table panicked");
        let mut least = 0;
        if let Some(table) = &*held {
            if table.positions() >= positions && table.sets() >= sets {
                return table.clone();
            }
            least = table.positions();
        }
        // The old one goes first.
        *held = None;
        let rows = positions.next_power_of_two().max(FIRST_POSITIONS);
        let rows = rows.min(self.max_positions).max(positions).max(least);
        let kind = &self.kind;
        let long = kind.long.as_ref().filter(|_| sets > 1);
        let mut frequencies = vec![&*kind.inverse_frequencies];
        frequencies.extend(long.map(|long| &*long.inverse_frequencies));
        let table = RopeTable::new(device, rows, &frequencies, kind.attention_scaling);
        held.insert(table.into()).clone()
    }
}
