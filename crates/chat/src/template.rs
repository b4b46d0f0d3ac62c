//! One chat template, compiled: what it makes of a chat. The environment is that of transformers
//! 5.24 (`utils/chat_template_utils.py`): blocks are trimmed, loops have `break`, and a template
//! has nothing but the chat, its variables and a few functions.

use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use serde_json::Value as Json;

use crate::chat::Chat;
use crate::error::ChatError;
use crate::generation::{self, BEGIN, END};
use crate::python::{self, map_of, value_of};
use crate::variables::{Moment, Variables};

/// Steps that a template may take for one chat, about a second of them; real ones take some
/// hundreds a message.
const FUEL: u64 = 10_000_000;
const NAME: &str = "chat";
const NOW: &str = "lowrank_now";

/// Whether the text ends with what begins the assistant's next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompting {
    /// It ends behind the last message.
    Closed,
    /// It ends with the generation prompt.
    Open,
}

/// A chat as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text. It holds its special tokens: it is to be tokenised without adding any.
    pub text: String,
    /// Bytes of it that stand in `{% generation %}` blocks, in order.
    pub generated: Vec<Range<usize>>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    marks: bool,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// It is no Jinja.
    pub fn new(source: &str) -> Result<Self, ChatError> {
        let mut environment = environment().map_err(|error| describe(&error))?;
        let marked = generation::rewrite(source);
        let marks = marked.is_some();
        // Jinja drops one newline at a template's end; so does this engine.
        environment
            .add_template_owned(NAME, marked.unwrap_or_else(|| source.to_owned()))
            .map_err(|error| describe(&error))?;
        Ok(ChatTemplate {
            source: source.to_owned(),
            environment,
            marks,
        })
    }

    /// The text of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it says what the assistant writes, by `{% generation %}` blocks.
    pub fn marks_generation(&self) -> bool {
        self.marks
    }

    /// The chat as text.
    ///
    /// # Errors
    /// The template refuses the chat, calls what is not known, or does not end.
    pub fn render(
        &self,
        chat: &Chat,
        variables: &Variables,
        prompting: Prompting,
    ) -> Result<Rendered, ChatError> {
        refuse_sentinels(chat)?;
        let messages: Vec<Value> = chat.messages().iter().map(map_of).collect();
        let tools = chat
            .tools()
            .map(|tools| tools.iter().map(value_of).collect::<Vec<_>>());
        let mut context: Vec<(String, Value)> = (variables.special_tokens.iter())
            .map(|(name, token)| (name.clone(), Value::from(token.as_str())))
            .collect();
        let switches = variables.switches.iter();
        context.extend(switches.map(|(name, value)| (name.clone(), value_of(value))));
        context.extend([
            ("messages".to_owned(), Value::from(messages)),
            ("tools".to_owned(), Value::from(tools)),
            ("documents".to_owned(), Value::from(())),
            (
                "add_generation_prompt".to_owned(),
                Value::from(prompting == Prompting::Open),
            ),
            (NOW.to_owned(), Value::from(variables.now.to_string())),
        ]);
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| describe(&error))?;
        let rendered = template.render(Value::from_pairs(context));
        let rendered = rendered.map_err(|error| describe(&error))?;
        let (text, generated) = generation::taken_out(&rendered);
        Ok(Rendered { text, generated })
    }
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_fuel(Some(FUEL));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", |state: &State, value: &Value, args: Kwargs| {
        python::tojson(state, value, args)
    });
    environment.add_test("sequence", |value: &Value| python::is_sequence(value));
    environment.add_test("iterable", |value: &Value| python::is_iterable(value));
    environment.add_function(
        "raise_exception",
        |message: &Value| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raised")
                .with_source(Raised(message.to_string())))
        },
    );
    environment.add_function("strftime_now", |state: &State, format: &str| {
        let now = state
            .lookup(NOW)
            .map(|now| now.to_string())
            .unwrap_or_default();
        let moment = Moment::parse(&now);
        moment
            .and_then(|moment| moment.format(format))
            .ok_or_else(|| {
                let message = format!("strftime_now: {format:?} is no format of a time");
                Error::new(ErrorKind::InvalidOperation, message)
            })
    });
    environment.add_filter(generation::FILTER, |written: &str| {
        format!("{BEGIN}{written}{END}")
    });
    Ok(environment)
}

/// What `raise_exception` was called with.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn describe(error: &Error) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return ChatError::Raised(message.clone());
        }
        let of_engine: Option<&Error> = error.downcast_ref();
        if of_engine.is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return ChatError::Endless(FUEL);
        }
        cause = error.source();
    }
    let message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    ChatError::Template {
        line: error.line().unwrap_or_default(),
        message,
    }
}

/// Refuses texts that hold the characters by which generation blocks are told.
fn refuse_sentinels(chat: &Chat) -> Result<(), ChatError> {
    let messages = chat.messages().iter().flat_map(|message| message.values());
    messages
        .chain(chat.tools().into_iter().flatten())
        .try_for_each(refuse_sentinels_in)
}

fn refuse_sentinels_in(value: &Json) -> Result<(), ChatError> {
    match value {
        Json::String(text) => match text.chars().find(|c| [BEGIN, END].contains(c)) {
            Some(found) => Err(ChatError::Sentinel(found.into())),
            None => Ok(()),
        },
        Json::Array(items) => items.iter().try_for_each(refuse_sentinels_in),
        Json::Object(fields) => fields.values().try_for_each(refuse_sentinels_in),
        Json::Null | Json::Bool(_) | Json::Number(_) => Ok(()),
    }
}
