//! Which row of the table of relative positions a distance reads. It knows no tensors.

/// The rows of one model's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelativeRows {
    /// Half of the table's rows: row `span` is for distance 0.
    span: usize,
    /// (buckets, reach), where far distances share rows on a logarithmic scale.
    buckets: Option<(usize, usize)>,
}

impl RelativeRows {
    /// A row for each distance below `reach`.
    pub(crate) fn exact(reach: usize) -> Self {
        RelativeRows {
            span: reach,
            buckets: None,
        }
    }

    /// `buckets` rows for each direction: half of them for a distance each, half on a logarithmic
    /// scale up to `reach`.
    pub(crate) fn bucketed(buckets: usize, reach: usize) -> Self {
        RelativeRows {
            span: buckets,
            buckets: Some((buckets, reach)),
        }
    }

    /// Rows of the table.
    pub(crate) fn table_rows(self) -> usize {
        2 * self.span
    }

    /// The row of the distance i - j.
    pub(crate) fn row(self, distance: i64) -> u32 {
        let bucket = self.buckets.map_or(distance, |(buckets, reach)| {
            log_bucket(distance, buckets, reach)
        });
        (bucket + self.span as i64).clamp(0, 2 * self.span as i64 - 1) as u32
    }

    /// The rows of the table that sequences of at most `longest` tokens read, and of each distance
    /// from `1 - longest` to `longest - 1` its place among them.
    pub(crate) fn of_length(self, longest: usize) -> (Vec<u32>, Vec<u32>) {
        let last = longest as i64 - 1;
        let (low, high) = (self.row(-last), self.row(last));
        let places = (-last..=last).map(|distance| self.row(distance) - low);
        ((low..=high).collect(), places.collect())
    }
}

/// The bucket of a distance. The steps are those of f32 arithmetic, as PyTorch takes them.
/// Source: transformers `make_log_bucket_position`.
fn log_bucket(distance: i64, buckets: usize, reach: usize) -> i64 {
    let middle = buckets as i64 / 2;
    let far = distance.abs();
    if far <= middle {
        return distance;
    }
    let middle_f = middle as f32;
    let ratio = (far as f32 / middle_f).ln() / ((reach - 1) as f32 / middle_f).ln();
    let bucket = (ratio * (middle - 1) as f32).ceil() as i64 + middle;
    bucket * distance.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_have_a_row_each_and_far_ones_share() {
        let rows = RelativeRows::bucketed(256, 512);
        assert_eq!(rows.table_rows(), 512);
        for distance in -128..=128 {
            assert_eq!(i64::from(rows.row(distance)), 256 + distance);
        }
        let rows_of: Vec<u32> = (-600..=600).map(|d| rows.row(d)).collect();
        assert!(rows_of.windows(2).all(|w| w[1] == w[0] || w[1] == w[0] + 1));
        assert_eq!((rows.row(511), rows.row(-511)), (511, 1));
        assert_eq!((rows.row(100_000), rows.row(-100_000)), (511, 0));
    }

    #[test]
    fn exact_rows_are_clamped_at_the_reach() {
        let rows = RelativeRows::exact(4);
        let got: Vec<u32> = (-6..=6).map(|d| rows.row(d)).collect();
        assert_eq!(got, [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7]);
        assert_eq!(rows.of_length(3), ((2..=6).collect(), vec![0, 1, 2, 3, 4]));
        assert_eq!(rows.of_length(1), (vec![4], vec![0]));
    }

    /// Every bucket of distances up to 1023 as PyTorch 2.15 gives them: (buckets, reach, Σ (d + 1)
    /// bucket).
    #[test]
    fn every_bucket_is_that_of_pytorch() {
        for (buckets, reach, want) in PYTORCH {
            let sum: i64 = (0..1024)
                .map(|d| (d + 1) * log_bucket(d, buckets, reach))
                .sum();
            assert_eq!(sum, want, "{buckets} buckets to {reach}");
        }
    }

    const PYTORCH: [(usize, usize, i64); 12] = [
        (256, 512, 143437575),
        (32, 128, 22551013),
        (64, 512, 34458944),
        (128, 1024, 60916866),
        (256, 1024, 117933721),
        (4, 16, 2785623),
        (2, 8, 524799),
        (5, 20, 2607309),
        (8, 64, 5185580),
        (16, 512, 8302972),
        (48, 512, 25691745),
        (200, 333, 131790567),
    ];
}
