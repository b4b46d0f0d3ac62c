//! `lowrank profile`: some optimizer steps of a model (or tokens that it generates), timed whole
//! and op by op, beside what the machine's own product reaches. `cargo xtask bench` compares with
//! the same command. The numbers are those of the loop in `lowrank_train`: the same forward,
//! backward, clipping and update, without evaluation, log or checkpoints.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lowrank_data::{Example, Label, PackedBatch};
use lowrank_engine::host::fill_uniform;
use lowrank_engine::{Device, Gradients, OpTime, Profile, StepKey};
use lowrank_formats::peft::BitFitConfig;
use lowrank_model::{IGNORE_INDEX, LoadOptions, Model, ModelConfig, PassOptions, Task};
use lowrank_run::base::{Base, Head};
use lowrank_run::fits::check_model;
use lowrank_run::head::task_of;
use lowrank_run::rows::{load_rows, load_spec};
use lowrank_run::settings::laid_over;
use lowrank_run::{RunError, RunResult, labels, memory};
use lowrank_train::config::{LARGEST_BATCH, LoraSettings, Method, OptimizationSettings};
use lowrank_train::evaluate::{model_batch, model_targets};
use lowrank_train::optimizer::{Optimizer, clip_grad_norm};
use serde_json::json;

use crate::args::ProfileArgs;
use crate::output::{self, TextTable, bytes, count};
use crate::{session, settings, unused};

mod generation;
mod peak;

/// Runs the command.
pub fn run(flags: ProfileArgs) -> RunResult {
    let begin = Instant::now();
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    unused::check_profile(unused::given_args(&args), &args)?;
    let numerics = args.numerics.choices().for_method(args.method.get()?);
    let device = session::device(&args.common, numerics)?;
    let (mut model, examples) = model_and_rows(&args, &device)?;
    if let Some(new) = args.generate {
        return generation::run(&args, &model, &examples, new);
    }
    let steps = at_least_one("steps", args.steps, 5)?;
    let batches = batches(&examples, at_least_one("batch", args.batch, 16)?, steps + 1);
    let timing = time_steps(&args, &mut model, &batches, begin)?;
    let peak = peak::product_flops_per_second(&device);
    if args.common.is_json() {
        output::println(as_json(&timing, peak, &device));
    } else {
        print_tables(&timing, peak, &device);
    }
    Ok(())
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

/// The model that the flags name, with something to train, and the rows.
fn model_and_rows(args: &ProfileArgs, device: &Device) -> RunResult<(Model, Arc<Vec<Example>>)> {
    let (mut model, examples) = match (&args.model.model, &args.model_config) {
        (Some(_), Some(_)) => {
            return Err(RunError::usage("pass --model or --model-config, not both"));
        }
        (None, None) => {
            return Err(RunError::usage(
                "pass --model DIR, or --model-config FILE for random weights",
            ));
        }
        (None, Some(path)) => {
            if args.train_file.is_some() {
                return Err(RunError::usage("rows of a file need a model's directory")
                    .hint("pass --model DIR, or leave --train-file out for random rows"));
            }
            let config = with_dropout(ModelConfig::read(Path::new(path))?, args.dropout)?;
            let options = LoadOptions {
                task: args.data.task.unwrap_or_else(|| task_of(&config)),
                num_labels: 2,
                seed: 1,
                ignore_mismatched_sizes: false,
            };
            let dry = Device::dry_like(device);
            check_model(&Model::from_config(config.clone(), &options, &dry)?, device)?;
            let model = Model::from_config(config, &options, device)?;
            let examples = random_rows(args, &model)?;
            (model, examples)
        }
        (Some(_), None) => {
            let mut base = Base::open(&args.model.settings())?
                .with_new_head(args.new_head.ignore_mismatched_sizes);
            base.config = with_dropout(base.config, args.dropout)?;
            let task = args.data.task.unwrap_or_else(|| base.task());
            let head = Head {
                task,
                num_labels: base.head.width(&base.config).unwrap_or(2).max(1),
                labels: Vec::new(),
            };
            let model = base.load(&head, 1, device)?.0;
            let examples = match &args.train_file {
                None => random_rows(args, &model)?,
                Some(path) => {
                    let rows = args.data.settings();
                    let max_length = base.max_length(rows.max_length)?;
                    let labels = labels::known_labels(&base, &rows, None);
                    let spec = load_spec(&base, &rows, task, labels.as_ref(), max_length)?;
                    load_rows(path, &spec, &base, device)?.examples
                }
            };
            (model, examples)
        }
    };
    if args.generate.is_some() {
        if model.task() != Task::CausalLm {
            return Err(RunError::usage(format!(
                "the task is `{}`, whose models generate no text",
                model.task().name()
            ))
            .hint("pass --task causal_lm for a language model"));
        }
        return Ok((model, examples));
    }
    match args.method.get()? {
        Method::Full => model.train_all()?,
        Method::BitFit => model.train_biases(&BitFitConfig::default())?,
        Method::Lora => {
            let fresh = LoraSettings::of(&model.config().model_type);
            let lora = laid_over(&fresh, &settings::to_map(&args.lora))?;
            lora.validate()?;
            model.attach_lora(&lora.to_peft("profile", None), 1)?
        }
    };
    Ok((model, examples))
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
fn random_rows(args: &ProfileArgs, model: &Model) -> RunResult<Arc<Vec<Example>>> {
    let rows = at_least_one("batch", args.batch, 16)?;
    let length = at_least_one("seq", args.seq, 128)?;
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

/// What was measured.
struct Timing {
    /// From the process's first line to the end of the first step.
    first_step_s: f64,
    /// Median over the steps.
    tokens_per_s: f64,
    /// Median over the steps.
    step_s: f64,
    seconds: f64,
    tokens: usize,
    flops: f64,
    loss: f64,
    steps: usize,
    /// Of the process so far, where the system tells: without what measuring the machine's product
    /// takes.
    peak_rss_bytes: Option<u64>,
    profile: Profile,
}

impl Timing {
    fn flops_per_token(&self) -> f64 {
        self.flops / self.tokens as f64
    }

    /// Of the operations a second that a product reaches on this machine.
    fn share_of(&self, peak: f64) -> f64 {
        self.tokens_per_s * self.flops_per_token() / peak
    }
}

/// One step on each batch; the first warms caches and buffers and is not counted.
fn time_steps(
    args: &ProfileArgs,
    model: &mut Model,
    batches: &[PackedBatch],
    begin: Instant,
) -> RunResult<Timing> {
    let device = model.device().clone();
    let settings = OptimizationSettings::of(args.method.get()?);
    let mut optimizer = Optimizer::new(&device, model.trainables(), &settings);
    let mut gradients = Gradients::zeros(&device, model.trainables());
    let (mut seconds, mut speeds) = (Vec::new(), Vec::new());
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
            recompute: args.gradient_checkpointing.unwrap_or(false),
        };
        let (sum, _) =
            model.forward_backward(&model_batch(batch), targets, &pass, &mut gradients)?;
        clip_grad_norm(&device, &mut gradients, settings.max_grad_norm);
        let lr = settings.learning_rate;
        optimizer.step(model.trainables_mut(), &gradients, lr, step + 1);
        loss = sum / counted as f64;
        if step == 0 {
            first_step_s = begin.elapsed().as_secs_f64();
            flops = device.flops();
            device.start_profile();
            continue;
        }
        let elapsed = started.elapsed().as_secs_f64();
        speeds.push(batch.total_tokens() as f64 / elapsed);
        seconds.push(elapsed);
    }
    let profile = device.end_profile().unwrap_or_default();
    Ok(Timing {
        first_step_s,
        tokens_per_s: median(&mut speeds),
        step_s: median(&mut seconds),
        tokens: batches[1..].iter().map(PackedBatch::total_tokens).sum(),
        flops: (device.flops() - flops) as f64,
        steps: seconds.len(),
        seconds: seconds.iter().sum(),
        loss,
        peak_rss_bytes: memory::peak_resident_bytes(),
        profile,
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn op_json(row: OpTime) -> serde_json::Value {
    json!({
        "op": row.op,
        "phase": row.phase.name(),
        "calls": row.calls,
        "seconds": row.time.as_secs_f64(),
        "flops": row.flops,
    })
}

fn as_json(timing: &Timing, peak: f64, device: &Device) -> serde_json::Value {
    json!({
        "tokens_per_s": timing.tokens_per_s,
        "median_s": timing.step_s,
        "steps": timing.steps,
        "tokens": timing.tokens,
        "first_step_s": timing.first_step_s,
        "loss": timing.loss,
        "gflop_per_token": timing.flops_per_token() / 1e9,
        "gemm_peak_gflop_per_s": peak / 1e9,
        "share_of_peak": timing.share_of(peak),
        "peak_rss_bytes": timing.peak_rss_bytes,
        "counted_peak_bytes": device.peak_memory().total(),
        "precision": device.numerics().activations,
        "base_format": device.numerics().weights,
        "arithmetic": device.numerics().arithmetic,
        "isa": device.name(),
        "threads": device.threads(),
        "seconds": timing.seconds,
        "ops": timing.profile.longest_first().into_iter().map(op_json).collect::<Vec<_>>(),
    })
}

fn print_tables(timing: &Timing, peak: f64, device: &Device) {
    let per_step = |seconds: f64| format!("{:.2}", 1e3 * seconds / timing.steps as f64);
    let share = |seconds: f64| format!("{:.1}%", 100.0 * seconds / timing.seconds);
    let mut ops = TextTable::new(&[
        "op",
        "ms a step",
        "of the step",
        "calls",
        "GFLOP/s",
        "of the peak",
    ]);
    for row in timing.profile.longest_first() {
        let seconds = row.time.as_secs_f64();
        let rate = row.flops as f64 / seconds.max(1e-12);
        let counted = row.flops > 0;
        ops.row([
            format!("{} ({})", row.op, row.phase.name()),
            per_step(seconds),
            share(seconds),
            count(row.calls / timing.steps as u64),
            if counted {
                format!("{:.0}", rate / 1e9)
            } else {
                String::new()
            },
            if counted {
                format!("{:.0}%", 100.0 * rate / peak)
            } else {
                String::new()
            },
        ]);
    }
    let outside = timing.seconds - timing.profile.total().as_secs_f64();
    ops.row(["outside ops".to_owned(), per_step(outside), share(outside)]);
    output::print(ops);
    let mut whole = TextTable::new(&[]);
    whole.row(["tokens per second", &count(timing.tokens_per_s as u64)]);
    whole.row(["a step", &format!("{:.1} ms", 1e3 * timing.step_s)]);
    whole.row([
        "to the end of the first step",
        &format!("{:.2} s", timing.first_step_s),
    ]);
    whole.row([
        "operations a token",
        &format!("{:.3} GFLOP", timing.flops_per_token() / 1e9),
    ]);
    whole.row([
        "peak of this machine's product",
        &format!("{:.0} GFLOP/s", peak / 1e9),
    ]);
    whole.row([
        "share of the peak",
        &format!("{:.0}%", 100.0 * timing.share_of(peak)),
    ]);
    whole.row(["loss of the last step", &format!("{:.4}", timing.loss)]);
    whole.row([
        "counted memory at the peak",
        &bytes(device.peak_memory().total()),
    ]);
    if let Some(resident) = timing.peak_rss_bytes {
        whole.row(["resident memory at the peak", &bytes(resident)]);
    }
    whole.row([
        "on",
        &format!(
            "{}, {}, {} threads",
            device.numerics(),
            device.name(),
            device.threads()
        ),
    ]);
    output::print(whole);
}
