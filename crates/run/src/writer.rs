//! Text after prompts: prompts are laid out and encoded, tokens are generated and decoded.

use lowrank_data::{Prompt, Template, TemplateError, Tokenizer};
use lowrank_model::{Generate, Generated};

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
    /// Writes with `options`; `asked` is the layout of prompts that was asked for; without it that of the adapter's notes.
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

    /// Writes after each prompt; `first` is the number of the first prompt in the whole list: it keys the draws.
    pub fn generate(
        &self,
        prompts: &[Prompt],
        first: usize,
        on_token: &mut (dyn FnMut(usize, u32) + Send),
    ) -> RunResult<Vec<Generated>> {
        let ids = prompts
            .iter()
            .map(|prompt| self.encode(prompt))
            .collect::<RunResult<Vec<_>>>()?;
        self.check_memory(&ids)?;
        let options = Generate {
            first_prompt: first,
            ..self.options.clone()
        };
        Ok(self.loaded.model.generate(&ids, &options, on_token)?)
    }

    /// Refuses what no memory is there for, before it is asked for.
    fn check_memory(&self, ids: &[Vec<u32>]) -> RunResult {
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        let needed = self.loaded.model.generation_bytes(&lengths, &self.options);
        match memory::available_bytes() {
            Some(left) if needed > left => Err(RunError::failure(format!(
                "to generate after {} prompts at a time takes at least {} beside the model, but {} are left",
                ids.len(),
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
