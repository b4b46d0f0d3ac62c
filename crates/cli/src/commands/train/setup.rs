//! Before the first step: the model with what trains on it, the plan for this run's own batches, and what is said about both.

use lowrank_data::{BatchPlan, Order, batches};
use lowrank_engine::Device;
use lowrank_model::{LoadReport, Model};
use lowrank_train::plan::{DryRun, Needs, heaviest};

use super::Run;
use crate::errors::CliResult;
use crate::output::{TextTable, bytes, count, percent};
use crate::progress::Progress;
use crate::session::load_notes;

/// Batches planned at most; beyond, only the heaviest are.
const PLANNED_BATCHES: usize = 512;

/// Rows that are put in order to find those batches. A run of more is planned by its first epochs: about a second's work.
const PLANNED_ROWS: u64 = 50_000_000;

/// What the run needs, from the dry device.
pub struct RunPlan {
    /// The larger of training and evaluation.
    pub peak: lowrank_engine::MemoryReport,
    /// Bytes of the arena at that moment: the peak and the holes between tensors.
    pub reserved_bytes: u64,
    /// Floating-point operations a token of training.
    pub flops_per_token: f64,
    /// Optimizer steps.
    pub total_steps: u64,
}

/// Loads the weights and attaches what trains. Returns what a user should know.
pub fn build_model(run: &Run, device: &Device) -> CliResult<(Model, Vec<String>)> {
    let (mut model, report) = load(run, device)?;
    let mut notes = load_notes(&report);
    notes.extend(attach(run, &mut model)?);
    Ok((model, notes))
}

/// The model with the checkpoint's weights, or with new ones.
fn load(run: &Run, device: &Device) -> CliResult<(Model, LoadReport)> {
    let seed = run.config.optimization.seed;
    if !run.config.from_scratch {
        return run.base.load(&run.head, seed, device);
    }
    let options = run.base.load_options(&run.head, seed);
    let model = Model::from_config(run.base.config.clone(), &options, device)?;
    Ok((model, LoadReport::default()))
}

/// Attaches what trains: fresh adapters, an existing one, or everything. Returns what a user should know.
fn attach(run: &Run, model: &mut Model) -> CliResult<Vec<String>> {
    let attached = match (&run.adapter, run.config.full) {
        (_, true) => model.train_all()?,
        (Some(adapter), false) => model.attach_tensors(&adapter.config, adapter.tensors.clone())?,
        (None, false) => {
            let lora = run
                .config
                .lora
                .to_peft(&run.config.model, run.config.revision.as_deref());
            model.attach_lora(&lora, run.config.optimization.seed)?
        }
    };
    Ok(attached.notes.clone())
}

/// Runs the same model dry over the batches of this run.
pub fn plan_run(run: &Run) -> CliResult<RunPlan> {
    let config = &run.config;
    let (mut model, _) = load(run, &Device::dry_in(config.precision.into()))?;
    attach(run, &mut model)?;
    let mut dry = DryRun::of_model(model, &config.optimization);
    let lengths = run.train.lengths();
    let total_steps = config.total_steps(lengths.len());
    let needs = dry.train(
        train_batches(run, &lengths, total_steps),
        config.optimization.gradient_checkpointing,
    )?;
    let mut peak = needs.peak;
    let evaluated = run.validation.iter().chain(&run.test);
    for rows in evaluated {
        let lengths = rows.lengths();
        let size = config.evaluation.per_device_eval_batch_size;
        let all: Vec<_> = batches(lengths.len(), size)
            .map(|range| lengths[range].to_vec())
            .collect();
        let evaluation = dry.evaluate(heaviest(all, PLANNED_BATCHES))?;
        if evaluation.peak.total() > peak.total() {
            peak = evaluation.peak;
        }
    }
    Ok(RunPlan {
        peak,
        reserved_bytes: dry.model().device().reserved_bytes(),
        flops_per_token: per_token(&needs),
        total_steps,
    })
}

fn per_token(needs: &Needs) -> f64 {
    needs.flops as f64 / needs.tokens.max(1) as f64
}

/// The lengths of every batch that the run will see, or the heaviest of them.
fn train_batches(run: &Run, lengths: &[usize], total_steps: u64) -> Vec<Vec<usize>> {
    let o = &run.config.optimization;
    let order = Order {
        seed: o.seed,
        shuffle: o.shuffle,
    };
    let per_epoch = run.config.steps_per_epoch(lengths.len()).max(1);
    let mut all = Vec::new();
    let epochs = total_steps.div_ceil(per_epoch);
    for epoch in 0..epochs.min(PLANNED_ROWS / lengths.len().max(1) as u64 + 1) {
        let plan = BatchPlan::new(&order, epoch, lengths.len(), o.per_device_batch_size);
        let steps = (total_steps - epoch * per_epoch).min(per_epoch) as usize;
        all.extend(
            plan.token_lengths(lengths)
                .take(steps * o.gradient_accumulation_steps),
        );
        // Sorted out as they come, so that a long run's plan stays small.
        all = heaviest(all, PLANNED_BATCHES);
    }
    all
}

/// Says what was loaded, what trains and what it will need.
pub fn announce(progress: &Progress, run: &Run, model: &Model, notes: &[String], plan: &RunPlan) {
    let config = &run.config;
    progress.line(format!(
        "{}: {} parameters in {} on {} ({} threads)",
        config.model,
        count(model.base_parameters()),
        model.device().precision().name(),
        model.device().isa().name(),
        model.device().threads()
    ));
    for note in notes {
        progress.line(format!("  {note}"));
    }
    let trained = model.trainables().count();
    let all = model.base_parameters() + model.adapter_report().adapter_parameters();
    progress.line(format!(
        "training {} of {} parameters ({})",
        count(trained),
        count(all),
        percent(trained, all)
    ));
    let report = model.adapter_report();
    if let Some(first) = report.modules.first() {
        progress.line(format!(
            "  {} adapted layers, rank {}, scaling {}; `lowrank check` lists them",
            report.modules.len(),
            first.rank,
            first.scaling
        ));
    }
    let data = &run.train.report;
    progress.line(format!(
        "{}: {} rows, {} tokens, {} rows cut to {} tokens",
        config.data.train_file,
        count(run.train.examples.len() as u64),
        count(data.tokens),
        count(data.truncated_rows as u64),
        config.data.max_length
    ));
    progress.line(format!(
        "{} steps planned, {:.0} MFLOP a token, {} of tensors at the peak",
        count(plan.total_steps),
        plan.flops_per_token / 1e6,
        bytes(plan.peak.total())
    ));
}

/// The adapted layers as a table.
pub fn adapter_table(model: &Model) -> TextTable {
    let mut table = TextTable::new(&["layer", "shape", "rank", "alpha", "scaling", "parameters"]);
    for m in &model.adapter_report().modules {
        table.row([
            m.path.clone(),
            format!("{}x{}", m.shape[0], m.shape[1]),
            m.rank.to_string(),
            m.alpha.to_string(),
            m.scaling.to_string(),
            count(m.parameters),
        ]);
    }
    for m in &model.adapter_report().saved {
        table.row([
            m.path.clone(),
            "whole".into(),
            "-".into(),
            "-".into(),
            "-".into(),
            count(m.parameters),
        ]);
    }
    table
}
