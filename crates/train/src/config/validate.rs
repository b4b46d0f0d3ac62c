//! Which settings can be run: every fault of a configuration at once.

use std::fmt;

use super::{IntervalStrategy, ModulePattern, TaskKind, TrainConfig};
use crate::metrics::Metric;
use crate::schedule::SchedulerType;

impl TrainConfig {
    /// Checks every setting and reports all that cannot be, not only the first.
    ///
    /// # Errors
    /// A [`ConfigError`] that lists each setting with what was expected and what was found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Faults::default();
        self.check_data(&mut faults);
        if !self.full {
            self.check_lora(&mut faults);
        }
        self.check_optimization(&mut faults);
        self.check_evaluation(&mut faults);
        if self.full && self.adapter.is_some() {
            faults.add("adapter", "absent with `full`", "an adapter");
        }
        if self.from_scratch && !self.full {
            faults.add(
                "from_scratch",
                "`full` with it",
                "adapters in random weights",
            );
        }
        faults.require(
            !self.output_dir.is_empty(),
            "output_dir",
            "a folder",
            "an empty name",
        );
        faults.require(self.threads != Some(0), "threads", "at least 1", 0);
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
        let classes = matches!(
            d.task,
            TaskKind::SingleLabel | TaskKind::TokenClassification
        );
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

    fn check_lora(&self, faults: &mut Faults) {
        let l = &self.lora;
        faults.require(l.r >= 1, "r", "at least 1", l.r);
        faults.require(
            l.lora_alpha.is_finite() && l.lora_alpha > 0.0,
            "lora_alpha",
            "above 0",
            l.lora_alpha,
        );
        faults.require(
            (0.0..1.0).contains(&l.lora_dropout),
            "lora_dropout",
            "from 0 to below 1",
            l.lora_dropout,
        );
        if matches!(&l.target_modules, ModulePattern::Names(names) if names.is_empty()) {
            faults.add("target_modules", "at least one module", "an empty list");
        }
        for (key, &rank) in &l.rank_pattern {
            faults.require(
                rank >= 1,
                "rank_pattern",
                "ranks of at least 1",
                format!("{key}={rank}"),
            );
        }
        for (key, &alpha) in &l.alpha_pattern {
            let fine = alpha.is_finite() && alpha > 0.0;
            faults.require(
                fine,
                "alpha_pattern",
                "alphas above 0",
                format!("{key}={alpha}"),
            );
        }
        if l.layers_pattern.is_some() && l.layers_to_transform.is_none() {
            faults.add(
                "layers_pattern",
                "`layers_to_transform` beside it",
                "only the pattern",
            );
        }
        if l.layers_to_transform.is_some()
            && matches!(&l.target_modules, ModulePattern::Text(t) if t != "all-linear")
        {
            faults.add(
                "layers_to_transform",
                "a list of names as `target_modules`",
                "a regular expression",
            );
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
            smoothing == 0.0 || self.data.task == TaskKind::CausalLm,
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
            (0.0..=1.0).contains(&o.warmup_ratio),
            "warmup_ratio",
            "from 0 to 1",
            o.warmup_ratio,
        );
        faults.require(
            at_least_0(o.lr_num_cycles),
            "lr_num_cycles",
            "0 or more",
            o.lr_num_cycles,
        );
        faults.require(at_least_0(o.lr_power), "lr_power", "0 or more", o.lr_power);
        let end_fits = at_least_0(o.lr_end) && o.lr_end < o.learning_rate;
        faults.require(
            end_fits || o.lr_scheduler_type != SchedulerType::Polynomial,
            "lr_end",
            "0 or more and below the learning rate",
            o.lr_end,
        );
        faults.require(
            o.per_device_batch_size >= 1,
            "per_device_batch_size",
            "at least 1",
            0,
        );
        faults.require(
            o.gradient_accumulation_steps >= 1,
            "gradient_accumulation_steps",
            "at least 1",
            0,
        );
        let epochs = o.num_train_epochs;
        faults.require(
            epochs.is_finite() && epochs > 0.0,
            "num_train_epochs",
            "above 0",
            epochs,
        );
        faults.require(o.max_steps != Some(0), "max_steps", "at least 1", 0);
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
            e.per_device_eval_batch_size >= 1,
            "per_device_eval_batch_size",
            "at least 1",
            0,
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

struct Shown(Option<u64>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(v) => write!(f, "{v}"),
            None => f.write_str("nothing"),
        }
    }
}
