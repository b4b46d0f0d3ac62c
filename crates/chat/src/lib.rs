//! Chats as text: a Jinja chat template renders messages exactly as transformers does, and says
//! which characters the assistant wrote. It knows no tokenizer, no file and no model.
//!
//! ```
//! use lowrank_chat::{Chat, ChatTemplate, Prompting, Variables};
//!
//! let template = ChatTemplate::new(
//!     "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}\
//!      {% if add_generation_prompt %}<assistant>{% endif %}",
//! )?;
//! let messages = serde_json::json!([{ "role": "user", "content": "Hi" }]);
//! let chat = Chat::from_messages(messages.as_array().unwrap())?;
//! let rendered = template.render(&chat, &Variables::default(), Prompting::Open)?;
//! assert_eq!(rendered.text, "<user>Hi</><assistant>");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod built_in;
mod chat;
mod error;
mod forms;
mod generation;
mod parts;
mod python;
mod spans;
mod template;
mod variables;

pub use built_in::{built_in, built_in_names};
pub use chat::{Chat, Role};
pub use error::{ChatError, MessageError};
pub use parts::{ChatPart, left_out};
pub use spans::{ChatRow, LossOn, SpanSource, rows};
pub use template::{ChatTemplate, Prompting, Rendered};
pub use variables::{Moment, Variables};
