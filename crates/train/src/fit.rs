//! Which batch fits into a limit of memory. The rows of an optimizer step stay those that were asked for: as the batch
//! shrinks, the step takes more of them, and its loss is that of all its rows.

use crate::config::TrainConfig;

/// One way to take the rows of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Rows a batch.
    pub batch_size: usize,
    /// Batches a step.
    pub accumulation: usize,
    /// Whether activations are recomputed in the backward pass.
    pub recompute: bool,
}

impl BatchShape {
    /// Every way to take exactly `rows` rows a step, the ones to be preferred first: without recomputation, which is less
    /// work, then with; large batches before small ones. `recompute` leaves one of the two only.
    pub fn all(rows: usize, recompute: Option<bool>) -> Vec<BatchShape> {
        let sizes = (1..=rows).rev().filter(|&size| rows.is_multiple_of(size));
        let sizes: Vec<usize> = sizes.collect();
        let ways = [false, true].into_iter();
        let ways = ways.filter(|way| recompute.is_none_or(|asked| asked == *way));
        let shapes = ways.flat_map(|recompute| {
            sizes.iter().map(move |&batch_size| BatchShape {
                batch_size,
                accumulation: rows / batch_size,
                recompute,
            })
        });
        shapes.collect()
    }

    /// Sets it in a configuration.
    pub fn apply(self, config: &mut TrainConfig) {
        let o = &mut config.optimization;
        o.per_device_batch_size = self.batch_size;
        o.gradient_accumulation_steps = self.accumulation;
        o.gradient_checkpointing = self.recompute;
    }
}

/// Nothing fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not even one row at a time fits into {limit} bytes: the least is {least} bytes")]
pub struct TooLittle {
    /// What was allowed.
    pub limit: u64,
    /// What the smallest batch needs.
    pub least: u64,
}

/// The first of `shapes` (as [`BatchShape::all`] gives them) that needs `limit` bytes at most, found by bisection: a smaller
/// batch needs no more.
///
/// # Errors
/// Those of `needed`; and [`TooLittle`], within.
pub fn largest_batch<E>(
    shapes: &[BatchShape],
    limit: u64,
    mut needed: impl FnMut(BatchShape) -> Result<u64, E>,
) -> Result<Result<BatchShape, TooLittle>, E> {
    let mut least = u64::MAX;
    for way in shapes.chunk_by(|a, b| a.recompute == b.recompute) {
        let Some(&smallest) = way.last() else {
            continue;
        };
        least = least.min(needed(smallest)?);
        if least <= limit {
            let found = first_that(way, |shape| Ok(needed(*shape)? <= limit))?;
            return Ok(Ok(found.copied().unwrap_or(smallest)));
        }
    }
    Ok(Err(TooLittle { limit, least }))
}

/// The first of a list for which `holds`, which then holds for all behind it; the very first is asked first.
///
/// # Errors
/// Those of `holds`.
pub fn first_that<T, E>(
    list: &[T],
    mut holds: impl FnMut(&T) -> Result<bool, E>,
) -> Result<Option<&T>, E> {
    if let Some(first) = list.first()
        && holds(first)?
    {
        return Ok(Some(first));
    }
    let (mut least, mut most) = (list.len().min(1), list.len());
    while least < most {
        let middle = usize::midpoint(least, most);
        if holds(&list[middle])? {
            most = middle;
        } else {
            least = middle + 1;
        }
    }
    Ok(list.get(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(batch_size: usize, accumulation: usize, recompute: bool) -> BatchShape {
        BatchShape {
            batch_size,
            accumulation,
            recompute,
        }
    }

    #[test]
    fn the_largest_batch_without_recomputation_comes_first() {
        let shapes = BatchShape::all(12, None);
        assert_eq!(shapes.len(), 12);
        assert_eq!(shapes[..2], [shape(12, 1, false), shape(6, 2, false)]);
        assert_eq!(shapes[11], shape(1, 12, true));
        // A row needs 10 bytes, 4 if its activations are recomputed, and 100 are needed anyway.
        let needed = |s: BatchShape| {
            Ok::<u64, ()>(100 + s.batch_size as u64 * if s.recompute { 4 } else { 10 })
        };
        let fit = |limit| largest_batch(&shapes, limit, needed).unwrap();
        assert_eq!(fit(1000), Ok(shape(12, 1, false)));
        assert_eq!(fit(219), Ok(shape(6, 2, false)));
        assert_eq!(fit(130), Ok(shape(3, 4, false)));
        assert_eq!(fit(110), Ok(shape(1, 12, false)));
        assert_eq!(fit(109), Ok(shape(2, 6, true)));
        assert_eq!(fit(104), Ok(shape(1, 12, true)));
        let error = fit(103).unwrap_err();
        assert_eq!(
            error,
            TooLittle {
                limit: 103,
                least: 104
            }
        );
        assert_eq!(
            error.to_string(),
            "not even one row at a time fits into 103 bytes: the least is 104 bytes"
        );
        // What was asked for is kept to.
        let only = |recompute, limit| {
            largest_batch(&BatchShape::all(12, Some(recompute)), limit, needed).unwrap()
        };
        assert_eq!(only(true, 1000), Ok(shape(12, 1, true)));
        assert_eq!(
            only(false, 109),
            Err(TooLittle {
                limit: 109,
                least: 110
            })
        );
        assert_eq!(
            largest_batch(&shapes, 1, |_| Err::<u64, _>("no")),
            Err("no")
        );
    }

    #[test]
    fn bisection_asks_few() {
        let list: Vec<usize> = (0..100).collect();
        for wanted in 0..=100 {
            let mut asked = 0;
            let found = first_that(&list, |&n| {
                asked += 1;
                Ok::<_, ()>(n >= wanted)
            });
            assert_eq!(found.unwrap().copied(), list.get(wanted).copied());
            assert!(asked <= 8, "{asked} for {wanted}");
        }
        assert_eq!(first_that(&[] as &[u8], |_| Ok::<_, ()>(true)), Ok(None));
    }
}
