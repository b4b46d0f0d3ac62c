//! Adapters of a fused layer's parts, each at its own rank, as the LoRA paper adapts GPT-2's
//! queries and values. The A of the parts stand one under the other [n·r, in]; so do their B in
//! storage [rows of these parts, r], as in loralib's `MergedLinear`. A product takes the one B
//! [out, n·r] that says the same: each part's own in its rows and columns, zero elsewhere. Those
//! zeros are never stored among the trained values, so that nothing can move them.

use std::ops::AddAssign;

use crate::call::{Call, Transpose};
use crate::device::Device;
use crate::meter::Purpose;
use crate::ops::linear::Adapter;
use crate::param::{PackedMatrix, Trainables};
use crate::tensor::Tensor;

/// The most parts of a fused layer: queries, keys and values.
pub const PARTS: usize = 3;

/// Which parts are adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Rows of each part, one under the other; 0 behind the last.
    pub rows: [usize; PARTS],
    /// Whether it is adapted.
    pub adapted: [bool; PARTS],
}

impl Blocks {
    /// Number of adapted parts n.
    pub fn count(self) -> usize {
        self.adapted.iter().filter(|&&on| on).count()
    }

    /// The numbers of the adapted parts.
    pub fn parts(self) -> impl Iterator<Item = usize> {
        (0..PARTS).filter(move |&part| self.adapted[part])
    }

    /// The shape [rows of the adapted parts, r] of storage.
    pub fn stored_shape(self, rank: usize) -> [usize; 2] {
        [self.parts().map(|part| self.rows[part]).sum(), rank]
    }

    /// The shape [out, n·r] of the B that a product takes.
    pub fn whole_shape(self, rank: usize) -> [usize; 2] {
        [self.rows.iter().sum(), rank * self.count()]
    }

    /// Where the r values of each row of a stored B stand in the B [out, n·r], in order.
    fn places(self, rank: usize) -> impl Iterator<Item = usize> {
        let n = self.count();
        self.parts().enumerate().flat_map(move |(i, part)| {
            let first: usize = self.rows[..part].iter().sum();
            (first..first + self.rows[part]).map(move |row| (row * n + i) * rank)
        })
    }

    /// The B [out, n·r] of a stored one of rank r.
    pub fn expand(self, stored: &[f32], rank: usize) -> Vec<f32> {
        let mut whole = vec![0.0; self.whole_shape(rank).iter().product()];
        self.write(stored, rank, &mut whole);
        whole
    }

    pub(crate) fn write<T: Copy + Default>(self, stored: &[T], rank: usize, whole: &mut [T]) {
        whole.fill(T::default());
        for (row, at) in stored.chunks_exact(rank).zip(self.places(rank)) {
            whole[at..at + rank].copy_from_slice(row);
        }
    }

    /// stored += the blocks of whole [out, n·r].
    pub(crate) fn gather<T: Copy + AddAssign>(self, whole: &[T], rank: usize, stored: &mut [T]) {
        for (row, at) in stored.chunks_exact_mut(rank).zip(self.places(rank)) {
            let from = &whole[at..at + rank];
            row.iter_mut().zip(from).for_each(|(s, w)| *s += *w);
        }
    }
}

/// The B [out, n·r] of an adapter as a product takes it, or its transpose.
pub(crate) fn packed_b(
    device: &Device,
    adapter: &Adapter,
    trainables: &Trainables,
    transpose: Transpose,
) -> PackedMatrix {
    let stored = &trainables.get(adapter.b).value;
    let Some(blocks) = adapter.blocks else {
        return PackedMatrix::trained(device, stored, transpose);
    };
    let [out, rank] = blocks.whole_shape(stored.cols());
    let mut whole = Tensor::uninit(device, out, rank, Purpose::Workspace);
    device.run(Call::ExpandBlocks {
        blocks,
        stored,
        out: &mut whole,
    });
    PackedMatrix::trained(device, &whole, transpose)
}

/// Adds to a stored B's gradient what `add` adds to that of the B [out, n·r].
pub(crate) fn add_to_b(blocks: Option<Blocks>, d_b: &mut Tensor, add: impl FnOnce(&mut Tensor)) {
    let Some(blocks) = blocks else {
        return add(d_b);
    };
    let device = d_b.device().clone();
    let [out, rank] = blocks.whole_shape(d_b.cols());
    let mut whole = Tensor::zeros(&device, out, rank, Purpose::Workspace);
    add(&mut whole);
    device.run(Call::GatherBlocks {
        blocks,
        whole: &whole,
        out: d_b,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_fills_its_own_rows_and_columns() {
        let blocks = Blocks {
            rows: [2, 2, 2],
            adapted: [true, false, true],
        };
        // Rank 1: queries 1, 2 and values 3, 4.
        let whole = blocks.expand(&[1.0, 2.0, 3.0, 4.0], 1);
        let rows = [
            [1.0, 0.0],
            [2.0, 0.0],
            [0.0; 2],
            [0.0; 2],
            [0.0, 3.0],
            [0.0, 4.0],
        ];
        assert_eq!(whole, rows.concat());
        assert_eq!(
            (blocks.whole_shape(1), blocks.stored_shape(1)),
            ([6, 2], [4, 1])
        );
        let mut stored = [10.0; 4];
        let numbered: Vec<f32> = (0..12u8).map(f32::from).collect();
        blocks.gather(&numbered, 1, &mut stored);
        assert_eq!(stored, [10.0, 12.0, 19.0, 21.0]);

        let unequal = Blocks {
            rows: [3, 1, 1],
            adapted: [false, true, true],
        };
        let whole = unequal.expand(&[1.0, 2.0, 3.0, 4.0], 2);
        let mut rows = [[0.0; 4]; 5];
        (rows[3], rows[4]) = ([1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]);
        assert_eq!(whole, rows.concat());
    }
}
