//! Chats: from a row's turns to tokens by the model's chat template, with the loss on what the
//! assistant wrote.

mod laid;
mod report;

use std::sync::Arc;

use lowrank_chat::{Chat, ChatTemplate, LossOn, Variables};
use serde_json::{Value, json};

use super::collect::Read;
use super::prompt::{self, fault};
use super::row::RowReader;
use crate::columns::{PromptColumns, TextColumns};
use crate::error::{RowFault, RowFaultKind};
use crate::rows::{Cell, Row, Table};
use laid::Laying;
pub(super) use laid::ReadChat;
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
        let (column, chat) = match &self.columns.text {
            TextColumns::Chat {
                turns,
                system,
                tools,
            } => (
                turns,
                self.turns(row, turns, system.as_ref(), tools.as_ref()),
            ),
            TextColumns::Completion { prompt, completion } => {
                let said = self.table.get(row, &prompt.prompt);
                let conversational = said.as_ref().and_then(turns_of);
                match conversational {
                    Some(said) => (&prompt.prompt, self.continued(row, said, completion)),
                    None if self.answers_are_chats => {
                        (&prompt.prompt, self.answered(row, prompt, completion))
                    }
                    None => return None,
                }
            }
            TextColumns::Text { .. } | TextColumns::Words { .. } | TextColumns::Ids { .. } => {
                return None;
            }
        };
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

    /// A list of turns, with its system prompt and tools where they stand apart.
    fn turns(
        &self,
        row: &Row,
        column: &str,
        system: Option<&String>,
        tools: Option<&String>,
    ) -> Result<Chat, RowFault> {
        let refused = |column: &str, kind| fault(row, column, kind);
        let Some(cell) = self.table.get(row, column) else {
            return Err(refused(column, self.missing(row, column)));
        };
        let Some(mut turns) = turns_of(&cell) else {
            let kind = match &cell {
                Cell::Json(Value::Array(list)) if list.is_empty() => {
                    RowFaultKind::Chat("a chat without messages".into())
                }
                cell => crate::labels::wrong(cell, "a list of turns, each with its role"),
            };
            return Err(refused(column, kind));
        };
        let has_own = turns[0].get("role").is_some_and(|role| role == "system");
        let system = self.system(row, system)?.filter(|_| !has_own);
        turns.splice(0..0, system);
        let chat = Chat::from_turns(&turns).map_err(|error| no_chat(row, column, &error))?;
        let Some((name, cell)) = tools.and_then(|name| Some((name, self.table.get(row, name)?)))
        else {
            return Ok(chat);
        };
        let text;
        let cell = match cell {
            Cell::Json(value) => value,
            Cell::Text(written) => {
                text = json!(written);
                &text
            }
        };
        chat.with_tools_of(cell)
            .map_err(|error| no_chat(row, name, &error))
    }

    /// What is said to the model before a chat, where a column of its own says anything.
    fn system(&self, row: &Row, column: Option<&String>) -> Result<Option<Value>, RowFault> {
        let Some(column) = column.filter(|name| self.table.get(row, name).is_some()) else {
            return Ok(None);
        };
        let text = prompt::string(self.table, row, column)?;
        let says = !text.trim().is_empty();
        Ok(says.then(|| json!({ "role": "system", "content": text })))
    }

    /// TRL's conversational form: turns, and the turns that follow, which alone are learned.
    fn continued(&self, row: &Row, said: Vec<Value>, completion: &str) -> Result<Chat, RowFault> {
        let cell = self.table.get(row, completion);
        let Some(follows) = cell.as_ref().and_then(turns_of) else {
            let kind = match &cell {
                Some(cell) => crate::labels::wrong(cell, "a list of turns, as the prompt is"),
                None => self.missing(row, completion),
            };
            return Err(fault(row, completion, kind));
        };
        let unlearned = said.into_iter().map(|turn| match turn {
            Value::Object(mut fields) => {
                fields.insert("weight".to_owned(), json!(0));
                Value::Object(fields)
            }
            other => other,
        });
        let turns: Vec<Value> = unlearned.chain(follows).collect();
        Chat::from_turns(&turns).map_err(|error| no_chat(row, completion, &error))
    }

    /// An instruction, or a question, with its answer: two turns, behind a system prompt and
    /// earlier turns where there are any.
    fn answered(
        &self,
        row: &Row,
        columns: &PromptColumns,
        completion: &str,
    ) -> Result<Chat, RowFault> {
        let alone = PromptColumns {
            system: None,
            history: None,
            ..columns.clone()
        };
        let system = self.system(row, columns.system.as_ref())?;
        let mut turns: Vec<Value> = system.into_iter().collect();
        if let Some(history) = &columns.history {
            turns.extend(self.history(row, history)?);
        }
        let asked = prompt::Prompt::of_row(self.table, row, &alone)?.joined();
        let answer = prompt::completion(self.table, row, completion)?;
        turns.push(json!({ "role": "user", "content": asked }));
        turns.push(json!({ "role": "assistant", "content": answer }));
        Chat::from_messages(&turns).map_err(|error| no_chat(row, &columns.prompt, &error))
    }

    /// Earlier turns as Alpaca's kin write them: pairs of what was asked and what was answered.
    fn history(&self, row: &Row, column: &str) -> Result<Vec<Value>, RowFault> {
        const WANTED: &str = "a list of pairs, each a question and its answer";
        let parsed;
        let cell = self.table.get(row, column);
        let refused = |cell: &Cell<'_>| fault(row, column, crate::labels::wrong(cell, WANTED));
        let pairs = match &cell {
            None => return Ok(Vec::new()),
            Some(Cell::Json(Value::Array(pairs))) => pairs,
            Some(cell) => match text_of(cell) {
                Some(text) if text.trim().is_empty() => return Ok(Vec::new()),
                Some(text) => {
                    parsed = serde_json::from_str::<Vec<Value>>(text).map_err(|_| refused(cell))?;
                    &parsed
                }
                None => return Err(refused(cell)),
            },
        };
        let mut turns = Vec::new();
        for pair in pairs {
            let texts: Option<Vec<&str>> =
                (pair.as_array()).and_then(|pair| pair.iter().map(Value::as_str).collect());
            let Some([asked, answered]) = texts.as_deref() else {
                let kind = crate::labels::wrong(&Cell::Json(pair), "a question and its answer");
                return Err(fault(row, column, kind));
            };
            turns.push(json!({ "role": "user", "content": asked }));
            turns.push(json!({ "role": "assistant", "content": answered }));
        }
        Ok(turns)
    }
}

pub(super) fn no_chat(row: &Row, column: &str, error: &dyn std::error::Error) -> RowFault {
    fault(row, column, RowFaultKind::Chat(error.to_string()))
}
