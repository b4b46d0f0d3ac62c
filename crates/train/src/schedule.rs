//! Learning-rate schedules: the factor by which the base rate is multiplied at each optimizer step.
//!
//! The numbers are those of transformers' `get_*_schedule*` lambdas under
//! `torch.optim.lr_scheduler.LambdaLR`, step for step. Nothing here knows what is trained.

use serde::{Deserialize, Serialize};

/// The shape of the learning rate over the steps of a run; the names are transformers'
/// `lr_scheduler_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// Warm-up, then a straight line down to 0 at the last step.
    Linear,
    /// Warm-up, then a cosine; with `num_cycles` 0.5 it ends at 0.
    Cosine,
    /// The base rate at every step; warm-up is ignored, as in transformers.
    Constant,
    /// Warm-up, then the base rate.
    ConstantWithWarmup,
    /// Warm-up, then a power of the remaining share of the steps, down to `lr_end`.
    Polynomial,
}

impl SchedulerType {
    /// Every schedule, in the order in which help texts list them.
    pub const ALL: [SchedulerType; 5] = [
        SchedulerType::Linear,
        SchedulerType::Cosine,
        SchedulerType::Constant,
        SchedulerType::ConstantWithWarmup,
        SchedulerType::Polynomial,
    ];

    /// The name as written in configurations.
    pub fn name(self) -> &'static str {
        match self {
            SchedulerType::Linear => "linear",
            SchedulerType::Cosine => "cosine",
            SchedulerType::Constant => "constant",
            SchedulerType::ConstantWithWarmup => "constant_with_warmup",
            SchedulerType::Polynomial => "polynomial",
        }
    }
}

/// A resolved schedule: with it the learning rate of every step is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The shape.
    pub kind: SchedulerType,
    /// The base learning rate, reached at the end of the warm-up.
    pub learning_rate: f64,
    /// Optimizer steps of linear warm-up from 0.
    pub num_warmup_steps: u64,
    /// Optimizer steps of the whole run, warm-up included.
    pub num_training_steps: u64,
    /// Waves of the cosine; 0.5 is one fall from the base rate to 0.
    pub num_cycles: f64,
    /// The rate at the end of the polynomial schedule.
    pub lr_end: f64,
    /// The exponent of the polynomial schedule.
    pub power: f64,
}

impl Schedule {
    /// The learning rate of the update number `step`, counted from 0; past the end as transformers
    /// continues.
    ///
    /// Source: transformers `optimization.py`, `_get_*_lr_lambda`; LambdaLR multiplies the base
    /// rate by the factor.
    pub fn lr_at(&self, step: u64) -> f64 {
        self.learning_rate * self.factor_at(step)
    }

    fn factor_at(&self, step: u64) -> f64 {
        let warms_up = self.kind != SchedulerType::Constant;
        if warms_up && step < self.num_warmup_steps {
            return step as f64 / self.num_warmup_steps.max(1) as f64;
        }
        match self.kind {
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => 1.0,
            SchedulerType::Linear => {
                let left = self.num_training_steps as f64 - step as f64;
                (left / self.decay_steps()).max(0.0)
            }
            SchedulerType::Cosine => {
                let progress = (step - self.num_warmup_steps) as f64 / self.decay_steps();
                let wave = (std::f64::consts::PI * self.num_cycles * 2.0 * progress).cos();
                (0.5 * (1.0 + wave)).max(0.0)
            }
            SchedulerType::Polynomial => self.polynomial_factor(step),
        }
    }

    fn polynomial_factor(&self, step: u64) -> f64 {
        // Where transformers would divide by zero (warm-up to the very end, asked for at the end),
        // the rate is at its end.
        if step > self.num_training_steps || self.num_training_steps <= self.num_warmup_steps {
            return self.lr_end / self.learning_rate;
        }
        let range = self.learning_rate - self.lr_end;
        let decay_steps = (self.num_training_steps - self.num_warmup_steps) as f64;
        let remaining = 1.0 - (step - self.num_warmup_steps) as f64 / decay_steps;
        (range * remaining.powf(self.power) + self.lr_end) / self.learning_rate
    }

    /// `max(1, training - warm-up)`, as transformers divides.
    fn decay_steps(&self) -> f64 {
        (self.num_training_steps as f64 - self.num_warmup_steps as f64).max(1.0)
    }
}

/// Warm-up steps for a share of the run: `ceil(ratio · total)`, transformers' rule.
pub fn warmup_steps_for_ratio(ratio: f64, num_training_steps: u64) -> u64 {
    (ratio * num_training_steps as f64).ceil() as u64
}

/// Optimizer steps of one epoch: micro-batches are `ceil(rows / batch)`, and the last accumulation
/// group may be short.
pub fn steps_per_epoch(num_rows: usize, batch_size: usize, accumulation_steps: usize) -> u64 {
    num_rows
        .div_ceil(batch_size.max(1))
        .div_ceil(accumulation_steps.max(1)) as u64
}

/// Optimizer steps of a run of `epochs` (which may be a fraction):
/// `ceil(epochs · steps per epoch)`, transformers' rule.
pub fn total_steps(epochs: f64, steps_per_epoch: u64) -> u64 {
    (epochs * steps_per_epoch as f64).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: SchedulerType, warmup: u64, total: u64) -> Schedule {
        Schedule {
            kind,
            learning_rate: 0.002,
            num_warmup_steps: warmup,
            num_training_steps: total,
            num_cycles: 0.5,
            lr_end: 1e-7,
            power: 2.0,
        }
    }

    // Made by tests/make_expected.py with transformers.
    const EXPECTED: &str = include_str!("../tests/schedules.json");

    #[test]
    fn equals_transformers_step_for_step() {
        let cases: Vec<serde_json::Value> =
            serde_json::from_str(EXPECTED).expect("schedules.json parses");
        assert!(cases.len() >= 20, "the table is not empty");
        for case in cases {
            let kind: SchedulerType = serde_json::from_value(case["kind"].clone()).expect("kind");
            let s = Schedule {
                kind,
                learning_rate: case["learning_rate"].as_f64().unwrap(),
                num_warmup_steps: case["warmup"].as_u64().unwrap(),
                num_training_steps: case["total"].as_u64().unwrap(),
                num_cycles: case["num_cycles"].as_f64().unwrap(),
                lr_end: case["lr_end"].as_f64().unwrap(),
                power: case["power"].as_f64().unwrap(),
            };
            for (step, want) in case["lr"].as_array().unwrap().iter().enumerate() {
                let (got, want) = (s.lr_at(step as u64), want.as_f64().unwrap());
                // The same f64 operations in the same order: at most the last bits of cos and pow
                // may differ between libms.
                let tolerance = 4.0 * f64::EPSILON * s.learning_rate;
                assert!(
                    (got - want).abs() <= tolerance,
                    "{kind:?} {case} step {step}: {got:e} against {want:e}"
                );
            }
        }
    }

    #[test]
    fn warmup_starts_at_zero_and_the_end_stays_at_the_end() {
        let linear = schedule(SchedulerType::Linear, 3, 10);
        assert_eq!(linear.lr_at(0), 0.0);
        assert_eq!(linear.lr_at(3), 0.002);
        assert_eq!(linear.lr_at(10), 0.0);
        assert_eq!(linear.lr_at(1000), 0.0);
        let polynomial = schedule(SchedulerType::Polynomial, 3, 10);
        assert!((polynomial.lr_at(11) - 1e-7).abs() < 1e-20);
        assert!(
            schedule(SchedulerType::Polynomial, 10, 10)
                .lr_at(10)
                .is_finite()
        );
    }

    #[test]
    fn step_counts_follow_transformers() {
        assert_eq!(warmup_steps_for_ratio(0.06, 504), 31);
        assert_eq!(warmup_steps_for_ratio(0.0, 504), 0);
        assert_eq!(steps_per_epoch(8056, 32, 1), 252);
        assert_eq!(steps_per_epoch(10, 2, 4), 2);
        assert_eq!(total_steps(2.5, 3), 8);
    }
}
