//! After the last step: the adapter's files, the table, the summary and the report.

use std::path::PathBuf;

use lowrank_data::TextColumns;
use lowrank_engine::{MemoryReport, Purpose};
use lowrank_formats::{DType, PendingDir, RunDir, files, read_json, write_atomic};
use lowrank_model::{MergeOptions, Model};
use lowrank_train::base::BaseId;
use lowrank_train::config::TrainConfig;
use lowrank_train::metrics::{Evaluation, Metric};
use lowrank_train::metrics_log::MetricsLog;
use lowrank_train::proof::Idle;
use lowrank_train::report::Report;
use lowrank_train::trainer::{Summary, headline_metric};
use serde_json::{Value, json};

use super::Run;
use super::planning::RunPlan;
use super::setup::adapter_table;
use crate::args::CommonArgs;
use crate::output::{self, TextTable, bytes, count, duration, percent};
use crate::{resolve, yaml};
use lowrank_run::notes::AdapterNotes;
use lowrank_run::rows::template_of;
use lowrank_run::{RunError, RunResult, memory, side_files};

/// Bytes of a shard of a fully trained model.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What was saved where.
pub struct Saved {
    /// The directory.
    pub path: PathBuf,
    /// Bytes of its tensor file or files.
    pub bytes: u64,
}

/// Writes the adapter, or the whole model after full fine-tuning, as the run's result.
pub fn save_model(run: &RunDir, resolved: &Run, model: &Model, base: &BaseId) -> RunResult<Saved> {
    let config = &resolved.config;
    let target = result_dir(run, config);
    let pending = PendingDir::create(&target)?;
    let bytes = if config.full {
        let options = MergeOptions {
            // From scratch there is no type to keep.
            dtype: config.from_scratch.then_some(DType::F32),
            max_shard_bytes: MAX_SHARD_BYTES,
            labels: (!resolved.head.labels.is_empty()).then(|| resolved.head.labels.clone()),
        };
        side_files::copy(&resolved.base.dir, pending.path())?;
        model
            .write_merged(&resolved.base.dir, pending.path(), &options)?
            .bytes
    } else {
        let notes = AdapterNotes {
            task: resolved.head.task,
            labels: resolved.head.labels.clone(),
            max_length: config.data.max_length,
            base_model: config.model.clone(),
            base_sha256: None,
            base: Some(base.clone()),
            // Rows of plain text have no prompt that something would stand behind.
            template: match &resolved.train.report.columns.text {
                TextColumns::Completion { .. } => template_of(&config.data),
                TextColumns::Text { .. } | TextColumns::Words { .. } | TextColumns::Ids { .. } => {
                    None
                }
            },
        };
        notes.write(pending.path())?;
        model.save_adapter(pending.path(), Some(&config.model))?
    };
    pending.commit_replacing()?;
    Ok(Saved {
        path: target,
        bytes,
    })
}

/// The figures of a finished run.
const SUMMARY_FILE: &str = "summary.json";
/// The page about it.
const REPORT_FILE: &str = "report.html";

/// The folder in a run's for what it trained: the whole model, or an adapter.
pub fn result_name(full: bool) -> &'static str {
    match full {
        true => "model",
        false => "adapter",
    }
}

fn result_dir(run: &RunDir, config: &TrainConfig) -> PathBuf {
    run.join(result_name(config.full))
}

/// Whether a run has left everything that it leaves at its end.
pub fn are_written(run: &RunDir, config: &TrainConfig) -> bool {
    let files = [SUMMARY_FILE, REPORT_FILE].map(|name| run.join(name));
    files.iter().all(|file| files::is_file(file)) && files::is_dir(&result_dir(run, config))
}

/// Points to the results of a run that had nothing left to do. They stay as they are: this process has trained nothing, so
/// that its own figures would say less.
pub fn show_written(run: &RunDir, common: &CommonArgs) -> RunResult {
    if common.is_json() {
        let value = read_json(&run.join(SUMMARY_FILE))?;
        output::print_json(&value);
    } else if !common.is_quiet() {
        output::print(format!(
            "the run is finished already; its results stay as they are\nreport: {}\n",
            run.join(REPORT_FILE).display()
        ));
    }
    Ok(())
}

/// Everything there is to tell about a finished run.
pub struct Results<'a> {
    /// What was run.
    pub resolved: &'a Run,
    /// The trained model.
    pub model: &'a Model,
    /// What was predicted.
    pub plan: &'a RunPlan,
    /// How it went.
    pub summary: &'a Summary,
    /// The test rows (or validation rows) before.
    pub before: Option<&'a Evaluation>,
    /// The same after.
    pub after: Option<&'a Evaluation>,
    /// What was saved.
    pub saved: &'a Saved,
    /// Resident bytes before the weights were read: program, tokenizer and rows.
    pub fixed_bytes: Option<u64>,
}

impl Results<'_> {
    /// Writes `summary.json` and `report.html`.
    pub fn write(&self, run: &RunDir) -> RunResult {
        let json = serde_json::to_vec_pretty(&self.to_json())
            .map_err(|error| RunError::from_error(&error))?;
        write_atomic(&run.join(SUMMARY_FILE), &json)?;
        let rows = MetricsLog::read(&run.join("metrics.jsonl"))?;
        let report = Report {
            title: format!("lowrank: {}", run.path().display()),
            subtitle: format!(
                "{} on {}, {}",
                self.resolved.config.model,
                self.resolved.config.data.train_file,
                if self.resolved.config.full {
                    "full fine-tuning"
                } else {
                    "LoRA"
                }
            ),
            highlights: self.highlights(),
            rows: &rows,
            metric: headline_metric(&self.resolved.config),
            best_step: self.summary.best_step,
            tables: vec![
                self.quality_table().for_report("Before and after"),
                self.main_table().for_report("The run"),
                self.memory_table().for_report("Memory"),
                adapter_table(self.model).for_report("What was trained"),
            ],
            command: repeat_command(run),
            config: yaml::to_yaml(&resolve::to_settings(&self.resolved.config)),
        };
        Ok(write_atomic(
            &run.join(REPORT_FILE),
            report.to_html().as_bytes(),
        )?)
    }

    /// The table at the end, with warnings first.
    pub fn to_text(&self, run: &RunDir) -> String {
        let mut text = String::new();
        for line in self.proof_lines() {
            text.push_str(&line);
            text.push('\n');
        }
        let quality = self.quality_table();
        if !quality.is_empty() {
            text.push_str(&format!("\n{quality}"));
        }
        text.push_str(&format!("\n{}\n{}", self.main_table(), self.memory_table()));
        text.push_str(&format!("\nreport: {}\n", run.join(REPORT_FILE).display()));
        text
    }

    /// Everything as JSON.
    pub fn to_json(&self) -> Value {
        let counted = super::counted_peak(self.model.device());
        let by_purpose = |report: &MemoryReport| -> Value {
            Purpose::ALL
                .iter()
                .map(|&p| (p.name().to_owned(), json!(report.of(p))))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let idle: Vec<_> = self.summary.proof.idle().map(|v| v.name.clone()).collect();
        json!({
            "steps": self.summary.steps,
            "final_step": self.summary.final_step,
            "best_step": self.summary.best_step,
            "stopped_early": self.summary.stopped_early,
            "elapsed_s": self.summary.elapsed_s,
            "training_s": self.summary.training_s,
            "tokens": self.summary.tokens,
            "tokens_per_s": self.tokens_per_s(),
            "trainable_parameters": self.model.trainables().count(),
            "total_parameters": self.total_parameters(),
            "adapter_parameters": self.model.adapter_report().adapter_parameters(),
            "saved": self.saved.path.display().to_string(),
            "saved_bytes": self.saved.bytes,
            "flops_per_token": self.plan.flops_per_token,
            "before": self.before,
            "after": self.after,
            "predicted_peak_bytes": self.plan.peak.total(),
            "predicted_bytes": by_purpose(&self.plan.peak),
            "counted_peak_bytes": counted.total(),
            "counted_bytes": by_purpose(&counted),
            "predicted_reserved_bytes": self.plan.reserved_bytes,
            "reserved_bytes": self.model.device().reserved_bytes(),
            "fixed_bytes": self.fixed_bytes,
            "peak_resident_bytes": memory::peak_resident_bytes(),
            "trained_values": self.summary.proof.values.len(),
            "idle_values": idle,
        })
    }

    fn tokens_per_s(&self) -> f64 {
        self.summary.tokens as f64 / self.summary.training_s.max(1e-9)
    }

    fn total_parameters(&self) -> u64 {
        self.model.base_parameters() + self.model.adapter_report().adapter_parameters()
    }

    fn highlights(&self) -> Vec<(String, String)> {
        let metric = headline_metric(&self.resolved.config);
        let mut list = Vec::new();
        if let (Some(before), Some(after)) = (self.before, self.after) {
            list.push((
                format!("{} before", metric.name()),
                output::metric(metric, before.value(metric)),
            ));
            list.push((
                format!("{} after", metric.name()),
                output::metric(metric, after.value(metric)),
            ));
        }
        list.push((
            "trained parameters".to_owned(),
            count(self.model.trainables().count()),
        ));
        list.push((
            "tokens per second".to_owned(),
            count(self.tokens_per_s() as u64),
        ));
        list.push(("time".to_owned(), duration(self.summary.elapsed_s)));
        list
    }

    fn quality_table(&self) -> TextTable {
        let mut table = TextTable::new(&["", "before", "after"]);
        let (Some(before), Some(after)) = (self.before, self.after) else {
            return table;
        };
        let rows = if self.resolved.test.is_some() {
            "test"
        } else {
            "validation"
        };
        for &metric in Metric::of_task(self.resolved.config.data.task) {
            table.row([
                format!("{rows} {}", metric.name().replace('_', " ")),
                output::metric(metric, before.value(metric)),
                output::metric(metric, after.value(metric)),
            ]);
        }
        table
    }

    fn main_table(&self) -> TextTable {
        let mut table = TextTable::new(&[]);
        let trained = self.model.trainables().count();
        let total = self.total_parameters();
        let what = if self.resolved.config.full {
            "model size"
        } else {
            "adapter size"
        };
        let early = if self.summary.stopped_early {
            ", stopped early"
        } else {
            ""
        };
        table
            .row([
                "trained parameters",
                &format!(
                    "{} of {} ({})",
                    count(trained),
                    count(total),
                    percent(trained, total)
                ),
            ])
            .row([
                what,
                &format!(
                    "{} in {}",
                    bytes(self.saved.bytes),
                    self.saved.path.display()
                ),
            ])
            .row([
                "steps",
                &format!(
                    "{} (values of step {}{early})",
                    self.summary.steps, self.summary.final_step
                ),
            ])
            .row(["time", &duration(self.summary.elapsed_s)])
            .row(["tokens per second", &count(self.tokens_per_s() as u64)]);
        table
    }

    fn memory_table(&self) -> TextTable {
        let counted = super::counted_peak(self.model.device());
        let mut table = TextTable::new(&["peak memory", "predicted", "counted"]);
        for purpose in Purpose::of_training() {
            table.row([
                purpose.name().replace('_', " "),
                bytes(self.plan.peak.of(purpose)),
                bytes(counted.of(purpose)),
            ]);
        }
        table.row([
            "all tensors".to_owned(),
            bytes(self.plan.peak.total()),
            bytes(counted.total()),
        ]);
        table.row([
            "the same with the holes between".to_owned(),
            bytes(self.plan.reserved_bytes),
            bytes(self.model.device().reserved_bytes()),
        ]);
        let shown = |b: Option<u64>| b.map_or("-".to_owned(), bytes);
        table.row([
            "program, tokenizer and rows".to_owned(),
            String::new(),
            shown(self.fixed_bytes),
        ]);
        let expected = self
            .fixed_bytes
            .map(|fixed| fixed + self.plan.reserved_bytes);
        table.row([
            "resident, whole process".to_owned(),
            shown(expected),
            shown(memory::peak_resident_bytes()),
        ]);
        table
    }

    /// The proof that every trained value got gradients and moved, or which did not.
    fn proof_lines(&self) -> Vec<String> {
        let proof = &self.summary.proof;
        let idle: Vec<_> = proof.idle().collect();
        if idle.is_empty() {
            return vec![format!(
                "all {} trained tensors got gradients and moved",
                proof.values.len()
            )];
        }
        let total = proof.values.len();
        let mut lines = Vec::new();
        for (idle_by, reason) in REASONS {
            let of_reason = idle.iter().filter(|value| value.idle == Some(idle_by));
            match of_reason.count() {
                0 => {}
                n => lines.push(format!("{n} of {total} trained tensors {reason}")),
            }
        }
        let faults: Vec<_> = idle
            .into_iter()
            .filter(|value| value.idle == Some(Idle::Unexplained))
            .collect();
        if faults.is_empty() {
            return lines;
        }
        let n = faults.len();
        lines.push(format!(
            "warning: {n} of {total} trained tensors were not trained"
        ));
        for value in faults.iter().take(8) {
            let why = if value.had_gradient {
                "did not move"
            } else {
                "got no gradient"
            };
            lines.push(format!("  {}: {why}", value.name));
        }
        if n > 8 {
            lines.push(format!("  and {} more", n - 8));
        }
        lines
    }
}

/// What is said of values that a short run leaves as they were.
const REASONS: [(Idle, &str); 2] = [
    (
        Idle::RateWasZero,
        "did not move: too few steps, the learning rate was 0 in all of them (warm-up begins at 0)",
    ),
    (
        Idle::FactorWasZero,
        "got no gradient: too few steps, an adapter's A has none while its B is still zero",
    ),
];

/// Two lines: the same words again, and the resolved configuration in a new folder.
fn repeat_command(run: &RunDir) -> String {
    let words = std::iter::once("lowrank".to_owned()).chain(std::env::args().skip(1));
    let config = run.join("config.yaml").display().to_string();
    let again = [
        "lowrank",
        "train",
        "--config",
        &config,
        "--output-dir",
        "runs/again",
    ]
    .map(str::to_owned);
    format!(
        "{}\n\n# the same from the resolved configuration:\n{}",
        output::shell_line(words),
        output::shell_line(again)
    )
}
