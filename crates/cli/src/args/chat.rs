//! The flags of `chat`.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::common::{AdapterArgs, CommonArgs, ModelArgs, NumericArgs};
use super::generate::DecodingArgs;

/// Talk with a model.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatArgs {
    /// The pretrained model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
    /// The adapter.
    #[command(flatten)]
    #[serde(flatten)]
    pub adapter: AdapterArgs,
    /// How values are stored and multiplied.
    #[command(flatten)]
    #[serde(flatten)]
    pub numerics: NumericArgs,
    /// The chat template: a file, chatml, llama3, gemma or plain [default: the adapter's or the
    /// model's own]
    #[arg(long, value_name = "NAME", help_heading = "Chat")]
    pub chat_template: Option<String>,
    /// What is said to the model before the chat
    #[arg(long, value_name = "TEXT", help_heading = "Chat")]
    pub system: Option<String>,
    /// How tokens are chosen.
    #[command(flatten)]
    #[serde(flatten)]
    pub decoding: DecodingArgs,
    /// Output and threads.
    #[command(flatten)]
    #[serde(flatten)]
    pub common: CommonArgs,
}
