//! The messages of a chat as templates see them: JSON objects whose fields keep their order.

use serde_json::{Map, Value};

use crate::error::MessageError;

/// Whose words a message holds, as far as masks ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The model's own: the role `assistant` (also `model`, as Gemma's templates print it).
    Assistant,
    /// Anybody else's.
    Other,
}

/// Messages and the tools that they may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    messages: Vec<Map<String, Value>>,
    tools: Option<Vec<Value>>,
}

/// Names under which reasoning is passed; the first is the one that templates read. Source:
/// transformers 5.24, `_alias_reasoning_fields`.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl Chat {
    /// Messages in the form of OpenAI: objects with `role` and `content`, and what else templates
    /// may read. Fields that are null are as absent, and reasoning is found under each of its
    /// names, both as in transformers.
    ///
    /// # Errors
    /// There are none, or one has no role, or its content is neither text nor parts.
    pub fn from_messages(messages: &[Value]) -> Result<Self, MessageError> {
        if messages.is_empty() {
            return Err(MessageError::Empty);
        }
        let numbered = messages.iter().enumerate();
        let messages = numbered.map(|(i, message)| read(i + 1, message));
        Ok(Chat {
            messages: messages.collect::<Result<_, _>>()?,
            tools: None,
        })
    }

    /// The chat with tools: JSON schemas of functions. None at all are as an empty list.
    #[must_use]
    pub fn with_tools(self, tools: Vec<Value>) -> Self {
        let tools = Some(tools).filter(|tools| !tools.is_empty());
        Chat { tools, ..self }
    }

    /// The messages.
    pub fn messages(&self) -> &[Map<String, Value>] {
        &self.messages
    }

    /// The tools.
    pub fn tools(&self) -> Option<&[Value]> {
        self.tools.as_deref()
    }

    /// Whose words message `at` holds.
    pub fn role(&self, at: usize) -> Role {
        match self.messages[at].get("role").and_then(Value::as_str) {
            Some("assistant" | "model") => Role::Assistant,
            _ => Role::Other,
        }
    }

    /// Whether message `at` may be learned: its `weight`, as in OpenAI's fine-tuning files, is
    /// not 0.
    pub fn counts(&self, at: usize) -> bool {
        let weight = self.messages[at].get("weight");
        weight.and_then(Value::as_f64) != Some(0.0)
    }

    /// The places of the assistant's messages that may be learned.
    pub fn answers(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        let all = 0..self.messages.len();
        all.filter(|&at| self.role(at) == Role::Assistant && self.counts(at))
    }

    /// Whether message `at` is one of the system, or of the developer.
    pub fn is_system(&self, at: usize) -> bool {
        let role = self.messages[at].get("role").and_then(Value::as_str);
        matches!(role, Some("system" | "developer"))
    }

    /// Whether message `at` says nothing: it has no text, no reasoning and calls no tool.
    pub fn is_silent(&self, at: usize) -> bool {
        let message = &self.messages[at];
        let says = |name: &str| match message.get(name) {
            Some(Value::String(text)) => !text.trim().is_empty(),
            Some(Value::Array(parts)) => !parts.is_empty(),
            Some(_) => true,
            None => false,
        };
        let names = [
            "content",
            "reasoning_content",
            "tool_calls",
            "function_call",
        ];
        !names.into_iter().any(says)
    }

    /// The first `n` messages with the same tools. Panics if there are not as many.
    #[must_use]
    pub fn first(&self, n: usize) -> Self {
        Chat {
            messages: self.messages[..n].to_vec(),
            tools: self.tools.clone(),
        }
    }

    /// A chat of other messages and tools in these ones' place.
    pub(crate) fn of_parts(messages: Vec<Map<String, Value>>, tools: Vec<Value>) -> Self {
        Chat {
            messages,
            tools: None,
        }
        .with_tools(tools)
    }

    /// The chat behind what the system says.
    #[must_use]
    pub fn behind_system(&self, text: &str) -> Self {
        let says = [("role", "system"), ("content", text)];
        let says = says.map(|(name, value)| (name.to_owned(), Value::from(value)));
        let mut messages = vec![Map::from_iter(says)];
        messages.extend(self.messages.iter().cloned());
        Chat {
            messages,
            tools: self.tools.clone(),
        }
    }

    /// The chat without the messages of `range`.
    #[must_use]
    pub fn without(&self, range: std::ops::Range<usize>) -> Self {
        let (before, after) = (&self.messages[..range.start], &self.messages[range.end..]);
        Chat {
            messages: [before, after].concat(),
            tools: self.tools.clone(),
        }
    }
}

fn read(at: usize, message: &Value) -> Result<Map<String, Value>, MessageError> {
    let Some(message) = message.as_object() else {
        let found = kind(message);
        return Err(MessageError::NoObject { at, found });
    };
    let wrong = |field: &'static str, expected: &'static str| MessageError::Field {
        at,
        field,
        found: message.get(field).map_or("missing", kind).to_owned(),
        expected,
    };
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(wrong("role", "a text such as `user`"));
    }
    let silent = [
        "tool_calls",
        "function_call",
        "reasoning_content",
        "thinking",
        "reasoning",
    ];
    match message.get("content") {
        Some(Value::String(_) | Value::Array(_)) => {}
        None | Some(Value::Null) if silent.iter().any(|field| has(message, field)) => {}
        _ => return Err(wrong("content", "a text, or a list of parts")),
    }
    let mut read: Map<String, Value> = (message.iter())
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let reasoning = REASONING.iter().find_map(|name| read.get(*name)).cloned();
    if let Some(reasoning) = reasoning {
        let mut all = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
        all.append(&mut read);
        all.insert("reasoning_content".to_owned(), reasoning);
        read = all;
    }
    Ok(read)
}

fn has(message: &Map<String, Value>, field: &str) -> bool {
    message.get(field).is_some_and(|value| !value.is_null())
}

/// The kind of a value, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(messages: Value) -> Result<Chat, MessageError> {
        Chat::from_messages(messages.as_array().unwrap())
    }

    #[test]
    fn nulls_are_as_absent_and_reasoning_has_each_of_its_names() {
        let message =
            json!({ "role": "assistant", "content": "a", "tool_calls": null, "reasoning": "r" });
        let chat = chat(json!([message])).unwrap();
        let expected = json!({
            "thinking": "r", "role": "assistant", "content": "a", "reasoning": "r", "reasoning_content": "r"
        });
        assert_eq!(Value::Object(chat.messages()[0].clone()), expected);
        let names: Vec<&String> = chat.messages()[0].keys().collect();
        assert_eq!(names[0], "thinking");
    }

    #[test]
    fn what_is_no_message_is_said() {
        let message = |messages| chat(messages).unwrap_err().to_string();
        assert_eq!(message(json!([])), "a chat without messages");
        assert_eq!(
            message(json!([{ "role": "user", "content": "a" }, "b"])),
            "message 2 is a text, expected an object with `role` and `content`"
        );
        assert_eq!(
            message(json!([{ "content": "a" }])),
            "`role` of message 1 is missing, expected a text such as `user`"
        );
        assert_eq!(
            message(json!([{ "role": "user", "content": 3 }])),
            "`content` of message 1 is a number, expected a text, or a list of parts"
        );
        assert_eq!(
            message(json!([{ "role": "user" }])),
            "`content` of message 1 is missing, expected a text, or a list of parts"
        );
        chat(json!([{ "role": "assistant", "content": null, "tool_calls": [{}] }])).unwrap();
    }
}
