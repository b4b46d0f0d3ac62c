//! Every default of a run, in one place: what a setting is where nobody asks for another value.

use std::collections::BTreeMap;

use lowrank_data::UnlabelledRows;
use lowrank_engine::DType;
use lowrank_model::families::family;

use super::{
    BiasMode, DataSettings, EvaluationSettings, InitLora, IntervalStrategy, LoraSettings,
    MemorySettings, Method, ModulePattern, NumericSettings, OptimizationSettings, Task,
    TrainConfig,
};
use crate::metrics::Metric;
use crate::schedule::SchedulerType;

/// Rows are cut to this many tokens unless told otherwise.
pub const DEFAULT_MAX_LENGTH: usize = 128;

/// The folder of a run whose place is not given.
pub const DEFAULT_RUN: &str = "runs/default";

impl TrainConfig {
    /// Fresh adapters in a model of this type, every other setting at its default.
    pub fn of(model: &str, model_type: &str, task: Task, train_file: &str) -> Self {
        Self {
            model: model.to_owned(),
            revision: None,
            ignore_mismatched_sizes: false,
            adapter: None,
            method: Method::Lora,
            from_scratch: false,
            data: DataSettings::of(task, train_file),
            lora: LoraSettings::of(model_type),
            optimization: OptimizationSettings::default(),
            evaluation: EvaluationSettings::of(task, IntervalStrategy::No),
            memory: MemorySettings::default(),
            numerics: NumericSettings::of(DType::F32),
            output_dir: DEFAULT_RUN.to_owned(),
            threads: None,
        }
    }
}

impl DataSettings {
    /// The defaults: rows of `train_file`, whose columns are found by their names.
    pub fn of(task: Task, train_file: &str) -> Self {
        Self {
            train_file: train_file.to_owned(),
            validation_file: None,
            test_file: None,
            task,
            labels: Vec::new(),
            text_column: None,
            text_pair_column: None,
            label_column: None,
            label_columns: None,
            unlabelled: UnlabelledRows::default(),
            context_column: None,
            no_header: None,
            max_length: DEFAULT_MAX_LENGTH,
            long_rows: None,
            bad_rows: None,
            max_bad_rows: None,
            data_format: None,
            template: None,
            chat_template: None,
            loss_on: None,
            chat_time: None,
        }
    }
}

impl LoraSettings {
    /// Fresh adapters where nothing is asked for: rank 8 on PEFT's targets for the model, mostly
    /// queries and values, the paper's choice.
    pub fn of(model_type: &str) -> Self {
        let targets = family(model_type).map_or(&["query", "value"][..], |f| f.default_targets);
        let names = targets.iter().map(|&name| name.to_owned()).collect();
        Self {
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: ModulePattern::Names(names),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            bias: BiasMode::None,
            use_rslora: false,
            init_lora_weights: InitLora::Default,
            modules_to_save: Vec::new(),
            trainable_token_indices: Vec::new(),
        }
    }
}

impl Default for OptimizationSettings {
    /// The program's defaults.
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            weight_decay: 0.01,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            loraplus_lr_ratio: None,
            lr_scheduler_type: SchedulerType::Linear,
            warmup_steps: None,
            warmup_ratio: 0.06,
            lr_num_cycles: 0.5,
            lr_end: 1e-7,
            lr_power: 1.0,
            max_grad_norm: 1.0,
            per_device_batch_size: 32,
            gradient_accumulation_steps: 1,
            num_train_epochs: 3.0,
            max_steps: None,
            seed: 1,
            shuffle: true,
            gradient_checkpointing: false,
            label_smoothing_factor: 0.0,
            dropout: None,
            classifier_dropout: None,
        }
    }
}

impl OptimizationSettings {
    /// The defaults of a method: where every weight trains, smaller steps than those of an adapter.
    pub fn of(method: Method) -> Self {
        let default = Self::default();
        Self {
            learning_rate: match method {
                Method::Full => 5e-5,
                Method::Lora | Method::BitFit => default.learning_rate,
            },
            ..default
        }
    }
}

impl EvaluationSettings {
    /// The defaults of a task: evaluated when told so, saved each epoch, the best by the task's
    /// first metric.
    pub fn of(task: Task, eval_strategy: IntervalStrategy) -> Self {
        Self {
            eval_strategy,
            eval_steps: None,
            per_device_eval_batch_size: 64,
            save_strategy: IntervalStrategy::Epoch,
            save_steps: None,
            save_total_limit: 2,
            metric_for_best_model: Metric::of_task(task)[0],
            load_best_model_at_end: eval_strategy != IntervalStrategy::No,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
        }
    }
}
