//! Chats: from a row's turns to tokens by the model's chat template, with the loss on what the
//! assistant wrote.

mod asked;
mod laid;
mod read;
mod report;

use std::sync::Arc;

use lowrank_chat::{ChatTemplate, LossOn, Variables};
use serde_json::Value;

use super::collect::Read;
use super::prompt::fault;
use super::row::RowReader;
use crate::columns::TextColumns;
use crate::error::{RowFault, RowFaultKind};
use crate::rows::{Cell, Row, Table};
pub use asked::{AskedChat, asked_chats_of};
use laid::Laying;
pub(super) use laid::ReadChat;
use read::ChatRows;
pub use report::ChatReport;

/// How chats are laid out.
#[derive(Debug, Clone)]
pub struct ChatFormat {
    /// The template.
    pub template: Arc<ChatTemplate>,
    /// What it reads besides messages.
    pub variables: Variables,
    /// Which part of a chat is learned.
    pub loss_on: LossOn,
    /// Which rows are chats.
    pub used: ChatUse,
}

/// Which rows are laid out by a chat template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatUse {
    /// Chats, and instructions or questions with their answers. Columns that are called `prompt`
    /// and `completion` are taken as they are, as TRL does.
    Instructions,
    /// Every prompt with its completion.
    Always,
}

impl ChatFormat {
    /// Whether rows of these columns are chats.
    pub(super) fn takes(&self, table: &Table, columns: &TextColumns) -> bool {
        match columns {
            TextColumns::Chat { .. } => true,
            TextColumns::Completion { prompt, completion } => {
                let plain = prompt.prompt == "prompt" && completion == "completion";
                let mut said = table.rows().iter();
                let said = said.find_map(|row| table.get(row, &prompt.prompt));
                let is_turns = said.is_some_and(|said| turns_of(&said).is_some());
                self.used == ChatUse::Always || !plain || is_turns
            }
            TextColumns::Text { .. } | TextColumns::Words { .. } | TextColumns::Ids { .. } => false,
        }
    }
}

/// The turns in a cell: a list of objects with speakers, in text as JSON.
pub(crate) fn turns_of(cell: &Cell<'_>) -> Option<Vec<Value>> {
    let is_turn = |turn: &Value| turn.get("role").is_some() || turn.get("from").is_some();
    let listed = |list: &[Value]| {
        let are_turns = !list.is_empty() && list.iter().all(is_turn);
        are_turns.then(|| list.to_vec())
    };
    match cell {
        Cell::Json(Value::Array(list)) => listed(list),
        cell => listed(&serde_json::from_str::<Vec<Value>>(text_of(cell)?).ok()?),
    }
}

/// The text in a cell of a table or of JSON.
fn text_of<'a>(cell: &Cell<'a>) -> Option<&'a str> {
    match cell {
        Cell::Text(text) => Some(text),
        Cell::Json(value) => value.as_str(),
    }
}

impl RowReader<'_> {
    /// A row as a chat, where its columns are one's.
    pub(super) fn chat(&self, row: &Row) -> Option<Result<Read, RowFault>> {
        let format = self.spec.chat.as_ref()?;
        let rows = ChatRows {
            table: self.table,
            columns: &self.columns.text,
            answers_are_chats: self.answers_are_chats,
        };
        let (column, chat) = rows.chat(row)?;
        let Some(tokenizer) = self.tokenizer else {
            let kind = RowFaultKind::Tokenize("no tokenizer".into());
            return Some(Err(fault(row, column, kind)));
        };
        let laying = Laying {
            reader: self,
            row,
            column,
            format,
            tokenizer,
        };
        Some(chat.and_then(|chat| laying.read(&chat)))
    }
}

pub(super) fn no_chat(row: &Row, column: &str, error: &dyn std::error::Error) -> RowFault {
    fault(row, column, RowFaultKind::Chat(error.to_string()))
}
