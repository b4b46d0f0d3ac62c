//! Chats up to their last answer, with that answer: what a model is asked, and what is expected.

use lowrank_chat::{Chat, Role};
use serde_json::Value;

use super::ChatFormat;
use super::read::ChatRows;
use crate::columns::ColumnSpec;
use crate::error::{DataError, RowFault, RowFaultKind};
use crate::labels::Task;
use crate::load::LabelNeed;
use crate::load::prompt::{all, fault};
use crate::rows::Table;

/// A chat up to its last turn of the assistant.
#[derive(Debug, Clone, PartialEq)]
pub struct AskedChat {
    /// The line of the row.
    pub line: u64,
    /// What stands before the turn.
    pub chat: Chat,
    /// The turn's text.
    pub answer: String,
}

/// The chats of a table's rows up to their last answer; nothing where the rows are no chats.
///
/// # Errors
/// A named column is not there; a row is no chat, or has no answer of text behind something else.
pub fn asked_chats_of(
    table: &Table,
    columns: &ColumnSpec,
    format: &ChatFormat,
) -> Result<Option<Vec<AskedChat>>, DataError> {
    let columns = columns
        .resolve(table, Task::CausalLm, LabelNeed::Ignored, None)?
        .text;
    if !format.takes(table, &columns) {
        return Ok(None);
    }
    let rows = ChatRows {
        table,
        columns: &columns,
        answers_are_chats: true,
    };
    let read = table.rows().iter().filter_map(|row| {
        let (column, chat) = rows.chat(row)?;
        let asked = chat.and_then(|chat| {
            let found = split(&chat);
            let (before, answer) = found.map_err(|kind| fault(row, column, kind))?;
            Ok(AskedChat {
                line: row.line,
                chat: before,
                answer,
            })
        });
        Some(asked)
    });
    let read: Vec<Result<AskedChat, RowFault>> = read.collect();
    all(table, read).map(Some)
}

/// The chat before its last answer, and the text of that.
fn split(chat: &Chat) -> Result<(Chat, String), RowFaultKind> {
    let refused = |why: &str| RowFaultKind::Chat(why.to_owned());
    let mut places = (0..chat.messages().len()).rev();
    let Some(at) = places.find(|&at| chat.role(at) == Role::Assistant) else {
        return Err(refused(
            "no message has the role `assistant`, so that no answer is expected",
        ));
    };
    if at == 0 {
        return Err(refused("the answer has no message before it"));
    }
    match chat.messages()[at].get("content").and_then(Value::as_str) {
        Some(text) => Ok((chat.first(at), text.to_owned())),
        None => Err(refused(
            "the last message of the assistant has no `content` of text",
        )),
    }
}
