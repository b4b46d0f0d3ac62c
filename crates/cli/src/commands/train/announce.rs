//! Before the first step: what is said about the model, what trains on it, the rows and the plan.

use lowrank_run::labels;
use lowrank_run::rows::capacity_note;
use lowrank_run::spec::RunSpec;
use lowrank_run::train::Prepared;
use lowrank_train::config::{IntervalStrategy, Method, Task, TrainConfig};
use lowrank_train::rates::Arm;
use lowrank_train::schedule::SchedulerType;

use crate::output::{bytes, count, percent};
use crate::progress::Progress;

/// Says what was loaded, what trains and what it will need.
pub fn announce(progress: &Progress, prepared: &Prepared) {
    let Prepared {
        spec: run,
        plan,
        model,
        notes,
        ..
    } = prepared;
    let config = &run.config;
    progress.line(format!(
        "{}: {} parameters in {} on {} ({} threads)",
        config.model,
        count(model.base_parameters()),
        model.device().numerics(),
        model.device().name(),
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
    for table in &report.rows {
        progress.line(format!(
            "  {} rows of `{}`",
            count(table.rows as u64),
            table.path
        ));
    }
    if report.biases > 0 {
        progress.line(format!("  {} values of biases", count(report.biases)));
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
    let is_adapter = config.method == Method::Lora && config.data.task == Task::CausalLm;
    if is_adapter && let Some(note) = capacity_note(trained, &run.train.examples) {
        progress.line(format!("note: {note}"));
    }
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

/// A learning rate that was tried.
pub fn arm(arm: &Arm) -> String {
    let rate = arm.learning_rate;
    match arm.losses.last().copied().flatten() {
        Some(loss) => format!("learning rate {rate:e} tried: validation loss {loss:.4}"),
        None => format!("learning rate {rate:e} tried: training diverges"),
    }
}

/// Says what the labels are, which columns were taken, and what is odd about files and labels.
fn announce_rows(progress: &Progress, run: &RunSpec) {
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
    for (file, rows) in &files {
        let chats = rows.report.chats.as_ref();
        for warning in chats.iter().flat_map(|chats| chats.warnings()) {
            progress.line(format!("warning: {file}: {warning}"));
        }
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
