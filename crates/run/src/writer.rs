//! Text after prompts: prompts are laid out and encoded, tokens are generated and decoded.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use lowrank_data::{Prompt, Template, TemplateError, Tokenizer};
use lowrank_model::{Generate, Generated, Generation};

use crate::error::{RunError, RunResult};
use crate::loaded::LoadedModel;
use crate::memory;
use crate::text::bytes;

/// Prompts at a time unless told otherwise.
pub const BATCH_SIZE: usize = 16;

/// Everything between a prompt and its text.
pub struct Writer<'a> {
    options: Generate,
    template: Option<Template>,
    loaded: &'a LoadedModel,
    tokenizer: &'a Tokenizer,
}

impl<'a> Writer<'a> {
    /// Writes with `options`; `asked` is the layout of prompts that was asked for; without it that
    /// of the adapter's notes.
    pub fn new(
        loaded: &'a LoadedModel,
        options: Generate,
        asked: Option<&String>,
    ) -> RunResult<Self> {
        let tokenizer = loaded.base.tokenizer.as_ref().map_err(|error| {
            RunError::failure(format!("`{}` has no tokenizer", loaded.base.name))
                .caused_by(Some(error))
        })?;
        Ok(Self {
            options,
            template: template(asked.or(loaded.template.as_ref()))?,
            loaded,
            tokenizer,
        })
    }

    /// Writes after each prompt, at most `batch_size` of them together, and gives what was
    /// generated to `take` with the prompt's number, in their order.
    ///
    /// # Errors
    /// A prompt cannot be encoded or gone on with, no memory is there for it, or those of `take`.
    pub fn write_each(
        &self,
        prompts: &[Prompt],
        batch_size: usize,
        take: &mut dyn FnMut(usize, &Generated) -> RunResult,
    ) -> RunResult {
        let ids = prompts.iter().map(|prompt| self.encode(prompt));
        let ids = ids.collect::<RunResult<Vec<_>>>()?;
        self.check_memory(&ids, batch_size)?;
        let options = Generate {
            batch_size,
            ..self.options.clone()
        };
        let (mut done, mut next, mut taken) = (BTreeMap::new(), 0, Ok(()));
        let mut on_event = |i: usize, event: Generation<'_>| {
            if let Generation::Finished(generated) = event {
                done.insert(i, generated.clone());
            }
            while let Some(generated) = done.remove(&next).filter(|_| taken.is_ok()) {
                taken = take(next, &generated);
                next += 1;
            }
            match taken {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        (self.loaded.model).generate_with(&ids, &options, &mut on_event)?;
        taken
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
        let ids = [self.encode(prompt)?];
        self.check_memory(&ids, 1)?;
        let options = Generate {
            first_prompt: number,
            ..self.options.clone()
        };
        let mut on_event = |_: usize, event: Generation<'_>| {
            if let Generation::Token(token) = event {
                on_token(token);
            }
            ControlFlow::Continue(())
        };
        let found = (self.loaded.model).generate_with(&ids, &options, &mut on_event)?;
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

    fn encode(&self, prompt: &Prompt) -> RunResult<Vec<u32>> {
        let ids = match &self.template {
            Some(template) => template.prompt(prompt, self.tokenizer),
            None => self.tokenizer.leading_tokens().and_then(|mut ids| {
                ids.extend(self.tokenizer.encode_plain(&prompt.joined())?);
                Ok(ids)
            }),
        };
        ids.map_err(|error| RunError::from_error(&error))
    }

    /// Whether the tokens end with an end token.
    pub fn ended(&self, tokens: &[u32]) -> bool {
        tokens
            .last()
            .is_some_and(|last| self.options.eos.contains(last))
    }

    /// The text of new tokens, without the end token.
    pub fn text(&self, tokens: &[u32]) -> RunResult<String> {
        let tokens = &tokens[..tokens.len() - usize::from(self.ended(tokens))];
        let decoded = self.tokenizer.decode(tokens);
        decoded.map_err(|error| RunError::from_error(&error))
    }
}

fn template(text: Option<&String>) -> RunResult<Option<Template>> {
    text.map(|text| text.parse())
        .transpose()
        .map_err(|error: TemplateError| RunError::usage(error.to_string()))
}
