//! Which settings can be run: every fault of a configuration at once.

use std::fmt;

use lowrank_engine::BaseFormat;

use super::{IntervalStrategy, LoraSettings, Method, ModulePattern, Task, TrainConfig};
use crate::metrics::Metric;
use crate::schedule::SchedulerType;

/// Larger ranks are taken for a mistake; a matrix's own size is the limit that counts.
const LARGEST_RANK: usize = 1 << 20;

/// The scaling is stored in f32, and must leave room for what it scales.
const LARGEST_ALPHA: f64 = 1e30;

/// More rows or batches than this at a time are taken for a mistake; their product still counts
/// without overflow.
pub const LARGEST_BATCH: usize = 1 << 20;

/// More threads than any machine has processors.
pub const LARGEST_THREADS: usize = 1 << 12;

impl TrainConfig {
    /// Checks every setting and reports all that cannot be, not only the first.
    ///
    /// # Errors
    /// A [`ConfigError`] that lists each setting with what was expected and what was found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Faults::default();
        self.check_data(&mut faults);
        let is_full = self.method == Method::Full;
        if self.method == Method::Lora {
            self.lora.check(&mut faults);
        }
        self.check_optimization(&mut faults);
        self.check_evaluation(&mut faults);
        if is_full && self.adapter.is_some() {
            faults.add("adapter", "absent with `full`", "an adapter");
        }
        if self.from_scratch && !is_full {
            faults.add(
                "from_scratch",
                "`full` with it",
                "adapters in random weights",
            );
        }
        let format = self.numerics.base_format;
        if is_full && !matches!(format, BaseFormat::F32 | BaseFormat::Bf16) {
            let found = format!("{}, which is for frozen weights", format.name());
            faults.add("base_format", "f32 or bf16 with `full`", found);
        }
        faults.require(
            !self.output_dir.is_empty(),
            "output_dir",
            "a folder",
            "an empty name",
        );
        let threads = self.threads.unwrap_or(1);
        faults.require(
            (1..=LARGEST_THREADS).contains(&threads),
            "threads",
            "from 1 to 4096",
            threads,
        );
        faults.into_result()
    }

    fn check_data(&self, faults: &mut Faults) {
        let d = &self.data;
        faults.require(
            (4..=1 << 20).contains(&d.max_length),
            "max_length",
            "from 4 to 1048576",
            d.max_length,
        );
        // Labels that are not known yet are none. With a single class there is nothing to learn.
        let classes = matches!(d.task, Task::SingleLabel | Task::TokenClassification);
        faults.require(
            !classes || d.labels.len() != 1,
            "labels",
            "at least two",
            format!("only `{}`", d.labels.join("")),
        );
        let mut sorted = d.labels.clone();
        sorted.sort();
        for pair in sorted.windows(2).filter(|pair| pair[0] == pair[1]) {
            faults.add("labels", "distinct names", format!("`{}` twice", pair[0]));
        }
        let named = [
            ("text_column", &d.text_column),
            ("text_pair_column", &d.text_pair_column),
            ("label_column", &d.label_column),
        ];
        for (i, (field, name)) in named.iter().enumerate() {
            if name.is_some() && named[..i].iter().any(|(_, other)| other == name) {
                faults.add(
                    field,
                    "another column than the others",
                    name.as_deref().unwrap_or_default(),
                );
            }
        }
    }

    fn check_optimization(&self, faults: &mut Faults) {
        let o = &self.optimization;
        let at_least_0 = |v: f64| v.is_finite() && v >= 0.0;
        faults.require(
            o.learning_rate.is_finite() && o.learning_rate > 0.0,
            "learning_rate",
            "above 0",
            o.learning_rate,
        );
        faults.require(
            at_least_0(o.weight_decay),
            "weight_decay",
            "0 or more",
            o.weight_decay,
        );
        faults.require(
            (0.0..1.0).contains(&o.adam_beta1),
            "adam_beta1",
            "from 0 to below 1",
            o.adam_beta1,
        );
        faults.require(
            (0.0..1.0).contains(&o.adam_beta2),
            "adam_beta2",
            "from 0 to below 1",
            o.adam_beta2,
        );
        faults.require(
            at_least_0(o.adam_epsilon),
            "adam_epsilon",
            "0 or more",
            o.adam_epsilon,
        );
        let ratio = o.loraplus_lr_ratio.unwrap_or(1.0);
        faults.require(
            ratio.is_finite() && ratio > 0.0,
            "loraplus_lr_ratio",
            "above 0",
            ratio,
        );
        faults.require(
            at_least_0(o.max_grad_norm),
            "max_grad_norm",
            "0 (off) or more",
            o.max_grad_norm,
        );
        let smoothing = o.label_smoothing_factor;
        faults.require(
            (0.0..1.0).contains(&smoothing),
            "label_smoothing_factor",
            "from 0 to below 1",
            smoothing,
        );
        faults.require(
            smoothing == 0.0 || self.data.task == Task::CausalLm,
            "label_smoothing_factor",
            "0: only a language model's labels are smoothed",
            smoothing,
        );
        for (field, p) in [
            ("dropout", o.dropout),
            ("classifier_dropout", o.classifier_dropout),
        ] {
            let p = p.unwrap_or(0.0);
            faults.require((0.0..1.0).contains(&p), field, "from 0 to below 1", p);
        }
        self.check_schedule(faults);
    }

    fn check_schedule(&self, faults: &mut Faults) {
        let o = &self.optimization;
        let at_least_0 = |v: f64| v.is_finite() && v >= 0.0;
        faults.require(
            (0.0..1.0).contains(&o.warmup_ratio),
            "warmup_ratio",
            "from 0 to below 1",
            o.warmup_ratio,
        );
        faults.require(
            at_least_0(o.lr_num_cycles),
            "lr_num_cycles",
            "0 or more",
            o.lr_num_cycles,
        );
        faults.require(at_least_0(o.lr_power), "lr_power", "0 or more", o.lr_power);
        let is_polynomial = o.lr_scheduler_type == SchedulerType::Polynomial;
        faults.require(
            at_least_0(o.lr_end) && (o.lr_end < o.learning_rate || !is_polynomial),
            "lr_end",
            "0 or more and below the learning rate",
            o.lr_end,
        );
        for (field, number) in [
            ("per_device_batch_size", o.per_device_batch_size),
            ("gradient_accumulation_steps", o.gradient_accumulation_steps),
        ] {
            let fits = (1..=LARGEST_BATCH).contains(&number);
            faults.require(fits, field, "from 1 to 1048576", number);
        }
        let epochs = o.num_train_epochs;
        faults.require(
            epochs.is_finite() && epochs > 0.0,
            "num_train_epochs",
            "above 0",
            epochs,
        );
        faults.require(o.max_steps != Some(0), "max_steps", "at least 1", 0);
    }

    /// Checks the settings that only the number of training rows decides on.
    ///
    /// # Errors
    /// As [`TrainConfig::validate`].
    pub fn validate_for(&self, rows: usize) -> Result<(), ConfigError> {
        let mut faults = Faults::default();
        let (total, o) = (self.total_steps(rows), &self.optimization);
        let warms_up = o.lr_scheduler_type != SchedulerType::Constant;
        // A share of a short run may be all of it: that is said, not refused.
        if let Some(steps) = o.warmup_steps.filter(|&steps| steps > 0 && warms_up) {
            faults.require(
                steps < total,
                "warmup_steps",
                &format!(
                    "fewer than the {} of the run, so that the learning rate is reached",
                    steps_of(total)
                ),
                steps,
            );
        }
        faults.into_result()
    }

    fn check_evaluation(&self, faults: &mut Faults) {
        let e = &self.evaluation;
        let evaluates = e.eval_strategy != IntervalStrategy::No;
        for (strategy, steps, field) in [
            (e.eval_strategy, e.eval_steps, "eval_steps"),
            (e.save_strategy, e.save_steps, "save_steps"),
        ] {
            let fits = strategy != IntervalStrategy::Steps || steps.is_some_and(|s| s >= 1);
            faults.require(
                fits,
                field,
                "at least 1 under the strategy `steps`",
                Shown(steps),
            );
        }
        faults.require(
            (1..=LARGEST_BATCH).contains(&e.per_device_eval_batch_size),
            "per_device_eval_batch_size",
            "from 1 to 1048576",
            e.per_device_eval_batch_size,
        );
        faults.require(e.save_total_limit >= 1, "save_total_limit", "at least 1", 0);
        if evaluates && self.data.validation_file.is_none() {
            faults.add(
                "eval_strategy",
                "`no`, or a `validation_file`",
                "no validation rows",
            );
        }
        if e.load_best_model_at_end && !evaluates {
            faults.add(
                "load_best_model_at_end",
                "an `eval_strategy` other than `no`",
                "`no`",
            );
        }
        if e.early_stopping_patience.is_some() && !evaluates {
            faults.add(
                "early_stopping_patience",
                "an `eval_strategy` other than `no`",
                "`no`",
            );
        }
        faults.require(
            e.early_stopping_patience != Some(0),
            "early_stopping_patience",
            "at least 1",
            0,
        );
        let threshold = e.early_stopping_threshold;
        faults.require(
            threshold.is_finite() && threshold >= 0.0,
            "early_stopping_threshold",
            "0 or more",
            threshold,
        );
        let metrics = Metric::of_task(self.data.task);
        if !metrics.contains(&e.metric_for_best_model) {
            let names: Vec<_> = metrics.iter().map(|m| m.name()).collect();
            let expected = format!("one of {} for {}", names.join(", "), self.data.task.name());
            faults.add(
                "metric_for_best_model",
                expected,
                e.metric_for_best_model.name(),
            );
        }
    }
}

impl LoraSettings {
    /// Checks the adapters' settings alone, for commands that have no others.
    ///
    /// # Errors
    /// As [`TrainConfig::validate`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Faults::default();
        self.check(&mut faults);
        faults.into_result()
    }

    fn check(&self, faults: &mut Faults) {
        let fits = |alpha: f64| (f64::MIN_POSITIVE..=LARGEST_ALPHA).contains(&alpha);
        faults.require(
            (1..=LARGEST_RANK).contains(&self.r),
            "r",
            "from 1 to 1048576",
            self.r,
        );
        faults.require(
            fits(self.lora_alpha),
            "lora_alpha",
            "above 0 and at most 1e30",
            self.lora_alpha,
        );
        faults.require(
            (0.0..1.0).contains(&self.lora_dropout),
            "lora_dropout",
            "from 0 to below 1",
            self.lora_dropout,
        );
        if matches!(&self.target_modules, ModulePattern::Names(names) if names.is_empty()) {
            faults.add("target_modules", "at least one module", "an empty list");
        }
        for (key, &rank) in &self.rank_pattern {
            faults.require(
                (1..=LARGEST_RANK).contains(&rank),
                "rank_pattern",
                "ranks from 1 to 1048576",
                format!("{key}={rank}"),
            );
        }
        for (key, &alpha) in &self.alpha_pattern {
            faults.require(
                fits(alpha),
                "alpha_pattern",
                "alphas above 0 and at most 1e30",
                format!("{key}={alpha}"),
            );
        }
        self.check_layers(faults);
    }

    /// The pairs that PEFT refuses. Source: PEFT 0.21.2, `LoraConfig.__post_init__`.
    fn check_layers(&self, faults: &mut Faults) {
        let targets = match &self.target_modules {
            ModulePattern::Names(_) => None,
            ModulePattern::Text(text) if text == "all-linear" => Some("`all-linear`"),
            ModulePattern::Text(_) => Some("a regular expression"),
        };
        let has_pattern = self.layers_pattern.as_ref().is_some_and(|p| !p.is_empty());
        let given = [
            ("layers_to_transform", self.layers_to_transform.is_some()),
            ("layers_pattern", has_pattern),
        ];
        for (field, _) in given.into_iter().filter(|(_, given)| *given) {
            if let Some(targets) = targets {
                faults.add(
                    field,
                    "a list of names as `target_modules` beside it",
                    targets,
                );
            }
        }
        if has_pattern && self.layers_to_transform.is_none() {
            faults.add(
                "layers_pattern",
                "`layers_to_transform` beside it",
                "only the pattern",
            );
        }
        let largest = self.layers_to_transform.iter().flatten().max();
        if let Some(layer) = largest.filter(|layer| **layer >= LARGEST_RANK) {
            faults.add("layers_to_transform", "numbers of layers", layer);
        }
    }
}

/// One setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The setting.
    pub field: String,
    /// What it may be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// A configuration that cannot be run, with every fault in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The faults, in the order of the settings.
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.faults.len();
        write!(
            f,
            "the configuration cannot be run ({n} {})",
            if n == 1 { "setting" } else { "settings" }
        )?;
        for fault in &self.faults {
            write!(
                f,
                "\n  {}: expected {}, found {}",
                fault.field, fault.expected, fault.found
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, field: &str, expected: impl Into<String>, found: impl fmt::Display) {
        self.0.push(Fault {
            field: field.to_owned(),
            expected: expected.into(),
            found: found.to_string(),
        });
    }

    fn require(&mut self, fine: bool, field: &str, expected: &str, found: impl fmt::Display) {
        if !fine {
            self.add(field, expected, found);
        }
    }

    fn into_result(self) -> Result<(), ConfigError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(ConfigError { faults: self.0 })
        }
    }
}

fn steps_of(total: u64) -> String {
    match total {
        1 => "1 step".to_owned(),
        n => format!("{n} steps"),
    }
}

struct Shown(Option<u64>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(v) => write!(f, "{v}"),
            None => f.write_str("nothing"),
        }
    }
}
