//! `lowrank chat`: a chat with a model, turn by turn, with the adapter on or off.

use std::io::{BufRead, IsTerminal, Write};

use lowrank_model::AdapterSlot;
use lowrank_run::generation::Asked;
use lowrank_run::settings::RowSettings;
use lowrank_run::writer::{AskedLayout, Conversation, Writer};
use lowrank_run::{RunError, RunResult};
use serde_json::{Value, json};

use crate::args::ChatArgs;
use crate::session::{decoding, device_of, open_model};
use crate::stream::Stream;
use crate::{errors, output, settings, unused};

/// New tokens of a turn unless told otherwise.
const MAX_NEW_TOKENS: u64 = 512;

const HELP: &str = "\
/reset  forget what was said
/a      switch the adapter off, or on again
/undo   forget the last turn and its answer
/exit   end the chat (Ctrl-D does, too)
/help   show this";

/// Runs the command.
pub fn run(flags: ChatArgs) -> RunResult {
    let file = flags.common.config.clone();
    let given = unused::given(&flags, file.as_deref())?;
    let args = settings::with_file(flags, file.as_deref())?;
    let mut flags = settings::to_map(&args.decoding);
    let max_new_tokens = flags.entry("max_new_tokens").or_insert(Value::Null);
    if max_new_tokens.is_null() {
        *max_new_tokens = MAX_NEW_TOKENS.into();
    }
    let asked = Asked::new(flags)?;
    let numerics = args.numerics.choices().or_f32();
    let device = device_of(&args.common, numerics, &args.model, &args.adapter)?;
    let loaded = open_model(
        &args.model,
        &args.adapter,
        &RowSettings::of_language(),
        &device,
    )?;
    unused::check_chat(given, &loaded)?;
    let options = decoding(asked, &loaded, &args.common)?;
    let layout = AskedLayout {
        chat_template: args.chat_template.clone(),
        system: args.system.clone(),
        template: None,
    };
    let writer = Writer::for_chats(&loaded, options, &layout)?;
    let mut chat = Chat {
        writer: &writer,
        conversation: writer.conversation()?,
        messages: Vec::new(),
        adapter: AdapterSlot::OWN,
        has_adapter: args.adapter.adapter.is_some(),
        answers: 0,
    };
    let shows_prompt = std::io::stdin().is_terminal() && !args.common.is_quiet();
    if shows_prompt {
        output::note("/help shows the commands");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if shows_prompt {
            output::print("> ");
            // A closed output ends the program elsewhere.
            let _ = std::io::stdout().flush();
        }
        let Some(line) = lines.next() else {
            return Ok(());
        };
        let line = line.map_err(|error| RunError::from_error(&error))?;
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => return Ok(()),
            command if command.starts_with('/') => output::note(chat.obey(command)),
            said => {
                if let Err(error) = chat.say(said) {
                    output::note(errors::shown(&error));
                }
            }
        }
    }
}

/// What was said so far.
struct Chat<'a> {
    writer: &'a Writer<'a>,
    conversation: Conversation<'a>,
    messages: Vec<Value>,
    adapter: AdapterSlot,
    has_adapter: bool,
    /// Answers so far, forgotten ones too: draws hang on the number.
    answers: usize,
}

impl Chat<'_> {
    /// Does what a command says, and tells what came of it.
    fn obey(&mut self, command: &str) -> String {
        match command {
            "/reset" => {
                self.messages.clear();
                "what was said is forgotten".to_owned()
            }
            "/undo" => {
                let kept = self.messages.len().saturating_sub(2);
                self.messages.truncate(kept);
                format!("{} turns are left", kept / 2)
            }
            "/a" | "/adapter" if !self.has_adapter => "there is no adapter".to_owned(),
            "/a" | "/adapter" => {
                let is_on = self.adapter == AdapterSlot::OWN;
                self.adapter = if is_on {
                    AdapterSlot::BASE
                } else {
                    AdapterSlot::OWN
                };
                format!("the adapter is {}", if is_on { "off" } else { "on" })
            }
            "/help" => HELP.to_owned(),
            other => format!("`{other}` is no command\n{HELP}"),
        }
    }

    /// Says something and shows the answer. Where there is none, it was not said.
    fn say(&mut self, said: &str) -> RunResult {
        let mut messages = self.messages.clone();
        messages.push(json!({ "role": "user", "content": said }));
        let mut stream = Stream::new(self.writer);
        let mut on_token = |token| stream.push(token);
        let number = self.answers;
        let found = self
            .conversation
            .write_turn(&messages, self.adapter, number, &mut on_token)?;
        let answer = stream.finish(&found)?;
        messages.push(json!({ "role": "assistant", "content": answer }));
        self.messages = messages;
        self.answers += 1;
        Ok(())
    }
}
