//! The flags of every command but `train`.

use std::path::Path;

use clap::Args;
use lowrank_engine::BaseFormat;
use lowrank_run::device::Choice;
use lowrank_run::export::{ExportTo, OutType};
use lowrank_run::predict::Aggregation;
use lowrank_run::targets::Target;
use lowrank_run::{RunError, RunResult};
use serde::{Deserialize, Serialize};

use super::common::{
    AdapterArgs, CommonArgs, DataArgs, ModelArgs, NewHeadArgs, NumericArgs, named,
};
use super::generate::DecodingArgs;
use super::scoring::ScoringArgs;
use super::train::{LoraArgs, MemoryArgs, MethodArgs};
use crate::presets::PresetArgs;

/// Measure a model on labelled rows.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalArgs {
    /// The pretrained model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// The adapter.
    #[command(flatten)]
    #[serde(flatten)]
    pub adapter: AdapterArgs,
    /// Labelled rows: a .jsonl, .csv or .tsv file; with --generate, prompts and references
    #[arg(
        long,
        short,
        value_name = "FILE",
        alias = "test-file",
        help_heading = "Data"
    )]
    pub data_file: Option<String>,
    /// How rows are read.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArgs,
    /// Rows a batch [default: 64]
    #[arg(
        long,
        visible_alias = "batch-size",
        value_name = "ROWS",
        help_heading = "Data"
    )]
    pub per_device_eval_batch_size: Option<usize>,
    /// How values are stored and multiplied.
    #[command(flatten)]
    #[serde(flatten)]
    pub numerics: NumericArgs,
    /// Generated texts.
    #[command(flatten)]
    #[serde(flatten)]
    pub scoring: ScoringArgs,
    /// How their tokens are chosen.
    #[command(flatten)]
    #[serde(flatten)]
    pub decoding: DecodingArgs,
    /// The recipe.
    #[command(flatten)]
    #[serde(flatten)]
    pub preset: PresetArgs,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// Predict rows.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PredictArgs {
    /// The pretrained model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// The adapter.
    #[command(flatten)]
    #[serde(flatten)]
    pub adapter: AdapterArgs,
    /// Rows to predict: a .jsonl, .csv or .tsv file; labels are not needed
    #[arg(
        long,
        short,
        value_name = "FILE",
        conflicts_with = "text",
        help_heading = "Data"
    )]
    pub data_file: Option<String>,
    /// Texts to predict, in place of a file
    #[arg(long, num_args = 1.., value_name = "TEXT", help_heading = "Data")]
    pub text: Option<Vec<String>>,
    /// How rows are read.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArgs,
    /// Rows a batch [default: 64]
    #[arg(
        long,
        visible_alias = "batch-size",
        value_name = "ROWS",
        help_heading = "Data"
    )]
    pub per_device_eval_batch_size: Option<usize>,
    /// How labels of tokens are merged into spans, as transformers' pipeline does: none, simple
    /// (neighbouring tokens), first, average or max (a word's label by its tokens first) [default:
    /// none for rows of words, first for texts]
    #[arg(long, value_parser = named::<Aggregation>, value_name = "STRATEGY", help_heading = "Token classification")]
    pub aggregation_strategy: Option<Aggregation>,
    /// File for the JSON lines [default: standard output]
    #[arg(long, short, value_name = "FILE", help_heading = "General")]
    pub output_file: Option<String>,
    /// How values are stored and multiplied.
    #[command(flatten)]
    #[serde(flatten)]
    pub numerics: NumericArgs,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// Where a plain model is written.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputArgs {
    /// Directory of the plain model
    #[arg(long, short, value_name = "DIR", help_heading = "Model")]
    pub output_dir: Option<String>,
    /// Replace what is in the directory
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Model")]
    pub overwrite: Option<bool>,
}

impl OutputArgs {
    /// The directory.
    ///
    /// # Errors
    /// None is named.
    pub fn target(&self) -> RunResult<Target<'_>> {
        let dir = self.output_dir.as_deref().map(Path::new).ok_or_else(|| {
            RunError::usage("no output directory given").hint("pass --output-dir DIR")
        })?;
        let overwrite = self.overwrite.unwrap_or(false);
        Ok(Target { dir, overwrite })
    }
}

/// Fold an adapter into its base.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MergeArgs {
    /// The pretrained model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// The adapter.
    #[command(flatten)]
    #[serde(flatten)]
    pub adapter: AdapterArgs,
    /// Where it goes.
    #[command(flatten)]
    #[serde(flatten)]
    pub output: OutputArgs,
    /// Weights to start from: f32 for the original ones [default: those that the adapter was
    /// trained over, as they decode, where it was trained over q8_0, q4_0 or nf4]
    #[arg(long, value_parser = super::common::named::<Choice<BaseFormat>>, value_name = "FORMAT", help_heading = "Model")]
    pub base_format: Option<Choice<BaseFormat>>,
    /// Type of the merged weights: f32, f16 or bf16 [default: that of the base]
    #[arg(long, value_parser = super::common::named::<MergeDType>, value_name = "TYPE", help_heading = "Model")]
    pub dtype: Option<MergeDType>,
    /// Read the merged model back and report its largest logit difference from the adapted one
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Verification")]
    pub verify: Option<bool>,
    /// Rows to verify on [default: a few built-in texts]
    #[arg(long, short, value_name = "FILE", help_heading = "Verification")]
    pub data_file: Option<String>,
    /// Logit difference above which --verify fails [default: 1e-3, for weights in half precision
    /// 0.05]
    #[arg(long, value_name = "DIFFERENCE", help_heading = "Verification")]
    pub tolerance: Option<f64>,
    /// How rows are read.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArgs,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// Write a quantised model as a plain model directory.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConvertArgs {
    /// The pretrained model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Where it goes.
    #[command(flatten)]
    #[serde(flatten)]
    pub output: OutputArgs,
    /// Type of the weights: f32, f16 or bf16 [default: bf16]
    #[arg(long, value_parser = super::common::named::<MergeDType>, value_name = "TYPE", help_heading = "Model")]
    pub dtype: Option<MergeDType>,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// Write what was trained as a GGUF file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExportArgs {
    /// The pretrained model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// The adapter.
    #[command(flatten)]
    #[serde(flatten)]
    pub adapter: AdapterArgs,
    /// What is written: gguf-adapter (the adapter by itself, for llama.cpp's --lora), or gguf (the
    /// base, a GGUF file, with the adapter in its weights) [default: gguf-adapter]
    #[arg(long, value_parser = super::common::named::<ExportTo>, value_name = "FORM", help_heading = "Output")]
    pub to: Option<ExportTo>,
    /// Type of the matrices: f32, f16, bf16, q8_0, q4_0, or auto: as in the base, and q8_0 where
    /// those were quantised that the adapter changes; of an adapter f32 [default: auto]
    #[arg(long, value_parser = super::common::named::<OutType>, value_name = "TYPE", help_heading = "Output")]
    pub outtype: Option<OutType>,
    /// The file to write
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    pub output_file: Option<String>,
    /// Read the written model back, and refuse it where its predictions differ from those of the
    /// adapter over its base
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Verification")]
    pub verify: Option<bool>,
    /// Rows to verify on [default: a few built-in texts]
    #[arg(long, short, value_name = "FILE", help_heading = "Verification")]
    pub data_file: Option<String>,
    /// Mean divergence of predictions, in nats, above which --verify fails [default: 1e-6 for f32,
    /// 1e-3 for f16 and bf16, 0.02 for auto and q8_0, 0.5 for q4_0]
    #[arg(long, value_name = "NATS", help_heading = "Verification")]
    pub max_kl: Option<f64>,
    /// How rows are read.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArgs,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// How merged weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeDType {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// Brain float.
    Bf16,
}

impl MergeDType {
    /// The file's name for it.
    pub fn to_format(self) -> lowrank_formats::DType {
        match self {
            MergeDType::F32 => lowrank_formats::DType::F32,
            MergeDType::F16 => lowrank_formats::DType::F16,
            MergeDType::Bf16 => lowrank_formats::DType::BF16,
        }
    }
}

/// Count a run without running it.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanArgs {
    /// A config.json, a directory with one, or a built-in size: gpt3-small, -medium, -large, -xl,
    /// -2.7b, -6.7b, -13b, -175b
    #[arg(value_name = "CONFIG", conflicts_with = "model")]
    pub path: Option<String>,
    /// Write the built-in configuration into this directory, to train from it
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub write_config: Option<String>,
    /// The pretrained model; its config is enough.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Whether a new head may be started.
    #[command(flatten)]
    #[serde(flatten)]
    pub new_head: NewHeadArgs,
    /// What is predicted [default: single_label]
    #[arg(long, value_parser = super::common::named::<lowrank_train::config::Task>, help_heading = "Model")]
    pub task: Option<lowrank_train::config::Task>,
    /// Classes, labels or values of the head [default: from the config, else 2]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub num_labels: Option<usize>,
    /// What is adapted.
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// Rows a batch [default: 32]
    #[arg(
        long,
        visible_alias = "batch-size",
        value_name = "ROWS",
        help_heading = "Batch"
    )]
    pub per_device_batch_size: Option<usize>,
    /// Tokens a row, all rows full [default: 128]
    #[arg(long, value_name = "TOKENS", help_heading = "Batch")]
    pub max_length: Option<usize>,
    /// Recompute activations block by block in the backward pass
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Batch")]
    pub gradient_checkpointing: Option<bool>,
    /// Memory.
    #[command(flatten)]
    #[serde(flatten)]
    pub memory: MemoryArgs,
    /// How values are stored and multiplied.
    #[command(flatten)]
    #[serde(flatten)]
    pub numerics: NumericArgs,
    /// The recipe.
    #[command(flatten)]
    #[serde(flatten)]
    pub preset: PresetArgs,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// Show what is in a file or directory.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InspectArgs {
    /// A model directory or id, an adapter, a .safetensors, .bin or .pt file, or the directory of a
    /// run
    #[arg(value_name = "PATH")]
    pub path: Option<String>,
    /// List every tensor
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub tensors: Option<bool>,
    /// Read every value: sums of squares, not-a-number and infinite values
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub values: Option<bool>,
    /// This machine in place of a PATH: its processor, how fast and how exactly it multiplies, and
    /// what auto takes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", conflicts_with_all = ["tensors", "values"])]
    pub machine: Option<bool>,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// Look at data and targets before training.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckArgs {
    /// The pretrained model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Whether a new head may be started.
    #[command(flatten)]
    #[serde(flatten)]
    pub new_head: NewHeadArgs,
    /// Training rows: a .jsonl, .csv or .tsv file
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub train_file: Option<String>,
    /// Validation rows
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub validation_file: Option<String>,
    /// Test rows
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub test_file: Option<String>,
    /// How rows are read.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArgs,
    /// Rows a batch, for the padding that other programs would compute [default: 32]
    #[arg(
        long,
        visible_alias = "batch-size",
        value_name = "ROWS",
        help_heading = "Data"
    )]
    pub per_device_batch_size: Option<usize>,
    /// Rows to show decoded [default: 3; 5 for a language model]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub samples: Option<usize>,
    /// int8 to read the weights and tell what training on them in eight bits does to the model's
    /// results on the first rows
    #[arg(long, value_parser = named::<BaseFormat>, value_name = "FORMAT", help_heading = "Model")]
    pub base_format: Option<BaseFormat>,
    /// Exit with code 1 when something is found that deserves a look
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Data")]
    pub strict: Option<bool>,
    /// What is adapted.
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// The recipe.
    #[command(flatten)]
    #[serde(flatten)]
    pub preset: PresetArgs,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// Time optimizer steps op by op.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProfileArgs {
    /// The pretrained model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// Whether a new head may be started.
    #[command(flatten)]
    #[serde(flatten)]
    pub new_head: NewHeadArgs,
    /// A config.json in place of a model; weights are random
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub model_config: Option<String>,
    /// Rows to train on, in the order of the file [default: random rows of one length]
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub train_file: Option<String>,
    /// How rows are read.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: DataArgs,
    /// What is adapted.
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// What trains.
    #[command(flatten)]
    #[serde(flatten)]
    pub method: MethodArgs,
    /// Rows a batch [default: 16]
    #[arg(long, value_name = "ROWS")]
    pub batch: Option<usize>,
    /// Tokens a random row [default: 128]
    #[arg(long, value_name = "TOKENS")]
    pub seq: Option<usize>,
    /// Steps timed, after one that is not [default: 5]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Time so many new tokens after each row in place of training steps; `steps` is then how often
    /// [default: 3]
    #[arg(long, value_name = "N", conflicts_with_all = ["full", "method"])]
    pub generate: Option<usize>,
    /// Every choice of storage and arithmetic, one after the other, in place of one
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", conflicts_with_all = ["generate", "workers", "precision", "base_format", "arithmetic"])]
    pub all: Option<bool>,
    /// How a step would do on so many workers: its tasks are timed on one thread, cut as for all of
    /// them, and dealt out on paper
    #[arg(long, value_name = "N", conflicts_with_all = ["generate", "threads"])]
    pub workers: Option<usize>,
    /// Every dropout of the model [default: the config's own]
    #[arg(long, value_name = "P")]
    pub dropout: Option<f64>,
    /// Recompute activations block by block in the backward pass
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub gradient_checkpointing: Option<bool>,
    /// How values are stored and multiplied.
    #[command(flatten)]
    #[serde(flatten)]
    pub numerics: NumericArgs,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}
