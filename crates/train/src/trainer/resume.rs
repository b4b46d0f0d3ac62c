//! Going on from a checkpoint: which one, and whether it is of the same run. How training goes on
//! is the parent's business.

use super::{Event, LOG_FILE, OtherBase, Trainer, Watch};
use crate::best::BestState;
use crate::checkpoint::{CheckpointError, Found, Newest, RunState, check, restore};
use crate::error::TrainError;
use crate::metrics_log::MetricsLog;
use crate::outliers;

impl Trainer {
    /// Goes on from the newest whole checkpoint of the run's folder; from the start where there is
    /// none.
    ///
    /// # Errors
    /// The run was made with other settings or rows, or all its checkpoints are broken.
    pub fn resume(&mut self, watch: Watch<'_>) -> Result<(), TrainError> {
        let fits = |state: &RunState| {
            // Other rows or settings are no damage, and are told below.
            if state.train_rows != self.state.train_rows
                || !state.config.differences(&self.config).is_empty()
            {
                return Ok(());
            }
            state.check_position(self.data.train.len(), self.model.trainables())
        };
        let Newest {
            found,
            passed_over,
            lost_best,
        } = self.checkpoints.newest(&fits);
        let Some(Found { path, state }) = found else {
            return if passed_over.is_empty() {
                Ok(())
            } else {
                Err(TrainError::NoUsableCheckpoint(passed_over))
            };
        };
        passed_over
            .iter()
            .for_each(|error| watch.tell(Event::PassedOver(error)));
        let state = self.check_same(state, watch)?;
        restore(
            &path,
            self.model.trainables_mut(),
            Some(&mut self.optimizer),
        )?;
        outliers::restore(&mut self.model, &state.outliers)?;
        self.state = RunState {
            config: self.config.clone(),
            base: self.state.base.take(),
            instructions: self.state.instructions.take(),
            ..state
        };
        self.started_at = self.state.step;
        if let Some(error) = lost_best.filter(|_| self.config.evaluation.load_best_model_at_end) {
            self.choose_best_anew()?;
            let now = self.state.best.best_step;
            watch.tell(Event::BestLost { error: &error, now });
        }
        watch.tell(Event::Resumed {
            step: self.state.step,
        });
        Ok(())
    }

    /// The state of a checkpoint, if it is of a run with these settings, rows and base.
    fn check_same(&self, state: RunState, watch: Watch<'_>) -> Result<RunState, TrainError> {
        let differences = state.config.differences(&self.config);
        if !differences.is_empty() {
            return Err(TrainError::OtherSettings(differences));
        }
        if state.train_rows != self.state.train_rows {
            return Err(TrainError::OtherRows { which: "training" });
        }
        if state.validation_rows != self.state.validation_rows {
            return Err(TrainError::OtherRows {
                which: "validation",
            });
        }
        let (Some(then), Some(now)) = (&state.base, &self.state.base) else {
            return Ok(state);
        };
        let differences = then.differences(now);
        match self.other_base {
            OtherBase::Refuse if !differences.is_empty() => Err(TrainError::OtherBase {
                base: self.config.model.clone(),
                differences,
            }),
            OtherBase::Allow if !differences.is_empty() => {
                watch.tell(Event::OtherBase(&differences));
                Ok(state)
            }
            OtherBase::Refuse | OtherBase::Allow => Ok(state),
        }
    }

    /// Takes the best of the whole checkpoints for the best, by what the log says of their
    /// evaluations.
    fn choose_best_anew(&mut self) -> Result<(), TrainError> {
        let log_path = self.run.join(LOG_FILE);
        let rows = if lowrank_formats::files::is_file(&log_path) {
            MetricsLog::read(&log_path)?
        } else {
            Vec::new()
        };
        let mut best = BestState::default();
        for step in self.checkpoints.steps().map_err(CheckpointError::from)? {
            let row = rows.iter().find(|row| row.step == step);
            let value = row
                .and_then(|row| row.eval.as_ref())
                .map(|evaluation| evaluation.value(self.best_rule.metric));
            if let Some(value) = value.filter(|_| step <= self.state.step)
                && check(&self.checkpoints.path_of(step)).is_ok()
            {
                self.best_rule.observe(&mut best, step, value);
            }
        }
        self.state.best = BestState {
            evaluations_without_improvement: self.state.best.evaluations_without_improvement,
            ..best
        };
        Ok(())
    }
}
