//! `learning_rate: auto`: each rate makes the first part of the run's own schedule on the run's own
//! rows, in a folder of its own, and is judged by the validation loss. The part that the chosen
//! rate made becomes the run's beginning, so that no step of it is made twice.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lowrank_data::{Example, Loaded, Order};
use lowrank_formats::files::{self, Ceiling};
use lowrank_formats::{RunDir, write_atomic};
use lowrank_model::{Model, ModelError};
use lowrank_train::config::{IntervalStrategy, TrainConfig};
use lowrank_train::evaluate::{PassSettings, evaluate};
use lowrank_train::metrics::Metric;
use lowrank_train::rates::{Arm, Next, Search};
use lowrank_train::trainer::{Event, Outcome, RunSetup, TrainError, Trainer, Watch};
use serde::{Deserialize, Serialize};

use crate::error::{RunError, RunResult};
use crate::presets::Preset;
use crate::settings::Settings;

/// The trials of a run, in its folder.
pub const RATES_FILE: &str = "learning_rate.json";
/// The folder of trials that are under way.
const TRIALS: &str = "learning_rates";
/// What a trainer writes into its folder, beside checkpoints.
const LOG_FILE: &str = "metrics.jsonl";

/// A learning rate as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AskedRate {
    /// This one.
    Rate(f64),
    /// The one that trials find.
    Auto(Auto),
}

/// The word for a rate that trials find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Auto {
    /// `auto`.
    #[serde(rename = "auto")]
    Auto,
}

impl FromStr for AskedRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<f64>()) {
            ("auto", _) => Ok(AskedRate::Auto(Auto::Auto)),
            (_, Ok(rate)) if rate.is_finite() => Ok(AskedRate::Rate(rate)),
            (_, Ok(_)) => Err("expected a finite number".to_owned()),
            (_, Err(_)) => Err("expected a number or auto".to_owned()),
        }
    }
}

/// The settings without a rate that trials are to find, in whose place the preset's stands, and
/// whether they are to.
///
/// # Errors
/// There is no preset of that name.
pub(crate) fn taken_out(settings: &Settings) -> RunResult<(Settings, bool)> {
    const NAME: &str = "learning_rate";
    let mut settings = settings.clone();
    let finds = settings.get(NAME).is_some_and(|rate| rate == "auto");
    if finds {
        settings.shift_remove(NAME);
        let preset = settings.get("preset").and_then(|name| name.as_str());
        let preset = preset.map(Preset::find).transpose()?;
        let rate = preset.and_then(|preset| preset.below(&settings).get(NAME).cloned());
        settings.extend(rate.map(|rate| (NAME.to_owned(), rate)));
    }
    Ok((settings, finds))
}

/// Refuses trials without rows that judge them.
///
/// # Errors
/// There are none.
pub(crate) fn require_rows(validation: Option<&Loaded>) -> RunResult {
    match validation {
        Some(_) => Ok(()),
        None => Err(RunError::usage(
            "`learning_rate: auto` judges rates by the validation loss, and there are no validation rows",
        )
        .hint("pass --validation-file, or --learning-rate with a number")),
    }
}

/// The rates that were tried, and the one that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// The trials.
    #[serde(flatten)]
    pub search: Search,
    /// Validation rows by which they are judged.
    pub rows: usize,
    /// The rate that was found.
    pub found: Option<f64>,
}

impl Rates {
    /// The trials in a run's folder; nothing where there were none.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn read(folder: &RunDir) -> RunResult<Option<Self>> {
        let path = folder.join(RATES_FILE);
        let Some(bytes) = files::read_if_there(&path, Ceiling::JSON)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            RunError::failure(format!("`{}` is damaged: {error}", path.display()))
                .hint("delete it to try the rates anew, or pass --learning-rate with a number")
        })
    }

    fn write(&self, folder: &RunDir) -> RunResult {
        let json = serde_json::to_vec_pretty(self).map_err(|error| RunError::from_error(&error))?;
        Ok(write_atomic(&folder.join(RATES_FILE), &json)?)
    }
}

/// What the trials of a run share.
pub(crate) struct Trials<'a> {
    pub(crate) folder: &'a RunDir,
    /// The run's configuration, whose rate is the centre.
    pub(crate) config: &'a TrainConfig,
    /// What a trainer needs, for a configuration and a folder.
    pub(crate) setup: &'a dyn Fn(TrainConfig, PathBuf) -> RunSetup,
    pub(crate) train_rows: usize,
    pub(crate) validation: &'a [Example],
    /// Told of each rate that was tried.
    pub(crate) on_arm: &'a dyn Fn(&Arm),
}

impl Trials<'_> {
    /// Tries rates until one is found, from where a start before this one was stopped; what trains
    /// in the model is as it was before. The chosen trial is the run's beginning then.
    ///
    /// # Errors
    /// Training diverges with each rate, it was told to stop, or the disk refuses.
    pub(crate) fn find(&self, model: Model, stop: &AtomicBool) -> RunResult<(Model, Rates)> {
        let mut rates = match Rates::read(self.folder)? {
            Some(rates) => rates,
            None => self.first(),
        };
        let rows = judged_by(self.validation, rates.rows, self.config.optimization.seed);
        let start = values(&model);
        let mut model = model;
        while rates.found.is_none() {
            let (rate, steps) = match rates.search.next() {
                Next::Try {
                    learning_rate,
                    steps,
                } => (learning_rate, steps),
                Next::NoneTrains => return Err(none_trains()),
                Next::Found(rate) => {
                    rates.found = Some(rate);
                    rates.write(self.folder)?;
                    break;
                }
            };
            let began = Instant::now();
            let (tried, loss) = self.try_rate(model, rate, steps, &rows, stop)?;
            model = tried;
            restore(&mut model, &start);
            (rates.search).note(rate, loss, began.elapsed().as_secs_f64());
            rates.write(self.folder)?;
            let arms = rates.search.arms.iter();
            (arms.filter(|arm| arm.learning_rate == rate)).for_each(self.on_arm);
        }
        self.take_over(&rates)?;
        Ok((model, rates))
    }

    fn first(&self) -> Rates {
        let total = self.config.total_steps(self.train_rows);
        let search = Search::new(self.config.optimization.learning_rate, total);
        // A row evaluated is a third of one trained on: to judge a rate takes an eighth of the
        // time of its first steps at most.
        let trained = (search.steps[0] as usize).saturating_mul(self.config.rows_per_step());
        let rows = (3 * trained / 8).max(MIN_ROWS);
        Rates {
            rows: self.validation.len().min(rows),
            search,
            found: None,
        }
    }

    /// Makes the first steps of a run with this rate, or those of them that are left. Gives the
    /// model back with the loss; none where training diverged.
    fn try_rate(
        &self,
        model: Model,
        rate: f64,
        steps: u64,
        rows: &[Example],
        stop: &AtomicBool,
    ) -> RunResult<(Model, Option<f64>)> {
        let folder = self.folder_of(rate);
        files::create_dir_all(&folder)?;
        let mut config = self.config.clone();
        config.optimization.learning_rate = rate;
        // What may differ on a resume: a trial that is killed loses a quarter of its steps at most.
        config.evaluation.save_strategy = IntervalStrategy::Steps;
        config.evaluation.save_steps = Some(steps.div_ceil(4).max(1));
        let mut trainer = Trainer::new(model, (self.setup)(config, folder))?;
        let (done, on_event) = (AtomicBool::new(false), |_: Event<'_>| {});
        let watch = |stop| Watch {
            stop,
            on_event: &on_event,
        };
        trainer.resume(watch(stop))?;
        let mut diverged = false;
        while trainer.steps() < steps && !diverged {
            match trainer.advance(watch(stop)) {
                Ok(None) => {}
                // Its end, or an end by patience, within the part.
                Ok(Some(Outcome::Finished(_))) => break,
                Ok(Some(Outcome::Interrupted { .. })) => {
                    return Err(self.stopped(rate));
                }
                Err(TrainError::Diverged { .. } | TrainError::NotFinite { .. }) => diverged = true,
                Err(error) => return Err(error.into()),
            }
        }
        if diverged {
            return Ok((trainer.into_model(), None));
        }
        // The run goes on from here, if it is with this rate.
        done.store(true, Ordering::Relaxed);
        trainer.advance(watch(&done))?;
        let settings = PassSettings {
            labels: &self.config.data.labels,
            batch_size: self.config.evaluation.per_device_eval_batch_size,
            stop: Some(stop),
            progress: &|_, _| {},
        };
        let evaluation = evaluate(trainer.model(), rows, &settings);
        let loss = match evaluation {
            Ok(Some(evaluation)) => Some(evaluation.value(Metric::Loss)),
            Ok(None) => return Err(self.stopped(rate)),
            Err(ModelError::NotFinite(_)) => None,
            Err(error) => return Err(error.into()),
        };
        Ok((trainer.into_model(), loss))
    }

    fn stopped(&self, rate: f64) -> RunError {
        let output_dir = &self.config.output_dir;
        RunError::interrupted(format!(
            "stopped while the learning rate {rate:e} was tried"
        ))
        .hint(format!(
            "go on with `lowrank train --resume --output-dir {output_dir}`"
        ))
    }

    fn folder_of(&self, rate: f64) -> PathBuf {
        self.folder.join(TRIALS).join(format!("{rate:e}"))
    }

    /// Moves what the chosen trial wrote into the run's folder, as far as a start before this one
    /// has not, and removes the others.
    fn take_over(&self, rates: &Rates) -> RunResult {
        let trials = self.folder.join(TRIALS);
        let Some(found) = rates.found.filter(|_| files::is_dir(&trials)) else {
            return Ok(());
        };
        let chosen = self.folder_of(found);
        if files::is_dir(&chosen) {
            // The log last: without it a trial is not taken over yet.
            let mut names: Vec<_> = (files::list(&chosen)?.into_iter())
                .filter_map(|entry| entry.name.into_string().ok())
                .filter(|name| name == LOG_FILE || name.starts_with("checkpoint-"))
                .collect();
            names.sort_by_key(|name| name == LOG_FILE);
            for name in names {
                files::rename(&chosen.join(&name), &self.folder.join(&name))?;
            }
        }
        Ok(files::remove_dir_all(&trials)?)
    }
}

/// Validation rows that are enough to tell rates apart, however short a trial is.
const MIN_ROWS: usize = 48;

/// So many of the rows, drawn once for all rates.
fn judged_by(rows: &[Example], count: usize, seed: u64) -> Vec<Example> {
    let order = Order {
        seed,
        shuffle: count < rows.len(),
    };
    let order = order.epoch(0, rows.len()).into_iter().take(count);
    order.map(|row| rows[row as usize].clone()).collect()
}

fn none_trains() -> RunError {
    RunError::failure("training diverges with each learning rate that was tried").hint(
        "pass --learning-rate with a smaller number, or look at the rows with `lowrank check`",
    )
}

/// The values of what trains.
fn values(model: &Model) -> Vec<Vec<f32>> {
    let trained = model.trainables().iter();
    trained.map(|(_, trained)| trained.value.read()).collect()
}

fn restore(model: &mut Model, values: &[Vec<f32>]) {
    let ids: Vec<_> = model.trainables().iter().map(|(id, _)| id).collect();
    for (id, values) in ids.into_iter().zip(values) {
        model.trainables_mut().get_mut(id).value.write(values);
    }
}
