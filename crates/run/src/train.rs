//! A training run from its specification to its results, driven a step at a time.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use lowrank_engine::Gradients;
use lowrank_formats::files::{self, Ceiling};
use lowrank_formats::{RunDir, write_atomic};
use lowrank_model::Model;
use lowrank_train::base::BaseId;
use lowrank_train::config::TrainConfig;
use lowrank_train::evaluate::{PassSettings, evaluate};
use lowrank_train::metrics::Evaluation;
use lowrank_train::outliers;
use lowrank_train::rates::Arm;
use lowrank_train::reduce::Solo;
use lowrank_train::trainer::{Outcome, RunSetup, Summary, TrainData, Trainer, Watch};

use crate::build::{Built, build};
use crate::error::{RunError, RunResult};
use crate::folder::{CONFIG_FILE, Existing};
use crate::memory;
use crate::plan::{RunPlan, plan_run, refuse_too_much};
use crate::rates::{Rates, Trials};
use crate::result::{Results, are_written, save_model};
use crate::spec::RunSpec;
use crate::yaml;

/// The evaluation before training, kept for the table of a resumed run.
const BEFORE_FILE: &str = "before.json";

/// A run whose model is read and whose folder is taken, before its first step.
pub struct Prepared {
    /// What is run.
    pub spec: RunSpec,
    /// What it will need.
    pub plan: RunPlan,
    /// The model, with what trains on it.
    pub model: Model,
    /// What a user should know of the model, a line each.
    pub notes: Vec<String>,
    /// Where an older run was moved.
    pub moved_aside: Option<PathBuf>,
    existing: Existing,
    base_id: BaseId,
    folder: RunDir,
    before: Option<Evaluation>,
    rates: Option<Rates>,
    fixed_bytes: Option<u64>,
}

impl Prepared {
    /// Plans the run, reads its weights, takes its folder and writes the configuration there.
    ///
    /// # Errors
    /// The machine cannot hold the run, the weights cannot be read, or the folder is taken.
    pub fn new(mut spec: RunSpec, existing: Existing) -> RunResult<Self> {
        let plan = plan_run(&mut spec, existing)?;
        refuse_too_much(&plan, &spec)?;
        // Program, tokenizer and rows: everything but the tensors that the plan counts.
        let fixed_bytes = memory::resident_bytes();
        let Built {
            model,
            notes,
            base_id,
        } = build(&spec)?;
        // Only now: a request that fails before here leaves no folder that would be in the way of
        // the next try.
        let (folder, moved_aside) = existing.take(&spec.config)?;
        if !existing.goes_on(&spec.config) {
            write_settings(&folder, &spec)?;
        }
        Ok(Self {
            spec,
            plan,
            model,
            notes,
            moved_aside,
            existing,
            base_id,
            folder,
            before: None,
            rates: None,
            fixed_bytes,
        })
    }

    /// Evaluates the untrained model on the rows by which the result is told, if there are some; a
    /// resumed run that has done it reads it back. Returns what was evaluated now.
    ///
    /// # Errors
    /// A row does not fit, or it was told to stop.
    pub fn evaluate_before(&mut self, stop: &AtomicBool) -> RunResult<Option<&Evaluation>> {
        if self.spec.reported().is_none() {
            return Ok(None);
        }
        let path = self.folder.join(BEFORE_FILE);
        if let Some(bytes) = files::read_if_there(&path, Ceiling::JSON)?
            && let Ok(evaluation) = serde_json::from_slice(&bytes)
        {
            self.before = Some(evaluation);
            return Ok(None);
        }
        // What is evaluated before the first step is what trains.
        if self.model.wants_outliers() {
            let (config, rows) = (&self.spec.config, &self.spec.train.examples);
            let mut gradients = Gradients::zeros(self.model.device(), self.model.trainables());
            outliers::find(&mut self.model, config, rows, &mut gradients)?;
        }
        let Some(evaluation) = evaluate_reported(&self.spec, &self.model, Some(stop))? else {
            let output_dir = &self.spec.config.output_dir;
            let stopped = "stopped before the first step; nothing was trained";
            return Err(RunError::interrupted(stopped).hint(format!(
                "start again with `lowrank train --resume --output-dir {output_dir}`"
            )));
        };
        let json = serde_json::to_vec(&evaluation).map_err(|error| RunError::from_error(&error))?;
        write_atomic(&path, &json)?;
        Ok(Some(self.before.insert(evaluation)))
    }

    /// Finds the learning rate by trials, where that is asked for; `on_arm` is told of each rate
    /// that is tried now. The chosen trial's steps are the run's first ones. A run that goes on has
    /// the rate that was found for it.
    ///
    /// # Errors
    /// The run was started with a rate that was given; training diverges with each rate; it was
    /// told to stop; or the disk refuses.
    pub fn find_rate(mut self, stop: &AtomicBool, on_arm: &dyn Fn(&Arm)) -> RunResult<Self> {
        if !self.spec.finds_rate {
            if self.existing == Existing::Resume {
                self.rates = Rates::read(&self.folder)?;
            }
            return Ok(self);
        }
        self.refuse_given_rate()?;
        let (spec, plan, base) = (&self.spec, &self.plan, &self.base_id);
        let validation = spec.validation.as_ref();
        let config = spec.config.clone();
        let trials = Trials {
            folder: &self.folder,
            config: &config,
            setup: &|config, folder| setup(spec, plan, base, config, folder),
            train_rows: spec.train.examples.len(),
            validation: validation.map_or(&[], |rows| &rows.examples[..]),
            on_arm,
        };
        let (model, rates) = trials.find(self.model, stop)?;
        self.model = model;
        if let Some(found) = rates.found {
            self.spec.config.optimization.learning_rate = found;
            self.spec.finds_rate = false;
            write_settings(&self.folder, &self.spec)?;
        }
        self.rates = Some(rates);
        Ok(self)
    }

    /// The rate that trials found.
    pub fn found_rate(&self) -> Option<f64> {
        self.rates.as_ref()?.found
    }

    /// A run with steps of a rate that was given has none to find.
    fn refuse_given_rate(&self) -> RunResult {
        if self.existing != Existing::Resume || Rates::read(&self.folder)?.is_some() {
            return Ok(());
        }
        let entries = files::list(self.folder.path())?;
        let is_checkpoint = |name: &str| name.starts_with("checkpoint-");
        let mut names = entries.iter().filter_map(|entry| entry.name.to_str());
        match names.any(is_checkpoint) {
            false => Ok(()),
            true => Err(RunError::usage(
                "`learning_rate` is auto, but the run was started with a rate that was given",
            )
            .hint("leave out --learning-rate to go on with it, or start anew with --overwrite")),
        }
    }

    /// Makes the run ready for its first step, or for the one after its newest checkpoint.
    ///
    /// # Errors
    /// The run that is to go on was made with other settings, rows or weights, or its checkpoints
    /// are broken.
    pub fn start(self, watch: Watch<'_>) -> RunResult<TrainRun> {
        let folder = self.folder.path().to_owned();
        let config = self.spec.config.clone();
        let setup = setup(&self.spec, &self.plan, &self.base_id, config, folder);
        let mut trainer = Trainer::new(self.model, setup)?;
        if self.existing == Existing::Resume || self.rates.is_some() {
            trainer.resume(watch)?;
        }
        Ok(TrainRun {
            trainer,
            spec: self.spec,
            plan: self.plan,
            base_id: self.base_id,
            folder: self.folder,
            before: self.before,
            rates: self.rates,
            fixed_bytes: self.fixed_bytes,
        })
    }
}

/// What a trainer of a run's rows needs, with a configuration and a folder.
fn setup(
    spec: &RunSpec,
    plan: &RunPlan,
    base: &BaseId,
    config: TrainConfig,
    run: PathBuf,
) -> RunSetup {
    let examples = |rows: &lowrank_data::Loaded| rows.examples.clone();
    RunSetup {
        config,
        data: TrainData {
            train: examples(&spec.train),
            validation: spec.validation.as_ref().map(examples),
        },
        run,
        base: base.clone(),
        other_base: spec.base.other_base(),
        prefix_cache_bytes: plan.prefix_cache_bytes,
        reducer: Box::new(Solo),
    }
}

/// A run under way. Between two steps its caller may look at it, ask its model, or stop.
pub struct TrainRun {
    trainer: Trainer,
    spec: RunSpec,
    plan: RunPlan,
    base_id: BaseId,
    folder: RunDir,
    before: Option<Evaluation>,
    rates: Option<Rates>,
    fixed_bytes: Option<u64>,
}

/// What a step has led to.
pub enum Advance {
    /// There are more steps.
    Stepped,
    /// There are none.
    Finished(Box<Summary>),
}

impl TrainRun {
    /// One optimizer step, with the evaluation and the checkpoint that are due after it.
    ///
    /// # Errors
    /// Training diverges, the disk refuses, or it was told to stop; the hint says how it goes on.
    pub fn advance(&mut self, watch: Watch<'_>) -> RunResult<Advance> {
        match self.trainer.advance(watch)? {
            None => Ok(Advance::Stepped),
            Some(Outcome::Finished(summary)) => Ok(Advance::Finished(summary)),
            Some(Outcome::Interrupted { step, checkpoint }) => {
                let saved = format!(
                    "stopped after step {step}, saved `{}`",
                    checkpoint.display()
                );
                let output_dir = &self.spec.config.output_dir;
                let hint = format!("go on with `lowrank train --resume --output-dir {output_dir}`");
                Err(RunError::interrupted(saved).hint(hint))
            }
        }
    }

    /// What is run.
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// The model as it stands.
    pub fn model(&self) -> &Model {
        self.trainer.model()
    }

    /// The run's folder.
    pub fn folder(&self) -> &RunDir {
        &self.folder
    }

    /// Whether a start that had nothing left to do found all results there: they stay as they are,
    /// as this process has trained nothing, so that its own figures would say less.
    pub fn was_finished_before(&self, summary: &Summary) -> bool {
        summary.new_steps == 0 && are_written(&self.folder, &self.spec.config)
    }

    /// Saves what was trained, evaluates it, and writes the figures.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn finish(self, summary: Summary) -> RunResult<Results> {
        let (spec, model) = (self.spec, self.trainer.into_model());
        let saved = save_model(&self.folder, &spec, &model, &self.base_id)?;
        // The rest is small: it is done even when told to stop.
        let after = evaluate_reported(&spec, &model, None)?;
        let results = Results {
            run: spec,
            model,
            plan: self.plan,
            summary,
            before: self.before,
            rates: self.rates,
            after,
            saved,
            fixed_bytes: self.fixed_bytes,
            folder: self.folder,
        };
        results.write()?;
        Ok(results)
    }
}

fn write_settings(folder: &RunDir, spec: &RunSpec) -> RunResult {
    let text = yaml::to_yaml(&spec.to_settings());
    Ok(write_atomic(&folder.join(CONFIG_FILE), text.as_bytes())?)
}

/// The rows by which the result is told, measured; none where there are no such rows, or where it
/// was told to stop.
fn evaluate_reported(
    spec: &RunSpec,
    model: &Model,
    stop: Option<&AtomicBool>,
) -> RunResult<Option<Evaluation>> {
    let Some(rows) = spec.reported() else {
        return Ok(None);
    };
    let settings = PassSettings {
        labels: &spec.config.data.labels,
        batch_size: spec.config.evaluation.per_device_eval_batch_size,
        stop,
        progress: &|_, _| {},
    };
    Ok(evaluate(model, &rows.examples, &settings)?)
}
