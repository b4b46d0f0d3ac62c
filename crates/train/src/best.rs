//! Which evaluation was the best so far, and whether to stop early.
//!
//! Both are one small state that goes into every checkpoint, so that a resumed run decides as the
//! unbroken one did.

use serde::{Deserialize, Serialize};

use crate::metrics::Metric;

/// The best evaluation and the patience used up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestState {
    /// Step of the best evaluation.
    pub best_step: Option<u64>,
    /// Its value of the metric.
    pub best_value: Option<f64>,
    /// Evaluations since then that did not improve by more than the threshold.
    pub evaluations_without_improvement: u64,
}

/// What an evaluation means for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It is the best so far.
    pub is_best: bool,
    /// Patience is used up.
    pub stop: bool,
}

/// The rule by which evaluations are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BestRule {
    /// The metric compared.
    pub metric: Metric,
    /// Evaluations without improvement after which the run stops.
    pub patience: Option<u64>,
    /// By how much the metric must improve to count against patience, as transformers'
    /// `early_stopping_threshold`.
    pub threshold: f64,
}

impl BestRule {
    /// Takes the evaluation of `step` into account.
    ///
    /// Source of the patience rule: transformers `EarlyStoppingCallback.check_metric_value`.
    pub fn observe(&self, state: &mut BestState, step: u64, value: f64) -> Verdict {
        let old = state.best_value.unwrap_or(f64::NAN);
        let is_best = self.metric.is_better(value, old);
        let by_enough = is_best && (old.is_nan() || (value - old).abs() > self.threshold);
        if by_enough {
            state.evaluations_without_improvement = 0;
        } else {
            state.evaluations_without_improvement += 1;
        }
        if is_best {
            state.best_step = Some(step);
            state.best_value = Some(value);
        }
        Verdict {
            is_best,
            stop: self
                .patience
                .is_some_and(|p| state.evaluations_without_improvement >= p),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rule: BestRule, values: &[f64]) -> (Vec<Verdict>, BestState) {
        let mut state = BestState::default();
        let verdicts = values
            .iter()
            .enumerate()
            .map(|(i, &v)| rule.observe(&mut state, i as u64 + 1, v))
            .collect();
        (verdicts, state)
    }

    #[test]
    fn the_first_of_equals_is_the_best() {
        let rule = BestRule {
            metric: Metric::Accuracy,
            patience: Some(2),
            threshold: 0.0,
        };
        let (verdicts, state) = run(rule, &[0.5, 0.7, 0.7, 0.6]);
        assert_eq!(
            verdicts.iter().map(|v| v.is_best).collect::<Vec<_>>(),
            [true, true, false, false]
        );
        assert_eq!(
            verdicts.iter().map(|v| v.stop).collect::<Vec<_>>(),
            [false, false, false, true]
        );
        assert_eq!((state.best_step, state.best_value), (Some(2), Some(0.7)));
    }

    #[test]
    fn small_improvements_are_best_but_do_not_reset_patience() {
        let rule = BestRule {
            metric: Metric::Loss,
            patience: Some(2),
            threshold: 0.1,
        };
        let (verdicts, state) = run(rule, &[1.0, 0.95, 0.94]);
        assert!(verdicts[2].stop);
        assert_eq!(state.best_step, Some(3));
    }

    #[test]
    fn nan_is_never_the_best() {
        let rule = BestRule {
            metric: Metric::Pearson,
            patience: None,
            threshold: 0.0,
        };
        let (verdicts, state) = run(rule, &[f64::NAN, 0.1, f64::NAN]);
        assert_eq!(
            verdicts.iter().map(|v| v.is_best).collect::<Vec<_>>(),
            [false, true, false]
        );
        assert_eq!(state.best_step, Some(2));
    }
}
