//! A chat that goes on: what its turns have in common is read once, and its keys and values stay in
//! the session.

use std::sync::Arc;

use lowrank_data::ChatFormat;
use lowrank_model::{
    AdapterSlot, Event, Generate, Generated, Next, PrefixId, Request, RequestId, Session,
};
use serde_json::Value;

use super::Writer;
use crate::error::RunResult;

/// A chat with a model.
pub struct Conversation<'w> {
    writer: &'w Writer<'w>,
    format: &'w ChatFormat,
    system: Option<&'w String>,
    session: Session<'w>,
    /// What was read with each adapter that was asked.
    read: Vec<(AdapterSlot, PrefixId)>,
}

impl<'w> Conversation<'w> {
    pub(super) fn new(
        writer: &'w Writer<'w>,
        format: &'w ChatFormat,
        system: Option<&'w String>,
    ) -> RunResult<Self> {
        Ok(Conversation {
            writer,
            format,
            system,
            session: writer.loaded.model.session()?,
            read: Vec::new(),
        })
    }

    /// Writes the assistant's next turn of a chat of OpenAI's messages; `number` keys the draws.
    /// The tokens are those of a chat that is read afresh.
    ///
    /// # Errors
    /// The chat template refuses the messages; as [`Writer::write_each`].
    pub fn write_turn(
        &mut self,
        messages: &[Value],
        adapter: AdapterSlot,
        number: usize,
        on_token: &mut dyn FnMut(u32),
    ) -> RunResult<Generated> {
        let writer = self.writer;
        let prompt = writer.encode_chat(self.format, self.system, messages)?;
        writer.check_memory(std::slice::from_ref(&prompt), 1)?;
        let options = Generate {
            adapter,
            ..writer.options.clone()
        };
        let prefix = match prompt.split_last() {
            Some((_, before)) if !before.is_empty() => Some(self.prefix(before, adapter)?),
            Some(_) | None => None,
        };
        let id = self.session.add(Request {
            prompt,
            options: Arc::new(options),
            number,
            prefix,
        })?;
        self.write(id, on_token)
    }

    /// The beginning of a prompt, of which only what differs from the last one is read.
    fn prefix(&mut self, tokens: &[u32], adapter: AdapterSlot) -> RunResult<PrefixId> {
        let read = self.read.iter().find(|(of, _)| *of == adapter);
        if let Some((_, id)) = read {
            self.session.change_prefix(*id, tokens.to_vec())?;
            return Ok(*id);
        }
        let id = self.session.add_prefix(tokens.to_vec(), adapter)?;
        self.read.push((adapter, id));
        Ok(id)
    }

    fn write(&mut self, id: RequestId, on_token: &mut dyn FnMut(u32)) -> RunResult<Generated> {
        let mut so_far = Vec::new();
        loop {
            for event in self.session.step() {
                match event {
                    Event::Token(_, token) => {
                        on_token(token);
                        so_far.push(token);
                    }
                    Event::Finished(_, generated) => return Ok(generated),
                    Event::Failed(_, error) => return Err(error.into()),
                }
            }
            if self.writer.next(&so_far) == Next::EndText {
                return Ok(self.session.remove(id).unwrap_or_default());
            }
        }
    }
}
