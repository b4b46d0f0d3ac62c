//! Comparators of number lists. Each is written as `!(error <= allowed)`, so that NaN fails; none
//! takes a mean, and no tolerance grows with the number of elements.

use std::fmt;

/// A float that can be compared: f32 or f64.
pub trait Real: Copy {
    /// The value as f64, exactly.
    fn to_f64(self) -> f64;
    /// The bit pattern.
    fn bits(self) -> u64;
}

impl Real for f32 {
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Real for f64 {
    fn to_f64(self) -> f64 {
        self
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

/// What an element may differ by: `abs + rel * |expected|`. `abs` is the floor that values near
/// zero need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub abs: f64,
    /// Part relative to the expected element.
    pub rel: f64,
}

impl Tolerance {
    /// Both parts.
    pub const fn new(abs: f64, rel: f64) -> Self {
        Self { abs, rel }
    }

    /// An absolute tolerance alone.
    pub const fn abs(abs: f64) -> Self {
        Self { abs, rel: 0.0 }
    }
}

/// How two lists differ: the worst element and how many are beyond the tolerance.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// The lists have different lengths.
    Length {
        /// Length of the list under test.
        found: usize,
        /// Length of the list it should equal.
        expected: usize,
    },
    /// Elements differ.
    Elements {
        /// Index of the worst element; of the first one that is not finite if there is one.
        worst: usize,
        /// The element under test.
        found: f64,
        /// What it should be.
        expected: f64,
        /// What it may differ by.
        allowed: f64,
        /// How many elements are beyond the tolerance.
        count: usize,
        /// How many elements there are.
        len: usize,
    },
    /// The lists as vectors differ by more than the tolerance.
    Norm {
        /// Norm of the difference by the norm of the expected vector (or the floor).
        error: f64,
        /// What it may be.
        allowed: f64,
        /// Index of the element that differs most.
        worst: usize,
        /// That element.
        found: f64,
        /// What it should be.
        expected: f64,
        /// How many elements there are.
        len: usize,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { found, expected } => {
                write!(f, "expected {expected} elements, found {found}")
            }
            Self::Elements {
                worst,
                found,
                expected,
                allowed,
                count,
                len,
            } => write!(
                f,
                "{count} of {len} elements differ; worst at [{worst}]: expected {expected:e}, found {found:e} \
                 (differs by {:e}, allowed {allowed:e})",
                (found - expected).abs()
            ),
            Self::Norm {
                error,
                allowed,
                worst,
                found,
                expected,
                len,
            } => write!(
                f,
                "relative error by norm {error:e} over {len} elements, allowed {allowed:e}; \
                 worst at [{worst}]: expected {expected:e}, found {found:e}"
            ),
        }
    }
}

impl std::error::Error for Mismatch {}

/// Compares element by element: each may differ by `tol.abs + tol.rel * |expected|`. What is not
/// finite, on either side, fails.
pub fn compare_close<A: Real, B: Real>(
    found: &[A],
    expected: &[B],
    tol: Tolerance,
) -> Result<(), Mismatch> {
    same_length(found.len(), expected.len())?;
    let mut worst: Option<(usize, f64)> = None;
    let mut count = 0;
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let (f, e) = (f.to_f64(), e.to_f64());
        let allowed = tol.abs + tol.rel * e.abs();
        let error = (f - e).abs();
        // An infinite `expected` would make the allowance infinite.
        if error <= allowed && e.is_finite() {
            continue;
        }
        count += 1;
        let excess = if error.is_finite() {
            error - allowed
        } else {
            f64::INFINITY
        };
        if worst.is_none_or(|(_, most)| excess > most) {
            worst = Some((i, excess));
        }
    }
    let Some((worst, _)) = worst else {
        return Ok(());
    };
    let (f, e) = (found[worst].to_f64(), expected[worst].to_f64());
    let allowed = tol.abs + tol.rel * e.abs();
    Err(Mismatch::Elements {
        worst,
        found: f,
        expected: e,
        allowed,
        count,
        len: found.len(),
    })
}

/// ‖found − expected‖ ÷ max(‖expected‖, floor); NaN if anything is not finite. Panics if the
/// lengths differ.
pub fn relative_error<A: Real, B: Real>(found: &[A], expected: &[B], floor: f64) -> f64 {
    assert_eq!(found.len(), expected.len(), "lists of different lengths");
    let (mut difference, mut norm) = (0.0_f64, 0.0_f64);
    for (f, e) in found.iter().zip(expected) {
        let (f, e) = (f.to_f64(), e.to_f64());
        if !f.is_finite() || !e.is_finite() {
            return f64::NAN;
        }
        difference += (f - e) * (f - e);
        norm += e * e;
    }
    if difference == 0.0 {
        0.0
    } else {
        difference.sqrt() / norm.sqrt().max(floor)
    }
}

/// Compares as vectors: the relative error by norm may be `allowed`. `floor` is the least norm that
/// is divided by (for gradients: a share of the largest gradient's norm, since some gradients are
/// zero in truth).
pub fn compare_norm<A: Real, B: Real>(
    found: &[A],
    expected: &[B],
    allowed: f64,
    floor: f64,
) -> Result<(), Mismatch> {
    same_length(found.len(), expected.len())?;
    let error = relative_error(found, expected, floor);
    if error <= allowed {
        return Ok(());
    }
    let distance = |i: usize| {
        let d = (found[i].to_f64() - expected[i].to_f64()).abs();
        if d.is_nan() { f64::INFINITY } else { d }
    };
    let worst = (0..found.len())
        .max_by(|a, b| distance(*a).total_cmp(&distance(*b)))
        .unwrap_or(0);
    Err(Mismatch::Norm {
        error,
        allowed,
        worst,
        found: found[worst].to_f64(),
        expected: expected[worst].to_f64(),
        len: found.len(),
    })
}

/// Compares bit patterns: 0.0 and -0.0 differ, and a NaN equals itself.
pub fn compare_bits<A: Real>(found: &[A], expected: &[A]) -> Result<(), Mismatch> {
    same_length(found.len(), expected.len())?;
    let differ = |i: &usize| found[*i].bits() != expected[*i].bits();
    let Some(first) = (0..found.len()).find(differ) else {
        return Ok(());
    };
    Err(Mismatch::Elements {
        worst: first,
        found: found[first].to_f64(),
        expected: expected[first].to_f64(),
        allowed: 0.0,
        count: (0..found.len()).filter(differ).count(),
        len: found.len(),
    })
}

/// [`compare_close`], panicking with `what` in the message.
#[track_caller]
pub fn check_close<A: Real, B: Real>(what: &str, found: &[A], expected: &[B], tol: Tolerance) {
    if let Err(mismatch) = compare_close(found, expected, tol) {
        panic!("{what}: {mismatch}");
    }
}

/// [`compare_norm`], panicking with `what` in the message.
#[track_caller]
pub fn check_norm<A: Real, B: Real>(
    what: &str,
    found: &[A],
    expected: &[B],
    allowed: f64,
    floor: f64,
) {
    if let Err(mismatch) = compare_norm(found, expected, allowed, floor) {
        panic!("{what}: {mismatch}");
    }
}

/// [`compare_bits`], panicking with `what` in the message.
#[track_caller]
pub fn check_bits<A: Real>(what: &str, found: &[A], expected: &[A]) {
    if let Err(mismatch) = compare_bits(found, expected) {
        panic!("{what}: not the same bits: {mismatch}");
    }
}

fn same_length(found: usize, expected: usize) -> Result<(), Mismatch> {
    if found == expected {
        Ok(())
    } else {
        Err(Mismatch::Length { found, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 4] = [1, 2, 17, 10_000];

    fn values(n: usize) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * 0.7).sin()).collect()
    }

    #[test]
    fn equal_lists_pass() {
        for n in [0, 1, 17] {
            let x = values(n);
            compare_close(&x, &x, Tolerance::new(0.0, 0.0)).unwrap();
            compare_norm(&x, &x, 0.0, 0.0).unwrap();
            compare_bits(&x, &x).unwrap();
        }
    }

    #[test]
    fn one_element_off_by_half_the_tolerance_passes() {
        for n in SIZES {
            let expected = values(n);
            for at in [0, n / 2, n - 1] {
                let mut found = expected.clone();
                found[at] += 0.5e-5;
                compare_close(&found, &expected, Tolerance::abs(1e-5)).unwrap();
            }
        }
    }

    #[test]
    fn one_element_off_by_twice_the_tolerance_fails_whatever_the_size() {
        for n in SIZES {
            let expected = values(n);
            for at in [0, n / 2, n - 1] {
                for sign in [1.0, -1.0] {
                    let mut found = expected.clone();
                    found[at] += sign * 2e-5;
                    let got = compare_close(&found, &expected, Tolerance::abs(1e-5)).unwrap_err();
                    assert!(
                        matches!(got, Mismatch::Elements { worst, count: 1, .. } if worst == at)
                    );
                }
            }
        }
    }

    #[test]
    fn the_relative_part_follows_the_expected_element() {
        let expected = [100.0, 1e-3];
        compare_close(&[100.0 + 5e-4, 1e-3], &expected, Tolerance::new(0.0, 1e-5)).unwrap();
        compare_close(&[100.0 + 2e-3, 1e-3], &expected, Tolerance::new(0.0, 1e-5)).unwrap_err();
        compare_close(&[100.0, 1e-3 + 2e-8], &expected, Tolerance::new(0.0, 1e-5)).unwrap_err();
    }

    #[test]
    fn an_expected_zero_has_only_the_absolute_floor() {
        compare_close(&[0.9e-9], &[0.0], Tolerance::new(1e-9, 1e-2)).unwrap();
        compare_close(&[2e-9], &[0.0], Tolerance::new(1e-9, 1e-2)).unwrap_err();
        compare_close(&[1e-30], &[0.0], Tolerance::new(0.0, 1.0)).unwrap_err();
    }

    #[test]
    fn what_is_not_finite_fails_on_either_side() {
        let wide = Tolerance::new(f64::MAX, 1.0);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for n in SIZES {
                let good = values(n);
                for at in [0, n - 1] {
                    let mut list = good.clone();
                    list[at] = bad;
                    compare_close(&list, &good, wide).unwrap_err();
                    compare_close(&good, &list, wide).unwrap_err();
                    compare_norm(&list, &good, f64::MAX, 1.0).unwrap_err();
                    compare_norm(&good, &list, f64::MAX, 1.0).unwrap_err();
                    compare_bits(&list, &good).unwrap_err();
                }
            }
            compare_close(&[bad], &[bad], wide).unwrap_err();
            compare_norm(&[bad], &[bad], f64::MAX, 1.0).unwrap_err();
        }
    }

    #[test]
    fn a_nan_tolerance_fails() {
        compare_close(&[1.0], &[1.0], Tolerance::abs(f64::NAN)).unwrap_err();
        compare_norm(&[1.0], &[2.0], f64::NAN, 0.0).unwrap_err();
    }

    #[test]
    fn the_norm_fails_for_one_element_off_by_twice_the_tolerance() {
        for n in SIZES {
            let expected = values(n).iter().map(|x| x + 2.0).collect::<Vec<_>>();
            let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
            let mut found = expected.clone();
            found[n / 2] += 0.5e-5 * norm;
            compare_norm(&found, &expected, 1e-5, 0.0).unwrap();
            found[n / 2] = expected[n / 2] + 2e-5 * norm;
            let got = compare_norm(&found, &expected, 1e-5, 0.0).unwrap_err();
            assert!(matches!(got, Mismatch::Norm { worst, .. } if worst == n / 2));
        }
    }

    #[test]
    fn the_norms_floor_forgives_only_what_is_below_it() {
        compare_norm(&[1e-9], &[0.0], 1e-5, 1.0).unwrap();
        compare_norm(&[2e-5], &[0.0], 1e-5, 1.0).unwrap_err();
        compare_norm(&[1e-30], &[0.0], 1e-5, 0.0).unwrap_err();
    }

    #[test]
    fn lengths_must_agree() {
        let short = Mismatch::Length {
            found: 1,
            expected: 2,
        };
        assert_eq!(
            compare_close(&[1.0], &[1.0, 2.0], Tolerance::abs(9.0)),
            Err(short.clone())
        );
        assert_eq!(
            compare_norm(&[1.0], &[1.0, 2.0], 9.0, 9.0),
            Err(short.clone())
        );
        assert_eq!(compare_bits(&[1.0], &[1.0, 2.0]), Err(short));
    }

    #[test]
    fn bits_see_the_last_one_and_the_sign_of_zero() {
        let x = 1.0_f32;
        compare_bits(&[x], &[f32::from_bits(x.to_bits() + 1)]).unwrap_err();
        compare_bits(&[0.0_f32], &[-0.0]).unwrap_err();
        compare_bits(&[f32::NAN], &[f32::NAN]).unwrap();
    }

    #[test]
    fn the_report_names_the_worst_of_several() {
        let got = compare_close(&[1.0_f32, 2.0, 3.5], &[1.0, 2.25, 3.0], Tolerance::abs(0.1))
            .unwrap_err();
        assert_eq!(
            got.to_string(),
            "2 of 3 elements differ; worst at [2]: expected 3e0, found 3.5e0 (differs by 5e-1, allowed 1e-1)"
        );
    }

    #[test]
    #[should_panic(expected = "logits: 1 of 1 elements differ")]
    fn check_panics_with_the_name() {
        check_close("logits", &[1.0], &[2.0], Tolerance::abs(0.1));
    }
}
