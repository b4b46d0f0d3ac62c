//! `state.json` of a checkpoint: where a run stands, and whether what the file says of it can be.
//! It knows no tensors.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_data::Cursor;
use lowrank_engine::Trainables;
use lowrank_formats::files::{self, Ceiling};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::BaseId;
use crate::best::BestState;
use crate::checkpoint::{CheckpointError, invalid};
use crate::config::{IntervalStrategy, TrainConfig, keep_old_method, keep_old_prompts};
use crate::fingerprint;
use crate::seal;

/// The name of the file.
pub const STATE_FILE: &str = "state.json";

/// Version of the checkpoint's layout.
const LAYOUT: u32 = 1;

/// Where a run stands after an optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Version of this layout.
    pub layout: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Micro-batches done; the dropout masks count by it.
    pub micro_step: u64,
    /// The next row.
    pub cursor: Cursor,
    /// Step of the last evaluation.
    pub evaluated_step: Option<u64>,
    /// Whether early stopping has ended the run.
    pub stopped_early: bool,
    /// The best evaluation and the patience used.
    pub best: BestState,
    /// Seconds since the start, evaluations included, pauses between resumes not.
    pub elapsed_s: f64,
    /// Seconds of them that were optimizer steps.
    pub training_s: f64,
    /// Real tokens trained on so far.
    pub tokens: u64,
    /// For each trained value: its fingerprint before the first step, and whether a gradient other
    /// than 0 has come.
    pub proof: BTreeMap<String, ProofState>,
    /// The configuration.
    pub config: TrainConfig,
    /// Fingerprint of the training rows.
    pub train_rows: String,
    /// Fingerprint of the validation rows.
    pub validation_rows: Option<String>,
    /// What the run stands on; older versions did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseId>,
    /// The instruction set, which the bits depend on; older versions did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// Columns kept beside int8 weights, of the inputs and of the gradients, by the weight's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outliers: BTreeMap<String, [Vec<u32>; 2]>,
    /// SHA-256 of the tensor file.
    #[serde(default)]
    pub tensors: String,
}

/// What is remembered of one trained value, to prove afterwards that it was trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofState {
    /// Fingerprint before the first step, in hexadecimal (JSON numbers do not hold 64 bits
    /// everywhere).
    pub start: String,
    /// Whether a gradient other than 0 has come.
    pub had_gradient: bool,
}

impl RunState {
    /// The state before the first step.
    pub fn new(
        config: &TrainConfig,
        train_rows: String,
        validation_rows: Option<String>,
        trainables: &Trainables,
    ) -> Self {
        let proof = trainables.iter().map(|(_, t)| {
            let start = format!("{:016x}", fingerprint::of_values(&t.value.read()));
            (
                t.name.clone(),
                ProofState {
                    start,
                    had_gradient: false,
                },
            )
        });
        Self {
            layout: LAYOUT,
            step: 0,
            micro_step: 0,
            cursor: Cursor::default(),
            evaluated_step: None,
            stopped_early: false,
            best: BestState::default(),
            elapsed_s: 0.0,
            training_s: 0.0,
            tokens: 0,
            proof: proof.collect(),
            config: config.clone(),
            train_rows,
            validation_rows,
            base: None,
            instructions: None,
            outliers: BTreeMap::new(),
            tensors: String::new(),
        }
    }

    /// The state in a checkpoint's folder.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or contradicts itself.
    pub fn read(dir: &Path) -> Result<Self, CheckpointError> {
        let json = files::read(&dir.join(STATE_FILE), Ceiling::JSON)?;
        let fault = |reason: String| invalid(dir, format!("`{STATE_FILE}`: {reason}"));
        let mut opened = seal::open(&json).map_err(|error| fault(error.to_string()))?;
        if let Some(Value::Object(config)) = opened.object.get_mut("config") {
            keep_old_prompts(config);
            keep_old_method(config);
        }
        let state: RunState = serde_json::from_value(Value::Object(opened.object))
            .map_err(|error| fault(error.to_string()))?;
        if state.layout != LAYOUT {
            return Err(fault(format!("layout {}, expected {LAYOUT}", state.layout)));
        }
        if state.base.is_some() && !opened.sealed {
            return Err(fault("its checksum is missing".to_owned()));
        }
        match state.contradiction() {
            Some(reason) => Err(fault(reason)),
            None => Ok(state),
        }
    }

    /// What in this state cannot be, whatever the rows.
    fn contradiction(&self) -> Option<String> {
        let evaluation = &self.config.evaluation;
        let best = &self.best;
        if self.evaluated_step > Some(self.step) || best.best_step > self.evaluated_step {
            let shown = |step: Option<u64>| step.map_or("none".to_owned(), |step| step.to_string());
            return Some(format!(
                "step {}, `evaluated_step` {}, `best_step` {}: expected none above the one before",
                self.step,
                shown(self.evaluated_step),
                shown(best.best_step)
            ));
        }
        if best.best_step.is_some() != best.best_value.is_some() {
            return Some("`best_step` and `best_value`: one without the other".to_owned());
        }
        let evaluates = evaluation.eval_strategy != IntervalStrategy::No;
        if self.evaluated_step.is_some() && !evaluates {
            return Some("`evaluated_step`: the run does not evaluate".to_owned());
        }
        let patience = evaluation.early_stopping_patience;
        let is_used_up = patience.is_some_and(|p| best.evaluations_without_improvement >= p);
        if self.stopped_early != is_used_up {
            return Some(format!(
                "`stopped_early` is {}, but {} evaluations came without improvement, with {} allowed",
                self.stopped_early,
                best.evaluations_without_improvement,
                patience.map_or("any number".to_owned(), |p| p.to_string())
            ));
        }
        let time = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        if !time(self.elapsed_s) || !time(self.training_s) {
            return Some("`elapsed_s` and `training_s`: expected 0 or more seconds".to_owned());
        }
        None
    }

    /// Refuses a position that a run of `rows` rows and this configuration does not come to after
    /// so many steps, and other trained tensors than `trainables`.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn check_position(&self, rows: usize, trainables: &Trainables) -> Result<(), String> {
        let total = self.config.total_steps(rows);
        if self.step > total {
            return Err(format!("step {} of a run of {total} steps", self.step));
        }
        let (cursor, micro_step) = self.config.position_after(self.step, rows);
        if self.cursor != cursor {
            let shown = |c: &Cursor| format!("row {} of epoch {}", c.next_row, c.epoch);
            return Err(format!(
                "after step {} expected {}, found {}",
                self.step,
                shown(&cursor),
                shown(&self.cursor)
            ));
        }
        if self.micro_step != micro_step {
            return Err(format!(
                "after step {} expected `micro_step` {micro_step}, found {}",
                self.step, self.micro_step
            ));
        }
        let same = self.proof.len() == trainables.len()
            && trainables
                .iter()
                .all(|(_, t)| self.proof.contains_key(&t.name));
        if !same {
            return Err("`proof` names other tensors than those that are trained".to_owned());
        }
        Ok(())
    }
}

impl TrainConfig {
    /// The next row and the micro-batches done after `step` optimizer steps over `rows` rows.
    fn position_after(&self, step: u64, rows: usize) -> (Cursor, u64) {
        let o = &self.optimization;
        let per_epoch = self.steps_per_epoch(rows).max(1);
        let (epoch, within) = (step / per_epoch, step % per_epoch);
        let batches = rows.div_ceil(o.per_device_batch_size.max(1)) as u64;
        let taken = within.saturating_mul(o.gradient_accumulation_steps as u64);
        let cursor = Cursor {
            epoch,
            next_row: taken.saturating_mul(o.per_device_batch_size as u64),
        };
        (cursor, epoch.saturating_mul(batches).saturating_add(taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Task;
    use crate::config::tests::example;
    use lowrank_engine::{Device, Isa};

    fn trainables() -> Trainables {
        let device = Device::cpu(Isa::Scalar, 1).unwrap();
        let mut trainables = Trainables::default();
        trainables.add(&device, "a.weight".to_owned(), &[1], &[1.0]);
        trainables
    }

    /// A run of 10 rows by 2 and 2: 3 steps an epoch, the last of one batch.
    fn config() -> TrainConfig {
        let mut config = example();
        config.optimization.per_device_batch_size = 2;
        config.optimization.gradient_accumulation_steps = 2;
        config
    }

    fn at(step: u64) -> RunState {
        let mut state = RunState::new(&config(), "rows".to_owned(), None, &trainables());
        for _ in 0..step {
            let left = 10 - state.cursor.next_row as usize;
            state.micro_step += left.div_ceil(2).min(2) as u64;
            state.cursor.advance(left.min(4), 10);
        }
        state.step = step;
        state
    }

    #[test]
    fn every_position_that_a_run_comes_to_is_right_and_no_other() {
        for step in 0..=6 {
            let state = at(step);
            assert_eq!(state.check_position(10, &trainables()), Ok(()), "{step}");
            type Change = fn(&mut RunState);
            let changes: [Change; 5] = [
                |s| s.step += 1,
                |s| s.micro_step += 1,
                |s| s.cursor.epoch += 1,
                |s| s.cursor.next_row += 1,
                |s| s.proof.clear(),
            ];
            for (i, change) in changes.into_iter().enumerate() {
                let mut other = state.clone();
                change(&mut other);
                assert!(
                    other.check_position(10, &trainables()).is_err(),
                    "{step}, {i}"
                );
            }
        }
    }

    #[test]
    fn only_a_language_models_state_of_before_reads_nothing_beside_its_prompts() {
        let dir = tempfile::tempdir().unwrap();
        let context = |task: Task, gone: &[&str]| {
            let mut state = at(4);
            state.config.data.task = task;
            let mut json = serde_json::to_value(&state).unwrap();
            let config = json["config"].as_object_mut().unwrap();
            config.retain(|key, _| !gone.contains(&key.as_str()));
            std::fs::write(dir.path().join(STATE_FILE), json.to_string()).unwrap();
            RunState::read(dir.path())
                .unwrap()
                .config
                .data
                .context_column
        };
        let gone = ["unlabelled", "context_column"];
        let none = Some(lowrank_data::NO_COLUMN.to_owned());
        assert_eq!(context(Task::CausalLm, &gone), none);
        assert_eq!(context(Task::CausalLm, &[]), None);
        assert_eq!(context(Task::SingleLabel, &gone), None);
    }

    #[test]
    fn a_state_that_contradicts_itself_is_named() {
        let good = RunState {
            evaluated_step: Some(3),
            best: BestState {
                best_step: Some(3),
                best_value: Some(0.5),
                evaluations_without_improvement: 0,
            },
            ..at(4)
        };
        assert_eq!(good.contradiction(), None);
        type Change = fn(&mut RunState);
        let changes: [(Change, &str); 7] = [
            (|s| s.stopped_early = true, "stopped_early"),
            (|s| s.evaluated_step = Some(5), "evaluated_step"),
            (|s| s.best.best_step = Some(4), "best_step"),
            (|s| s.best.best_value = None, "best_value"),
            (|s| s.elapsed_s = f64::INFINITY, "elapsed_s"),
            (
                |s| s.config.evaluation.eval_strategy = IntervalStrategy::No,
                "does not evaluate",
            ),
            (
                |s| {
                    s.config.evaluation.early_stopping_patience = Some(2);
                    s.best.evaluations_without_improvement = 2;
                },
                "stopped_early",
            ),
        ];
        for (change, word) in changes {
            let mut other = good.clone();
            change(&mut other);
            let reason = other.contradiction().expect(word);
            assert!(reason.contains(word), "{reason}");
        }
    }
}
