//! The plan for a run's own batches, from the model run dry over them; and what is chosen by it:
//! the batch that fits into a limit of memory, and how much may be kept of what frozen layers give.

use lowrank_data::{Cursor, Loaded, batches};
use lowrank_engine::{Device, MemoryReport, Purpose};
use lowrank_model::{Passes, Recompute};
use lowrank_train::config::{ByteSize, PrefixCacheLimit, TrainConfig};
use lowrank_train::fit::{BatchShape, Price, TooLittle, first_that, largest_batch};
use lowrank_train::frozen_cache::RowLengths;
use lowrank_train::plan::{DryRun, Needs, heaviest};

use crate::build::{attach, load};
use crate::error::{RunError, RunResult};
use crate::fits::Need;
use crate::folder::Existing;
use crate::memory::{self, BESIDE};
use crate::spec::RunSpec;
use crate::text::{bytes, count};

/// Batches planned at most; beyond, only the heaviest are.
const PLANNED_BATCHES: usize = 512;

/// Rows that are put in order to find those batches. A run of more is planned by its first epochs:
/// about a second's work.
const PLANNED_ROWS: u64 = 50_000_000;

/// What the run needs, from the dry device.
#[derive(Clone, Debug, Default)]
pub struct RunPlan {
    /// The larger of training and evaluation.
    pub peak: MemoryReport,
    /// Bytes of the arena at that moment: the peak and the holes between tensors.
    pub reserved_bytes: u64,
    /// Floating-point operations a token of training.
    pub flops_per_token: f64,
    /// Tokens a batch of training, on average over those that were planned.
    pub tokens_per_batch: f64,
    /// Optimizer steps.
    pub total_steps: u64,
    /// The frozen layers below the lowest adapter, and those of them whose states differ from pass
    /// to pass by dropout.
    pub frozen_layers: usize,
    /// Whether dropout keeps their states from being used again in training.
    pub dropped: bool,
    /// Bytes that may hold what frozen layers give.
    pub prefix_cache_bytes: u64,
    /// What is kept of the rows to train on.
    pub kept: Option<CachedRows>,
    /// What was chosen for the limit of memory, if there is one.
    pub chosen: Option<String>,
}

/// What is kept of the rows to train on.
#[derive(Clone, Copy, Debug)]
pub struct CachedRows {
    /// Rows whose states have a place, and all.
    pub rows: (usize, usize),
    /// Floating-point operations a token, where the states are known.
    pub flops_per_token: f64,
}

impl RunPlan {
    /// What a user should know of it beside the figures.
    pub fn notes(&self, config: &TrainConfig) -> Vec<String> {
        let mut notes: Vec<String> = self.chosen.iter().cloned().collect();
        let layers = match self.frozen_layers {
            1 => "the layer below the lowest adapter is".to_owned(),
            n => format!("the {n} layers below the lowest adapter are"),
        };
        let asked = config.memory.prefix_cache != PrefixCacheLimit::Off && self.frozen_layers > 0;
        if let Some(CachedRows {
            rows: (kept, all),
            flops_per_token,
        }) = self.kept
        {
            notes.push(format!(
                "{layers} computed once for {} of {} rows and kept in {}; then {:.0} MFLOP a token",
                count(kept as u64),
                count(all as u64),
                bytes(self.peak.of(Purpose::FrozenCache)),
                flops_per_token / 1e6
            ));
        } else if asked && self.dropped {
            notes.push(format!(
                "{layers} frozen, but computed anew each epoch: the model's own dropout is on in them (--dropout 0 turns it off)"
            ));
        }
        notes
    }
}

/// The plan of a run; takes the batch from the limit of memory first, where there is one and no
/// batch was chosen for the run before.
///
/// # Errors
/// Not even one row fits into the limit, or adapter and model do not fit together.
pub fn plan_run(run: &mut RunSpec, existing: Existing) -> RunResult<RunPlan> {
    let (choose, recompute) = (!existing.goes_on(&run.config), run.recompute);
    let limit = run.config.memory.max_memory.map(|ByteSize(limit)| Limit {
        bytes: limit,
        resident: memory::resident_bytes().unwrap_or(0) + BESIDE,
    });
    let mut chosen = None;
    if let Some(limit) = limit.filter(|_| choose) {
        run.config = choose_batch(run, limit, recompute)?;
        chosen = Some(describe_choice(&run.config));
    }
    let plain = dry_plan(run, &run.config, 0)?;
    let mut budget = cache_budget(&run.config, limit, &plain);
    let mut plan = plain.clone();
    while budget > 0 && plan.frozen_layers > 0 {
        plan = dry_plan(run, &run.config, budget)?;
        let excess = limit.map_or(0, |limit| limit.excess(plan.reserved_bytes));
        if excess == 0 || plan.peak.of(Purpose::FrozenCache) == 0 {
            break;
        }
        budget = plan.prefix_cache_bytes.min(budget).saturating_sub(excess);
        plan = plain.clone();
    }
    if let (Some(limit), Some(text)) = (limit, chosen) {
        let whole = limit.resident + plan.reserved_bytes;
        plan.chosen = Some(format!(
            "{text}; {} of {} expected",
            bytes(whole),
            bytes(limit.bytes)
        ));
    }
    Ok(plan)
}

/// A limit for the whole process.
#[derive(Clone, Copy)]
struct Limit {
    bytes: u64,
    /// What the process holds beside tensors: program, tokenizer and rows, and what comes to that.
    resident: u64,
}

impl Limit {
    fn excess(self, reserved: u64) -> u64 {
        (self.resident + reserved).saturating_sub(self.bytes)
    }
}

/// Bytes that may hold what frozen layers give: under a limit what it leaves, else half of what the
/// machine could spare.
fn cache_budget(config: &TrainConfig, limit: Option<Limit>, plain: &RunPlan) -> u64 {
    let spare = match limit {
        Some(limit) => limit
            .bytes
            .saturating_sub(limit.resident + plain.reserved_bytes),
        None => memory::available_bytes().map_or(UNKNOWN_SPARE, |available| {
            available.saturating_sub(plain.reserved_bytes) / 2
        }),
    };
    match (config.memory.prefix_cache, limit) {
        (PrefixCacheLimit::Off, _) => 0,
        (PrefixCacheLimit::Auto, _) => spare,
        (PrefixCacheLimit::Bytes(ByteSize(asked)), Some(_)) => asked.min(spare),
        (PrefixCacheLimit::Bytes(ByteSize(asked)), None) => asked,
    }
}

/// Where the system does not say what it could spare.
const UNKNOWN_SPARE: u64 = 1 << 30;

/// The run dry under a configuration: over its heaviest batches, and those of its evaluations.
fn dry_plan(run: &RunSpec, config: &TrainConfig, prefix_cache_bytes: u64) -> RunResult<RunPlan> {
    let mut dry = dry_run(run, config)?;
    let of = |rows: &Loaded| rows.lengths();
    let lengths = RowLengths {
        train: of(&run.train),
        validation: run.validation.as_ref().map(of).unwrap_or_default(),
    };
    dry.cache_frozen_layers(config, &lengths, prefix_cache_bytes);
    let recompute = config.optimization.gradient_checkpointing.into();
    let [first, later] = train_batches(config, &lengths.train);
    let needs = dry.train_rows(&first, &lengths.train, recompute)?;
    let mut peak = needs.peak;
    let mut note = |found: Needs| {
        if found.peak.total() > peak.total() {
            peak = found.peak;
        }
    };
    if let Some(cache) = &mut dry.frozen_caches().train {
        cache.assume_known();
    }
    let later = dry.train_rows(&later, &lengths.train, recompute)?;
    note(later);
    let size = config.evaluation.per_device_eval_batch_size;
    note(dry.evaluate_rows(&in_order(&lengths.validation, size), &lengths.validation)?);
    if let Some(test) = &run.test {
        let lengths = of(test);
        let of_rows = |batch: &Vec<u32>| batch.iter().map(|&row| lengths[row as usize]).collect();
        note(
            dry.evaluate(
                in_order(&lengths, size)
                    .iter()
                    .map(of_rows)
                    .collect::<Vec<_>>(),
            )?,
        );
    }
    let kept = dry.frozen_caches().train.as_ref().map(|cache| CachedRows {
        rows: cache.rows(),
        flops_per_token: later.flops_per_token(),
    });
    let (frozen, still) = (
        dry.model().frozen_layers(Passes::Inference).count,
        dry.model().frozen_layers(Passes::Training).count,
    );
    Ok(RunPlan {
        peak,
        reserved_bytes: dry.model().device().reserved_bytes(),
        flops_per_token: needs.flops_per_token(),
        tokens_per_batch: needs.tokens as f64 / first.len().max(1) as f64,
        total_steps: config.total_steps(lengths.train.len()),
        frozen_layers: frozen,
        dropped: still < frozen && config.passes(lengths.train.len()) > 1,
        prefix_cache_bytes,
        kept,
        chosen: None,
    })
}

fn dry_run(run: &RunSpec, config: &TrainConfig) -> RunResult<DryRun> {
    let (mut model, _) = load(run, &Device::dry_like(&run.device))?;
    attach(run, &mut model)?;
    Ok(DryRun::of_model(model, &config.optimization))
}

/// The rows of every batch that the run will see in its first epoch and in all later ones, or of
/// the heaviest of them.
fn train_batches(config: &TrainConfig, lengths: &[usize]) -> [Vec<Vec<u32>>; 2] {
    let most_epochs = PLANNED_ROWS / lengths.len().max(1) as u64 + 1;
    let (mut batching, mut cursor) = (config.batching(lengths.len()), Cursor::default());
    let [mut first, mut later] = [Vec::new(), Vec::new()];
    let mut step = 0;
    let total_steps = config.total_steps(lengths.len());
    while step < total_steps && cursor.epoch < most_epochs {
        let all = if cursor.epoch == 0 {
            &mut first
        } else {
            &mut later
        };
        let before = all.len();
        all.extend(batching.step(cursor).map(<[u32]>::to_vec));
        cursor.advance(all[before..].iter().map(Vec::len).sum(), lengths.len());
        step += 1;
        // Sorted out epoch by epoch, so that a long run's plan stays small.
        if cursor.next_row == 0 || step == total_steps {
            *all = heaviest(std::mem::take(all), lengths, PLANNED_BATCHES);
        }
    }
    [first, later]
}

/// The rows of every evaluation batch, or of the heaviest of them.
fn in_order(lengths: &[usize], size: usize) -> Vec<Vec<u32>> {
    let rows = |range: std::ops::Range<usize>| range.map(|row| row as u32).collect();
    let all = batches(lengths.len(), size).map(rows).collect();
    heaviest(all, lengths, PLANNED_BATCHES)
}

/// The configuration with the largest batch that fits, with as many of them a step as give the rows
/// that were asked for; then with the largest evaluation batch.
fn choose_batch(
    run: &RunSpec,
    limit: Limit,
    recompute: Option<Recompute>,
) -> RunResult<TrainConfig> {
    let with = |shape: BatchShape, eval_size: usize| {
        let mut config = run.config.clone();
        shape.apply(&mut config);
        config.evaluation.per_device_eval_batch_size = eval_size;
        config
    };
    let price = |shape, eval_size| -> RunResult<Price> {
        let plan = dry_plan(run, &with(shape, eval_size), 0)?;
        Ok(Price {
            bytes: limit.resident + plan.reserved_bytes,
            flops_per_token: plan.flops_per_token,
            tokens_per_batch: plan.tokens_per_batch,
        })
    };
    let shapes = BatchShape::all(run.config.rows_per_step(), recompute);
    let shape = largest_batch(&shapes, limit.bytes, |shape| price(shape, 1))?
        .map_err(|error| too_little(error, recompute))?;
    let asked = run.config.evaluation.per_device_eval_batch_size;
    let halves: Vec<usize> = (0..usize::BITS)
        .map(|n| asked >> n)
        .filter(|&n| n > 0)
        .collect();
    let fits = |&n: &usize| Ok::<_, RunError>(price(shape, n)?.bytes <= limit.bytes);
    let eval_size = first_that(&halves, fits)?;
    Ok(with(shape, eval_size.copied().unwrap_or(1)))
}

/// Refuses a run that this machine cannot hold, before its weights are read.
pub fn refuse_too_much(plan: &RunPlan, run: &RunSpec) -> RunResult {
    let config = &run.config;
    let o = &config.optimization;
    let need = Need {
        what: "the run needs",
        reserved: plan.reserved_bytes,
        peak: plan.peak,
        hint: format!(
            "lower --per-device-batch-size ({}), --per-device-eval-batch-size ({}) or --max-length ({}), pass --gradient-checkpointing, or let --max-memory choose the batch; where the weights alone are too large, take a smaller model",
            o.per_device_batch_size,
            config.evaluation.per_device_eval_batch_size,
            config.data.max_length
        ),
    };
    need.check(&run.device)
}

/// The refusal of a limit.
pub fn too_little(error: TooLittle, recompute: Option<Recompute>) -> RunError {
    let hint = match recompute {
        Some(Recompute::Off) => {
            "raise --max-memory, lower --max-length, or allow --gradient-checkpointing"
        }
        None | Some(Recompute::Layers) => "raise --max-memory, or lower --max-length",
    };
    RunError::usage(format!(
        "not even one row at a time fits into `max_memory`, {}: the least is {} ({} bytes)",
        bytes(error.limit),
        bytes(error.least),
        error.least
    ))
    .hint(hint)
}

fn describe_choice(config: &TrainConfig) -> String {
    let o = &config.optimization;
    let recompute = if o.gradient_checkpointing {
        ", activations recomputed"
    } else {
        ""
    };
    format!(
        "for this memory: batches of {}, {} a step for its {} rows{recompute}; evaluation by {}",
        o.per_device_batch_size,
        o.gradient_accumulation_steps,
        config.rows_per_step(),
        config.evaluation.per_device_eval_batch_size,
    )
}
