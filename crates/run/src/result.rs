//! What a training run leaves: the adapter or the model, and its figures.

use std::path::PathBuf;

use lowrank_data::TextColumns;
use lowrank_formats::{DType, Method, PendingDir, RunDir, files, write_atomic};
use lowrank_model::{MergeOptions, Model};
use lowrank_train::base::BaseId;
use lowrank_train::config::TrainConfig;
use lowrank_train::metrics::Evaluation;
use lowrank_train::trainer::Summary;
use serde_json::{Value, json};

use crate::chat::{self, ChatNotes};
use crate::error::{RunError, RunResult};
use crate::memory::{self, by_purpose};
use crate::notes::{AdapterNotes, quantised};
use crate::plan::RunPlan;
use crate::probe::Probe;
use crate::rates::Rates;
use crate::rows::template_of;
use crate::side_files;
use crate::spec::RunSpec;

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
pub fn save_model(run: &RunDir, spec: &RunSpec, model: &Model, base: &BaseId) -> RunResult<Saved> {
    let config = &spec.config;
    let target = result_dir(run, config);
    let pending = PendingDir::create(&target)?;
    let bytes = if config.method == Method::Full {
        let options = MergeOptions {
            // From scratch there is no type to keep.
            dtype: config.from_scratch.then_some(DType::F32),
            max_shard_bytes: MAX_SHARD_BYTES,
            labels: (!spec.head.labels.is_empty()).then(|| spec.head.labels.clone()),
        };
        side_files::copy(&spec.base.dir, pending.path())?;
        if let Some(format) = &spec.chat {
            chat::write_template(format, pending.path())?;
        }
        model
            .write_merged(&spec.base.dir, pending.path(), &options)?
            .bytes
    } else {
        let notes = AdapterNotes {
            task: spec.head.task,
            labels: spec.head.labels.clone(),
            max_length: config.data.max_length,
            base_model: config.model.clone(),
            base_sha256: None,
            base: Some(base.clone()),
            base_format: quantised(config.numerics.base_format),
            // Rows of plain text have no prompt that something would stand behind.
            template: match &spec.train.report.columns.text {
                TextColumns::Completion { .. } if spec.chat.is_none() => template_of(&config.data),
                TextColumns::Completion { .. } => None,
                TextColumns::Text { .. }
                | TextColumns::Words { .. }
                | TextColumns::Ids { .. }
                | TextColumns::Chat { .. } => None,
            },
            chat: spec.chat.as_ref().map(|format| ChatNotes {
                loss_on: format.loss_on,
                time: chat::time(format),
            }),
            probe: (spec.base.tokenizer.as_ref().ok())
                .and_then(|tokenizer| Probe::of(tokenizer, spec.chat.as_ref())),
        };
        if let Some(format) = &spec.chat {
            chat::write_template(format, pending.path())?;
        }
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
pub const SUMMARY_FILE: &str = "summary.json";
/// The page about it.
pub const REPORT_FILE: &str = "report.html";

/// The folder in a run's for what it trained: the whole model, or an adapter.
pub fn result_name(method: Method) -> &'static str {
    match method {
        Method::Full => "model",
        Method::Lora | Method::BitFit => "adapter",
    }
}

fn result_dir(run: &RunDir, config: &TrainConfig) -> PathBuf {
    run.join(result_name(config.method))
}

/// Whether a run has left everything that it leaves at its end.
pub fn are_written(run: &RunDir, config: &TrainConfig) -> bool {
    let files = [SUMMARY_FILE, REPORT_FILE].map(|name| run.join(name));
    files.iter().all(|file| files::is_file(file)) && files::is_dir(&result_dir(run, config))
}

/// Everything there is to tell about a finished run.
pub struct Results {
    /// What was run.
    pub run: RunSpec,
    /// The trained model.
    pub model: Model,
    /// What was predicted.
    pub plan: RunPlan,
    /// How it went.
    pub summary: Summary,
    /// The test rows (or validation rows) before.
    pub before: Option<Evaluation>,
    /// The learning rates that were tried, where one was to be found.
    pub rates: Option<Rates>,
    /// The same after.
    pub after: Option<Evaluation>,
    /// What was saved.
    pub saved: Saved,
    /// Resident bytes before the weights were read: program, tokenizer and rows.
    pub fixed_bytes: Option<u64>,
    /// The run's folder.
    pub folder: RunDir,
}

impl Results {
    /// Writes the figures into the run's folder.
    pub(crate) fn write(&self) -> RunResult {
        let json = serde_json::to_vec_pretty(&self.to_json());
        let json = json.map_err(|error| RunError::from_error(&error))?;
        Ok(write_atomic(&self.folder.join(SUMMARY_FILE), &json)?)
    }

    /// Everything as JSON.
    pub fn to_json(&self) -> Value {
        let counted = self.model.device().peak_memory();
        let idle: Vec<_> = self.summary.proof.idle().map(|v| v.name.clone()).collect();
        let mut all = json!({
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
        });
        if let Some(rates) = &self.rates {
            all["learning_rates"] = json!(rates);
        }
        all
    }

    /// Real tokens trained on, a second of optimizer steps.
    pub fn tokens_per_s(&self) -> f64 {
        self.summary.tokens as f64 / self.summary.training_s.max(1e-9)
    }

    /// Parameters of the model and of what was adapted.
    pub fn total_parameters(&self) -> u64 {
        self.model.base_parameters() + self.model.adapter_report().adapter_parameters()
    }
}
