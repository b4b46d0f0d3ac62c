//! Finite differences: a written derivative against the function itself, in f64, along random
//! directions. A random direction touches every coordinate at once, so that a few of them find what
//! a coordinate-wise check finds.

use crate::random::Random;

/// How a derivative is checked.
#[derive(Clone, Copy, Debug)]
pub struct GradientCheck {
    /// Half the step of the central difference. For functions linear in the argument 1 is exact up
    /// to rounding.
    pub eps: f64,
    /// How far the two may differ, relative to the larger of the numeric derivative and `floor`.
    pub tolerance: f64,
    /// The least size that the difference is divided by.
    pub floor: f64,
    /// How many random directions (and, for a vector function, cotangents).
    pub directions: usize,
    /// Seed of the directions.
    pub seed: u64,
}

impl Default for GradientCheck {
    fn default() -> Self {
        Self {
            eps: 1e-5,
            tolerance: 1e-7,
            floor: 1.0,
            directions: 3,
            seed: 1,
        }
    }
}

impl GradientCheck {
    /// For functions linear in the argument: a step of 1 has no truncation error.
    pub fn linear() -> Self {
        Self {
            eps: 1.0,
            tolerance: 1e-11,
            ..Self::default()
        }
    }
}

/// (f(x + eps·v) − f(x − eps·v)) ÷ (2·eps).
pub fn directional_derivative(
    f: impl Fn(&[f64]) -> f64,
    x: &[f64],
    direction: &[f64],
    eps: f64,
) -> f64 {
    assert_eq!(
        x.len(),
        direction.len(),
        "a direction has the argument's length"
    );
    let moved = |step: f64| {
        x.iter()
            .zip(direction)
            .map(|(x, v)| x + step * v)
            .collect::<Vec<_>>()
    };
    (f(&moved(eps)) - f(&moved(-eps))) / (2.0 * eps)
}

/// Panics unless `gradient` is the gradient of `f` at `x`. Shapes: x and gradient `[n]`.
#[track_caller]
pub fn check_gradient(
    what: &str,
    f: impl Fn(&[f64]) -> f64,
    x: &[f64],
    gradient: &[f64],
    check: GradientCheck,
) {
    assert_eq!(
        x.len(),
        gradient.len(),
        "{what}: a gradient has the argument's length"
    );
    let mut random = Random::new(check.seed);
    for i in 0..check.directions {
        let direction = random.normals(x.len());
        let numeric = directional_derivative(&f, x, &direction, check.eps);
        let written = dot(gradient, &direction);
        let allowed = check.tolerance * numeric.abs().max(check.floor);
        let error = (written - numeric).abs();
        assert!(
            error <= allowed && numeric.is_finite(),
            "{what}: along direction {i} the backward pass says {written:e}, the function {numeric:e} \
             (differs by {error:e}, allowed {allowed:e})"
        );
    }
}

/// Panics unless `backward(x, d_y)` is the vector-Jacobian product of `forward` at `x`, for random
/// d_y.
#[track_caller]
pub fn check_vjp(
    what: &str,
    forward: impl Fn(&[f64]) -> Vec<f64>,
    backward: impl Fn(&[f64], &[f64]) -> Vec<f64>,
    x: &[f64],
    check: GradientCheck,
) {
    let outputs = forward(x).len();
    let mut random = Random::new(check.seed ^ 0x5eed);
    for i in 0..check.directions {
        let cotangent = random.normals(outputs);
        let gradient = backward(x, &cotangent);
        let scalar = |x: &[f64]| dot(&forward(x), &cotangent);
        let once = GradientCheck {
            directions: 1,
            seed: check.seed + i as u64,
            ..check
        };
        check_gradient(
            &format!("{what} (cotangent {i})"),
            scalar,
            x,
            &gradient,
            once,
        );
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    const X: [f64; 5] = [0.3, -1.2, 0.8, 2.0, -0.1];

    fn cubes(x: &[f64]) -> f64 {
        x.iter().map(|x| x * x * x).sum()
    }

    fn gradient() -> Vec<f64> {
        X.iter().map(|x| 3.0 * x * x).collect()
    }

    fn fails(gradient: Vec<f64>) -> bool {
        catch_unwind(|| check_gradient("cubes", cubes, &X, &gradient, GradientCheck::default()))
            .is_err()
    }

    #[test]
    fn a_right_gradient_passes() {
        check_gradient("cubes", cubes, &X, &gradient(), GradientCheck::default());
    }

    #[test]
    fn a_wrong_gradient_fails() {
        for i in 0..X.len() {
            let mut off = gradient();
            off[i] += 1e-4;
            assert!(fails(off), "coordinate {i}");
            let mut flipped = gradient();
            flipped[i] = -flipped[i];
            assert!(fails(flipped), "sign of coordinate {i}");
            let mut nan = gradient();
            nan[i] = f64::NAN;
            assert!(fails(nan), "NaN at {i}");
        }
        assert!(
            fails(gradient().iter().map(|g| 2.0 * g).collect()),
            "factor 2"
        );
    }

    #[test]
    fn a_function_that_is_not_finite_fails() {
        let check = || {
            check_gradient(
                "nan",
                |_| f64::NAN,
                &X,
                &gradient(),
                GradientCheck::default(),
            )
        };
        assert!(catch_unwind(check).is_err());
    }

    #[test]
    fn a_linear_map_is_checked_with_a_step_of_one() {
        // y = M·x with M [2, 3], and its transpose; then a transpose that is not one.
        let m = [1.0, 2.0, 3.0, -4.0, 5.0, 0.5];
        let forward = |x: &[f64]| {
            (0..2)
                .map(|i| dot(&m[3 * i..3 * i + 3], x))
                .collect::<Vec<_>>()
        };
        let right = |_: &[f64], d: &[f64]| {
            (0..3)
                .map(|j| m[j] * d[0] + m[3 + j] * d[1])
                .collect::<Vec<_>>()
        };
        let wrong = |_: &[f64], d: &[f64]| {
            (0..3)
                .map(|j| m[2 * j] * d[0] + m[2 * j + 1] * d[1])
                .collect()
        };
        check_vjp("map", forward, right, &X[..3], GradientCheck::linear());
        assert!(
            catch_unwind(|| check_vjp("map", forward, wrong, &X[..3], GradientCheck::linear()))
                .is_err()
        );
    }
}
