//! The forms in which data sets write chats: OpenAI's messages, and ShareGPT's turns. What differs
//! between them is made one here; a template sees OpenAI's form only.

use serde_json::{Map, Value, json};

use crate::chat::{Chat, kind};
use crate::error::MessageError;

/// The names of ShareGPT's speakers with the roles that they have. Source: LLaMA-Factory's and
/// Axolotl's readers.
const SPEAKERS: [(&str, &str); 14] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("function_call", "function_call"),
    ("tool_call", "function_call"),
    ("observation", "tool"),
    ("tool", "tool"),
    ("function", "tool"),
];

impl Chat {
    /// Turns in either form: objects with `role` and `content`, or with `from` and `value`. Calls
    /// of tools whose arguments are JSON in a text are read, so that templates write them as they
    /// write others.
    ///
    /// # Errors
    /// As [`Chat::from_messages`]; a speaker is not known; a call of a tool is no JSON.
    pub fn from_turns(turns: &[Value]) -> Result<Self, MessageError> {
        let numbered = turns.iter().enumerate();
        let messages = numbered.map(|(i, turn)| message_of(i + 1, turn));
        Chat::from_messages(&messages.collect::<Result<Vec<_>, _>>()?)
    }

    /// The chat with the tools of a data set's cell: a list of schemas, or a text that holds one.
    /// Functions that stand there bare get the wrapper that templates expect.
    ///
    /// # Errors
    /// It is neither, or one of them is no object.
    pub fn with_tools_of(self, cell: &Value) -> Result<Self, MessageError> {
        let wrong = |found: String| MessageError::Tools { found };
        let parsed;
        let list = match cell {
            Value::Null => return Ok(self),
            Value::Array(list) => list,
            Value::String(text) if text.trim().is_empty() => return Ok(self),
            Value::String(text) => {
                parsed = serde_json::from_str(text)
                    .map_err(|error| wrong(format!("hold a text that is no JSON ({error})")))?;
                match &parsed {
                    Value::Array(list) => list,
                    other => return Err(wrong(format!("hold {}", kind(other)))),
                }
            }
            other => return Err(wrong(format!("are {}", kind(other)))),
        };
        let tool = |tool: &Value| match tool {
            Value::Object(fields) if fields.contains_key("function") => Ok(tool.clone()),
            Value::Object(fields) if fields.contains_key("name") => {
                Ok(json!({ "type": "function", "function": fields }))
            }
            Value::Object(_) => Err(wrong(
                "hold an object without `function` or `name`".to_owned(),
            )),
            other => Err(wrong(format!("hold {}", kind(other)))),
        };
        let tools = list.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
        Ok(self.with_tools(tools))
    }
}

fn message_of(at: usize, turn: &Value) -> Result<Value, MessageError> {
    let Some(fields) = turn.as_object() else {
        let found = kind(turn);
        return Err(MessageError::NoObject { at, found });
    };
    if fields.contains_key("role") || !fields.contains_key("from") {
        return with_read_calls(at, fields);
    }
    let wrong = |field, found: String, expected| MessageError::Field {
        at,
        field,
        found,
        expected,
    };
    let speaker = fields
        .get("from")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let role = SPEAKERS.iter().find(|(name, _)| *name == speaker);
    let Some((_, role)) = role else {
        let expected = "one of human, gpt, system, function_call, observation";
        return Err(wrong("from", format!("`{speaker}`"), expected));
    };
    let value = fields.get("value").unwrap_or(&Value::Null);
    let mut message = Map::new();
    if *role == "function_call" {
        let calls = calls_of(value).map_err(|found| {
            wrong(
                "value",
                found,
                "a call of a function as JSON, with `name` and `arguments`",
            )
        })?;
        message.insert("role".to_owned(), json!("assistant"));
        message.insert("content".to_owned(), json!(""));
        message.insert("tool_calls".to_owned(), Value::Array(calls));
    } else {
        if !value.is_string() {
            return Err(wrong("value", kind(value).to_owned(), "a text"));
        }
        message.insert("role".to_owned(), json!(role));
        message.insert("content".to_owned(), value.clone());
    }
    let others = fields
        .iter()
        .filter(|(name, _)| !["from", "value"].contains(&name.as_str()));
    message.extend(others.map(|(name, value)| (name.clone(), value.clone())));
    Ok(Value::Object(message))
}

/// The calls in ShareGPT's `function_call`: one, or a list of them, as a text or as they are.
fn calls_of(value: &Value) -> Result<Vec<Value>, String> {
    let read = match value {
        Value::String(text) => serde_json::from_str(text)
            .map_err(|error| format!("a text that is no JSON ({error})"))?,
        other => other.clone(),
    };
    let calls = match read {
        Value::Array(calls) => calls,
        one => vec![one],
    };
    let call = |call: Value| match call.get("name") {
        Some(Value::String(_)) => Ok(json!({ "type": "function", "function": call })),
        _ => Err(format!("{} without a `name`", kind(&call))),
    };
    calls.into_iter().map(call).collect()
}

/// The message with the arguments of its calls read, where they are JSON in a text, as OpenAI
/// writes them.
fn with_read_calls(at: usize, fields: &Map<String, Value>) -> Result<Value, MessageError> {
    let mut message = fields.clone();
    let calls = message
        .get_mut("tool_calls")
        .filter(|calls| !calls.is_null());
    let Some(calls) = calls else {
        return Ok(Value::Object(message));
    };
    let wrong = |found: String| MessageError::Field {
        at,
        field: "tool_calls",
        found,
        expected: "a list of calls, whose arguments are an object or a text with one as JSON",
    };
    // Tables of texts hold the whole list as JSON.
    if let Value::String(text) = calls {
        let read = serde_json::from_str(text);
        *calls = read.map_err(|error| wrong(format!("a text that is no JSON ({error})")))?;
    }
    let Value::Array(calls) = calls else {
        return Err(wrong(kind(calls).to_owned()));
    };
    for call in calls {
        let found = kind(call);
        let function = match call.get_mut("function") {
            Some(function) => function,
            None => call,
        };
        let Some(function) = function.as_object_mut() else {
            return Err(wrong(format!("a list with {found}")));
        };
        if let Some(Value::String(text)) = function.get("arguments") {
            let read = serde_json::from_str::<Map<String, Value>>(text).map_err(|error| {
                wrong(format!("a call whose arguments are no object ({error})"))
            })?;
            function.insert("arguments".to_owned(), Value::Object(read));
        }
    }
    Ok(Value::Object(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(turns: Value) -> Result<Chat, MessageError> {
        Chat::from_turns(turns.as_array().unwrap())
    }

    #[test]
    fn both_forms_give_the_same_messages() {
        let share_gpt = turns(json!([
            { "from": "system", "value": "s" },
            { "from": "human", "value": "weather?" },
            { "from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"a\": 1}}" },
            { "from": "observation", "value": "{}" },
            { "from": "gpt", "value": "fine" },
        ]));
        let call =
            json!({ "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } });
        let open_ai = turns(json!([
            { "role": "system", "content": "s" },
            { "role": "user", "content": "weather?" },
            { "role": "assistant", "content": "", "tool_calls": [call] },
            { "role": "tool", "content": "{}" },
            { "role": "assistant", "content": "fine" },
        ]));
        let open_ai = open_ai.unwrap();
        assert_eq!(share_gpt.unwrap(), open_ai);
        // The whole list as a text, as tables of texts hold it.
        let mut written = Value::from(
            open_ai
                .messages()
                .iter()
                .cloned()
                .map(Value::from)
                .collect::<Vec<_>>(),
        );
        let calls = written[2]["tool_calls"].to_string();
        written[2]["tool_calls"] = calls.into();
        assert_eq!(turns(written).unwrap(), open_ai);
        let broken = json!([{ "role": "assistant", "content": "", "tool_calls": "[{" }]);
        let found = turns(broken).unwrap_err().to_string();
        assert!(
            found.starts_with("`tool_calls` of message 1 is a text that is no JSON"),
            "{found}"
        );
    }

    #[test]
    fn tools_are_wrapped_and_read_from_texts() {
        let chat = turns(json!([{ "role": "user", "content": "a" }])).unwrap();
        let wrapped = json!([{ "type": "function", "function": { "name": "f" } }]);
        for cell in [
            json!("[{\"name\": \"f\"}]"),
            json!([{ "name": "f" }]),
            wrapped.clone(),
        ] {
            let chat = chat.clone().with_tools_of(&cell).unwrap();
            assert_eq!(chat.tools(), wrapped.as_array().map(Vec::as_slice));
        }
        for nothing in [json!(null), json!(""), json!([]), json!("[]")] {
            assert_eq!(chat.clone().with_tools_of(&nothing).unwrap().tools(), None);
        }
        let error = chat
            .clone()
            .with_tools_of(&json!("{}"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "`tools` hold an object, expected a list of JSON schemas of functions"
        );
    }

    #[test]
    fn what_no_turn_can_be_is_said() {
        let message = |given| turns(given).unwrap_err().to_string();
        assert_eq!(
            message(json!([{ "from": "humn", "value": "a" }])),
            "`from` of message 1 is `humn`, expected one of human, gpt, system, function_call, observation"
        );
        let found = message(json!([{ "from": "function_call", "value": "f(1)" }]));
        assert!(
            found.starts_with("`value` of message 1 is a text that is no JSON"),
            "{found}"
        );
        let call = json!({ "function": { "name": "f", "arguments": "x" } });
        let found = message(json!([{ "role": "assistant", "tool_calls": [call] }]));
        assert!(
            found.contains("a call whose arguments are no object"),
            "{found}"
        );
        let found = message(json!([{ "from": "gpt", "value": null }]));
        assert_eq!(found, "`value` of message 1 is null, expected a text");
    }
}
