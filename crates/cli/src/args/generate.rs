//! The flags of `generate`.

use clap::Args;
use lowrank_data::NlgFormat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::common::{AdapterArgs, CommonArgs, ModelArgs, NumericArgs, named};
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
    /// How values are stored and multiplied.
    #[command(flatten)]
    #[serde(flatten)]
    pub numerics: NumericArgs,
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
    /// Column of the prompts in a file [default: found by its name: prompt, context, instruction,
    /// question, ...]
    #[arg(long, value_name = "COLUMN", help_heading = "Prompts")]
    pub text_column: Option<String>,
    /// Column of what the prompts are about, which becomes part of them; none leaves it out
    /// [default: input or context]
    #[arg(long, value_name = "COLUMN", help_heading = "Prompts")]
    pub context_column: Option<String>,
    /// The first line of a .csv or .tsv file is a row, not the names of its columns: columns are
    /// then named 0, 1, ...
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Prompts")]
    pub no_header: Option<bool>,
    /// Which data set of text generation a file is of: e2e, webnlg, dart or references [default: by
    /// how it begins]
    #[arg(long, value_parser = named::<NlgFormat>, value_name = "NAME", help_heading = "Prompts")]
    pub data_format: Option<NlgFormat>,
    /// Read prompts from standard input, line by line, and write each token as it comes
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Prompts")]
    pub interactive: Option<bool>,
    /// How prompts are laid out: what stands before {completion} [default: as the adapter was
    /// trained, else the prompt alone]
    #[arg(long, value_name = "TEXT", help_heading = "Prompts")]
    pub template: Option<String>,
    /// Lay prompts out as what a user says in a chat, by this template: a file, chatml, llama3,
    /// gemma, plain, or none [default: the adapter's, if it was trained on chats]
    #[arg(long, value_name = "NAME", help_heading = "Prompts")]
    pub chat_template: Option<String>,
    /// What is said to the model before a chat
    #[arg(long, value_name = "TEXT", help_heading = "Prompts")]
    pub system: Option<String>,
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

/// How tokens are chosen. The names are those of a generation_config.json, whose fields are the
/// defaults.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DecodingArgs {
    /// Another file in place of the model's generation_config.json, or `none` for no file
    #[arg(long, value_name = "FILE|none", help_heading = "Decoding")]
    pub generation_config: Option<String>,
    /// New tokens at most [default: 64]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Decoding")]
    pub max_new_tokens: Option<usize>,
    /// No end before so many new tokens
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Decoding")]
    pub min_new_tokens: Option<usize>,
    /// No end before so many tokens, the prompt's included; --min-new-tokens wins
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Decoding")]
    pub min_length: Option<usize>,
    /// Tokens that end a text, by their ids; -1 for none [default: generation_config.json's,
    /// config.json's or the tokenizer's]
    #[arg(long, value_name = "ID", value_delimiter = ',', num_args = 1.., value_parser = signed, allow_negative_numbers = true, help_heading = "Decoding")]
    pub eos_token_id: Option<Vec<i64>>,
    /// Texts that end what is generated; they are not shown
    #[arg(long, visible_alias = "stop", value_name = "TEXT", num_args = 1.., help_heading = "Decoding")]
    pub stop_strings: Option<Vec<String>>,
    /// Draw tokens at random; without this and the eight that follow, the most probable one is
    /// taken
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Decoding")]
    pub do_sample: Option<bool>,
    /// Divides the logits before a draw: above 1 for more variety, 0 takes the most probable token
    /// [default: 1]
    #[arg(long, value_name = "T", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub temperature: Option<f64>,
    /// Draw from that many of the most probable tokens; 0 is all of them
    #[arg(long, value_name = "K", value_parser = whole, allow_negative_numbers = true, help_heading = "Decoding")]
    pub top_k: Option<usize>,
    /// Draw from the fewest tokens whose probabilities sum to this [default: 1]
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub top_p: Option<f64>,
    /// Draw from tokens of at least this share of the most probable one's probability [default: 0]
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub min_p: Option<f64>,
    /// Draw from the most probable tokens that hold this share of the entropy
    #[arg(long, value_name = "H", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub top_h: Option<f64>,
    /// Draw from the most typical tokens whose probabilities sum to this [default: 1]
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub typical_p: Option<f64>,
    /// Draw from tokens of at least this probability [default: 0]
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub epsilon_cutoff: Option<f64>,
    /// The same with a bound that falls with the entropy [default: 0]
    #[arg(long, value_name = "P", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub eta_cutoff: Option<f64>,
    /// Seed of the draws [default: 1]
    #[arg(long, value_name = "SEED", help_heading = "Decoding")]
    pub seed: Option<u64>,
    /// Beam search with so many beams; 1 is none. Where tokens are drawn, so are the beams
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Decoding")]
    pub num_beams: Option<usize>,
    /// Of beam search: a score is divided by the length to this power [default: 1]
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub length_penalty: Option<f64>,
    /// Of beam search: stop as soon as as many sequences are finished as there are beams (true), by
    /// a guess (false), or when none can become better (never) [default: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = json, value_name = "BOOL|never", help_heading = "Decoding")]
    pub early_stopping: Option<Value>,
    /// Make tokens that are there already less probable, above 1 [default: 1]
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub repetition_penalty: Option<f64>,
    /// Make the prompt's tokens more probable, above 1 [default: 1]
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub encoder_repetition_penalty: Option<f64>,
    /// No sequence of so many tokens twice [default: 0, which allows all]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Decoding")]
    pub no_repeat_ngram_size: Option<usize>,
    /// No sequence of so many tokens of the prompt [default: 0, which allows all]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "Decoding")]
    pub encoder_no_repeat_ngram_size: Option<usize>,
    /// Tokens that are never generated, by their ids
    #[arg(long, value_name = "ID", value_delimiter = ',', num_args = 1.., value_parser = signed, allow_negative_numbers = true, help_heading = "Decoding")]
    pub suppress_tokens: Option<Vec<i64>>,
    /// Tokens that are not generated first
    #[arg(long, value_name = "ID", value_delimiter = ',', num_args = 1.., value_parser = signed, allow_negative_numbers = true, help_heading = "Decoding")]
    pub begin_suppress_tokens: Option<Vec<i64>>,
    /// Sequences of tokens that are never completed
    // An example in the comment would be a link that leads nowhere.
    #[arg(long, help = "Sequences of tokens that are never completed, as in '[[17], [3, 5]]'", value_name = "JSON", value_parser = json, help_heading = "Decoding")]
    pub bad_words_ids: Option<Value>,
    /// What is added to the score of a sequence of tokens
    #[arg(long, help = "What is added to the score of a sequence of tokens, as in '[[[17], -2.5], [[3, 5], 4.0]]'", value_name = "JSON", value_parser = json, help_heading = "Decoding")]
    pub sequence_bias: Option<Value>,
    /// The first new token after a prompt of one token
    #[arg(long, value_name = "ID", value_parser = whole, allow_negative_numbers = true, help_heading = "Decoding")]
    pub forced_bos_token_id: Option<usize>,
    /// The last token where the length ends a text: the most probable of these
    #[arg(long, value_name = "ID", value_delimiter = ',', num_args = 1.., value_parser = whole, allow_negative_numbers = true, help_heading = "Decoding")]
    pub forced_eos_token_id: Option<Vec<usize>>,
    /// After so many new tokens an end becomes more probable by a factor a token, as in '[20, 1.1]'
    #[arg(long, value_name = "JSON", value_parser = json, help_heading = "Decoding")]
    pub exponential_decay_length_penalty: Option<Value>,
    /// Lean away from what the model says without the prompt, above 1 [default: 1]
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true, help_heading = "Decoding")]
    pub guidance_scale: Option<f64>,
    /// Replace scores that are not finite in place of an error
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Decoding")]
    pub remove_invalid_values: Option<bool>,
    /// Of beam search: make scores logarithms of probabilities again after everything
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Decoding")]
    pub renormalize_logits: Option<bool>,
}

fn whole(text: &str) -> Result<usize, String> {
    let number = text.parse();
    number.map_err(|_| format!("expected a whole number from 0 to {}", usize::MAX))
}

fn signed(text: &str) -> Result<i64, String> {
    let number = text.trim().parse();
    number.map_err(|_| "expected the id of a token, a whole number".to_owned())
}

fn number(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x: &f64| x.is_finite());
    number.ok_or_else(|| "expected a finite number".to_owned())
}

/// JSON, or a word as text.
fn json(text: &str) -> Result<Value, String> {
    if text.starts_with(['[', '{']) {
        return serde_json::from_str(text).map_err(|error| format!("expected JSON: {error}"));
    }
    Ok(serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)))
}
