//! The flags of `generate`.

use clap::Args;
use lowrank_data::NlgFormat;
use serde::{Deserialize, Serialize};

use super::common::{AdapterArgs, CommonArgs, ModelArgs, PrecisionArg, named};
use crate::presets::PresetArgs;

/// Write text after prompts.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerateArgs {
    /// The pretrained model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// The adapter.
    #[command(flatten)]
    #[serde(flatten)]
    pub adapter: AdapterArgs,
    /// Fold the adapter into the weights in memory first: each token costs less
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Model")]
    pub merge_adapter: Option<bool>,
    /// How weights and activations are stored and multiplied: f32, bf16, or auto, which is bf16 where the processor multiplies it faster [default: f32]
    #[arg(long, value_parser = named::<PrecisionArg>, value_name = "PRECISION", help_heading = "Model")]
    pub precision: Option<PrecisionArg>,
    /// What to go on with: one or more prompts
    #[arg(long, short, num_args = 1.., value_name = "TEXT", conflicts_with_all = ["prompt_file", "interactive"], help_heading = "Prompts")]
    pub prompt: Option<Vec<String>>,
    /// Prompts in a .jsonl, .csv or .tsv file; the answers are JSON lines
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "interactive",
        help_heading = "Prompts"
    )]
    pub prompt_file: Option<String>,
    /// Column of the prompts in a file [default: found by its name: prompt, context, instruction, question, ...]
    #[arg(long, value_name = "COLUMN", help_heading = "Prompts")]
    pub text_column: Option<String>,
    /// Column of what the prompts are about, which becomes part of them [default: input or context]
    #[arg(long, value_name = "COLUMN", help_heading = "Prompts")]
    pub context_column: Option<String>,
    /// The first line of a .csv or .tsv file is a row, not the names of its columns: columns are then named 0, 1, ...
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Prompts")]
    pub no_header: Option<bool>,
    /// Which data set of text generation a file is of: e2e, webnlg, dart or references [default: by how it begins]
    #[arg(long, value_parser = named::<NlgFormat>, value_name = "NAME", help_heading = "Prompts")]
    pub data_format: Option<NlgFormat>,
    /// Read prompts from standard input, line by line, and write each token as it comes
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Prompts")]
    pub interactive: Option<bool>,
    /// How prompts are laid out: what stands before {completion} [default: as the adapter was trained, else the prompt alone]
    #[arg(long, value_name = "TEXT", help_heading = "Prompts")]
    pub template: Option<String>,
    /// Prompts at a time [default: 16]
    #[arg(long, value_name = "N", help_heading = "Prompts")]
    pub batch_size: Option<usize>,
    /// File for JSON lines [default: standard output]
    #[arg(long, short, value_name = "FILE", help_heading = "General")]
    pub output_file: Option<String>,
    /// The recipe.
    #[command(flatten)]
    #[serde(flatten)]
    pub preset: PresetArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    #[serde(flatten)]
    pub decoding: DecodingArgs,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}

/// How tokens are chosen.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DecodingArgs {
    /// New tokens at most [default: 64]
    #[arg(long, value_name = "N", help_heading = "Decoding")]
    pub max_new_tokens: Option<usize>,
    /// Draw tokens at random; without this and the three that follow, the most probable one is taken
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Decoding")]
    pub do_sample: Option<bool>,
    /// Divides the logits before a draw: above 1 for more variety [default: 1]
    #[arg(long, value_name = "T", help_heading = "Decoding")]
    pub temperature: Option<f32>,
    /// Draw from that many of the most probable tokens
    #[arg(long, value_name = "K", help_heading = "Decoding")]
    pub top_k: Option<usize>,
    /// Draw from the fewest tokens whose probabilities sum to this [default: 1]
    #[arg(long, value_name = "P", help_heading = "Decoding")]
    pub top_p: Option<f32>,
    /// Seed of the draws [default: 1]
    #[arg(long, value_name = "SEED", help_heading = "Decoding")]
    pub seed: Option<u64>,
    /// Beam search with so many beams
    #[arg(long, value_name = "N", conflicts_with_all = ["do_sample", "temperature", "top_k", "top_p"], help_heading = "Decoding")]
    pub num_beams: Option<usize>,
    /// Of beam search: a score is divided by the length to this power [default: 1]
    #[arg(long, value_name = "X", help_heading = "Decoding")]
    pub length_penalty: Option<f64>,
    /// Of beam search: stop as soon as as many sequences are finished as there are beams
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Decoding")]
    pub early_stopping: Option<bool>,
    /// Make tokens that are there already less probable, above 1 [default: 1]
    #[arg(long, value_name = "X", help_heading = "Decoding")]
    pub repetition_penalty: Option<f32>,
    /// No sequence of so many tokens twice [default: 0, which allows all]
    #[arg(long, value_name = "N", help_heading = "Decoding")]
    pub no_repeat_ngram_size: Option<usize>,
}
