//! The loop: batches in, updates, evaluations and checkpoints out, exact continuation from any.
//!
//! Everything that decides the next update is in [`RunState`] and the checkpoint's tensors: the
//! order of rows is a function of seed and epoch, dropout of seed and micro-batch. So the loop
//! after a resume is the loop that was never stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lowrank_data::{Batching, Example, PackedBatch};
use lowrank_engine::{Gradients, StepKey};
use lowrank_model::{Model, PassOptions, TrainMode};

use crate::base::BaseId;
use crate::best::BestRule;
use crate::checkpoint::{CheckpointError, Checkpoints, RunState, restore};
use crate::config::{IntervalStrategy, TrainConfig};
pub use crate::error::TrainError;
use crate::evaluate::{
    PassSettings, counted_targets, evaluate_keeping, model_batch, model_targets,
};
use crate::fingerprint;
use crate::frozen_cache::{FrozenCache, FrozenCaches, RowLengths};
use crate::metrics::{Evaluation, Metric};
use crate::metrics_log::{MetricsLog, MetricsRow};
use crate::optimizer::{Optimizer, clip_grad_norm};
use crate::outliers;
use crate::proof::{Proof, note_gradients};
use crate::reduce::{Reducer, StepGradients};
use crate::schedule::Schedule;

mod resume;

/// The log in the run's folder.
const LOG_FILE: &str = "metrics.jsonl";

/// The rows of a run.
#[derive(Clone, Debug)]
pub struct TrainData {
    /// Rows to train on.
    pub train: Arc<Vec<Example>>,
    /// Rows to evaluate on while training.
    pub validation: Option<Arc<Vec<Example>>>,
}

/// Who follows a run while it is driven.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Raised by somebody else to end the run with a checkpoint.
    pub stop: &'a AtomicBool,
    /// Told of everything that happens.
    pub on_event: &'a dyn Fn(Event<'_>),
}

impl Watch<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn tell(&self, event: Event<'_>) {
        (self.on_event)(event);
    }
}

/// What happens during a run, for whoever shows it.
#[derive(Debug)]
pub enum Event<'a> {
    /// The run goes on from a checkpoint.
    Resumed {
        /// Where it stood.
        step: u64,
    },
    /// A newer checkpoint was not whole and was passed over.
    PassedOver(&'a CheckpointError),
    /// The best checkpoint is not whole; of those that are, another one is now taken for the best.
    BestLost {
        /// What is wrong with it.
        error: &'a CheckpointError,
        /// The one taken in its place, if any of the others was evaluated.
        now: Option<u64>,
    },
    /// The run stands on another base than before, as was allowed.
    OtherBase(&'a [String]),
    /// The log lacks rows, or holds some twice.
    LogLost(&'a str),
    /// An optimizer step is done.
    Step {
        /// Its row of the log.
        row: &'a MetricsRow,
        /// Steps of the whole run.
        total_steps: u64,
    },
    /// Evaluation goes on.
    Evaluating {
        /// Rows done.
        done: usize,
        /// Rows in all.
        total: usize,
    },
    /// An evaluation is done.
    Evaluated {
        /// After which step.
        step: u64,
        /// What it gave.
        evaluation: &'a Evaluation,
        /// Whether it is the best so far.
        is_best: bool,
    },
    /// A checkpoint is written.
    Saved(&'a Path),
    /// Patience is used up.
    StoppedEarly {
        /// After which step.
        step: u64,
    },
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// At its end; the model holds the final values.
    Finished(Box<Summary>),
    /// Told to stop; the checkpoint from which it can go on.
    Interrupted {
        /// The step it reached.
        step: u64,
        /// The checkpoint.
        checkpoint: PathBuf,
    },
}

/// What there is to say about a finished run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Optimizer steps done.
    pub steps: u64,
    /// Those of them since the last start.
    pub new_steps: u64,
    /// Step whose values the model holds.
    pub final_step: u64,
    /// The best evaluation.
    pub best_step: Option<u64>,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
    /// Seconds since the start, evaluations included.
    pub elapsed_s: f64,
    /// Seconds of them that were optimizer steps.
    pub training_s: f64,
    /// Real tokens trained on.
    pub tokens: u64,
    /// The proof that every trained value was trained.
    pub proof: Proof,
}

/// One training run over a model on which something trains already. [`Trainer::advance`] makes one
/// step: between steps its caller may look at the model, ask it, or leave it at that.
pub struct Trainer {
    model: Model,
    config: TrainConfig,
    data: TrainData,
    run: PathBuf,
    schedule: Schedule,
    steps_per_epoch: u64,
    batching: Batching,
    checkpoints: Checkpoints,
    optimizer: Optimizer,
    gradients: StepGradients,
    reducer: Box<dyn Reducer>,
    frozen_caches: FrozenCaches,
    /// The log, once the run is under way.
    log: Option<MetricsLog>,
    /// The step from which this start went on.
    started_at: u64,
    state: RunState,
    best_rule: BestRule,
    other_base: OtherBase,
}

/// What to do where a run that goes on finds another base than it was started on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherBase {
    /// Refuse it.
    Refuse,
    /// Go on, and note the new one.
    Allow,
}

/// What a run needs besides the model.
pub struct RunSetup {
    /// The configuration.
    pub config: TrainConfig,
    /// The rows.
    pub data: TrainData,
    /// The run's folder, which exists and is this process's alone.
    pub run: PathBuf,
    /// What the run stands on.
    pub base: BaseId,
    /// What to do where that has changed since the run's start.
    pub other_base: OtherBase,
    /// Bytes that may hold what frozen layers give; the results do not depend on it.
    pub prefix_cache_bytes: u64,
    /// Where the gradients of a step are put together.
    pub reducer: Box<dyn Reducer>,
}

impl Trainer {
    /// Prepares a run.
    ///
    /// # Errors
    /// The configuration is not valid, or there is nothing to train on.
    pub fn new(model: Model, setup: RunSetup) -> Result<Self, TrainError> {
        let RunSetup {
            config,
            data,
            run,
            base,
            other_base,
            prefix_cache_bytes,
            reducer,
        } = setup;
        config.validate()?;
        if data.train.is_empty() {
            return Err(TrainError::NoRows);
        }
        if data.train.iter().all(|e| counted_targets(e) == 0) {
            return Err(TrainError::NoTargets);
        }
        let print = |rows: &Arc<Vec<Example>>| fingerprint::of_examples(rows);
        let validation_rows = data.validation.as_ref().map(print);
        let rows = print(&data.train);
        let state = RunState {
            base: Some(base),
            instructions: Some(model.device().name().to_owned()),
            ..RunState::new(&config, rows, validation_rows, model.trainables())
        };
        let optimizer = Optimizer::new(model.device(), model.trainables(), &config.optimization);
        let micro_batches = config.optimization.gradient_accumulation_steps;
        let gradients = StepGradients::zeros(model.device(), model.trainables(), micro_batches);
        let rows = data.train.len();
        let of = |rows: &Arc<Vec<Example>>| rows.iter().map(|row| row.input_ids.len()).collect();
        let lengths = RowLengths {
            train: of(&data.train),
            validation: data.validation.as_ref().map(of).unwrap_or_default(),
        };
        let frozen_caches = FrozenCaches::new(&model, &config, &lengths, prefix_cache_bytes);
        Ok(Self {
            schedule: config.schedule(config.total_steps(rows)),
            steps_per_epoch: config.steps_per_epoch(rows),
            batching: config.batching(rows),
            checkpoints: Checkpoints::new(&run, config.evaluation.save_total_limit),
            best_rule: BestRule {
                metric: config.evaluation.metric_for_best_model,
                patience: config.evaluation.early_stopping_patience,
                threshold: config.evaluation.early_stopping_threshold,
            },
            model,
            config,
            data,
            run,
            optimizer,
            gradients,
            reducer,
            frozen_caches,
            log: None,
            started_at: 0,
            state,
            other_base,
        })
    }

    /// The model as it stands.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model, when its run is over.
    pub fn into_model(self) -> Model {
        self.model
    }

    /// Optimizer steps done.
    pub fn steps(&self) -> u64 {
        self.state.step
    }

    /// Trains to the end, or until told to stop.
    ///
    /// # Errors
    /// As [`Trainer::advance`].
    pub fn run(&mut self, watch: Watch<'_>) -> Result<Outcome, TrainError> {
        loop {
            if let Some(outcome) = self.advance(watch)? {
                return Ok(outcome);
            }
        }
    }

    /// One optimizer step, with the evaluation and the checkpoint that are due after it; the
    /// outcome where there is no step left, or where it was told to stop.
    ///
    /// # Errors
    /// Training diverges, or the disk refuses; checkpoints written before stay.
    pub fn advance(&mut self, watch: Watch<'_>) -> Result<Option<Outcome>, TrainError> {
        let mut log = match self.log.take() {
            Some(log) => log,
            None => match self.begin(watch)? {
                Some(log) => log,
                None => return self.interrupted(watch).map(Some),
            },
        };
        let total = self.schedule.num_training_steps;
        if self.state.step >= total || self.state.stopped_early {
            self.log = Some(log);
            return self.finish().map(Some);
        }
        if watch.stopped() {
            self.log = Some(log);
            return self.interrupted(watch).map(Some);
        }
        let started = Instant::now();
        let mut row = self.step()?;
        row.tokens_per_s = row
            .tokens
            .map(|t| t as f64 / started.elapsed().as_secs_f64().max(1e-9));
        self.state.elapsed_s += started.elapsed().as_secs_f64();
        self.state.training_s += started.elapsed().as_secs_f64();
        row.elapsed_s = Some(self.state.elapsed_s);
        watch.tell(Event::Step {
            row: &row,
            total_steps: total,
        });
        if self.evaluation_due() {
            let started = Instant::now();
            row.eval = self.evaluate(watch)?;
            self.state.elapsed_s += started.elapsed().as_secs_f64();
        }
        log.write(&row)?;
        self.log = Some(log);
        if row.eval.is_none() && self.evaluation_due() {
            return self.interrupted(watch).map(Some);
        }
        self.save_if_due(watch)?;
        Ok(None)
    }

    /// Opens the log and makes up for an evaluation that a stop cut short; `None` if told to again.
    fn begin(&mut self, watch: Watch<'_>) -> Result<Option<MetricsLog>, TrainError> {
        if self.state.step == 0 {
            let gradients = self.gradients.sum_mut();
            outliers::find(&mut self.model, &self.config, &self.data.train, gradients)?;
            self.state.outliers = outliers::recorded(&self.model);
        }
        let log_path = self.run.join(LOG_FILE);
        let mut log = match self.state.step {
            0 => MetricsLog::create(&log_path)?,
            step => MetricsLog::resume(&log_path, step)?,
        };
        if let Some(lost) = MetricsLog::lost(&log_path, self.state.step)? {
            watch.tell(Event::LogLost(&lost));
        }
        let step = self.state.step;
        if step == 0 || !self.evaluation_due() || self.state.evaluated_step == Some(step) {
            return Ok(Some(log));
        }
        let mut rows = MetricsLog::read(&log_path)?;
        let Some(evaluation) = self.evaluate(watch)? else {
            return Ok(None);
        };
        if let Some(last) = rows.pop_if(|row| row.step == step) {
            log = MetricsLog::resume(&log_path, step - 1)?;
            log.write(&MetricsRow {
                eval: Some(evaluation),
                ..last
            })?;
        }
        self.save_if_due(watch)?;
        Ok(Some(log))
    }

    /// One optimizer step over up to `gradient_accumulation_steps` micro-batches of one epoch.
    fn step(&mut self) -> Result<MetricsRow, TrainError> {
        let batches = self.next_batches();
        let targets: usize = batches
            .iter()
            .flat_map(|batch| &batch.rows)
            .map(|&row| counted_targets(&self.data.train[row]))
            .sum();
        let loss_sum = self.compute_gradients(&batches, targets)?;
        let loss = loss_sum / targets.max(1) as f64;
        let max_norm = self.config.optimization.max_grad_norm;
        let grad_norm = clip_grad_norm(self.model.device(), self.gradients.sum_mut(), max_norm);
        if !loss.is_finite() || !grad_norm.is_finite() {
            let loss = if loss.is_finite() { grad_norm } else { loss };
            return Err(TrainError::Diverged {
                step: self.state.step + 1,
                loss,
            });
        }
        let learning_rate = self.schedule.lr_at(self.state.step);
        let gradients = self.gradients.sum();
        note_gradients(&mut self.state, self.model.trainables(), gradients);
        let step = self.state.step + 1;
        self.optimizer
            .step(self.model.trainables_mut(), gradients, learning_rate, step);
        let rows: usize = batches.iter().map(PackedBatch::len).sum();
        let tokens: usize = batches.iter().map(PackedBatch::total_tokens).sum();
        self.state.step = step;
        self.state.cursor.advance(rows, self.data.train.len());
        self.state.tokens += tokens as u64;
        Ok(MetricsRow {
            step,
            epoch: step as f64 / self.steps_per_epoch as f64,
            loss: Some(loss),
            learning_rate: Some(learning_rate),
            grad_norm: Some(grad_norm),
            tokens: Some(tokens as u64),
            rows: Some(rows as u64),
            peak_bytes: Some(self.model.device().peak_memory().total()),
            ..MetricsRow::default()
        })
    }

    /// Leaves the gradient of a step's mean loss over its counted targets, and returns the sum of
    /// the losses.
    fn compute_gradients(
        &mut self,
        batches: &[PackedBatch],
        targets: usize,
    ) -> Result<f64, TrainError> {
        let (model, optimization) = (&self.model, &self.config.optimization);
        let (first, caches) = (self.state.micro_step, &mut self.frozen_caches.train);
        let mut compute = |index: usize, gradients: &mut Gradients| {
            let batch = &batches[index];
            let Some(batch_targets) = model_targets(batch) else {
                return Ok(0.0);
            };
            let options = PassOptions {
                dropout: Some(StepKey {
                    seed: optimization.seed,
                    micro_step: first + index as u64,
                }),
                grad_scale: 1.0 / targets.max(1) as f32,
                label_smoothing: optimization.label_smoothing_factor as f32,
                recompute: optimization.gradient_checkpointing.into(),
            };
            let model_batch = model_batch(batch);
            let kept = caches.as_mut();
            let entry = FrozenCache::entry_if_cached(kept, model, &model_batch, &batch.rows)?;
            let (sum, _) = model.forward_backward_from(
                entry,
                &model_batch,
                batch_targets,
                &options,
                gradients,
            )?;
            Ok(sum)
        };
        let gradients = &mut self.gradients;
        let loss_sum = (self.reducer).reduce(batches.len(), gradients, &mut compute)?;
        self.state.micro_step += batches.len() as u64;
        Ok(loss_sum)
    }

    /// The micro-batches of the next step; at the end of an epoch there may be fewer.
    fn next_batches(&mut self) -> Vec<PackedBatch> {
        let step = self.batching.step(self.state.cursor);
        step.map(|rows| PackedBatch::from_rows(&self.data.train, rows))
            .collect()
    }

    fn is_due(&self, strategy: IntervalStrategy, every: Option<u64>) -> bool {
        let step = self.state.step;
        let last = step == self.schedule.num_training_steps;
        match strategy {
            IntervalStrategy::No => false,
            IntervalStrategy::Steps => last || every.is_some_and(|n| step.is_multiple_of(n.max(1))),
            IntervalStrategy::Epoch => last || step.is_multiple_of(self.steps_per_epoch.max(1)),
        }
    }

    fn evaluation_due(&self) -> bool {
        let e = &self.config.evaluation;
        self.data.validation.is_some() && self.is_due(e.eval_strategy, e.eval_steps)
    }

    /// Evaluates, and takes the result into account; `None` when told to stop.
    fn evaluate(&mut self, watch: Watch<'_>) -> Result<Option<Evaluation>, TrainError> {
        let Some(rows) = &self.data.validation else {
            return Ok(None);
        };
        let progress = |done, total| watch.tell(Event::Evaluating { done, total });
        let settings = PassSettings {
            labels: &self.config.data.labels,
            batch_size: self.config.evaluation.per_device_eval_batch_size,
            stop: Some(watch.stop),
            progress: &progress,
        };
        let kept = self.frozen_caches.validation.as_mut();
        let Some(evaluation) = evaluate_keeping(&self.model, rows, &settings, kept)? else {
            return Ok(None);
        };
        let step = self.state.step;
        self.state.evaluated_step = Some(step);
        let value = evaluation.value(self.best_rule.metric);
        let verdict = self.best_rule.observe(&mut self.state.best, step, value);
        watch.tell(Event::Evaluated {
            step,
            evaluation: &evaluation,
            is_best: verdict.is_best,
        });
        if verdict.stop {
            self.state.stopped_early = true;
            watch.tell(Event::StoppedEarly { step });
        }
        Ok(Some(evaluation))
    }

    /// A checkpoint when the schedule says so, at a new best (it must be there to be loaded), and
    /// at the end.
    fn save_if_due(&mut self, watch: Watch<'_>) -> Result<(), TrainError> {
        let e = &self.config.evaluation;
        let step = self.state.step;
        let best = self.state.best.best_step == Some(step);
        let end = step == self.schedule.num_training_steps || self.state.stopped_early;
        if best || end || self.is_due(e.save_strategy, e.save_steps) {
            self.save(watch)?;
        }
        Ok(())
    }

    fn save(&self, watch: Watch<'_>) -> Result<PathBuf, TrainError> {
        let model = &self.model;
        // The loss tells it a step later only; what is written must be of use.
        let odd = |values: &[f32]| values.iter().any(|value| !value.is_finite());
        let mut trained = model.trainables().iter();
        if let Some((_, t)) = trained.find(|(_, t)| odd(&t.value.read())) {
            return Err(TrainError::NotFinite {
                step: self.state.step,
                name: t.name.clone(),
            });
        }
        let base = self.config.model.as_str();
        let export = |dir: &Path| match model.mode() {
            TrainMode::Adapter(_) => model.save_adapter(dir, Some(base)).map(|_| ()),
            TrainMode::Frozen | TrainMode::Full => Ok(()),
        };
        let path =
            self.checkpoints
                .write(&self.state, model.trainables(), &self.optimizer, &export)?;
        watch.tell(Event::Saved(&path));
        Ok(path)
    }

    fn interrupted(&self, watch: Watch<'_>) -> Result<Outcome, TrainError> {
        Ok(Outcome::Interrupted {
            step: self.state.step,
            checkpoint: self.save(watch)?,
        })
    }

    fn finish(&mut self) -> Result<Outcome, TrainError> {
        let best_step = self.state.best.best_step;
        let load_best = self.config.evaluation.load_best_model_at_end;
        let final_step = best_step.filter(|_| load_best).unwrap_or(self.state.step);
        if final_step != self.state.step {
            restore(
                &self.checkpoints.path_of(final_step),
                self.model.trainables_mut(),
                None,
            )?;
        }
        Ok(Outcome::Finished(Box::new(Summary {
            steps: self.state.step,
            new_steps: self.state.step - self.started_at,
            final_step,
            best_step,
            stopped_early: self.state.stopped_early,
            elapsed_s: self.state.elapsed_s,
            training_s: self.state.training_s,
            tokens: self.state.tokens,
            proof: Proof::of(
                &self.state,
                self.model.trainables(),
                &self.schedule,
                final_step,
            ),
        })))
    }
}

/// The metric by which a task's result is told in one number.
pub fn headline_metric(config: &TrainConfig) -> Metric {
    match config.evaluation.metric_for_best_model {
        Metric::Loss => Metric::of_task(config.data.task)[0],
        chosen => chosen,
    }
}
