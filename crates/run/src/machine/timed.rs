//! The ways of storing and multiplying, each timed on one small product and compared with the
//! definition, and which of them is taken where nobody chooses.

use lowrank_engine::{Arithmetic, BaseFormat, DType, Device, Isa};
use lowrank_train::config::NumericSettings;
use serde::{Deserialize, Serialize};

use super::sample::SampleProduct;

/// A way of storing and multiplying, as it was measured on one thread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// The way.
    #[serde(flatten)]
    pub way: NumericSettings,
    /// Operations a second of the quickest of some products (a multiply-add is two).
    pub flops_per_second: f64,
    /// The largest deviation from the definition, in standard deviations of the results.
    pub error: f64,
}

/// The ways that `auto` chooses among, in the order of preference: half the memory first, then the
/// exacter arithmetic.
pub const WAYS: [NumericSettings; 3] = [
    way(DType::Bf16, BaseFormat::Bf16, Arithmetic::F32),
    way(DType::Bf16, BaseFormat::Bf16, Arithmetic::Bf16),
    way(DType::F32, BaseFormat::F32, Arithmetic::F32),
];

/// What is measured besides, to be shown: nobody gets it without asking.
pub(super) const BESIDE: [NumericSettings; 1] =
    [way(DType::Bf16, BaseFormat::Int8, Arithmetic::F32)];

/// How many times as fast as one before it a way must be to be taken in its place: noise does not
/// flip the choice.
const MARGIN: f64 = 1.1;

/// Of the product [m, n, k]: so many rows and columns that widening them counts as little as in a
/// batch.
const SHAPE: [usize; 3] = [240, 512, 384];

/// Rounds, each with some products of every way.
const ROUNDS: usize = 3;

/// Products of a way in a round: the first finds its operands far away.
const REPEATS: usize = 3;

/// Rows between those that are compared; tiles of 4, 6, 8 and 12 rows are met at every place.
const ROW_STEP: usize = 13;

const fn way(precision: DType, base_format: BaseFormat, arithmetic: Arithmetic) -> NumericSettings {
    NumericSettings {
        precision,
        base_format,
        arithmetic,
    }
}

impl Timed {
    /// Whether results are as exact as the types allow. A deviation in a tile's order or layout is
    /// of the size of the results.
    pub fn is_right(&self) -> bool {
        // Of 9,728 results. Measured: 3e-6 in f32, 0.011 in bf16, 0.03 with int8.
        let most = match (self.way.precision, self.way.base_format) {
            (_, BaseFormat::Int8) => 0.2,
            (DType::Bf16, _) | (_, BaseFormat::Bf16) => 0.05,
            (DType::F32, _) => 1e-4,
        };
        self.error <= most && self.flops_per_second > 0.0 && self.flops_per_second.is_finite()
    }
}

/// The first of [`WAYS`], unless one behind it is faster by more than a tenth; wrong ones do not
/// count. Nothing where none of them was measured and is right.
pub fn fastest(timed: &[Timed]) -> Option<NumericSettings> {
    let right = |way: &NumericSettings| timed.iter().find(|t| t.way == *way && t.is_right());
    let found = WAYS.iter().filter_map(right);
    let better =
        |best: &'_ Timed, next: &'_ Timed| next.flops_per_second > MARGIN * best.flops_per_second;
    found
        .reduce(|best, next| if better(best, next) { next } else { best })
        .map(|timed| timed.way)
}

/// Times all ways with the instructions of a set, a few milliseconds.
///
/// # Errors
/// The system refuses threads or address space.
pub(super) fn measure(isa: Isa) -> Result<Vec<Timed>, std::io::Error> {
    let ways = || WAYS.into_iter().chain(BESIDE);
    let device = |way| Device::cpu_in(way, isa, 1);
    let devices = ways().map(device).collect::<Result<Vec<_>, _>>()?;
    let products = devices.iter().map(|d| SampleProduct::new(d, SHAPE));
    let mut products: Vec<SampleProduct> = products.collect();
    let mut best = vec![0.0f64; products.len()];
    // In turns, so that what else the machine does meets all alike.
    for _ in 0..ROUNDS {
        let all = best.iter_mut().zip(&devices).zip(&mut products);
        for ((best, device), product) in all {
            let rate = |_| product.flops_per_second();
            *best = device.install(|| (0..REPEATS).map(rate).fold(*best, f64::max));
        }
    }
    let wanted = SampleProduct::rows_by_definition(SHAPE, ROW_STEP);
    let timed = ways().zip(best).zip(&products);
    let timed = timed.map(|((way, flops_per_second), product)| Timed {
        way,
        flops_per_second,
        error: deviation(&product.rows(ROW_STEP), &wanted),
    });
    Ok(timed.collect())
}

/// The largest difference, over the root mean square of what is wanted; not a number counts as
/// infinite.
fn deviation(found: &[f32], wanted: &[f64]) -> f64 {
    let sum: f64 = wanted.iter().map(|x| x * x).sum();
    let scale = (sum / wanted.len() as f64).sqrt();
    let apart = found
        .iter()
        .zip(wanted)
        .map(|(&x, y)| (f64::from(x) - y).abs());
    let largest = apart.fold(0.0, |largest, x| match x.is_nan() {
        true => f64::INFINITY,
        false => f64::max(largest, x),
    });
    largest / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    const F32: NumericSettings = WAYS[2];
    const PAIRS: NumericSettings = WAYS[1];
    const WIDENED: NumericSettings = WAYS[0];

    fn timed(rates: [(NumericSettings, f64, f64); 3]) -> Vec<Timed> {
        let timed = |(way, flops_per_second, error)| Timed {
            way,
            flops_per_second,
            error,
        };
        rates.map(timed).into()
    }

    #[test]
    fn the_first_way_is_taken_unless_another_is_faster_by_more_than_a_tenth() {
        for (widened, pairs, f32, wanted) in [
            // AMD: pairs are twice as fast.
            (180.0, 380.0, 190.0, PAIRS),
            // Emerald Rapids: they are half as fast; bf16 halves the memory at f32's speed.
            (160.0, 80.0, 168.0, WIDENED),
            // Noise flips nothing.
            (100.0, 109.9, 109.9, WIDENED),
            (100.0, 111.0, 121.0, PAIRS),
            (100.0, 111.0, 123.0, F32),
            (100.0, 90.0, 111.0, F32),
        ] {
            let rates = [
                (F32, f32, 1e-6),
                (WIDENED, widened, 0.01),
                (PAIRS, pairs, 0.01),
            ];
            assert_eq!(fastest(&timed(rates)), Some(wanted), "{rates:?}");
        }
    }

    #[test]
    fn the_choice_is_never_slower_than_the_best_by_more_than_its_margin() {
        let rates = [50.0, 54.0, 58.0, 63.0, 70.0, 150.0];
        for a in rates {
            for b in rates {
                for c in rates {
                    let all = timed([(WIDENED, a, 0.0), (PAIRS, b, 0.0), (F32, c, 0.0)]);
                    let taken = fastest(&all).expect("all are right");
                    let rate = all.iter().find(|t| t.way == taken).expect("one of them");
                    let best = [a, b, c].into_iter().fold(0.0, f64::max);
                    assert!(MARGIN * rate.flops_per_second >= best, "{all:?}");
                }
            }
        }
    }

    #[test]
    fn a_wrong_result_excludes_a_way_whatever_its_speed() {
        let wrong = [0.06, f64::INFINITY, f64::NAN];
        for error in wrong {
            let rates = [
                (WIDENED, 100.0, 0.01),
                (PAIRS, 900.0, error),
                (F32, 90.0, 1e-6),
            ];
            assert_eq!(fastest(&timed(rates)), Some(WIDENED), "{error}");
        }
        let rates = [(WIDENED, f64::NAN, 0.0), (PAIRS, 0.0, 0.0), (F32, 1.0, 1.0)];
        assert_eq!(fastest(&timed(rates)), None);
        assert_eq!(fastest(&[]), None);
    }

    #[test]
    fn every_instruction_set_of_this_machine_is_right_in_every_way() {
        for isa in Isa::available() {
            let timed = measure(isa).expect("threads start");
            assert_eq!(timed.len(), WAYS.len() + BESIDE.len());
            for timed in &timed {
                assert!(timed.is_right() && timed.error > 0.0, "{isa:?} {timed:?}");
            }
            assert!(fastest(&timed).is_some());
        }
    }

    #[test]
    fn one_wrong_result_among_all_is_seen() {
        let wanted: Vec<f64> = (0..3840).map(|i| f64::from(i % 17) - 8.0).collect();
        let mut found: Vec<f32> = wanted.iter().map(|&x| x as f32).collect();
        assert_eq!(deviation(&found, &wanted), 0.0);
        found[3839] += 1.0;
        assert!(deviation(&found, &wanted) > 0.1);
        found[5] = f32::NAN;
        assert_eq!(deviation(&found, &wanted), f64::INFINITY);
    }
}
