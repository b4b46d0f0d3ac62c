//! The proof after training that every trained value got gradients and moved. A run that learned
//! nothing must not look like one that did; one that was too short to move everything is told the
//! reason, and accused of nothing.

use lowrank_engine::{Gradients, Trainables};

use crate::checkpoint::RunState;
use crate::config::{InitLora, Method};
use crate::fingerprint;
use crate::schedule::Schedule;

/// Why a value was not trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// The learning rate was 0 in every step up to the values that are kept: nothing could move.
    RateWasZero,
    /// An adapter's A gets a gradient as soon as its B is not zero, and no step came after B had
    /// moved.
    FactorWasZero,
    /// Nothing explains it.
    Unexplained,
}

/// What happened to one trained value.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedValue {
    /// Its name on disk.
    pub name: String,
    /// Whether a gradient other than 0 came at any step.
    pub had_gradient: bool,
    /// Whether any bit of it changed.
    pub moved: bool,
    /// Its norm now.
    pub norm: f64,
    /// Why it got no gradient or did not move; nothing where it did both.
    pub idle: Option<Idle>,
}

/// What happened to all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proof {
    /// Each trained value.
    pub values: Vec<TrainedValue>,
}

impl Proof {
    /// Compares the values, which are those of `final_step`, with the fingerprints from before the
    /// first step.
    pub fn of(
        state: &RunState,
        trainables: &Trainables,
        schedule: &Schedule,
        final_step: u64,
    ) -> Self {
        // Every schedule begins at 0 or above it, and those that begin at 0 rise at once.
        let first_move = (0..state.step.min(2)).find(|&step| schedule.lr_at(step) > 0.0);
        let moves = |steps: u64| first_move.is_some_and(|first| first < steps);
        let lora = &state.config.lora;
        let b_was_zero = state.config.adapter.is_none()
            && lora.init_lora_weights != InitLora::Random
            && state.config.method == Method::Lora;
        let why = |name: &str, had_gradient: bool, moved: bool| {
            let is_a = name.contains(".lora_A.");
            if had_gradient && moved {
                None
            } else if !had_gradient && is_a && b_was_zero && !moves(state.step.saturating_sub(1)) {
                Some(Idle::FactorWasZero)
            } else if had_gradient && !moves(final_step) {
                Some(Idle::RateWasZero)
            } else {
                Some(Idle::Unexplained)
            }
        };
        let value = |t: &lowrank_engine::Trainable| {
            let data = t.value.read();
            let now = format!("{:016x}", fingerprint::of_values(&data));
            let before = state.proof.get(&t.name);
            let had_gradient = before.is_some_and(|p| p.had_gradient);
            let moved = before.is_none_or(|p| p.start != now);
            TrainedValue {
                name: t.name.clone(),
                had_gradient,
                moved,
                idle: why(&t.name, had_gradient, moved),
                norm: data
                    .iter()
                    .map(|&v| f64::from(v) * f64::from(v))
                    .sum::<f64>()
                    .sqrt(),
            }
        };
        Self {
            values: trainables.iter().map(|(_, t)| value(t)).collect(),
        }
    }

    /// Values that got no gradient or did not move.
    pub fn idle(&self) -> impl Iterator<Item = &TrainedValue> {
        self.values.iter().filter(|v| v.idle.is_some())
    }
}

/// Notes which values have a gradient other than 0 in this step.
pub fn note_gradients(state: &mut RunState, trainables: &Trainables, gradients: &Gradients) {
    for (id, t) in trainables.iter() {
        if let Some(proof) = state.proof.get_mut(&t.name)
            && !proof.had_gradient
        {
            proof.had_gradient = gradients.get(id).read().iter().any(|&g| g != 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::example;
    use crate::schedule::SchedulerType;
    use lowrank_engine::{Device, Isa};

    const A: &str = "base_model.model.x.lora_A.weight";
    const B: &str = "base_model.model.x.lora_B.weight";

    /// What is said of A and B after `steps` steps with so many of warm-up, given which of the two
    /// had gradients and moved.
    fn verdicts(steps: u64, warmup: u64, a: (bool, bool), b: (bool, bool)) -> [Option<Idle>; 2] {
        let device = Device::cpu(Isa::Scalar, 1).unwrap();
        let mut trainables = Trainables::default();
        for name in [A, B] {
            trainables.add(&device, name.to_owned(), &[1], &[1.0]);
        }
        let mut state = RunState::new(&example(), String::new(), None, &trainables);
        state.step = steps;
        for (name, (had_gradient, moved)) in [(A, a), (B, b)] {
            let proof = state.proof.get_mut(name).unwrap();
            proof.had_gradient = had_gradient;
            if moved {
                proof.start = "another".to_owned();
            }
        }
        let mut schedule = example().schedule(10);
        schedule.kind = SchedulerType::Linear;
        schedule.num_warmup_steps = warmup;
        let proof = Proof::of(&state, &trainables, &schedule, steps);
        [proof.values[0].idle, proof.values[1].idle]
    }

    #[test]
    fn a_run_too_short_to_move_everything_has_its_reason_and_a_fault_has_none() {
        let (no, grad, all) = ((false, false), (true, false), (true, true));
        let zero = Some(Idle::FactorWasZero);
        // One step, at rate 0 and at the full rate; two, of which the first was at 0.
        assert_eq!(verdicts(1, 1, no, grad), [zero, Some(Idle::RateWasZero)]);
        assert_eq!(verdicts(1, 0, no, all), [zero, None]);
        assert_eq!(verdicts(2, 1, no, all), [zero, None]);
        // B moved in the first step, or in the second of three: A should have got a gradient.
        assert_eq!(verdicts(2, 0, no, all), [Some(Idle::Unexplained), None]);
        assert_eq!(verdicts(3, 1, no, all), [Some(Idle::Unexplained), None]);
        // B itself is never excused for having no gradient, nor for standing still at a rate
        // above 0.
        assert_eq!(verdicts(1, 1, no, no), [zero, Some(Idle::Unexplained)]);
        assert_eq!(verdicts(2, 1, no, grad), [zero, Some(Idle::Unexplained)]);
        assert_eq!(verdicts(9, 1, all, all), [None, None]);
    }
}
