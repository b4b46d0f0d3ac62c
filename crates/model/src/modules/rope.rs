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
    /// Multiplies cosines and sines.
    pub(crate) attention_scaling: f32,
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

    /// A table of the first `positions` positions at least.
    pub(crate) fn table(&self, device: &Device, positions: usize) -> Arc<RopeTable> {
        let mut held = self.table.lock().expect("no table panicked");
        match &*held {
            Some(table) if table.positions() >= positions => table.clone(),
            _ => {
                // The old one goes first.
                *held = None;
                let rows = positions.next_power_of_two().max(FIRST_POSITIONS);
                let rows = rows.min(self.max_positions).max(positions);
                let RopeKind {
                    inverse_frequencies,
                    attention_scaling,
                } = &self.kind;
                let table = RopeTable::new(device, rows, inverse_frequencies, *attention_scaling);
                let table = Arc::new(table);
                held.insert(table).clone()
            }
        }
    }
}
