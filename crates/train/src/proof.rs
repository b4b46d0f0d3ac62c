//! The proof after training that every trained value got gradients and moved. A run that learned nothing must not look like
//! one that did.

use lowrank_engine::{Gradients, Trainables};

use crate::checkpoint::RunState;
use crate::fingerprint;

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
}

/// What happened to all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proof {
    /// Each trained value.
    pub values: Vec<TrainedValue>,
}

impl Proof {
    /// Compares the values with the fingerprints from before the first step.
    pub fn of(state: &RunState, trainables: &Trainables) -> Self {
        let value = |t: &lowrank_engine::Trainable| {
            let data = t.value.data();
            let now = format!("{:016x}", fingerprint::of_values(data));
            let before = state.proof.get(&t.name);
            TrainedValue {
                name: t.name.clone(),
                had_gradient: before.is_some_and(|p| p.had_gradient),
                moved: before.is_none_or(|p| p.start != now),
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
        self.values.iter().filter(|v| !(v.had_gradient && v.moved))
    }
}

/// Notes which values have a gradient other than 0 in this step.
pub fn note_gradients(state: &mut RunState, trainables: &Trainables, gradients: &Gradients) {
    for (id, t) in trainables.iter() {
        if let Some(proof) = state.proof.get_mut(&t.name)
            && !proof.had_gradient
        {
            proof.had_gradient = gradients.get(id).data().iter().any(|&g| g != 0.0);
        }
    }
}
