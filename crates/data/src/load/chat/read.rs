//! The chat that a row of a file holds, in each of the forms that rows have.

use lowrank_chat::Chat;
use serde_json::{Value, json};

use super::{no_chat, text_of, turns_of};
use crate::columns::{PromptColumns, TextColumns};
use crate::error::{RowFault, RowFaultKind};
use crate::load::prompt::{self, fault, missing};
use crate::rows::{Cell, Row, Table};

/// Rows of which some columns hold chats.
pub(super) struct ChatRows<'a> {
    pub(super) table: &'a Table,
    pub(super) columns: &'a TextColumns,
    /// Whether a prompt with its completion is a chat.
    pub(super) answers_are_chats: bool,
}

impl<'a> ChatRows<'a> {
    /// A row's chat with the column that messages name, where its columns are one's.
    pub(super) fn chat(&self, row: &Row) -> Option<(&'a str, Result<Chat, RowFault>)> {
        match self.columns {
            TextColumns::Chat {
                turns,
                system,
                tools,
            } => {
                let chat = self.turns(row, turns, system.as_ref(), tools.as_ref());
                Some((turns, chat))
            }
            TextColumns::Completion { prompt, completion } => {
                let said = self.table.get(row, &prompt.prompt);
                match said.as_ref().and_then(turns_of) {
                    Some(said) => Some((&prompt.prompt, self.continued(row, said, completion))),
                    None if self.answers_are_chats => {
                        Some((&prompt.prompt, self.answered(row, prompt, completion)))
                    }
                    None => None,
                }
            }
            TextColumns::Text { .. } | TextColumns::Words { .. } | TextColumns::Ids { .. } => None,
        }
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
            return Err(refused(column, missing(self.table, row, column)));
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
                None => missing(self.table, row, completion),
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
