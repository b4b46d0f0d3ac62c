//! What can be wrong with a chat or its template.

use thiserror::Error;

/// A message that is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MessageError {
    /// There is no message.
    #[error("a chat without messages")]
    Empty,
    /// It is not an object.
    #[error("message {at} is {found}, expected an object with `role` and `content`")]
    NoObject {
        /// Which message, counted from 1.
        at: usize,
        /// The kind of what is there.
        found: &'static str,
    },
    /// A field is missing, or of another kind than it has to be.
    #[error("`{field}` of message {at} is {found}, expected {expected}")]
    Field {
        /// Which message, counted from 1.
        at: usize,
        /// The field.
        field: &'static str,
        /// The kind of what is there.
        found: String,
        /// What may be there.
        expected: &'static str,
    },
    /// Tools that are none.
    #[error("`tools` {found}, expected a list of JSON schemas of functions")]
    Tools {
        /// What is there.
        found: String,
    },
}

/// A chat that cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChatError {
    /// The template is no Jinja, or uses something that is not known.
    #[error("line {line} of the chat template: {message}")]
    Template {
        /// The line, counted from 1; 0 where it is not known.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// The template refused the chat with `raise_exception`.
    #[error("the chat template refuses this chat: {0}")]
    Raised(String),
    /// The template ran for too long.
    #[error("the chat template was stopped after {0} steps: it loops, or builds text without end")]
    Endless(u64),
    /// The chat has no message of the assistant, whose words alone are learned.
    #[error("no message has the role `assistant`, so that nothing of this chat would be learned")]
    NoAssistant,
    /// The chat holds characters by which spans are told.
    #[error("the chat holds the character U+{0:X}, which nobody's text holds")]
    Sentinel(u32),
    /// What the messages before a turn render to is not how the chat up to it begins.
    #[error(
        "the chat template renders the {at} messages before a turn of the assistant otherwise than with that turn behind \
         them: from character {differs} on they differ, so that the turn has no beginning"
    )]
    NoPrefix {
        /// How many messages stand before the turn.
        at: usize,
        /// The first character that differs, counted from 0.
        differs: usize,
    },
}
