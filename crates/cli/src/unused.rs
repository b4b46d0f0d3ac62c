//! Settings that would not be obeyed where they stand, each with the reason: a request that is dropped in silence gives
//! results that nobody asked for. A setting at its default changes nothing, so that printed configurations read back.

use clap::Args;
use lowrank_train::config::{IntervalStrategy, TaskKind, TrainConfig};
use lowrank_train::schedule::SchedulerType;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::args::{EvalArgs, GenerateArgs, MergeArgs, PlanArgs, PredictArgs, ProfileArgs};
use crate::settings;
use lowrank_run::loaded::LoadedModel;
use lowrank_run::{RunError, RunResult};

/// What was given by flags and by the file that they name, and what of it has no effect.
pub struct Unused {
    given: Map<String, Value>,
    faults: Vec<String>,
}

/// Settings of adapters, with their defaults.
const LORA: [(&str, &str); 13] = [
    ("r", "8"),
    ("lora_alpha", "16.0"),
    ("lora_dropout", "0.0"),
    ("target_modules", ""),
    ("exclude_modules", ""),
    ("layers_to_transform", ""),
    ("layers_pattern", ""),
    ("rank_pattern", "{}"),
    ("alpha_pattern", "{}"),
    ("bias", "\"none\""),
    ("use_rslora", "false"),
    ("init_lora_weights", "true"),
    ("modules_to_save", "[]"),
];

/// The columns of a file of rows.
const COLUMNS: [&str; 5] = [
    "text_column",
    "text_pair_column",
    "context_column",
    "label_column",
    "label_columns",
];

impl Unused {
    /// What the flags and the file give; a preset's settings are not the user's.
    ///
    /// # Errors
    /// As [`settings::with_file`].
    pub fn of<T>(flags: &T, file: Option<&str>) -> RunResult<Self>
    where
        T: Args + Clone + Serialize + DeserializeOwned,
    {
        let args = settings::with_file(flags.clone(), file)?;
        Ok(Self::of_args(&args))
    }

    /// The same of what was read already.
    pub fn of_args<T: Serialize>(args: &T) -> Self {
        let mut given = settings::to_map(args);
        given.retain(|_, value| !value.is_null());
        Self {
            given,
            faults: Vec::new(),
        }
    }

    /// These have no effect, for this reason.
    pub fn note(&mut self, keys: &[&str], why: &str) {
        self.note_unless(keys.iter().map(|key| (*key, Value::Null)), why);
    }

    /// The same, unless they have these values, which ask for nothing.
    fn note_unless<'k>(&mut self, keys: impl IntoIterator<Item = (&'k str, Value)>, why: &str) {
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
        self.schedule(config);
        self.evaluation(config);
        if config.full {
            let target = |key: &str| self.given.get(key).cloned().unwrap_or_default();
            let defaults = LORA.map(|(key, default)| {
                // Which modules are the default depends on the model, and a printed configuration names them.
                let own = matches!(key, "target_modules").then(|| target(key));
                let default = || serde_json::from_str(default).unwrap_or_default();
                (key, own.unwrap_or_else(default))
            });
            self.note_unless(defaults, "with --full no adapter is trained");
        }
        self.data(config.data.task);
        self.finish()
    }

    fn schedule(&mut self, config: &TrainConfig) {
        let kind = config.optimization.lr_scheduler_type;
        if kind != SchedulerType::Cosine {
            let why = "only --lr-scheduler-type cosine has waves";
            self.note_unless([("lr_num_cycles", json!(0.5))], why);
        }
        if kind != SchedulerType::Polynomial {
            let why = "only --lr-scheduler-type polynomial has them";
            self.note_unless([("lr_end", json!(1e-7)), ("lr_power", json!(1.0))], why);
        }
        let ratio = self.given.get("warmup_ratio").and_then(Value::as_f64);
        let ratio_asks = ratio.is_some_and(|r| r != 0.06 && r != 0.0);
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

    fn evaluation(&mut self, config: &TrainConfig) {
        let e = &config.evaluation;
        if e.eval_strategy != IntervalStrategy::Steps {
            self.note(&["eval_steps"], "--eval-strategy is not steps");
        }
        if e.save_strategy != IntervalStrategy::Steps {
            self.note(&["save_steps"], "--save-strategy is not steps");
        }
        if e.early_stopping_patience.is_none() {
            let why = "it needs --early-stopping-patience";
            self.note_unless([("early_stopping_threshold", json!(0.0))], why);
        }
        if config.data.validation_file.is_none() && config.data.test_file.is_none() {
            let why = "there are no rows to evaluate";
            self.note_unless([("per_device_eval_batch_size", json!(64))], why);
        }
    }

    /// Settings of rows that a task has no use for.
    fn data(&mut self, task: TaskKind) {
        if task != TaskKind::CausalLm {
            let why = format!(
                "only a language model's rows have one, the task is {}",
                task.name()
            );
            self.note(&["template", "data_format"], &why);
        }
        if matches!(task, TaskKind::CausalLm | TaskKind::Regression) {
            let why = format!("the task {} has no labels", task.name());
            self.note_unless([("labels", json!([]))], &why);
        }
        if task == TaskKind::CausalLm {
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
    fn alpha(&mut self, loaded: &LoadedModel) {
        match loaded.adapter_alpha {
            None => self.note(&["lora_alpha"], "no adapter is given"),
            Some(own) => {
                let why = format!("the adapter holds its own, {own}");
                self.note_unless([("lora_alpha", json!(own))], &why);
            }
        }
    }

    /// Those of `predict`.
    pub fn check_predict(mut self, args: &PredictArgs, loaded: &LoadedModel) -> RunResult {
        if args.text.is_some() {
            self.note(&["data_file"], "--text gives the rows");
            self.note(&COLUMNS, "--text has no columns");
            let of_files = [("no_header", json!(false)), ("bad_rows", json!("error"))];
            self.note_unless(of_files, "--text is no file");
        }
        self.data(loaded.head.task);
        self.alpha(loaded);
        self.finish()
    }

    /// Those of `generate`.
    pub fn check_generate(mut self, args: &GenerateArgs, loaded: &LoadedModel) -> RunResult {
        if args.prompt_file.is_none() {
            let why = "it needs --prompt-file";
            self.note(&["text_column", "context_column", "data_format"], why);
            self.note_unless([("no_header", json!(false))], why);
        } else {
            self.note(&["prompt"], "--prompt-file gives the prompts");
        }
        if args.interactive == Some(true) {
            let why = "--interactive reads prompts and writes tokens one by one";
            self.note(&["prompt", "prompt_file", "batch_size", "output_file"], why);
        }
        if loaded.adapter_alpha.is_none() && args.adapter.adapter.is_none() {
            let why = "no adapter is given";
            self.note_unless([("merge_adapter", json!(false))], why);
        }
        self.alpha(loaded);
        self.finish()
    }

    /// Those of `eval`.
    pub fn check_eval(mut self, args: &EvalArgs) -> RunResult {
        let decoding = settings::to_map(&args.decoding);
        let decoding: Vec<&str> = decoding.keys().map(String::as_str).collect();
        let scores = args.scoring.outputs.is_some() || args.scoring.references.is_some();
        let generates = args.scoring.generate.unwrap_or(false);
        if scores {
            let why = "--outputs are scored as they are, without a model";
            self.note(
                &[
                    "model",
                    "adapter",
                    "data_file",
                    "max_length",
                    "task",
                    "labels",
                ],
                why,
            );
            self.note(&COLUMNS, why);
            self.note(&decoding, why);
            self.note_unless([("generate", json!(false))], why);
            self.note(&["output_file"], why);
        } else if generates {
            let (texts, labels) = COLUMNS.split_at(3);
            let why = "--generate reads prompts and what is to follow";
            self.note(&["labels", "max_length"], why);
            self.note(labels, why);
            if args.data.data_format.is_some() {
                self.note(texts, "--data-format says where the texts stand");
            }
            if args
                .data
                .task
                .is_some_and(|task| task != TaskKind::CausalLm)
            {
                self.note(&["task"], "--generate needs a language model");
            }
        } else {
            let why = "it needs --generate";
            self.note(&decoding, why);
            self.note(&["output_file", "metrics", "meteor_dir"], why);
        }
        self.finish()
    }

    /// Those of `eval` on labelled rows, whose task is known.
    pub fn check_rows(mut self, loaded: &LoadedModel) -> RunResult {
        self.data(loaded.head.task);
        self.alpha(loaded);
        self.finish()
    }

    /// Those of `merge`.
    pub fn check_merge(mut self, args: &MergeArgs) -> RunResult {
        if !args.verify.unwrap_or(false) {
            self.note(&["tolerance", "data_file"], "it needs --verify");
        }
        if args.data_file.is_none() {
            self.note(&COLUMNS, "it needs --data-file");
        }
        self.finish()
    }

    /// Those of `merge` that depend on the adapter.
    pub fn check_merged(mut self, loaded: &LoadedModel) -> RunResult {
        self.alpha(loaded);
        self.finish()
    }

    /// Those of `plan`.
    pub fn check_plan(mut self, args: &PlanArgs, task: TaskKind) -> RunResult {
        if matches!(task, TaskKind::CausalLm | TaskKind::Regression) && args.num_labels != Some(1) {
            let why = format!("the head of the task {} is known", task.name());
            self.note(&["num_labels"], &why);
        }
        self.note(&["prefix_cache"], "a plan counts both ways");
        self.finish()
    }

    /// Those of `profile`.
    pub fn check_profile(mut self, args: &ProfileArgs) -> RunResult {
        if args.train_file.is_some() {
            self.note(&["seq"], "the rows of --train-file are as long as they are");
        } else {
            self.note(&COLUMNS, "it needs --train-file");
        }
        if args.full.unwrap_or(false) {
            self.note(
                &LORA.map(|(key, _)| key),
                "with --full no adapter is trained",
            );
        }
        if args.generate.is_some() {
            let why = "tokens are generated without an adapter and without training";
            self.note(&LORA.map(|(key, _)| key), why);
            self.note(&["gradient_checkpointing"], why);
        }
        self.finish()
    }
}
