//! Generation: tokens after prompts, several at a time, over a KV cache. Equal to transformers'
//! `generate`, token by token, for greedy and beam search. It knows ids, not text.

mod beam;
pub mod config;
mod live;
mod options;
mod rules;
mod scores;
pub mod session;
mod single;
mod warp;

#[cfg(test)]
mod golden;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::ModelError;
use crate::model::Model;
pub use options::{BeamSearch, EarlyStopping, Generate, Sampling, Search, SettingFault};
use session::{Event, Request, check_options};

/// What was generated after one prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generated {
    /// The new tokens, the one that ended them included.
    pub tokens: Vec<u32>,
    /// Of beam search, the sequence's score.
    pub score: Option<f64>,
}

impl Model {
    /// [`Model::generate_with`], to the end of each prompt's text.
    ///
    /// # Errors
    /// As there.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        options: &Generate,
    ) -> Result<Vec<Generated>, ModelError> {
        self.generate_with(prompts, options, &mut |_, _| Next::GoOn)
    }

    /// Goes on with each prompt, at most `options.batch_size` of them together: the next joins as
    /// one ends. `on_event` is told the prompt's number in `prompts` and what became of it, as it
    /// comes, and says whether its text goes on; where all is to end, what was generated so far is
    /// given. A prompt's tokens do not depend on the other prompts.
    ///
    /// # Errors
    /// This is no language model, a setting is out of range or does not fit the vocabulary, a
    /// prompt is empty, holds ids outside the vocabulary or leaves no position for a new token, the
    /// model gives numbers that are not finite, or the settings forbid every token.
    pub fn generate_with(
        &self,
        prompts: &[Vec<u32>],
        options: &Generate,
        on_event: &mut dyn FnMut(usize, Generation<'_>) -> Next,
    ) -> Result<Vec<Generated>, ModelError> {
        let mut session = self.session()?;
        check_options(options, self.config.facts.vocab_size)?;
        let options = Arc::new(options.clone());
        let requests = prompts.iter().enumerate().map(|(i, prompt)| Request {
            prompt: prompt.clone(),
            options: options.clone(),
            number: options.first_prompt + i,
            prefix: None,
        });
        let requests: Vec<Request> = requests.collect();
        requests
            .iter()
            .try_for_each(|request| self.check_prompt(request))?;
        let mut waiting = requests.into_iter().enumerate();
        let (mut numbers, mut is_over) = (BTreeMap::new(), false);
        let mut found = vec![Generated::default(); prompts.len()];
        while !is_over {
            let room = options.batch_size.max(1) - session.len();
            for (i, request) in waiting.by_ref().take(room) {
                numbers.insert(session.add(request)?, i);
            }
            if session.is_empty() {
                return Ok(found);
            }
            for event in session.step() {
                let (id, generated) = match event {
                    Event::Token(..) if is_over => continue,
                    Event::Token(id, token) => {
                        let next = on_event(numbers[&id], Generation::Token(token));
                        is_over = next == Next::EndAll;
                        let ended = (next == Next::EndText).then(|| session.remove(id));
                        // What ends by itself with this token is told of in an event of its own.
                        match ended.flatten() {
                            Some(generated) => (id, generated),
                            None => continue,
                        }
                    }
                    Event::Finished(id, generated) => (id, generated),
                    Event::Failed(_, error) => return Err(error),
                };
                let i = numbers.remove(&id).expect("it was taken in");
                found[i] = generated;
                if !is_over {
                    is_over = on_event(i, Generation::Finished(&found[i])) == Next::EndAll;
                }
            }
        }
        for (id, i) in numbers {
            found[i] = session.remove(id).unwrap_or_default();
        }
        Ok(found)
    }

    /// Bytes that generation takes at least beside the model: keys and values of the prompts and of
    /// one token more, and what is computed of the vocabulary at a step. `lengths` are those of the
    /// prompts that are gone on with together.
    pub fn generation_bytes(&self, lengths: &[usize], options: &Generate) -> u64 {
        let facts = &self.config.facts;
        let (vocab, prompts) = (facts.vocab_size as u64, lengths.len() as u64);
        let (mut beams, mut a_row) = (1, 4 * vocab);
        if let Search::Beam(form) = &options.search {
            beams = form.beams as u64;
            let ends = (1 + options.eos.len()).max(2) as u64;
            a_row += 32 * beams.saturating_mul(ends).min(vocab);
            if form.sampling.is_some() {
                a_row += 4 * vocab;
            }
        }
        let rows = prompts.saturating_mul(beams);
        let tokens: u64 = lengths.iter().map(|&n| n as u64).sum();
        let a_token = 8 * (facts.num_hidden_layers * facts.hidden_size) as u64;
        let kept = tokens.saturating_add(rows).saturating_mul(a_token);
        kept.saturating_add(rows.saturating_mul(a_row))
    }

    /// Refuses a prompt that cannot be gone on with.
    fn check_prompt(&self, request: &Request) -> Result<(), ModelError> {
        let (most, vocab) = (self.max_positions(), self.config.facts.vocab_size);
        let (prompt, max_length) = (&request.prompt, request.options.max_length);
        let tokens = prompt.len();
        let fault = if prompt.is_empty() {
            "is empty: there is nothing to go on with".to_string()
        } else if tokens >= most {
            format!(
                "has {tokens} tokens, but the model has {most} positions: none is left for a new token"
            )
        } else if tokens >= max_length {
            format!(
                "has {tokens} tokens, but `max_length` is {max_length}: none is left for a new token"
            )
        } else if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab) {
            format!("holds token id {id}, outside the vocabulary of {vocab} tokens")
        } else {
            return Ok(());
        };
        let number = request.number + 1;
        Err(ModelError::Batch(format!("prompt {number} {fault}")))
    }

    /// How many tokens may follow a prompt.
    fn room(&self, request: &Request) -> usize {
        let options = &request.options;
        let most = self.max_positions().min(options.max_length);
        options.max_new_tokens.min(most - request.prompt.len())
    }

    /// Rows of the output table.
    fn vocab(&self) -> usize {
        match self.network.language_model() {
            Some(_) => self.num_labels,
            None => 0,
        }
    }
}

/// Whether generation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It does.
    GoOn,
    /// The text that is told of ends with this token.
    EndText,
    /// All texts end.
    EndAll,
}

/// What became of a prompt.
#[derive(Debug, Clone, Copy)]
pub enum Generation<'a> {
    /// A new token. Beam search tells none before its end.
    Token(u32),
    /// All that was generated.
    Finished(&'a Generated),
}
