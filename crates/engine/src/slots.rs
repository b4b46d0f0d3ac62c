//! Which adapter each row of a pass takes, where several share a batch: rows are in segments, each
//! of one slot. Slot 0 is no adapter, slot 1 each layer's own, slots from 2 on are those of loaded
//! adapters. It knows no layer.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The adapters of a pass.
#[derive(Debug, Clone)]
pub enum Adapters {
    /// Each layer's own, on every row.
    Own,
    /// None.
    Off,
    /// Those of slots, by rows.
    BySlot(RowSlots),
}

/// Neighbouring rows of one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The rows.
    pub rows: Range<usize>,
    /// The slot of their adapter.
    pub slot: usize,
}

/// The slots of a pass's rows. A pass begins with the rows of all its tokens, and goes on with some
/// of them; each choice leaves fewer rows or all of them, so that their number says which rows they
/// are.
#[derive(Debug, Clone)]
pub struct RowSlots(BTreeMap<usize, Arc<[Segment]>>);

impl RowSlots {
    /// The slots of sequences that lie end to end: sequence `i` has the rows from `offsets[i]` to
    /// `offsets[i + 1]`. Panics if there are not as many slots as sequences.
    pub fn of_sequences(offsets: &[usize], slots: &[usize]) -> Self {
        assert_eq!(offsets.len(), slots.len() + 1, "a slot a sequence");
        let ranges = offsets.windows(2).map(|range| range[0]..range[1]);
        let segments = joined(ranges.zip(slots.iter().copied()));
        let rows = offsets.last().copied().unwrap_or_default();
        RowSlots(BTreeMap::from([(rows, segments)]))
    }

    /// The segments of tensors of so many rows. Panics if no such rows were chosen: they are none
    /// of the batch's tokens.
    pub(crate) fn segments(&self, rows: usize) -> &Arc<[Segment]> {
        let known = self.0.get(&rows);
        known.unwrap_or_else(|| panic!("{rows} rows that are not the tokens of sequences"))
    }

    /// Goes on with `chosen` of all rows.
    pub(crate) fn narrow(&mut self, chosen: &[usize]) {
        if let Some(&all) = self.0.keys().next_back() {
            self.choose(all, chosen);
        }
    }

    /// Goes on with `chosen` of `rows` rows.
    pub(crate) fn choose(&mut self, rows: usize, chosen: &[usize]) {
        let all = self.segments(rows).clone();
        let slot_of = |row: usize| {
            let at = all.partition_point(|segment| segment.rows.end <= row);
            all[at].slot
        };
        let ranges = (0..chosen.len()).map(|at| at..at + 1);
        let segments = joined(ranges.zip(chosen.iter().map(|&row| slot_of(row))));
        let before = self.0.insert(chosen.len(), segments.clone());
        assert!(
            before.is_none_or(|before| before == segments),
            "two choices of {} rows",
            chosen.len()
        );
    }
}

/// Ranges that follow each other, those of one slot joined.
fn joined(ranges: impl Iterator<Item = (Range<usize>, usize)>) -> Arc<[Segment]> {
    let mut segments: Vec<Segment> = Vec::new();
    for (rows, slot) in ranges {
        match segments.last_mut() {
            Some(last) if last.slot == slot => last.rows.end = rows.end,
            _ => segments.push(Segment { rows, slot }),
        }
    }
    segments.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(slots: &RowSlots, rows: usize) -> Vec<(Range<usize>, usize)> {
        let all = slots.segments(rows).iter();
        all.map(|segment| (segment.rows.clone(), segment.slot))
            .collect()
    }

    #[test]
    fn neighbours_of_one_slot_are_one_segment_and_chosen_rows_keep_their_slot() {
        let mut slots = RowSlots::of_sequences(&[0, 2, 5, 6, 8], &[1, 1, 0, 2]);
        assert_eq!(segments(&slots, 8), [(0..5, 1), (5..6, 0), (6..8, 2)]);
        slots.choose(8, &[1, 4, 5, 7]);
        assert_eq!(segments(&slots, 4), [(0..2, 1), (2..3, 0), (3..4, 2)]);
        slots.choose(4, &[0, 3]);
        assert_eq!(segments(&slots, 2), [(0..1, 1), (1..2, 2)]);
    }
}
