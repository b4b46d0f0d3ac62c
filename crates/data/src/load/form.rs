//! In which of the known forms a language model's rows are written.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chat::turns_of;
use super::{LoadSpec, LongRows, Task};
use crate::columns::{PromptColumns, TextColumns};
use crate::rows::Table;

/// What a language model's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataForm {
    /// Chats as OpenAI writes them.
    Messages,
    /// Chats as ShareGPT writes them.
    ShareGpt,
    /// Chats whose completion is learned, as TRL writes them.
    ConversationalPrompts,
    /// Instructions with answers, as Stanford Alpaca and its kin write them.
    Alpaca,
    /// Questions or prompts with answers.
    PromptCompletion,
    /// Texts of which each is a row.
    Text,
    /// Texts that are cut into rows.
    TextBlocks,
    /// Token ids.
    TokenIds,
}

impl DataForm {
    /// The form of a table's rows; nothing where no language model reads them.
    pub(super) fn of(table: &Table, columns: &TextColumns, spec: &LoadSpec) -> Option<Self> {
        if spec.task != Task::CausalLm {
            return None;
        }
        let first_turns = |column: &str| {
            let mut rows = table.rows().iter();
            rows.find_map(|row| turns_of(&table.get(row, column)?))
        };
        Some(match columns {
            TextColumns::Chat { turns, .. } => {
                let turns = first_turns(turns).unwrap_or_default();
                match turns.first().and_then(|turn: &Value| turn.get("from")) {
                    Some(_) => DataForm::ShareGpt,
                    None => DataForm::Messages,
                }
            }
            TextColumns::Completion {
                prompt: PromptColumns { prompt, .. },
                ..
            } => match prompt.as_str() {
                "instruction" => DataForm::Alpaca,
                prompt if first_turns(prompt).is_some() => DataForm::ConversationalPrompts,
                _ => DataForm::PromptCompletion,
            },
            TextColumns::Text { .. } if spec.long_rows == LongRows::Blocks => DataForm::TextBlocks,
            TextColumns::Text { .. } => DataForm::Text,
            TextColumns::Ids { .. } => DataForm::TokenIds,
            TextColumns::Words { .. } => return None,
        })
    }

    /// Its name in a line.
    pub fn describe(self) -> &'static str {
        match self {
            DataForm::Messages => "chats, as messages (OpenAI)",
            DataForm::ShareGpt => "chats, as turns (ShareGPT)",
            DataForm::ConversationalPrompts => "chats, as prompt and completion (TRL)",
            DataForm::Alpaca => "instructions with answers (Alpaca)",
            DataForm::PromptCompletion => "prompts with completions",
            DataForm::Text => "plain text, a row each",
            DataForm::TextBlocks => "plain text, cut into blocks",
            DataForm::TokenIds => "token ids",
        }
    }
}
