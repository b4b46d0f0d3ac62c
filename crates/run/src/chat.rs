//! Which chat template lays out a language model's rows: the one that is asked for, the adapter's,
//! or the model's own; and what an adapter notes of it.

use std::path::Path;
use std::sync::Arc;

use lowrank_chat::{Chat, ChatTemplate, LossOn, Moment, Variables, built_in, built_in_names, rows};
use lowrank_data::{CHAT_TEMPLATE_FILE, ChatFormat, ChatUse, NamedTemplate, Tokenizer};
use lowrank_formats::files::{self, Ceiling};
use lowrank_formats::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::base::Base;
use crate::error::{RunError, RunResult};
use crate::settings::RowSettings;

/// The setting that turns templates off.
const NO_TEMPLATE: &str = "none";
/// Tokens that a chat may have unless told otherwise.
pub const MAX_LENGTH: usize = 2048;

/// What an adapter notes of the chats that it was trained on; the template stands in a file beside
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatNotes {
    /// Which part was learned.
    pub loss_on: LossOn,
    /// What `strftime_now` said, where the template asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// The chats of an adapter: its notes, and its template.
#[derive(Clone, Debug)]
pub struct AdapterChat {
    /// The text of the template.
    pub source: String,
    /// What was noted.
    pub notes: Option<ChatNotes>,
}

impl AdapterChat {
    /// The template in an adapter's folder, if there is one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(dir: &Path, notes: Option<ChatNotes>) -> RunResult<Option<Self>> {
        let file = dir.join(CHAT_TEMPLATE_FILE);
        if !files::is_file(&file) {
            return Ok(None);
        }
        let source = files::read_text(&file, Ceiling::SETTINGS)?;
        Ok(Some(AdapterChat { source, notes }))
    }
}

/// Writes the template beside an adapter, where transformers and servers look for it.
pub fn write_template(format: &ChatFormat, dir: &Path) -> RunResult {
    Ok(write_atomic(
        &dir.join(CHAT_TEMPLATE_FILE),
        format.template.source().as_bytes(),
    )?)
}

/// How chats are laid out for this model with these settings; nothing where there is no template.
///
/// # Errors
/// The template that is asked for is not known, or is no Jinja; `template` is asked for too.
pub fn format(base: &Base, data: &RowSettings) -> RunResult<Option<ChatFormat>> {
    let noted = base
        .adapter_chat
        .as_ref()
        .and_then(|chat| chat.notes.as_ref());
    let asked = data.chat_template.as_deref();
    if asked.is_some() && data.template.is_some() {
        return Err(RunError::usage(
            "`template` and `chat_template` both lay out rows: expected one of them",
        )
        .hint("leave out --template for chats"));
    }
    if asked == Some(NO_TEMPLATE) || (asked.is_none() && data.template.is_some()) {
        return Ok(None);
    }
    let Some((source, used)) = source(base, asked)? else {
        return Ok(None);
    };
    let template = ChatTemplate::new(&source).map_err(|error| RunError::from_error(&error))?;
    let time = data.chat_time.as_ref();
    let time = time.or_else(|| noted.and_then(|notes| notes.time.as_ref()));
    let now = match time {
        None => base.opened_at.clone(),
        Some(noted) => Moment::parse(noted).ok_or_else(|| {
            RunError::usage(format!(
                "`chat_time` is `{noted}`, expected a time such as `{}`",
                base.opened_at
            ))
        })?,
    };
    let tokenizer = base.tokenizer.as_ref().ok();
    let special_tokens = tokenizer.map(|tokenizer| tokenizer.special_tokens_map().clone());
    let loss_on = data.loss_on.or_else(|| noted.map(|notes| notes.loss_on));
    Ok(Some(ChatFormat {
        template: Arc::new(template),
        variables: Variables {
            special_tokens: special_tokens.unwrap_or_default(),
            now,
            ..Variables::default()
        },
        loss_on: loss_on.unwrap_or_default(),
        used,
    }))
}

/// What is said where nothing lays chats out.
pub(crate) fn no_template(name: &str) -> RunError {
    RunError::usage(format!("`{name}` has no chat template"))
        .hint("pass --chat-template with a file or the name of a built-in one, such as chatml")
}

/// The time of a run's start, where its template asks what time it is.
pub fn time(format: &ChatFormat) -> Option<String> {
    let asks = format.template.source().contains("strftime_now");
    asks.then(|| format.variables.now.to_string())
}

/// The token that ends the assistant's turn: the first special one behind its words.
pub fn end_of_turn(format: &ChatFormat, tokenizer: &Tokenizer) -> Option<u32> {
    let said = [
        json!({ "role": "user", "content": "a" }),
        json!({ "role": "assistant", "content": "b" }),
    ];
    let chat = Chat::from_messages(&said).ok()?;
    let rows = rows(
        &format.template,
        &chat,
        &format.variables,
        LossOn::LastAssistant,
    )
    .ok()?;
    let row = rows.last()?;
    let tail = &row.text[row.spans.last()?.clone()];
    let ids = tokenizer.encode_plain(tail).ok()?;
    ids.into_iter().find(|id| tokenizer.is_special(*id))
}

/// The text of a template, and which rows it lays out.
fn source(base: &Base, asked: Option<&str>) -> RunResult<Option<(String, ChatUse)>> {
    let own = base.chat_templates()?;
    let Some(asked) = asked else {
        if let Some(chat) = &base.adapter_chat {
            return Ok(Some((chat.source.clone(), ChatUse::Instructions)));
        }
        let default = own.iter().find(|template| template.name.is_none());
        return Ok(default.map(|found| (found.text.clone(), ChatUse::Instructions)));
    };
    let named = own
        .iter()
        .find(|template| template.name.as_deref() == Some(asked));
    let found = match (named, built_in(asked)) {
        (Some(named), _) => named.text.clone(),
        (None, Some(source)) => source.to_owned(),
        (None, None) if files::is_file(Path::new(asked)) => {
            files::read_text(Path::new(asked), Ceiling::SETTINGS)?
        }
        (None, None) => return Err(unknown(asked, own)),
    };
    Ok(Some((found, ChatUse::Always)))
}

fn unknown(asked: &str, own: &[NamedTemplate]) -> RunError {
    let mut names: Vec<&str> = built_in_names().collect();
    names.extend(own.iter().filter_map(|template| template.name.as_deref()));
    RunError::usage(format!(
        "there is no chat template `{asked}`: expected a file, {NO_TEMPLATE}, or one of {}",
        names.join(", ")
    ))
    .maybe_hint(
        lowrank_formats::nearest(asked, names.iter().copied())
            .map(|near| format!("did you mean `{near}`?")),
    )
}
