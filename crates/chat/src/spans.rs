//! Which characters of a chat are learned: those that the assistant wrote, told by the template's
//! `{% generation %}` blocks, or else by what a turn adds to the messages before it. Source: the
//! second way is that of Megatron-Bridge and of TRL's check of prefixes.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::chat::{Chat, Role};
use crate::error::ChatError;
use crate::template::{ChatTemplate, Prompting};
use crate::variables::Variables;

/// Which part of a chat is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossOn {
    /// Every turn of the assistant.
    #[default]
    Assistant,
    /// Its last turn.
    LastAssistant,
    /// All of the text.
    All,
}

/// How the spans of a row were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpanSource {
    /// By the template's generation blocks.
    Marks,
    /// By what each turn adds.
    Prefixes,
    /// By what one turn adds, in a row of its own: with later messages the template renders earlier
    /// ones otherwise.
    TurnByTurn,
    /// Everything is learned.
    Whole,
}

/// A chat, or a chat up to one turn, as text with spans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatRow {
    /// The text, special tokens in it.
    pub text: String,
    /// Bytes of it that are learned, in order and apart.
    pub spans: Vec<Range<usize>>,
    /// How many of the chat's messages it lays out, from the first on.
    pub messages: usize,
    /// How they were found.
    pub source: SpanSource,
}

/// The rows of a chat: one, or where a template renders what stands before differently once more
/// follows (as Qwen3's drops old reasoning), one for each turn of the assistant.
///
/// # Errors
/// The template refuses the chat or a part of it; there is nothing to learn; a turn has no
/// beginning.
pub fn rows(
    template: &ChatTemplate,
    chat: &Chat,
    variables: &Variables,
    loss_on: LossOn,
) -> Result<Vec<ChatRow>, ChatError> {
    if loss_on == LossOn::All {
        let text = template.render(chat, variables, Prompting::Closed)?.text;
        return Ok(vec![ChatRow {
            spans: one(0, text.len()),
            text,
            messages: chat.messages().len(),
            source: SpanSource::Whole,
        }]);
    }
    let mut turns = turns_of(chat);
    if turns.is_empty() {
        return Err(ChatError::NoAssistant);
    }
    if loss_on == LossOn::LastAssistant {
        turns.drain(..turns.len() - 1);
    }
    turns.retain(|&at| chat.counts(at));
    if template.marks_generation()
        && let Some(row) = by_marks(template, chat, variables, &turns)?
    {
        return Ok(vec![row]);
    }
    by_prefixes(template, chat, variables, &turns)
}

/// The places of the assistant's messages.
fn turns_of(chat: &Chat) -> Vec<usize> {
    let all = 0..chat.messages().len();
    all.filter(|&at| chat.role(at) == Role::Assistant).collect()
}

/// The spans of generation blocks; nothing where some turns only are learned, and the blocks are
/// not one for each turn.
fn by_marks(
    template: &ChatTemplate,
    chat: &Chat,
    variables: &Variables,
    learned: &[usize],
) -> Result<Option<ChatRow>, ChatError> {
    let rendered = template.render(chat, variables, Prompting::Closed)?;
    let turns = turns_of(chat);
    let mut spans = rendered.generated;
    if turns != learned {
        if turns.len() != spans.len() {
            return Ok(None);
        }
        let of_turns = turns.iter().zip(spans);
        let of_learned = of_turns.filter(|(turn, _)| learned.contains(turn));
        spans = of_learned.map(|(_, span)| span).collect();
    }
    Ok(Some(ChatRow {
        text: rendered.text,
        spans,
        messages: chat.messages().len(),
        source: SpanSource::Marks,
    }))
}

/// A turn of the assistant by itself: the chat up to message `at` as text, and where its words
/// begin.
struct Turn {
    text: String,
    start: usize,
    at: usize,
}

fn by_prefixes(
    template: &ChatTemplate,
    chat: &Chat,
    variables: &Variables,
    turns: &[usize],
) -> Result<Vec<ChatRow>, ChatError> {
    let turns = turns.iter().map(|&at| turn(template, chat, variables, at));
    let turns: Vec<Turn> = turns.collect::<Result<_, _>>()?;
    let whole = template.render(chat, variables, Prompting::Closed)?.text;
    // Some templates (Phi-3's) put the end token behind the last message, whichever that is.
    let end_token = variables.special_tokens.get("eos_token");
    let ends = ["", end_token.map_or("", String::as_str)];
    let closed_by = |end: &str| {
        let own = turns.iter().map(|turn| {
            let own = turn.text.strip_suffix(end)?;
            (own.len() >= turn.start && whole.starts_with(own)).then_some(turn.start..own.len())
        });
        own.collect::<Option<Vec<Range<usize>>>>()
    };
    if let Some(spans) = ends.into_iter().find_map(closed_by) {
        return Ok(vec![ChatRow {
            text: whole,
            spans,
            messages: chat.messages().len(),
            source: SpanSource::Prefixes,
        }]);
    }
    Ok((turns.into_iter())
        .map(|Turn { text, start, at }| ChatRow {
            spans: one(start, text.len()),
            text,
            messages: at + 1,
            source: SpanSource::TurnByTurn,
        })
        .collect())
}

/// The turn of message `at`: it begins behind the generation prompt, or where the turn departs from
/// it.
fn turn(
    template: &ChatTemplate,
    chat: &Chat,
    variables: &Variables,
    at: usize,
) -> Result<Turn, ChatError> {
    let text = template
        .render(&chat.first(at + 1), variables, Prompting::Closed)?
        .text;
    if at == 0 {
        return Ok(Turn { text, start: 0, at });
    }
    let before = chat.first(at);
    let prompt = template.render(&before, variables, Prompting::Open)?.text;
    let common = common_prefix(&prompt, &text);
    if common < prompt.len() {
        let closed = template.render(&before, variables, Prompting::Closed)?.text;
        if common < closed.len() {
            return Err(ChatError::NoPrefix {
                at,
                differs: text[..common].chars().count(),
            });
        }
    }
    Ok(Turn {
        text,
        start: common,
        at,
    })
}

/// Bytes of the longest common beginning, whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    let pairs = a.char_indices().zip(b.chars());
    let mut end = 0;
    for ((at, a), b) in pairs {
        if a != b {
            return at;
        }
        end = at + a.len_utf8();
    }
    end
}

/// A list of one span.
fn one(start: usize, end: usize) -> Vec<Range<usize>> {
    std::iter::once(start..end).collect()
}
