//! The flags of `lowrank train`: PEFT's and transformers' names.

use clap::Args;
use lowrank_run::RunResult;
use lowrank_run::rates::AskedRate;
use lowrank_run::spec::AskedMethod;
use lowrank_train::config::{
    BiasMode, ByteSize, InitLora, IntervalStrategy, Method, PrefixCacheLimit,
};
use lowrank_train::metrics::Metric;
use lowrank_train::schedule::SchedulerType;
use serde::{Deserialize, Serialize};

use super::common::{
    CommonArgs, DataArgs, KeyValue, ModelArgs, Modules, NewHeadArgs, NumericArgs, named,
    one_or_many, one_pattern, pairs,
};
use crate::presets::PresetArgs;

/// What trains.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MethodArgs {
    /// What trains: lora, full (all weights), or bitfit (biases and the head) [default: lora, or as
    /// --adapter]
    #[arg(long, value_parser = named::<Method>, value_name = "METHOD", help_heading = "Model")]
    pub method: Option<Method>,
    /// Train all weights, no adapter: --method full
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Model", conflicts_with = "method")]
    pub full: Option<bool>,
}

impl MethodArgs {
    /// The method, LoRA where none is asked for.
    pub fn get(&self) -> RunResult<Method> {
        let &Self { method, full } = self;
        Ok(AskedMethod { method, full }.get()?.unwrap_or_default())
    }
}

/// What is adapted and how.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraArgs {
    /// Rank of the adapters [default: 8]
    #[arg(long, short, value_name = "RANK", help_heading = "LoRA")]
    pub r: Option<usize>,
    /// Numerator of the scaling alpha/r [default: 16]
    #[arg(long, value_name = "ALPHA", help_heading = "LoRA")]
    pub lora_alpha: Option<f64>,
    /// Dropout on the adapters' input [default: 0]
    #[arg(long, value_name = "P", help_heading = "LoRA")]
    pub lora_dropout: Option<f64>,
    /// Modules to adapt: names, one regular expression over whole paths, or all-linear; c_attn.q,
    /// qkv_proj.v and gate_up_proj.up are parts of fused layers, each at its own rank
    /// [default: query value, as PEFT for the model]
    #[arg(long, num_args = 1.., value_name = "NAME|REGEX", help_heading = "LoRA")]
    #[serde(with = "one_pattern")]
    pub target_modules: Option<Vec<Modules>>,
    /// Modules not to adapt, written as the targets
    #[arg(long, num_args = 1.., value_name = "NAME|REGEX", help_heading = "LoRA")]
    #[serde(with = "one_pattern")]
    pub exclude_modules: Option<Vec<Modules>>,
    /// Layers to adapt, counted from 0 [default: all]
    #[arg(long, value_delimiter = ',', num_args = 1.., value_name = "LAYER", help_heading = "LoRA")]
    #[serde(with = "one_or_many")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Name of the list of layers that --layers-to-transform counts in
    #[arg(long, value_delimiter = ',', num_args = 1.., value_name = "NAME", help_heading = "LoRA")]
    #[serde(with = "one_or_many")]
    pub layers_pattern: Option<Vec<String>>,
    /// Rank by module name or regular expression; in a file a map
    #[arg(long, num_args = 1.., value_name = "KEY=RANK", help_heading = "LoRA")]
    #[serde(with = "pairs")]
    pub rank_pattern: Option<Vec<KeyValue<usize>>>,
    /// Alpha by module name or regular expression; in a file a map
    #[arg(long, num_args = 1.., value_name = "KEY=ALPHA", help_heading = "LoRA")]
    #[serde(with = "pairs")]
    pub alpha_pattern: Option<Vec<KeyValue<f64>>>,
    /// Biases that train as well: none, all or lora_only [default: none]
    #[arg(long, value_parser = named::<BiasMode>, value_name = "WHICH", help_heading = "LoRA")]
    pub bias: Option<BiasMode>,
    /// Scaling alpha/sqrt(r) in place of alpha/r
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "LoRA")]
    pub use_rslora: Option<bool>,
    /// How fresh adapters start: true (A uniform, B zero), gaussian, or false (neither zero)
    /// [default: true]
    #[arg(long, value_name = "HOW", help_heading = "LoRA")]
    pub init_lora_weights: Option<InitLora>,
    /// Modules trained and saved whole, the head always among them
    #[arg(long, value_delimiter = ',', num_args = 1.., value_name = "NAME", help_heading = "LoRA")]
    #[serde(with = "one_or_many")]
    pub modules_to_save: Option<Vec<String>>,
    /// Ids of tokens whose rows of the table are trained in their place, such as added ones
    #[arg(long, value_delimiter = ',', num_args = 1.., value_name = "ID", help_heading = "LoRA")]
    #[serde(with = "one_or_many")]
    pub trainable_token_indices: Option<Vec<u32>>,
}

/// The optimizer, the schedule and the batches.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OptimizationArgs {
    /// Base learning rate; auto tries up to five on the first 7 % of the run and takes the one with
    /// the smallest validation loss [default: 0.001, with --full 0.00005]
    #[arg(
        long,
        visible_alias = "lr",
        value_name = "LR",
        help_heading = "Optimization"
    )]
    pub learning_rate: Option<AskedRate>,
    /// Decoupled weight decay [default: 0.01]
    #[arg(long, value_name = "DECAY", help_heading = "Optimization")]
    pub weight_decay: Option<f64>,
    /// AdamW's first beta [default: 0.9]
    #[arg(long, value_name = "BETA", help_heading = "Optimization")]
    pub adam_beta1: Option<f64>,
    /// AdamW's second beta [default: 0.999]
    #[arg(long, value_name = "BETA", help_heading = "Optimization")]
    pub adam_beta2: Option<f64>,
    /// AdamW's epsilon [default: 1e-8]
    #[arg(long, value_name = "EPS", help_heading = "Optimization")]
    pub adam_epsilon: Option<f64>,
    /// LoRA+: learning rate of each B (and of biases) as a multiple of that of A, such as 16
    /// [default: 1]
    #[arg(long, value_name = "RATIO", help_heading = "Optimization")]
    pub loraplus_lr_ratio: Option<f64>,
    /// linear, cosine, constant, constant_with_warmup or polynomial [default: linear]
    #[arg(long, value_parser = named::<SchedulerType>, value_name = "TYPE", help_heading = "Optimization")]
    pub lr_scheduler_type: Option<SchedulerType>,
    /// Steps of warm-up; wins over the ratio
    #[arg(long, value_name = "STEPS", help_heading = "Optimization")]
    pub warmup_steps: Option<u64>,
    /// Share of the run that is warm-up [default: 0.06]
    #[arg(long, value_name = "SHARE", help_heading = "Optimization")]
    pub warmup_ratio: Option<f64>,
    /// Waves of the cosine schedule [default: 0.5]
    #[arg(long, value_name = "WAVES", help_heading = "Optimization")]
    pub lr_num_cycles: Option<f64>,
    /// Last rate of the polynomial schedule [default: 1e-7]
    #[arg(long, value_name = "LR", help_heading = "Optimization")]
    pub lr_end: Option<f64>,
    /// Exponent of the polynomial schedule [default: 1]
    #[arg(long, value_name = "POWER", help_heading = "Optimization")]
    pub lr_power: Option<f64>,
    /// Gradient norm above which gradients are scaled down, 0 for never [default: 1]
    #[arg(long, value_name = "NORM", help_heading = "Optimization")]
    pub max_grad_norm: Option<f64>,
    /// Rows a batch [default: 32]
    #[arg(
        long,
        visible_alias = "batch-size",
        alias = "per-device-train-batch-size",
        value_name = "ROWS",
        help_heading = "Optimization"
    )]
    pub per_device_batch_size: Option<usize>,
    /// Batches an optimizer step [default: 1]
    #[arg(long, value_name = "BATCHES", help_heading = "Optimization")]
    pub gradient_accumulation_steps: Option<usize>,
    /// Passes over the rows, fractions allowed [default: 3]
    #[arg(
        long,
        visible_alias = "epochs",
        value_name = "EPOCHS",
        help_heading = "Optimization"
    )]
    pub num_train_epochs: Option<f64>,
    /// Optimizer steps of the run; wins over the epochs
    #[arg(long, value_name = "STEPS", help_heading = "Optimization")]
    pub max_steps: Option<u64>,
    /// Seed of fresh adapters and heads, of the order of rows and of dropout [default: 1]
    #[arg(long, value_name = "SEED", help_heading = "Optimization")]
    pub seed: Option<u64>,
    /// Shuffle the rows each epoch [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", overrides_with = "no_shuffle", help_heading = "Optimization")]
    pub shuffle: Option<bool>,
    /// Keep the rows in their order
    #[arg(long, overrides_with = "shuffle", help_heading = "Optimization")]
    #[serde(skip)]
    pub no_shuffle: bool,
    /// Recompute activations block by block in the backward pass: less memory, more time, the same
    /// bits
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Optimization")]
    pub gradient_checkpointing: Option<bool>,
    /// Share of a language model's target that is spread over the vocabulary [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Optimization")]
    pub label_smoothing_factor: Option<f64>,
    /// Every dropout of the model itself [default: from its configuration]
    #[arg(long, value_name = "P", help_heading = "Optimization")]
    pub dropout: Option<f64>,
    /// Dropout before the classifier [default: --dropout, or from the configuration]
    #[arg(
        long,
        visible_alias = "cls-dropout",
        value_name = "P",
        help_heading = "Optimization"
    )]
    pub classifier_dropout: Option<f64>,
}

/// Evaluation, checkpoints and when to stop.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EvaluationArgs {
    /// When the validation rows are evaluated: no, steps or epoch [default: epoch, no without
    /// validation rows]
    #[arg(long, value_parser = named::<IntervalStrategy>, value_name = "WHEN", help_heading = "Evaluation and checkpoints")]
    pub eval_strategy: Option<IntervalStrategy>,
    /// Evaluate every so many steps; implies --eval-strategy steps
    #[arg(
        long,
        value_name = "STEPS",
        help_heading = "Evaluation and checkpoints"
    )]
    pub eval_steps: Option<u64>,
    /// Rows an evaluation batch [default: 64]
    #[arg(
        long,
        visible_alias = "eval-batch-size",
        value_name = "ROWS",
        help_heading = "Evaluation and checkpoints"
    )]
    pub per_device_eval_batch_size: Option<usize>,
    /// When checkpoints are written: no, steps or epoch [default: epoch]
    #[arg(long, value_parser = named::<IntervalStrategy>, value_name = "WHEN", help_heading = "Evaluation and checkpoints")]
    pub save_strategy: Option<IntervalStrategy>,
    /// Write a checkpoint every so many steps; implies --save-strategy steps
    #[arg(
        long,
        value_name = "STEPS",
        help_heading = "Evaluation and checkpoints"
    )]
    pub save_steps: Option<u64>,
    /// Checkpoints kept, the newest ones, the best one besides [default: 2]
    #[arg(long, value_name = "N", help_heading = "Evaluation and checkpoints")]
    pub save_total_limit: Option<usize>,
    /// loss, accuracy, f1, f1_macro, f1_micro, matthews, pearson or spearman [default: the task's
    /// first]
    #[arg(long, value_parser = named::<Metric>, value_name = "METRIC", help_heading = "Evaluation and checkpoints")]
    pub metric_for_best_model: Option<Metric>,
    /// End with the values of the best checkpoint [default: true with validation rows]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Evaluation and checkpoints")]
    pub load_best_model_at_end: Option<bool>,
    /// Stop after so many evaluations without improvement
    #[arg(long, value_name = "N", help_heading = "Evaluation and checkpoints")]
    pub early_stopping_patience: Option<u64>,
    /// By how much the metric must improve to count [default: 0]
    #[arg(
        long,
        value_name = "AMOUNT",
        help_heading = "Evaluation and checkpoints"
    )]
    pub early_stopping_threshold: Option<f64>,
}

/// How much memory a run may take.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryArgs {
    /// Memory of the whole process, such as 2GB or 1.5GiB: the largest batch that fits is taken,
    /// with as many of them a step as give the rows asked for; activations are recomputed where
    /// that is less work than ever smaller batches
    #[arg(long, value_name = "SIZE", help_heading = "Memory")]
    pub max_memory: Option<ByteSize>,
    /// What the frozen layers below the lowest adapter give may be kept across epochs: auto (what
    /// memory permits), off, or a size. The results are the same, bit for bit [default: auto]
    #[arg(long, value_name = "auto|off|SIZE", help_heading = "Memory")]
    pub prefix_cache: Option<PrefixCacheLimit>,
}

/// Train an adapter, or all weights.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainArgs {
    /// The pretrained model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Whether a new head may be started.
    #[command(flatten)]
    #[serde(flatten)]
    pub new_head: NewHeadArgs,
    /// Adapter directory or file to start from, in place of fresh adapters
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    pub adapter: Option<String>,
    /// What trains.
    #[command(flatten)]
    #[serde(flatten)]
    pub method: MethodArgs,
    /// With --full: start from new random weights; of the model's directory only config and
    /// tokenizer are read
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Model")]
    pub from_scratch: Option<bool>,
    /// Training rows: a .jsonl, .csv or .tsv file
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub train_file: Option<String>,
    /// Validation rows
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub validation_file: Option<String>,
    /// Test rows, evaluated before and after training
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub test_file: Option<String>,
    /// How rows are read.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArgs,
    /// What is adapted.
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// The optimizer.
    #[command(flatten)]
    #[serde(flatten)]
    pub optimization: OptimizationArgs,
    /// Evaluation and checkpoints.
    #[command(flatten)]
    #[serde(flatten)]
    pub evaluation: EvaluationArgs,
    /// Memory.
    #[command(flatten)]
    #[serde(flatten)]
    pub memory: MemoryArgs,
    /// Directory of the run [default: runs/default]
    #[arg(long, short, value_name = "DIR", help_heading = "Run")]
    pub output_dir: Option<String>,
    /// Go on with the run in --output-dir from its newest checkpoint
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", conflicts_with = "overwrite", help_heading = "Run")]
    pub resume: Option<bool>,
    /// Start anew where a run exists; the old run is moved aside, not deleted
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Run")]
    pub overwrite: Option<bool>,
    /// Print the resolved configuration as YAML, which --config takes, and stop
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Run")]
    pub dry_run: Option<bool>,
    /// How values are stored and multiplied.
    #[command(flatten)]
    #[serde(flatten)]
    pub numerics: NumericArgs,
    /// The recipe.
    #[command(flatten)]
    #[serde(flatten)]
    pub preset: PresetArgs,
    /// List the presets and stop; with --json their settings too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "General")]
    pub list_presets: Option<bool>,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}
