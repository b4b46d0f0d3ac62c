//! The rows around each row of a sequence, side by side: what turns a convolution over tokens into
//! a product.

use crate::element::Element;
use crate::parallel::{SharedMut, for_each_task, rows_per_task};

/// The sequence bounds of each row of a task, found as the rows rise.
struct Bounds<'a> {
    offsets: &'a [usize],
    sequence: usize,
}

impl Bounds<'_> {
    fn at(&mut self, row: usize) -> std::ops::Range<usize> {
        while self.offsets[self.sequence + 1] <= row {
            self.sequence += 1;
        }
        self.offsets[self.sequence]..self.offsets[self.sequence + 1]
    }
}

/// Calls `visit(row, sequence)` for each row, on several threads.
fn for_each_row(
    offsets: &[usize],
    width: usize,
    visit: impl Fn(usize, std::ops::Range<usize>) + Sync + Send,
) {
    let rows = offsets.last().copied().unwrap_or(0);
    let per_task = rows_per_task(width);
    for_each_task(rows.div_ceil(per_task), |task| {
        let start = task * per_task;
        let sequence = offsets.partition_point(|&offset| offset <= start) - 1;
        let mut bounds = Bounds { offsets, sequence };
        for row in start..(start + per_task).min(rows) {
            visit(row, bounds.at(row));
        }
    });
}

/// y[i, c * taps + t] = x[i + t - taps / 2, c], 0 where that row is of another sequence. Shapes: x
/// [M, D], y [M, D * taps], offsets `[B + 1]` rising from 0 to M. Columns of y are ordered as a
/// `Conv1d`'s weight [out, D, taps] is.
///
/// Panics if a length disagrees or `taps` is even.
pub fn neighbours<E: Element>(offsets: &[usize], taps: usize, width: usize, x: &[E], y: &mut [E]) {
    check(offsets, taps, width, x, y);
    let out = SharedMut::new(y);
    for_each_row(offsets, width * taps, |row, sequence| {
        // SAFETY: the row lies inside y, whose length was asserted, and each row belongs to one
        // task.
        let to = unsafe {
            std::slice::from_raw_parts_mut(out.get().add(row * width * taps), width * taps)
        };
        for tap in 0..taps {
            let to = to[tap..].iter_mut().step_by(taps);
            match neighbour(row, tap, taps, &sequence) {
                Some(from) => {
                    let from = &x[from * width..][..width];
                    to.zip(from).for_each(|(to, from)| *to = *from);
                }
                None => to.for_each(|to| *to = E::default()),
            }
        }
    });
}

/// The gradient of x: d_x[i, c] = Σ over t of d_y[i - t + taps / 2, c * taps + t], rows of its
/// sequence alone; overwritten. Sums are in f32.
///
/// Panics if a length disagrees or `taps` is even.
pub fn neighbours_backward<E: Element>(
    offsets: &[usize],
    taps: usize,
    width: usize,
    d_y: &[E],
    d_x: &mut [E],
) {
    check(offsets, taps, width, d_x, d_y);
    let out = SharedMut::new(d_x);
    for_each_row(offsets, width * taps, |row, sequence| {
        let mut sums = vec![0.0; width];
        for tap in 0..taps {
            // Row i is the neighbour of row i + t - taps / 2 at the mirrored tap.
            if let Some(from) = neighbour(row, tap, taps, &sequence) {
                let from = &d_y[from * width * taps..][..width * taps];
                let from = from[taps - 1 - tap..].iter().step_by(taps);
                sums.iter_mut()
                    .zip(from)
                    .for_each(|(sum, from)| *sum += from.widen());
            }
        }
        // SAFETY: the row lies inside d_x, whose length was asserted, and each row belongs to one
        // task.
        let to = unsafe { std::slice::from_raw_parts_mut(out.get().add(row * width), width) };
        to.iter_mut()
            .zip(&sums)
            .for_each(|(to, sum)| *to = E::narrow(*sum));
    });
}

/// The row under a tap, if it is of the sequence.
fn neighbour(
    row: usize,
    tap: usize,
    taps: usize,
    sequence: &std::ops::Range<usize>,
) -> Option<usize> {
    (row + tap)
        .checked_sub(taps / 2)
        .filter(|row| sequence.contains(row))
}

fn check<E>(offsets: &[usize], taps: usize, width: usize, x: &[E], y: &[E]) {
    assert!(taps % 2 == 1, "{taps} taps have no middle");
    assert!(offsets.first().is_none_or(|&first| first == 0));
    assert!(offsets.windows(2).all(|pair| pair[0] <= pair[1]));
    let rows = offsets.last().copied().unwrap_or(0);
    assert_eq!(x.len(), rows * width);
    assert_eq!(y.len(), rows * width * taps);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_other_sequences_are_zeros() {
        // Two sequences of 3 and 1 rows, an empty one between them.
        let offsets = [0, 3, 3, 4];
        let x = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
        let mut y = [f32::NAN; 24];
        neighbours(&offsets, 3, 2, &x, &mut y);
        let want = [
            0., 1., 2., 0., 10., 20., //
            1., 2., 3., 10., 20., 30., //
            2., 3., 0., 20., 30., 0., //
            0., 4., 0., 0., 40., 0.,
        ];
        assert_eq!(y, want);
    }

    #[test]
    fn the_backward_is_the_transpose() {
        // <neighbours(x), d> = <x, backward(d)> for unit vectors: every entry of the matrix.
        let offsets = [0, 1, 4, 9];
        let (width, taps) = (2, 5);
        let (n, m) = (9 * width, 9 * width * taps);
        for i in 0..m {
            let mut d = vec![0.0; m];
            d[i] = 1.0;
            let mut d_x = vec![f32::NAN; n];
            neighbours_backward(&offsets, taps, width, &d, &mut d_x);
            for j in 0..n {
                let mut x = vec![0.0; n];
                x[j] = 1.0;
                let mut y = vec![0.0; m];
                neighbours(&offsets, taps, width, &x, &mut y);
                assert_eq!(y[i], d_x[j], "{i} {j}");
            }
        }
    }
}
