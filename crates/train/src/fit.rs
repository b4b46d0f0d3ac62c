//! Which batch fits into a limit of memory. The rows of an optimizer step stay those that were
//! asked for: as the batch shrinks, the step takes more of them, and its loss is that of all its
//! rows.

use lowrank_model::Recompute;

use crate::config::TrainConfig;

/// One way to take the rows of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Rows a batch.
    pub batch_size: usize,
    /// Batches a step.
    pub accumulation: usize,
    /// Whether activations are recomputed in the backward pass.
    pub recompute: Recompute,
}

impl BatchShape {
    /// Every way to take exactly `rows` rows a step: without recomputation, then with; large
    /// batches before small ones. `recompute` leaves one of the two only.
    pub fn all(rows: usize, recompute: Option<Recompute>) -> Vec<BatchShape> {
        // Divisors come in pairs, of which one is at most the root.
        let small = (1..=rows.isqrt()).filter(|&size| rows.is_multiple_of(size));
        let mut sizes: Vec<usize> = small.flat_map(|size| [size, rows / size]).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.dedup();
        let ways = [Recompute::Off, Recompute::Layers].into_iter();
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
        o.gradient_checkpointing = self.recompute == Recompute::Layers;
    }
}

/// What a way costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    /// Memory.
    pub bytes: u64,
    /// Floating-point operations a token.
    pub flops_per_token: f64,
    /// Tokens a batch, on average.
    pub tokens_per_batch: f64,
}

/// A batch takes as much longer as so many tokens more would: adapters and transposed weights are
/// packed and ops are started once a batch. Measured on MiniLM-L6 with 27 to 869 tokens a batch: 52
/// in bf16, 28 in f32.
const TOKENS_OF_A_START: f64 = 40.0;

impl Price {
    /// The time a token takes, in floating-point operations.
    pub fn work_per_token(&self) -> f64 {
        self.flops_per_token * (1.0 + TOKENS_OF_A_START / self.tokens_per_batch.max(1.0))
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

/// Of `shapes` (as [`BatchShape::all`] gives them) the largest batch that needs `limit` bytes at
/// most, found by bisection: a smaller batch needs no more. With recomputation a larger one may
/// fit: it is taken where that is less work, as it is where without it only a few tokens at a time
/// would fit.
///
/// # Errors
/// Those of `price`; and [`TooLittle`], within.
pub fn largest_batch<E>(
    shapes: &[BatchShape],
    limit: u64,
    mut price: impl FnMut(BatchShape) -> Result<Price, E>,
) -> Result<Result<BatchShape, TooLittle>, E> {
    let mut least = u64::MAX;
    let mut best: Option<(BatchShape, f64)> = None;
    for way in shapes.chunk_by(|a, b| a.recompute == b.recompute) {
        let mut largest: Option<(BatchShape, f64)> = None;
        first_that(way, |&shape| {
            let price = price(shape)?;
            least = least.min(price.bytes);
            let fits = price.bytes <= limit;
            if fits && largest.is_none_or(|(kept, _)| shape.batch_size > kept.batch_size) {
                largest = Some((shape, price.work_per_token()));
            }
            Ok::<_, E>(fits)
        })?;
        let Some((shape, work)) = largest else {
            continue;
        };
        if best.is_none_or(|(_, other)| work < other) {
            best = Some((shape, work));
        }
        if shape.accumulation == 1 {
            break;
        }
    }
    Ok(best
        .map(|(shape, _)| shape)
        .ok_or(TooLittle { limit, least }))
}

/// The first of a list for which `holds`, which then holds for all behind it; the very first is
/// asked first.
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
            recompute: recompute.into(),
        }
    }

    #[test]
    fn the_largest_batch_is_taken_and_recomputed_where_that_is_less_work() {
        let shapes = BatchShape::all(12, None);
        assert_eq!(shapes.len(), 12);
        assert_eq!(shapes[..2], [shape(12, 1, false), shape(6, 2, false)]);
        assert_eq!(shapes[11], shape(1, 12, true));
        // A row of 20 tokens needs 10 bytes, 4 if its activations are recomputed, which is half as
        // much work again; 100 bytes are needed anyway.
        let price = |s: BatchShape| {
            Ok::<_, ()>(Price {
                bytes: 100
                    + s.batch_size as u64
                        * if s.recompute == Recompute::Layers {
                            4
                        } else {
                            10
                        },
                flops_per_token: if s.recompute == Recompute::Layers {
                    1.5
                } else {
                    1.0
                },
                tokens_per_batch: 20.0 * s.batch_size as f64,
            })
        };
        let fit = |limit| largest_batch(&shapes, limit, price).unwrap();
        assert_eq!(fit(1000), Ok(shape(12, 1, false)));
        assert_eq!(fit(219), Ok(shape(6, 2, false)));
        assert_eq!(fit(130), Ok(shape(3, 4, false)));
        // Two rows without recomputation are as much work as 2, four with it as 2.25.
        assert_eq!(fit(120), Ok(shape(2, 6, false)));
        // One row without is 3, two with it are.
        assert_eq!(fit(110), Ok(shape(1, 12, false)));
        // Here three with it are 2.5.
        assert_eq!(fit(112), Ok(shape(3, 4, true)));
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
        let only = |recompute: bool, limit| {
            largest_batch(&BatchShape::all(12, Some(recompute.into())), limit, price).unwrap()
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
            largest_batch(&shapes, 1, |_| Err::<Price, _>("no")),
            Err("no")
        );
    }

    #[test]
    fn the_ways_of_very_many_rows_are_found_at_once() {
        for rows in [1, 2, 36, 97] {
            let all = (1..=rows).rev().filter(|&size| rows % size == 0);
            let found = BatchShape::all(rows, Some(Recompute::Off));
            assert!(found.iter().map(|s| s.batch_size).eq(all), "{rows}");
        }
        assert_eq!(BatchShape::all(1 << 40, Some(Recompute::Layers)).len(), 41);
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
