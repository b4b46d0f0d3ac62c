//! Before the first step: the model with what trains on it, and what is said about it and its plan.

use lowrank_engine::Device;
use lowrank_model::{LoadReport, Model};
use lowrank_train::config::{IntervalStrategy, TrainConfig};
use lowrank_train::schedule::SchedulerType;

use super::Run;
use super::planning::RunPlan;
use crate::output::{TextTable, bytes, count, percent};
use crate::progress::Progress;
use lowrank_run::RunResult;
use lowrank_run::base::load_notes;
use lowrank_run::labels;

/// Loads the weights and attaches what trains. Returns what a user should know.
pub fn build_model(run: &Run, device: &Device) -> RunResult<(Model, Vec<String>)> {
    let (mut model, report) = load(run, device)?;
    let mut notes = run.base.head.notes.clone();
    notes.extend(load_notes(&report));
    notes.extend(attach(run, &mut model)?);
    Ok((model, notes))
}

/// The model with the checkpoint's weights, or with new ones.
pub(super) fn load(run: &Run, device: &Device) -> RunResult<(Model, LoadReport)> {
    let seed = run.config.optimization.seed;
    if !run.config.from_scratch {
        return run.base.load(&run.head, seed, device);
    }
    let options = run.base.load_options(&run.head, seed);
    let model = Model::from_config(run.base.config.clone(), &options, device)?;
    Ok((model, LoadReport::default()))
}

/// Attaches what trains: fresh adapters, an existing one, or everything. Returns what a user should know.
pub(super) fn attach(run: &Run, model: &mut Model) -> RunResult<Vec<String>> {
    let attached = match (&run.adapter, run.config.full) {
        (_, true) => model.train_all()?,
        (Some(adapter), false) => {
            let attached = model.attach_tensors(&adapter.config, adapter.tensors.clone());
            let named = adapter.config.base_model_name_or_path.as_deref();
            attached.map_err(|error| run.base.misfit(error, named, adapter.tensors.path()))?
        }
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
    announce_rows(progress, run);
    progress.line(format!(
        "{} steps planned, {:.0} MFLOP a token, {} of tensors at the peak",
        count(plan.total_steps),
        plan.flops_per_token / 1e6,
        bytes(plan.peak.total())
    ));
    plan.notes(config)
        .into_iter()
        .chain(schedule_notes(config, plan.total_steps))
        .for_each(|note| progress.line(note));
}

/// Says what the labels are, which columns were taken, and what is odd about files and labels.
fn announce_rows(progress: &Progress, run: &Run) {
    progress.line(format!("  {}", labels::line(&run.train.report)));
    if let Some(line) = run.choice.line() {
        progress.line(format!("  {line}"));
    }
    let data = &run.config.data;
    let files = [
        (Some(&data.train_file), Some(&run.train)),
        (data.validation_file.as_ref(), run.validation.as_ref()),
        (data.test_file.as_ref(), run.test.as_ref()),
    ];
    let files: Vec<_> = files
        .into_iter()
        .filter_map(|(name, loaded)| Some((name?.as_str(), loaded?)))
        .collect();
    for (file, rows) in &files {
        for note in &rows.report.notes {
            progress.line(format!("{file}: {note}"));
        }
    }
    for warning in labels::warnings(&files) {
        progress.line(warning);
    }
}

/// What of the settings a run of so many steps does not come to.
fn schedule_notes(config: &TrainConfig, total: u64) -> Vec<String> {
    let mut notes = Vec::new();
    let schedule = config.schedule(total);
    if schedule.kind != SchedulerType::Constant && schedule.num_warmup_steps >= total {
        notes.push(format!(
            "note: the warm-up is all of the run's {} steps: the learning rate does not reach {}",
            count(total),
            schedule.learning_rate
        ));
    }
    let e = &config.evaluation;
    for (flag, what, strategy, steps) in [
        ("--eval-steps", "evaluated", e.eval_strategy, e.eval_steps),
        ("--save-steps", "saved", e.save_strategy, e.save_steps),
    ] {
        let beyond = steps.filter(|&n| strategy == IntervalStrategy::Steps && n > total);
        if let Some(n) = beyond {
            notes.push(format!(
                "note: {flag} {n} is more than the run's {} steps: only its end is {what}",
                count(total)
            ));
        }
    }
    notes
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
