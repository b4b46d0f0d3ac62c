//! Text after prompts: prompts are laid out and encoded, tokens are generated and decoded.

mod conversation;
mod stops;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use lowrank_chat::{Chat, Prompting};
use lowrank_data::{ChatFormat, Prompt, Template, TemplateError, Tokenizer};
use lowrank_model::{Generate, Generated, Generation, Next};
use serde_json::{Value, json};

use crate::chat;
use crate::error::{RunError, RunResult};
use crate::loaded::LoadedModel;
use crate::memory;
use crate::settings::RowSettings;
use crate::text::bytes;
pub use conversation::Conversation;
use stops::Stops;

/// Prompts at a time unless told otherwise.
pub const BATCH_SIZE: usize = 16;

/// Everything between a prompt and its text.
pub struct Writer<'a> {
    options: Generate,
    stops: Stops,
    layout: Layout,
    loaded: &'a LoadedModel,
    tokenizer: &'a Tokenizer,
}

/// What a model is asked to go on with.
#[derive(Clone, Debug)]
pub enum Question {
    /// A prompt; where prompts are laid out as chats, what a user says.
    Prompt(Prompt),
    /// A chat that the assistant is to go on with.
    Chat(Chat),
}

impl From<Prompt> for Question {
    fn from(prompt: Prompt) -> Self {
        Question::Prompt(prompt)
    }
}

/// How prompts are to be laid out.
#[derive(Clone, Debug, Default)]
pub struct AskedLayout {
    /// What stands before `{completion}`.
    pub template: Option<String>,
    /// A chat template by its name or file, or `none`.
    pub chat_template: Option<String>,
    /// What is said to the model before a chat.
    pub system: Option<String>,
}

/// How a prompt becomes tokens.
enum Layout {
    /// As it is.
    Plain,
    /// With what stands around it.
    Template(Template),
    /// As what a user says.
    Chat {
        format: Box<ChatFormat>,
        system: Option<String>,
    },
}

impl<'a> Writer<'a> {
    /// Writes with `options`. Prompts are laid out as it is asked for, or else as the adapter was
    /// trained. Where that is as chats, a text also ends where a turn does.
    ///
    /// # Errors
    /// There is no tokenizer; a template is none, or two are asked for.
    pub fn new(loaded: &'a LoadedModel, options: Generate, asked: &AskedLayout) -> RunResult<Self> {
        Self::with_layout(loaded, options, layout(loaded, asked)?)
    }

    fn with_layout(
        loaded: &'a LoadedModel,
        mut options: Generate,
        layout: Layout,
    ) -> RunResult<Self> {
        let tokenizer = loaded.base.tokenizer.as_ref().map_err(|error| {
            RunError::failure(format!("`{}` has no tokenizer", loaded.base.name))
                .caused_by(Some(error))
        })?;
        if let Layout::Chat { format, .. } = &layout
            && let Some(end) = chat::end_of_turn(format, tokenizer)
            && !options.eos.contains(&end)
        {
            options.eos.push(end);
        }
        Ok(Self {
            stops: Stops::new(options.stop_strings.clone()),
            options,
            layout,
            loaded,
            tokenizer,
        })
    }

    /// As [`Writer::new`] where prompts are laid out as chats, by the model's own template if no
    /// other one is asked for.
    ///
    /// # Errors
    /// There is no template besides.
    pub fn for_chats(
        loaded: &'a LoadedModel,
        options: Generate,
        asked: &AskedLayout,
    ) -> RunResult<Self> {
        let layout = chat_layout(loaded, asked)?;
        let layout = layout.ok_or_else(|| chat::no_template(&loaded.base.name))?;
        Self::with_layout(loaded, options, layout)
    }

    /// Whether prompts are laid out as chats.
    pub fn is_chat(&self) -> bool {
        matches!(self.layout, Layout::Chat { .. })
    }

    /// Writes after each prompt, at most `batch_size` of them together, and gives what was
    /// generated to `take` with the prompt's number, in their order.
    ///
    /// # Errors
    /// A prompt cannot be encoded or gone on with, no memory is there for it, or those of `take`.
    pub fn write_each(
        &self,
        prompts: &[Question],
        batch_size: usize,
        take: &mut dyn FnMut(usize, &Generated) -> RunResult,
    ) -> RunResult {
        let ids = prompts.iter().map(|question| self.encode(question));
        let ids = ids.collect::<RunResult<Vec<_>>>()?;
        self.check_memory(&ids, batch_size)?;
        let options = Generate {
            batch_size,
            ..self.options.clone()
        };
        let (mut done, mut first, mut taken) = (BTreeMap::new(), 0, Ok(()));
        let mut so_far: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        let mut on_event = |i: usize, event: Generation<'_>| {
            match event {
                Generation::Token(token) => {
                    let tokens = so_far.entry(i).or_default();
                    tokens.push(token);
                    return self.next(tokens);
                }
                Generation::Finished(generated) => {
                    so_far.remove(&i);
                    done.insert(i, generated.clone());
                }
            }
            while let Some(generated) = done.remove(&first).filter(|_| taken.is_ok()) {
                taken = take(first, &generated);
                first += 1;
            }
            match taken {
                Ok(()) => Next::GoOn,
                Err(_) => Next::EndAll,
            }
        };
        (self.loaded.model).generate_with(&ids, &options, &mut on_event)?;
        taken
    }

    /// Whether a text goes on after these new tokens.
    fn next(&self, tokens: &[u32]) -> Next {
        match self.stops.end(tokens, self.tokenizer) {
            true => Next::EndText,
            false => Next::GoOn,
        }
    }

    /// Writes after one prompt, whose number in its list keys the draws; `on_token` is told each
    /// token as it comes.
    ///
    /// # Errors
    /// As [`Writer::write_each`].
    pub fn write(
        &self,
        prompt: &Prompt,
        number: usize,
        on_token: &mut dyn FnMut(u32),
    ) -> RunResult<Generated> {
        let options = Generate {
            first_prompt: number,
            ..self.options.clone()
        };
        self.write_after(self.encode_prompt(prompt)?, &options, on_token)
    }

    /// A chat with the model, whose turns are read once.
    ///
    /// # Errors
    /// Prompts are not laid out as chats.
    pub fn conversation(&self) -> RunResult<Conversation<'_>> {
        let Layout::Chat { format, system } = &self.layout else {
            return Err(chat::no_template(&self.loaded.base.name));
        };
        Conversation::new(self, format, system.as_ref())
    }

    fn write_after(
        &self,
        ids: Vec<u32>,
        options: &Generate,
        on_token: &mut dyn FnMut(u32),
    ) -> RunResult<Generated> {
        let ids = [ids];
        self.check_memory(&ids, 1)?;
        let mut so_far = Vec::new();
        let mut on_event = |_: usize, event: Generation<'_>| {
            let Generation::Token(token) = event else {
                return Next::GoOn;
            };
            on_token(token);
            so_far.push(token);
            self.next(&so_far)
        };
        let found = (self.loaded.model).generate_with(&ids, options, &mut on_event)?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    /// Refuses what no memory is there for, before it is asked for.
    fn check_memory(&self, ids: &[Vec<u32>], batch_size: usize) -> RunResult {
        let mut lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        lengths.sort_unstable_by_key(|&length| Reverse(length));
        lengths.truncate(batch_size);
        let needed = self.loaded.model.generation_bytes(&lengths, &self.options);
        match memory::available_bytes() {
            Some(left) if needed > left => Err(RunError::failure(format!(
                "to generate after {} prompts at a time takes at least {} beside the model, but {} are left",
                lengths.len(),
                bytes(needed),
                bytes(left)
            ))
            .hint("lower --num-beams or --batch-size")),
            Some(_) | None => Ok(()),
        }
    }

    /// How chats are laid out, where prompts are.
    pub fn chat_format(&self) -> Option<&ChatFormat> {
        match &self.layout {
            Layout::Chat { format, .. } => Some(format),
            Layout::Plain | Layout::Template(_) => None,
        }
    }

    fn encode(&self, question: &Question) -> RunResult<Vec<u32>> {
        match (question, &self.layout) {
            (Question::Prompt(prompt), _) => self.encode_prompt(prompt),
            (Question::Chat(chat), Layout::Chat { format, system }) => {
                // A chat's own system prompt is the one that it was written for.
                let own = chat.messages().first().and_then(|first| first.get("role"));
                let system = system
                    .as_ref()
                    .filter(|_| own.is_none_or(|role| role != "system"));
                let chat = match system {
                    Some(text) => chat.behind_system(text),
                    None => chat.clone(),
                };
                self.encode_open(format, &chat)
            }
            (Question::Chat(_), Layout::Plain | Layout::Template(_)) => {
                Err(chat::no_template(&self.loaded.base.name))
            }
        }
    }

    fn encode_prompt(&self, prompt: &Prompt) -> RunResult<Vec<u32>> {
        let ids = match &self.layout {
            Layout::Chat { format, system } => {
                let asked = json!({ "role": "user", "content": prompt.joined() });
                return self.encode_chat(format, system.as_ref(), &[asked]);
            }
            Layout::Template(template) => template.prompt(prompt, self.tokenizer),
            Layout::Plain => self.tokenizer.leading_tokens().and_then(|mut ids| {
                ids.extend(self.tokenizer.encode_plain(&prompt.joined())?);
                Ok(ids)
            }),
        };
        ids.map_err(|error| RunError::from_error(&error))
    }

    fn encode_chat(
        &self,
        format: &ChatFormat,
        system: Option<&String>,
        messages: &[Value],
    ) -> RunResult<Vec<u32>> {
        let refused = |error: &dyn std::error::Error| RunError::failure(error.to_string());
        let system = system.map(|text| json!({ "role": "system", "content": text }));
        let messages: Vec<Value> = system.into_iter().chain(messages.iter().cloned()).collect();
        let chat = Chat::from_messages(&messages).map_err(|error| refused(&error))?;
        self.encode_open(format, &chat)
    }

    /// A chat with what begins the assistant's turn.
    fn encode_open(&self, format: &ChatFormat, chat: &Chat) -> RunResult<Vec<u32>> {
        let refused = |error: &dyn std::error::Error| RunError::failure(error.to_string());
        let rendered = (format.template)
            .render(chat, &format.variables, Prompting::Open)
            .map_err(|error| refused(&error))?;
        let ids = self.tokenizer.encode_plain(&rendered.text);
        ids.map_err(|error| RunError::from_error(&error))
    }

    /// Whether the tokens end with an end token, or hold a text that ends them.
    pub fn ended(&self, tokens: &[u32]) -> bool {
        self.has_end_token(tokens) || self.stops.end(tokens, self.tokenizer)
    }

    fn has_end_token(&self, tokens: &[u32]) -> bool {
        let last = tokens.last();
        last.is_some_and(|last| self.options.eos.contains(last))
    }

    /// The text of new tokens, without what ended them.
    pub fn text(&self, tokens: &[u32]) -> RunResult<String> {
        let mut text = self.decoded(tokens)?;
        text.truncate(self.stops.start_in(&text).unwrap_or(text.len()));
        Ok(text)
    }

    /// So much of the text as later tokens change nothing of: no half of a character, no beginning
    /// of what may end it.
    ///
    /// # Errors
    /// The tokens are no text.
    pub fn settled_text(&self, tokens: &[u32]) -> RunResult<String> {
        let mut text = self.text(tokens)?;
        if text.ends_with('\u{fffd}') {
            return Ok(text.trim_end_matches('\u{fffd}').to_owned());
        }
        text.truncate(self.stops.settled(&text));
        Ok(text)
    }

    fn decoded(&self, tokens: &[u32]) -> RunResult<String> {
        let tokens = &tokens[..tokens.len() - usize::from(self.has_end_token(tokens))];
        let decoded = self.tokenizer.decode(tokens);
        decoded.map_err(|error| RunError::from_error(&error))
    }
}

fn layout(loaded: &LoadedModel, asked: &AskedLayout) -> RunResult<Layout> {
    let was_chats = loaded.base.adapter_chat.as_ref();
    let was_chats = was_chats.is_some_and(|chat| chat.notes.is_some());
    if (asked.chat_template.is_some() || (was_chats && asked.template.is_none()))
        && let Some(layout) = chat_layout(loaded, asked)?
    {
        return Ok(layout);
    }
    if asked.system.is_some() {
        return Err(RunError::usage(
            "`system` is said before a chat, but prompts are laid out as none",
        )
        .hint("pass --chat-template too, or leave out --system"));
    }
    let text = asked.template.as_ref().or(loaded.template.as_ref());
    let Some(text) = text else {
        return Ok(Layout::Plain);
    };
    let template = text
        .parse()
        .map_err(|error: TemplateError| RunError::usage(error.to_string()))?;
    Ok(Layout::Template(template))
}

/// Chats by the template that is asked for, or else the adapter's or the model's own.
fn chat_layout(loaded: &LoadedModel, asked: &AskedLayout) -> RunResult<Option<Layout>> {
    let rows = RowSettings {
        chat_template: asked.chat_template.clone(),
        template: asked.template.clone(),
        ..RowSettings::of_language()
    };
    let format = chat::format(&loaded.base, &rows)?;
    Ok(format.map(|format| Layout::Chat {
        format: Box::new(format),
        system: asked.system.clone(),
    }))
}
