//! The order of rows in each epoch, and where a run stands in it. The generator is written out here
//! and must never change: a run that is resumed by a later version sees the same rows.

use serde::{Deserialize, Serialize};

/// In which order the rows are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Seed of the shuffle; each epoch has its own order from it.
    pub seed: u64,
    /// Shuffled, or as in the file.
    pub shuffle: bool,
}

impl Order {
    /// The row numbers of an epoch: a permutation of `0..n`.
    ///
    /// Panics if `n` is above `u32::MAX`; a [`crate::Table`] never holds as many rows.
    pub fn epoch(&self, epoch: u64, n: usize) -> Vec<u32> {
        let n = u32::try_from(n).expect("row numbers have 32 bits");
        let mut rows: Vec<u32> = (0..n).collect();
        if self.shuffle {
            let mut random = Counter::new(self.seed, epoch);
            // Fisher–Yates, from the end.
            for i in (1..rows.len()).rev() {
                rows.swap(i, random.below(i as u64 + 1) as usize);
            }
        }
        rows
    }
}

/// Where a run stands in its rows: the next row to be seen is the `next_row`-th of the order of
/// `epoch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Epochs that are over.
    pub epoch: u64,
    /// Rows of the current epoch that were seen.
    pub next_row: u64,
}

impl Cursor {
    /// Moves over `rows` rows of an epoch of `n_rows`; the end of an epoch is the start of the
    /// next.
    pub fn advance(&mut self, rows: usize, n_rows: usize) {
        self.next_row += rows as u64;
        if self.next_row >= n_rows as u64 {
            self.epoch += 1;
            self.next_row = 0;
        }
    }
}

/// SplitMix64 as a counter-based generator: the i-th value is a function of key and i alone.
/// Source: Steele, Lea, Flood 2014, with the constants of its reference implementation.
struct Counter {
    key: u64,
    next: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Counter {
    fn new(seed: u64, epoch: u64) -> Self {
        Self {
            key: mix(seed.wrapping_add(GOLDEN))
                ^ mix(epoch.wrapping_mul(GOLDEN) ^ 0x6c6f_7772_616e_6b21),
            next: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        mix(self.key.wrapping_add(self.next.wrapping_mul(GOLDEN)))
    }

    /// A uniform number below `bound`, without bias: the high half of a product, the few uneven
    /// products drawn again.
    fn below(&mut self, bound: u64) -> u64 {
        let uneven = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            if product as u64 >= uneven {
                return (product >> 64) as u64;
            }
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_known_answers() {
        // Key 0 is SplitMix64 seeded with 0; its first three published values.
        let mut random = Counter { key: 0, next: 0 };
        assert_eq!(random.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.next(), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(random.next(), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn every_epoch_is_a_permutation_of_its_own() {
        let order = Order {
            seed: 1,
            shuffle: true,
        };
        let (first, second) = (order.epoch(0, 1000), order.epoch(1, 1000));
        assert_ne!(first, second);
        assert_ne!(
            first,
            Order {
                seed: 2,
                shuffle: true
            }
            .epoch(0, 1000)
        );
        for mut rows in [first, second] {
            rows.sort_unstable();
            assert_eq!(rows, (0..1000).collect::<Vec<u32>>());
        }
        assert_eq!(order.epoch(3, 0), Vec::<u32>::new());
        assert_eq!(order.epoch(3, 1), [0]);
        assert_eq!(
            Order {
                seed: 1,
                shuffle: false
            }
            .epoch(5, 4),
            [0, 1, 2, 3]
        );
    }

    #[test]
    fn no_place_is_preferred() {
        let mut counts = [0u32; 6];
        for epoch in 0..6000 {
            let at = Order {
                seed: 9,
                shuffle: true,
            }
            .epoch(epoch, 6)
            .iter()
            .position(|r| *r == 0);
            counts[at.unwrap()] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn cursor_turns_over_at_the_end_of_an_epoch() {
        let mut cursor = Cursor::default();
        cursor.advance(4, 10);
        cursor.advance(4, 10);
        assert_eq!(
            cursor,
            Cursor {
                epoch: 0,
                next_row: 8
            }
        );
        cursor.advance(2, 10);
        assert_eq!(
            cursor,
            Cursor {
                epoch: 1,
                next_row: 0
            }
        );
        let text = serde_json::to_string(&cursor).unwrap();
        assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), cursor);
    }
}
