//! Some optimizer steps of a model, or tokens that it generates, timed whole and op by op, beside
//! what the machine's own product reaches. The numbers are those of the loop in `lowrank_train`:
//! the same forward, backward, clipping and update, without evaluation, log or checkpoints.

mod generation;
mod peak;
mod workers;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lowrank_data::{Example, Label, PackedBatch};
use lowrank_engine::host::fill_uniform;
use lowrank_engine::{Device, Gradients, Profile, StepKey};
use lowrank_formats::peft::BitFitConfig;
use lowrank_model::{IGNORE_INDEX, LoadOptions, Model, ModelConfig, PassOptions, Task};
use lowrank_train::config::{LARGEST_BATCH, LoraSettings, Method, OptimizationSettings};
use lowrank_train::evaluate::{model_batch, model_targets};
use lowrank_train::optimizer::{Optimizer, clip_grad_norm};

use crate::base::{Base, Head};
use crate::error::{RunError, RunResult};
use crate::fits::check_model;
use crate::head::task_of;
use crate::labels::known_labels;
use crate::memory;
use crate::rows::{load_rows, load_spec};
use crate::settings::{ModelSettings, RowSettings, Settings, laid_over};
pub use generation::GenerationTiming;
pub use peak::product_flops_per_second;
pub use workers::{OpSchedule, Schedule};

/// What is timed.
#[derive(Clone, Debug, Default)]
pub struct ProfileSettings {
    /// Which model, if it is not one of random weights.
    pub model: ModelSettings,
    /// The config.json of a model of random weights.
    pub model_config: Option<String>,
    /// Whether a head of another size is started anew.
    pub ignore_mismatched_sizes: Option<bool>,
    /// Rows to train on, or to generate after; random ones where absent.
    pub train_file: Option<String>,
    /// How they are read.
    pub data: RowSettings,
    /// What is adapted, by name.
    pub lora: Settings,
    /// What trains.
    pub method: Method,
    /// Rows a batch; 16 where absent.
    pub batch: Option<usize>,
    /// Tokens a random row; 128 where absent.
    pub seq: Option<usize>,
    /// Steps that are timed, after one that is not; 5 where absent. Or rounds of generation; 3.
    pub steps: Option<usize>,
    /// New tokens a row, in place of training.
    pub generate: Option<usize>,
    /// Every dropout of the model; the config's own where absent.
    pub dropout: Option<f64>,
    /// Whether activations are recomputed block by block in the backward pass.
    pub gradient_checkpointing: bool,
}

/// A model and the rows that it is timed on.
pub struct Subject {
    settings: ProfileSettings,
    model: Model,
    examples: Arc<Vec<Example>>,
}

impl Subject {
    /// Opens the model, with something to train unless it is to generate, and reads the rows.
    ///
    /// # Errors
    /// There is no such model, the settings do not fit it, or a row cannot be used.
    pub fn open(settings: ProfileSettings, device: &Device) -> RunResult<Self> {
        let (mut model, examples) = match (&settings.model.model, &settings.model_config) {
            (Some(_), Some(_)) => {
                return Err(RunError::usage("pass --model or --model-config, not both"));
            }
            (None, None) => {
                return Err(RunError::usage(
                    "pass --model DIR, or --model-config FILE for random weights",
                ));
            }
            (None, Some(path)) => random_model(&settings, Path::new(path), device)?,
            (Some(_), None) => read_model(&settings, device)?,
        };
        if settings.generate.is_none() {
            attach(&settings, &mut model)?;
        } else if model.task() != Task::CausalLm {
            return Err(RunError::usage(format!(
                "the task is `{}`, whose models generate no text",
                model.task().name()
            ))
            .hint("pass --task causal_lm for a language model"));
        }
        Ok(Self {
            settings,
            model,
            examples,
        })
    }

    /// Times training steps; `begin` is when the process began.
    ///
    /// # Errors
    /// A number is out of range, or the rows have no labels.
    pub fn time_steps(&mut self, begin: Instant) -> RunResult<StepTiming> {
        self.time(begin, Device::start_profile)
    }

    /// The tasks of a step, timed and dealt out to workers. The device must be one of
    /// [`crate::device::one_for_many`], for as many.
    ///
    /// # Errors
    /// As [`Subject::time_steps`].
    pub fn schedule(&mut self, workers: usize) -> RunResult<Schedule> {
        let device = self.model.device().clone();
        let timing = device.install(|| self.time(Instant::now(), Device::start_task_profile))?;
        Ok(Schedule::of(&timing, workers))
    }

    fn time(&mut self, begin: Instant, start_profile: fn(&Device)) -> RunResult<StepTiming> {
        let settings = &self.settings;
        let steps = at_least_one("steps", settings.steps, 5)?;
        let size = at_least_one("batch", settings.batch, 16)?;
        let batches = batches(&self.examples, size, steps + 1);
        let optimization = OptimizationSettings {
            gradient_checkpointing: settings.gradient_checkpointing,
            ..OptimizationSettings::of(settings.method)
        };
        let times = Times {
            begin,
            start_profile,
        };
        time_batches(&mut self.model, &batches, &optimization, times)
    }
}

fn at_least_one(name: &str, asked: Option<usize>, default: usize) -> RunResult<usize> {
    match asked {
        Some(n) if (1..=LARGEST_BATCH).contains(&n) => Ok(n),
        Some(n) => Err(RunError::usage(format!(
            "`{name}` is {n}, expected from 1 to {LARGEST_BATCH}"
        ))),
        None => Ok(default),
    }
}

/// A model of random weights, and its rows.
fn random_model(
    settings: &ProfileSettings,
    config: &Path,
    device: &Device,
) -> RunResult<(Model, Arc<Vec<Example>>)> {
    if settings.train_file.is_some() {
        return Err(RunError::usage("rows of a file need a model's directory")
            .hint("pass --model DIR, or leave --train-file out for random rows"));
    }
    let config = with_dropout(ModelConfig::read(config)?, settings.dropout)?;
    let options = LoadOptions::new(settings.data.task.unwrap_or_else(|| task_of(&config)), 2);
    let dry = Device::dry_like(device);
    check_model(&Model::from_config(config.clone(), &options, &dry)?, device)?;
    let model = Model::from_config(config, &options, device)?;
    let examples = random_rows(settings, &model)?;
    Ok((model, examples))
}

/// A model with its weights, and its rows.
fn read_model(
    settings: &ProfileSettings,
    device: &Device,
) -> RunResult<(Model, Arc<Vec<Example>>)> {
    let mut base = Base::open(&settings.model)?.with_new_head(settings.ignore_mismatched_sizes);
    base.config = with_dropout(base.config, settings.dropout)?;
    let task = settings.data.task.unwrap_or_else(|| base.task());
    let head = Head {
        task,
        num_labels: base.head.width(&base.config).unwrap_or(2).max(1),
        labels: Vec::new(),
    };
    let model = base.load(&head, 1, device)?.0;
    let examples = match &settings.train_file {
        None => random_rows(settings, &model)?,
        Some(path) => {
            let rows = &settings.data;
            let max_length = base.max_length(rows.max_length)?;
            let labels = known_labels(&base, rows, None);
            let spec = load_spec(&base, rows, task, labels.as_ref(), max_length)?;
            load_rows(path, &spec, &base, device)?.examples
        }
    };
    Ok((model, examples))
}

/// Makes the model train.
fn attach(settings: &ProfileSettings, model: &mut Model) -> RunResult {
    match settings.method {
        Method::Full => model.train_all()?,
        Method::BitFit => model.train_biases(&BitFitConfig::default())?,
        Method::Lora => {
            let fresh = LoraSettings::of(&model.config().model_type);
            let lora = laid_over(&fresh, &settings.lora)?;
            lora.validate()?;
            model.attach_lora(&lora.to_peft("profile", None), 1)?
        }
    };
    Ok(())
}

fn with_dropout(mut config: ModelConfig, dropout: Option<f64>) -> RunResult<ModelConfig> {
    let Some(p) = dropout else { return Ok(config) };
    if !(0.0..1.0).contains(&p) {
        return Err(RunError::usage(format!(
            "`dropout` is {p}, expected from 0 to below 1"
        )));
    }
    config.set_dropout(p)?;
    Ok(config)
}

/// Rows of one length with random tokens; a language model learns every one of them.
fn random_rows(settings: &ProfileSettings, model: &Model) -> RunResult<Arc<Vec<Example>>> {
    let rows = at_least_one("batch", settings.batch, 16)?;
    let length = at_least_one("seq", settings.seq, 128)?;
    let facts = &model.config().facts;
    if length > facts.max_positions {
        return Err(RunError::usage(format!(
            "`seq` is {length}, but the model has {} positions",
            facts.max_positions
        )));
    }
    let mut uniform = vec![0.0f32; rows * length];
    fill_uniform(1, 0, 0.0, 1.0, &mut uniform);
    let vocab = facts.vocab_size;
    let id = |u: &f32| ((u * vocab as f32) as usize).min(vocab - 1) as u32;
    let example = |(row, values): (usize, &[f32])| {
        let input_ids: Vec<u32> = values.iter().map(id).collect();
        let label = match model.task() {
            // Nothing comes before a row's first token, so nothing foretells it.
            Task::CausalLm => {
                let rest = input_ids.iter().skip(1).map(|&id| i64::from(id));
                Label::Tokens(std::iter::once(IGNORE_INDEX).chain(rest).collect())
            }
            Task::TokenClassification => Label::Tokens(vec![row as i64 % 2; length]),
            Task::SingleLabel => Label::Class(row as u32 % 2),
            Task::MultiLabel => Label::Multi(vec![1.0, 0.0]),
            Task::Regression => Label::Value(0.5),
        };
        Example {
            input_ids,
            token_type_ids: None,
            label,
            line: row as u64 + 1,
            truncated_tokens: 0,
        }
    };
    let rows = uniform.chunks(length).enumerate().map(example);
    Ok(Arc::new(rows.collect()))
}

/// The rows in order, `size` a batch, from the top again when they are used up.
fn batches(examples: &[Example], size: usize, number: usize) -> Vec<PackedBatch> {
    let batch = |step: usize| {
        let rows = (step * size..(step + 1) * size).map(|i| (i % examples.len()) as u32);
        PackedBatch::from_rows(examples, &rows.collect::<Vec<_>>())
    };
    (0..number).map(batch).collect()
}

/// What was measured of training steps.
pub struct StepTiming {
    /// From the process's first line to the end of the first step.
    pub first_step_s: f64,
    /// Median over the steps.
    pub tokens_per_s: f64,
    /// Median over the steps.
    pub step_s: f64,
    /// Of all steps.
    pub seconds: f64,
    /// Of each step.
    each_step: Vec<Duration>,
    /// In all steps.
    pub tokens: usize,
    /// In all steps.
    pub flops: f64,
    /// Of the last step.
    pub loss: f64,
    /// Steps that were timed.
    pub steps: usize,
    /// Of the process so far, where the system tells: without what measuring the machine's product
    /// takes.
    pub peak_rss_bytes: Option<u64>,
    /// Where the time went.
    pub profile: Profile,
}

impl StepTiming {
    /// Floating-point operations a token.
    pub fn flops_per_token(&self) -> f64 {
        self.flops / self.tokens as f64
    }

    /// Of the operations a second that a product reaches on this machine.
    pub fn share_of(&self, peak: f64) -> f64 {
        self.tokens_per_s * self.flops_per_token() / peak
    }
}

/// When the process began, and what is told of the steps.
struct Times {
    begin: Instant,
    start_profile: fn(&Device),
}

/// One step on each batch; the first warms caches and buffers and is not counted.
fn time_batches(
    model: &mut Model,
    batches: &[PackedBatch],
    settings: &OptimizationSettings,
    times: Times,
) -> RunResult<StepTiming> {
    let device = model.device().clone();
    let mut optimizer = Optimizer::new(&device, model.trainables(), settings);
    let mut gradients = Gradients::zeros(&device, model.trainables());
    let (mut speeds, mut each_step) = (Vec::new(), Vec::new());
    let (mut loss, mut first_step_s, mut flops) = (f64::NAN, 0.0, 0);
    for (step, batch) in (0u64..).zip(batches) {
        let targets = model_targets(batch)
            .ok_or_else(|| RunError::usage("the rows have no labels, so there is no loss"))?;
        let counted = targets.count().max(1);
        let started = Instant::now();
        gradients.clear();
        let pass = PassOptions {
            dropout: Some(StepKey {
                seed: 1,
                micro_step: step,
            }),
            grad_scale: 1.0 / counted as f32,
            label_smoothing: 0.0,
            recompute: settings.gradient_checkpointing.into(),
        };
        let (sum, _) =
            model.forward_backward(&model_batch(batch), targets, &pass, &mut gradients)?;
        clip_grad_norm(&device, &mut gradients, settings.max_grad_norm);
        let lr = settings.learning_rate;
        optimizer.step(model.trainables_mut(), &gradients, lr, step + 1);
        loss = sum / counted as f64;
        if step == 0 {
            first_step_s = times.begin.elapsed().as_secs_f64();
            flops = device.flops();
            (times.start_profile)(&device);
            continue;
        }
        let elapsed = started.elapsed();
        each_step.push(elapsed);
        speeds.push(batch.total_tokens() as f64 / elapsed.as_secs_f64());
    }
    let mut seconds: Vec<f64> = each_step.iter().map(Duration::as_secs_f64).collect();
    let profile = device.end_profile().unwrap_or_default();
    Ok(StepTiming {
        first_step_s,
        tokens_per_s: median(&mut speeds),
        step_s: median(&mut seconds),
        tokens: batches[1..].iter().map(PackedBatch::total_tokens).sum(),
        flops: (device.flops() - flops) as f64,
        steps: seconds.len(),
        seconds: seconds.iter().sum(),
        each_step,
        loss,
        peak_rss_bytes: memory::peak_resident_bytes(),
        profile,
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
