//! Settings that would not be obeyed where they stand, each with the reason: a request that is
//! dropped in silence gives results that nobody asked for. A setting at its default changes
//! nothing, so that printed configurations read back.

use lowrank_model::TrainMode;
use lowrank_train::config::{
    EvaluationSettings, IntervalStrategy, Method, NumericSettings, OptimizationSettings, Task,
    TrainConfig,
};
use lowrank_train::schedule::SchedulerType;
use serde_json::{Value, json};

use crate::error::{RunError, RunResult};
use crate::loaded::LoadedModel;
use crate::settings::Settings;

/// What was given, and what of it has no effect.
pub struct Unused {
    given: Settings,
    faults: Vec<String>,
}

/// Settings of adapters.
pub const LORA: [&str; 14] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "use_rslora",
    "init_lora_weights",
    "modules_to_save",
    "trainable_token_indices",
];

/// The columns of a file of rows.
pub const COLUMNS: [&str; 5] = [
    "text_column",
    "text_pair_column",
    "context_column",
    "label_column",
    "label_columns",
];

/// Why settings of LoRA have no effect under another method.
pub fn without_lora(method: Method) -> &'static str {
    match method {
        Method::Lora => "LoRA has them",
        Method::Full => "with --full no adapter is trained",
        Method::BitFit => "with --method bitfit no low-rank adapter is trained",
    }
}

impl Unused {
    /// What was given, by name; a preset's settings are not the user's.
    pub fn of(given: &Settings) -> Self {
        let given = given.iter().filter(|(_, value)| !value.is_null());
        Self {
            given: given.map(|(k, v)| (k.clone(), v.clone())).collect(),
            faults: Vec::new(),
        }
    }

    /// These have no effect, for this reason.
    pub fn note(&mut self, keys: &[&str], why: &str) {
        self.note_unless(keys.iter().map(|key| (*key, Value::Null)), why);
    }

    /// The same, unless they have these values, which ask for nothing.
    pub fn note_unless<'k>(&mut self, keys: impl IntoIterator<Item = (&'k str, Value)>, why: &str) {
        let given = &self.given;
        let idle = keys
            .into_iter()
            .filter(|(key, default)| given.get(*key).is_some_and(|value| value != default))
            .map(|(key, _)| format!("--{}", key.replace('_', "-")));
        let idle: Vec<String> = idle.collect();
        if !idle.is_empty() {
            self.faults.push(format!("{}: {why}", idle.join(", ")));
        }
    }

    /// An error that lists all, if there are some.
    ///
    /// # Errors
    /// Something given has no effect.
    pub fn finish(self) -> RunResult {
        if self.faults.is_empty() {
            return Ok(());
        }
        let n = self.faults.len();
        let what = if n == 1 {
            "a setting has"
        } else {
            "settings have"
        };
        Err(RunError::usage(format!(
            "{what} no effect here\n  {}",
            self.faults.join("\n  ")
        ))
        .hint("leave out what is named, or change what it depends on"))
    }

    /// Those of `train`, whose settings are resolved.
    pub fn check_train(mut self, config: &TrainConfig) -> RunResult {
        let defaults = TrainConfig::of("", "", config.data.task, "");
        self.schedule(config, &defaults.optimization);
        self.evaluation(config, &defaults.evaluation);
        if config.method != Method::Lora {
            // Which modules are the default depends on the model, and a printed configuration names
            // them.
            let target = self.given.get("target_modules").cloned();
            let mut defaults = defaults.to_map();
            defaults.insert("target_modules".to_owned(), target.unwrap_or_default());
            let defaults = LORA.map(|key| (key, defaults[key].clone()));
            let why = without_lora(config.method);
            self.note_unless(defaults, why);
            self.note(&["loraplus_lr_ratio"], why);
        }
        if config.method == Method::Full {
            let own = NumericSettings::of(config.numerics.precision).base_format;
            self.nothing_frozen(json!(own));
        }
        self.data(config.data.task);
        self.finish()
    }

    /// Where all weights train, their format has no effect; `own` is what it is without being asked
    /// for.
    pub fn nothing_frozen(&mut self, own: Value) {
        if self.given.get("base_format") != Some(&json!("auto")) {
            let why = "with --full no weight is frozen";
            self.note_unless([("base_format", own)], why);
        }
    }

    fn schedule(&mut self, config: &TrainConfig, default: &OptimizationSettings) {
        let kind = config.optimization.lr_scheduler_type;
        if kind != SchedulerType::Cosine {
            let why = "only --lr-scheduler-type cosine has waves";
            self.note_unless([("lr_num_cycles", json!(default.lr_num_cycles))], why);
        }
        if kind != SchedulerType::Polynomial {
            let why = "only --lr-scheduler-type polynomial has them";
            let values = [
                ("lr_end", json!(default.lr_end)),
                ("lr_power", json!(default.lr_power)),
            ];
            self.note_unless(values, why);
        }
        let ratio = self.given.get("warmup_ratio").and_then(Value::as_f64);
        let ratio_asks = ratio.is_some_and(|r| r != default.warmup_ratio && r != 0.0);
        if kind == SchedulerType::Constant {
            let why = "--lr-scheduler-type constant has no warm-up, constant_with_warmup has";
            self.note_unless([("warmup_steps", json!(0))], why);
            if ratio_asks {
                self.note(&["warmup_ratio"], why);
            }
        } else if ratio_asks && self.given.contains_key("warmup_steps") {
            self.note(&["warmup_ratio"], "--warmup-steps decides");
        }
    }

    fn evaluation(&mut self, config: &TrainConfig, default: &EvaluationSettings) {
        let e = &config.evaluation;
        if e.eval_strategy != IntervalStrategy::Steps {
            self.note(&["eval_steps"], "--eval-strategy is not steps");
        }
        if e.save_strategy != IntervalStrategy::Steps {
            self.note(&["save_steps"], "--save-strategy is not steps");
        }
        if e.early_stopping_patience.is_none() {
            let why = "it needs --early-stopping-patience";
            self.note_unless(
                [(
                    "early_stopping_threshold",
                    json!(default.early_stopping_threshold),
                )],
                why,
            );
        }
        if config.data.validation_file.is_none() && config.data.test_file.is_none() {
            let why = "there are no rows to evaluate";
            self.note_unless(
                [(
                    "per_device_eval_batch_size",
                    json!(default.per_device_eval_batch_size),
                )],
                why,
            );
        }
    }

    /// Settings of rows that a task has no use for.
    pub fn data(&mut self, task: Task) {
        if task != Task::CausalLm {
            let why = format!(
                "only a language model's rows have one, the task is {}",
                task.name()
            );
            self.note(
                &["template", "chat_template", "loss_on", "data_format"],
                &why,
            );
        }
        if !task.has_label_names() {
            let why = format!("the task {} has no labels", task.name());
            self.note_unless([("labels", json!([]))], &why);
        }
        if task == Task::CausalLm {
            self.note(
                &["classifier_dropout"],
                "a language model has no classifier",
            );
            let why = "a language model's rows have no label";
            self.note(&["label_column", "label_columns"], why);
            self.note_unless([("unlabelled", json!("error"))], why);
        }
    }

    /// Only a loralib checkpoint does not hold its alpha.
    pub fn alpha(&mut self, loaded: &LoadedModel) {
        match loaded.adapter_alpha {
            None => {
                let why = match loaded.model.mode() {
                    TrainMode::Frozen => "no adapter is given",
                    TrainMode::Adapter(_) | TrainMode::Full => "the adapter is not of LoRA",
                };
                self.note(&["lora_alpha"], why);
            }
            Some(own) => {
                let why = format!("the adapter holds its own, {own}");
                self.note_unless([("lora_alpha", json!(own))], &why);
            }
        }
    }
}
