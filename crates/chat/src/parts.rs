//! What a template leaves out of a chat without a word: found by rendering, since a template is
//! code that nothing else can tell of.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::chat::Chat;
use crate::spans::ChatRow;
use crate::template::{ChatTemplate, Prompting};
use crate::variables::Variables;

/// A part of a chat that a template may leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatPart {
    /// What the system says.
    SystemPrompt,
    /// The tools that may be called.
    Tools,
    /// The assistant's calls of tools.
    ToolCalls,
    /// What tools answered.
    ToolResults,
    /// What the assistant thought before it answered: `reasoning_content`.
    Reasoning,
}

impl ChatPart {
    /// Its name in a sentence, in the plural.
    pub fn name(self) -> &'static str {
        match self {
            ChatPart::SystemPrompt => "system prompts",
            ChatPart::Tools => "tools",
            ChatPart::ToolCalls => "calls of tools",
            ChatPart::ToolResults => "results of tools",
            ChatPart::Reasoning => "reasoning (`reasoning_content`)",
        }
    }
}

/// Names that stand in the place of those of tools, calls and results: what is not in the text
/// that comes of it is left out. The names themselves prove nothing: a tool and its call share one.
const PROBES: [(ChatPart, &str); 3] = [
    (ChatPart::Tools, "lowrank_tool_"),
    (ChatPart::ToolCalls, "lowrank_call_"),
    (ChatPart::ToolResults, "lowrank_result_"),
];

/// The parts of a chat that stand in none of its rows. Of reasoning only that of turns which are
/// learned is looked for: templates drop older reasoning by design.
pub fn left_out(
    template: &ChatTemplate,
    chat: &Chat,
    variables: &Variables,
    rows: &[ChatRow],
) -> Vec<ChatPart> {
    let stands = |text: &str| {
        let text = text.trim();
        text.is_empty() || rows.iter().any(|row| row.text.contains(text))
    };
    let mut found = Vec::new();
    let messages = chat.messages();
    let mut system = (0..messages.len()).filter(|&at| chat.is_system(at));
    if !system.all(|at| texts(&messages[at]).into_iter().all(stands)) {
        found.push(ChatPart::SystemPrompt);
    }
    found.extend(probed(template, chat, variables));
    let ends: Vec<usize> = rows.iter().map(|row| row.messages).collect();
    let learned = (chat.answers()).filter(|at| ends.len() == 1 || ends.contains(&(at + 1)));
    let mut thoughts = learned.filter_map(|at| messages[at].get("reasoning_content")?.as_str());
    if !thoughts.all(stands) {
        found.push(ChatPart::Reasoning);
    }
    found
}

/// Of tools, calls and results those that a template leaves out. A template that refuses the
/// made-up names is believed.
fn probed(template: &ChatTemplate, chat: &Chat, variables: &Variables) -> Vec<ChatPart> {
    let mut counts = [0; PROBES.len()];
    let mut next = |part: ChatPart| {
        let place = PROBES.iter().position(|(probed, _)| *probed == part);
        let place = place.expect("each part that is asked for has a probe");
        counts[place] += 1;
        // A closing letter, so that no name begins another.
        json!(format!("{}{}x", PROBES[place].1, counts[place]))
    };
    let messages: Vec<Map<String, Value>> = (chat.messages().iter())
        .map(|message| probed_message(message, &mut next))
        .collect();
    let tools: Vec<Value> = (chat.tools().into_iter().flatten())
        .map(|tool| probed_tool(tool, &mut next))
        .collect();
    if counts == [0; PROBES.len()] {
        return Vec::new();
    }
    let chat = Chat::of_parts(messages, tools);
    let Ok(rendered) = template.render(&chat, variables, Prompting::Closed) else {
        return Vec::new();
    };
    let is_whole = |count: usize, stem: &str| {
        (1..=count).all(|n| rendered.text.contains(&format!("{stem}{n}x")))
    };
    (PROBES.iter().zip(counts))
        .filter(|((_, stem), count)| !is_whole(*count, stem))
        .map(|((part, _), _)| *part)
        .collect()
}

fn probed_message(
    message: &Map<String, Value>,
    next: &mut impl FnMut(ChatPart) -> Value,
) -> Map<String, Value> {
    let mut message = message.clone();
    let is_result = matches!(message.get("role").and_then(Value::as_str), Some("tool"));
    if is_result && texts(&message).iter().any(|text| !text.trim().is_empty()) {
        message.insert("content".to_owned(), next(ChatPart::ToolResults));
    }
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let function = match call.get_mut("function") {
            Some(function) => function,
            None => call,
        };
        if let Some(name) = function.get_mut("name") {
            *name = next(ChatPart::ToolCalls);
        }
    }
    if let Some(name) = (message.get_mut("function_call")).and_then(|call| call.get_mut("name")) {
        *name = next(ChatPart::ToolCalls);
    }
    message
}

fn probed_tool(tool: &Value, next: &mut impl FnMut(ChatPart) -> Value) -> Value {
    let mut tool = tool.clone();
    let function = match tool.get_mut("function") {
        Some(function) => function,
        None => &mut tool,
    };
    if let Some(name) = function.get_mut("name") {
        *name = next(ChatPart::Tools);
    }
    tool
}

/// The texts of a message: its content, or those of its parts.
fn texts(message: &Map<String, Value>) -> Vec<&str> {
    match message.get("content") {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part.get("text"));
            texts.filter_map(Value::as_str).collect()
        }
        Some(_) | None => Vec::new(),
    }
}
