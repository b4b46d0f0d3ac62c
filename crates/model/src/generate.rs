//! Generation: tokens after prompts, several at a time, with kept keys and values. Equal to transformers' `generate`, token
//! by token, for greedy and beam search. It knows ids, not text.

mod beam;
pub mod config;
mod options;
mod rules;
mod scores;
mod warp;

#[cfg(test)]
mod golden;

use lowrank_engine::ops::lm_head::lm_logits;
use lowrank_engine::{Device, Host, Tape};
use rayon::prelude::*;

use crate::error::ModelError;
use crate::families::LanguageModel;
use crate::model::Model;
use crate::pass::{Batch, Kept, Pass};
pub use options::{BeamSearch, EarlyStopping, Generate, Sampling, Search, SettingFault};
use rules::{At, Rules};
use scores::NoChoice;

/// What was generated after one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The new tokens, the one that ended them included.
    pub tokens: Vec<u32>,
    /// Of beam search, the sequence's score.
    pub score: Option<f64>,
}

/// The model in the middle of generating.
struct Run<'a> {
    model: &'a Model,
    language: &'a dyn LanguageModel,
    options: &'a Generate,
    rules: Rules<'a>,
    kept: Kept,
    /// Of guidance: what was computed of the sequences without their prompts, from the last token of these on.
    without_prompts: Option<Kept>,
}

impl Model {
    /// Goes on with each prompt. `on_token` is told the prompt's number and each new token as it comes; beam search tells
    /// nothing before its end. A prompt's tokens do not depend on the other prompts.
    ///
    /// Errors: this is no language model, a setting is out of range or does not fit the vocabulary, a prompt is empty, holds ids
    /// outside the vocabulary or leaves no position for a new token, the model gives numbers that are not finite, or the settings
    /// forbid every token.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        options: &Generate,
        on_token: &mut (dyn FnMut(usize, u32) + Send),
    ) -> Result<Vec<Generated>, ModelError> {
        let Some(language) = self
            .network
            .language_model()
            .filter(|_| !self.device.is_dry())
        else {
            return Err(ModelError::State(
                "only a language model on a device that computes generates".to_string(),
            ));
        };
        let vocab_size = self.config.facts.vocab_size;
        let mut faults = options.faults();
        faults.extend(options.misfits(vocab_size));
        if !faults.is_empty() {
            let lines: Vec<String> = faults.iter().map(SettingFault::to_string).collect();
            return Err(ModelError::State(lines.join("\n  ")));
        }
        self.check_prompts(prompts, options)?;
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let kept = || Kept::new(language.num_layers(), prompts.len());
        let run = Run {
            model: self,
            language,
            options,
            rules: Rules::of(options, vocab_size),
            kept: kept(),
            without_prompts: (options.guidance_scale != 1.0).then(kept),
        };
        self.device.install(|| match options.search {
            Search::Beam(form) => run.beam_search(prompts, form),
            Search::Greedy | Search::Sample(_) => run.one_by_one(prompts, on_token),
        })
    }

    /// Bytes that generation takes at least beside the model: keys and values of the prompts and of one token more, and what is
    /// computed of the vocabulary at a step. `lengths` are those of the prompts that are gone on with together.
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

    fn check_prompts(&self, prompts: &[Vec<u32>], options: &Generate) -> Result<(), ModelError> {
        let (most, vocab) = (self.max_positions(), self.config.facts.vocab_size);
        for (i, prompt) in prompts.iter().enumerate() {
            let fault = if prompt.is_empty() {
                "is empty: there is nothing to go on with".to_string()
            } else if prompt.len() >= most {
                format!(
                    "has {} tokens, but the model has {most} positions: none is left for a new token",
                    prompt.len()
                )
            } else if prompt.len() >= options.max_length {
                format!(
                    "has {} tokens, but `max_length` is {}: none is left for a new token",
                    prompt.len(),
                    options.max_length
                )
            } else if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab) {
                format!("holds token id {id}, outside the vocabulary of {vocab} tokens")
            } else {
                continue;
            };
            let number = options.first_prompt + i + 1;
            return Err(ModelError::Batch(format!("prompt {number} {fault}")));
        }
        Ok(())
    }
}

impl Run<'_> {
    /// The logits [n, V] after the tokens of each sequence.
    fn logits(&mut self, sequences: &[&[u32]]) -> Vec<f32> {
        let mut kept = std::mem::take(&mut self.kept);
        let logits = self.extend(sequences, &mut kept);
        self.kept = kept;
        logits
    }

    /// The same of the sequences that something was kept of.
    fn extend(&self, sequences: &[&[u32]], kept: &mut Kept) -> Vec<f32> {
        let mut offsets = vec![0];
        let mut input_ids = Vec::new();
        for tokens in sequences {
            input_ids.extend_from_slice(tokens);
            offsets.push(input_ids.len());
        }
        let batch = Batch {
            input_ids: &input_ids,
            token_type_ids: None,
            offsets: &offsets,
        };
        let (model, device): (_, &Device) = (self.model, &self.model.device);
        let mut tape =
            Tape::inference(device, &model.trainables).with_adapters(self.options.adapters);
        let modules = &model.modules;
        let mut pass = Pass {
            modules,
            tape: &mut tape,
        };
        let hidden = self.language.extend(&mut pass, &batch, kept);
        let table = self.language.head(modules);
        lm_logits(hidden.tensor(), table, &model.trainables).read()
    }

    /// What `choose` gives for each row of the logits, with the row's number; a profile shows it as an op.
    fn choose<T: Send>(
        &self,
        logits: &mut [f32],
        choose: impl Fn(Host, usize, &mut [f32]) -> T + Sync + Send,
    ) -> Vec<T> {
        let (device, vocab) = (&self.model.device, self.vocab());
        let host = device.host();
        let chosen = device.run_on_host("choice of tokens", || {
            let rows = logits.par_chunks_exact_mut(vocab).enumerate();
            let rows = rows.with_max_len(1);
            rows.map(|(i, row)| choose(host, i, row)).collect()
        });
        chosen.unwrap_or_default()
    }

    fn vocab(&self) -> usize {
        let table = self.language.head(&self.model.modules);
        table.shape(&self.model.trainables)[0]
    }

    /// How many tokens may follow a prompt.
    fn room(&self, prompt: &[u32]) -> usize {
        let most = self.model.max_positions().min(self.options.max_length);
        self.options.max_new_tokens.min(most - prompt.len())
    }

    /// Moves the logits away from what the model says of the sequences without their prompts. Source: transformers
    /// `UnbatchedClassifierFreeGuidanceLogitsProcessor`.
    fn guide(&mut self, last: &[&[u32]], logits: &mut [f32]) {
        let Some(mut kept) = self.without_prompts.take() else {
            return;
        };
        let mut other = self.extend(last, &mut kept);
        self.without_prompts = Some(kept);
        let (scale, vocab) = (self.options.guidance_scale, self.vocab());
        let host = self.model.device.host();
        self.model.device.run_on_host("guidance", || {
            let rows = logits.par_chunks_exact_mut(vocab);
            let others = other.par_chunks_exact_mut(vocab);
            rows.zip(others).for_each(|(row, other)| {
                // What is not finite is found later in the row itself.
                let is_finite = |x: &[f32]| scores::check_finite(host, x).is_ok();
                if !is_finite(row) || !is_finite(other) {
                    return;
                }
                host.log_softmax(row);
                host.log_softmax(other);
                for (x, without) in row.iter_mut().zip(other) {
                    *x = scale * (*x - *without) + *without;
                }
            });
        });
    }

    /// Greedy search and sampling: one token a step after each prompt that is not finished.
    fn one_by_one(
        mut self,
        prompts: &[Vec<u32>],
        on_token: &mut (dyn FnMut(usize, u32) + Send),
    ) -> Result<Vec<Generated>, ModelError> {
        let mut sequences = prompts.to_vec();
        let mut live: Vec<usize> = (0..prompts.len()).collect();
        let mut step = 0;
        while !live.is_empty() {
            let last: Vec<&[u32]> = live
                .iter()
                .map(|&i| &sequences[i][sequences[i].len() - 1..])
                .collect();
            let mut logits = match step {
                0 => self.logits(&live.iter().map(|&i| &*sequences[i]).collect::<Vec<_>>()),
                _ => self.logits(&last),
            };
            self.guide(&last, &mut logits);
            let chosen = self.choose(&mut logits, |host, place, row| {
                let i = live[place];
                self.next_token(host, &sequences[i], (&prompts[i], i, step), row)
            });
            drop(logits);
            let mut going_on = Vec::new();
            for (place, (&i, token)) in live.iter().zip(chosen).enumerate() {
                let number = self.options.first_prompt + i + 1;
                let token =
                    token.map_err(|fault| ModelError::Batch(fault.message(number, step)))?;
                sequences[i].push(token);
                on_token(i, token);
                let is_full = sequences[i].len() - prompts[i].len() >= self.room(&prompts[i]);
                if !is_full && !self.options.eos.contains(&token) {
                    going_on.push(place);
                }
            }
            self.kept.select(&going_on);
            if let Some(kept) = &mut self.without_prompts {
                kept.select(&going_on);
            }
            live = going_on.iter().map(|&place| live[place]).collect();
            step += 1;
        }
        let new = |(tokens, prompt): (Vec<u32>, &Vec<u32>)| Generated {
            tokens: tokens[prompt.len()..].to_vec(),
            score: None,
        };
        Ok(sequences.into_iter().zip(prompts).map(new).collect())
    }

    /// The token that follows, by the logits `[V]`.
    fn next_token(
        &self,
        host: Host,
        tokens: &[u32],
        (prompt, i, step): (&[u32], usize, usize),
        logits: &mut [f32],
    ) -> Result<u32, NoChoice> {
        if !self.options.remove_invalid_values {
            scores::check_finite(host, logits)?;
        }
        let at = At {
            tokens,
            prompt_len: prompt.len(),
            room: self.room(prompt),
        };
        self.rules.apply(at, logits);
        let at = (self.options.first_prompt + i, step);
        scores::choose(host, logits, &self.options.search, at)
    }
}
