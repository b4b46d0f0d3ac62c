//! Chats: from a row's turns to tokens by the model's chat template, with the loss on what the
//! assistant wrote.

use std::collections::BTreeMap;
use std::sync::Arc;

use lowrank_chat::{Chat, ChatTemplate, LossOn, SpanSource, Variables, rows};
use serde_json::{Value, json};

use super::Example;
use super::prompt::{self, fault};
use super::row::{Outcome, RowReader};
use crate::columns::{PromptColumns, TextColumns};
use crate::error::{RowFault, RowFaultKind};
use crate::labels::{IGNORE_INDEX, Label};
use crate::rows::{Cell, Row, Table};
use crate::tokenizer::Tokenizer;

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
        Cell::Json(Value::String(text)) => listed(&serde_json::from_str::<Vec<Value>>(text).ok()?),
        Cell::Text(text) => listed(&serde_json::from_str::<Vec<Value>>(text).ok()?),
        Cell::Json(_) => None,
    }
}

impl RowReader<'_> {
    /// A row as a chat, where its columns are one's.
    pub(super) fn chat(&self, row: &Row) -> Option<Result<Outcome, RowFault>> {
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
        Some(chat.and_then(|chat| self.laid_chat(row, column, &chat, format)))
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
        let pairs = match &cell {
            None => return Ok(Vec::new()),
            Some(Cell::Text(text)) if text.trim().is_empty() => return Ok(Vec::new()),
            Some(Cell::Json(Value::Array(pairs))) => pairs,
            Some(Cell::Text(text)) => match serde_json::from_str(text) {
                Ok(Value::Array(pairs)) => {
                    parsed = pairs;
                    &parsed
                }
                _ => {
                    return Err(fault(
                        row,
                        column,
                        crate::labels::wrong(&Cell::Text(text), WANTED),
                    ));
                }
            },
            Some(cell) => return Err(fault(row, column, crate::labels::wrong(cell, WANTED))),
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

    /// The chat's rows as tokens, whose labels say what is learned.
    fn laid_chat(
        &self,
        row: &Row,
        column: &str,
        chat: &Chat,
        format: &ChatFormat,
    ) -> Result<Outcome, RowFault> {
        let refused = |kind| fault(row, column, kind);
        let Some(tokenizer) = self.tokenizer else {
            return Err(refused(RowFaultKind::Tokenize("no tokenizer".into())));
        };
        let laid = rows(&format.template, chat, &format.variables, format.loss_on)
            .map_err(|error| no_chat(row, column, &error))?;
        let source = laid.first().map_or(SpanSource::Whole, |row| row.source);
        let mut parts = Vec::with_capacity(laid.len());
        for chat in laid {
            let mut tokens = tokens_of(tokenizer, &chat.text, &chat.spans)
                .map_err(|error| refused(RowFaultKind::Tokenize(error)))?;
            if tokens.input_ids.is_empty() {
                return Err(refused(RowFaultKind::NoTokens("tokens")));
            }
            self.check_vocabulary(&tokens.input_ids).map_err(refused)?;
            let length = tokens.input_ids.len();
            if let Some(too_long) = self.too_long(row, column, length)? {
                parts.push(too_long);
                continue;
            }
            let most = self.cut_at().unwrap_or(usize::MAX);
            tokens.input_ids.truncate(most);
            tokens.labels.truncate(most);
            parts.push(Outcome::Kept(Example {
                truncated_tokens: u32::try_from(length - tokens.input_ids.len())
                    .unwrap_or(u32::MAX),
                input_ids: tokens.input_ids,
                token_type_ids: None,
                label: Label::Tokens(tokens.labels),
                line: row.line,
            }));
        }
        Ok(Outcome::Chat(source, parts))
    }
}

fn no_chat(row: &Row, column: &str, error: &dyn std::error::Error) -> RowFault {
    fault(row, column, RowFaultKind::Chat(error.to_string()))
}

/// Tokens of a text, with a label for each that is learned.
struct Learned {
    input_ids: Vec<u32>,
    labels: Vec<i64>,
}

/// A token is learned that has a character of a span, as transformers' masks of assistant tokens
/// have it; the first never is, since nothing predicts it.
fn tokens_of(
    tokenizer: &Tokenizer,
    text: &str,
    spans: &[std::ops::Range<usize>],
) -> Result<Learned, String> {
    let tokens = tokenizer
        .encode_plain_spans(text)
        .map_err(|error| error.to_string())?;
    let mut learned = vec![false; text.chars().count()];
    let mut span = spans.iter().peekable();
    for (at, (byte, _)) in text.char_indices().enumerate() {
        while span.next_if(|span| span.end <= byte).is_some() {}
        learned[at] = span.peek().is_some_and(|span| span.start <= byte);
    }
    let label = |(id, place): (&u32, &std::ops::Range<usize>)| {
        let characters = learned.get(place.clone()).unwrap_or_default();
        match characters.contains(&true) {
            true => i64::from(*id),
            false => IGNORE_INDEX,
        }
    };
    let mut labels: Vec<i64> = tokens
        .input_ids
        .iter()
        .zip(&tokens.spans)
        .map(label)
        .collect();
    if let Some(first) = labels.first_mut() {
        *first = IGNORE_INDEX;
    }
    Ok(Learned {
        labels,
        input_ids: tokens.input_ids,
    })
}

/// What a user should know of chats: how their rows were made.
pub(super) fn note(sources: &[SpanSource], loss_on: LossOn) -> Option<String> {
    let mut counts: BTreeMap<SpanSource, usize> = BTreeMap::new();
    for source in sources {
        *counts.entry(*source).or_default() += 1;
    }
    let ways = counts.iter().map(|(source, chats)| {
        let way = match source {
            SpanSource::Marks => "told by the template's generation blocks",
            SpanSource::Prefixes => "told by what a turn adds",
            SpanSource::TurnByTurn => {
                "one row for each turn, since the template lays out earlier turns otherwise once others follow"
            }
            SpanSource::Whole => "all of it learned",
        };
        format!("{chats} {way}")
    });
    let ways: Vec<String> = ways.collect();
    let on = match loss_on {
        LossOn::Assistant => "the loss is on the assistant's turns",
        LossOn::LastAssistant => "the loss is on the assistant's last turn",
        LossOn::All => "the loss is on all of the text",
    };
    (!ways.is_empty()).then(|| {
        format!(
            "laid out by the chat template, {on}: chats {}",
            ways.join("; ")
        )
    })
}
