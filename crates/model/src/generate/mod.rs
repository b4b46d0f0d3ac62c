//! Generation: tokens after prompts, several at a time, with kept keys and values. Equal to transformers' `generate`, token
//! by token, for greedy and beam search. It knows ids, not text.

mod beam;
mod kept;
mod scores;

use lowrank_engine::ops::lm_head::lm_logits;
use lowrank_engine::{Device, Tape, Tensor};
use lowrank_kernels::Isa;
use rayon::prelude::*;

use crate::error::ModelError;
use crate::families::LanguageModel;
use crate::model::{Batch, Model};
pub use kept::Kept;
use scores::Rules;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Search {
    /// The most probable one.
    Greedy,
    /// One drawn at random.
    Sample {
        /// Divides the logits; above 0.
        temperature: f32,
        /// Only this many of the most probable tokens; at least 1.
        top_k: Option<usize>,
        /// Only the fewest tokens whose probabilities sum to this; above 0, at most 1.
        top_p: f32,
        /// What the draws are a function of, with the prompt's number and the step.
        seed: u64,
    },
    /// The best sequence of several that are followed. Source: transformers `GenerationMixin._beam_search`.
    Beam {
        /// How many are followed; at least 1.
        beams: usize,
        /// A sequence's score is its log-probability divided by its length to this power.
        length_penalty: f64,
        /// Stop as soon as that many sequences are finished.
        early_stopping: bool,
    },
}

/// What is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generate {
    /// How the next token is chosen.
    pub search: Search,
    /// New tokens at most; fewer where the model's positions end before.
    pub max_new_tokens: usize,
    /// The tokens that end a sequence.
    pub eos: Vec<u32>,
    /// Divides positive scores of tokens that are there already, and multiplies negative ones; 1 does nothing.
    pub repetition_penalty: f32,
    /// No sequence of so many tokens stands twice; 0 allows all.
    pub no_repeat_ngram: usize,
    /// Whether adapters are switched on.
    pub adapters: bool,
    /// The number of the first prompt, where these are a part of a list: draws hang on a prompt's number.
    pub first_prompt: usize,
}

impl Default for Generate {
    fn default() -> Self {
        Generate {
            search: Search::Greedy,
            max_new_tokens: 64,
            eos: Vec::new(),
            repetition_penalty: 1.0,
            no_repeat_ngram: 0,
            adapters: true,
            first_prompt: 0,
        }
    }
}

/// What was generated after one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The new tokens, the one that ended them included.
    pub tokens: Vec<u32>,
    /// Of beam search, the sequence's score.
    pub score: Option<f64>,
}

impl Generate {
    /// Every setting that is out of range, as (name, what is expected, what was found).
    pub fn faults(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut faults = Vec::new();
        let mut require = |fits: bool, name, expected, found: String| {
            if !fits {
                faults.push((name, expected, found));
            }
        };
        let at_least_1 = "at least 1";
        let tokens = self.max_new_tokens;
        require(
            tokens >= 1,
            "max_new_tokens",
            at_least_1,
            tokens.to_string(),
        );
        let penalty = self.repetition_penalty;
        let fits = penalty.is_finite() && penalty > 0.0;
        require(fits, "repetition_penalty", "above 0", penalty.to_string());
        match self.search {
            Search::Greedy => {}
            Search::Sample {
                temperature,
                top_k,
                top_p,
                ..
            } => {
                let fits = temperature.is_finite() && temperature > 0.0;
                require(fits, "temperature", "above 0", temperature.to_string());
                require(top_k != Some(0), "top_k", at_least_1, "0".to_string());
                let fits = top_p > 0.0 && top_p <= 1.0;
                require(fits, "top_p", "above 0, at most 1", top_p.to_string());
            }
            Search::Beam {
                beams,
                length_penalty,
                ..
            } => {
                require(beams >= 1, "num_beams", at_least_1, beams.to_string());
                let fits = length_penalty.is_finite();
                require(
                    fits,
                    "length_penalty",
                    "a number",
                    length_penalty.to_string(),
                );
            }
        }
        faults
    }
}

/// The model in the middle of generating.
struct Run<'a> {
    model: &'a Model,
    language: &'a dyn LanguageModel,
    options: &'a Generate,
    kept: Kept,
}

impl Model {
    /// Goes on with each prompt. `on_token` is told the prompt's number and each new token as it comes; beam search tells
    /// nothing before its end. A prompt's tokens do not depend on the other prompts.
    ///
    /// Errors: this is no language model, a setting is out of range, a prompt is empty, holds ids outside the vocabulary
    /// or leaves no position for a new token.
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
        if let Some((name, expected, found)) = options.faults().into_iter().next() {
            return Err(ModelError::State(format!(
                "`{name}` is {found}, expected {expected}"
            )));
        }
        self.check_prompts(prompts)?;
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let run = Run {
            model: self,
            language,
            options,
            kept: Kept::new(language.num_layers(), prompts.len()),
        };
        Ok(self.device.install(|| match options.search {
            Search::Beam { .. } => run.beam_search(prompts),
            Search::Greedy | Search::Sample { .. } => run.one_by_one(prompts, on_token),
        }))
    }

    fn check_prompts(&self, prompts: &[Vec<u32>]) -> Result<(), ModelError> {
        let (most, vocab) = (self.max_positions(), self.config.facts.vocab_size);
        for (i, prompt) in prompts.iter().enumerate() {
            let fault = if prompt.is_empty() {
                "is empty: there is nothing to go on with".to_string()
            } else if prompt.len() >= most {
                format!(
                    "has {} tokens, but the model has {most} positions: none is left for a new token",
                    prompt.len()
                )
            } else if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab) {
                format!("holds token id {id}, outside the vocabulary of {vocab} tokens")
            } else {
                continue;
            };
            return Err(ModelError::Batch(format!("prompt {} {fault}", i + 1)));
        }
        Ok(())
    }
}

impl Run<'_> {
    /// The logits [n, V] after the tokens of each sequence.
    fn logits(&mut self, sequences: &[&[u32]]) -> Tensor {
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
        let hidden = self.language.extend(&mut tape, &batch, &mut self.kept);
        lm_logits(hidden.tensor(), self.language.head(), &model.trainables)
    }

    /// What `choose` gives for each row of the logits, with the row's number; a profile shows it as an op.
    fn choose<T: Send>(
        &self,
        logits: &mut Tensor,
        choose: impl Fn(Isa, usize, &mut [f32]) -> T + Sync + Send,
    ) -> Vec<T> {
        let (mut chosen, vocab) = (Vec::new(), logits.cols());
        self.model.device.exec("choice of tokens", 0, |isa| {
            let rows = logits.data_mut().par_chunks_exact_mut(vocab).enumerate();
            let rows = rows.with_max_len(1);
            chosen = rows.map(|(i, row)| choose(isa, i, row)).collect();
        });
        chosen
    }

    /// How many tokens may follow a prompt.
    fn room(&self, prompt: &[u32]) -> usize {
        let left = self.model.max_positions() - prompt.len();
        self.options.max_new_tokens.min(left)
    }

    /// Greedy search and sampling: one token a step after each prompt that is not finished.
    fn one_by_one(
        mut self,
        prompts: &[Vec<u32>],
        on_token: &mut (dyn FnMut(usize, u32) + Send),
    ) -> Vec<Generated> {
        let rules = Rules::of(self.options);
        let mut sequences = prompts.to_vec();
        let mut live: Vec<usize> = (0..prompts.len()).collect();
        let mut step = 0;
        while !live.is_empty() {
            let new: Vec<&[u32]> = live
                .iter()
                .map(|&i| {
                    let all = sequences[i].as_slice();
                    if step == 0 {
                        all
                    } else {
                        &all[all.len() - 1..]
                    }
                })
                .collect();
            let mut logits = self.logits(&new);
            let chosen = self.choose(&mut logits, |isa, place, row| {
                let i = live[place];
                rules.apply(&sequences[i], row);
                let at = (self.options.first_prompt + i, step);
                scores::choose(isa, row, &self.options.search, at)
            });
            drop(logits);
            let mut going_on = Vec::new();
            for (place, (&i, token)) in live.iter().zip(chosen).enumerate() {
                sequences[i].push(token);
                on_token(i, token);
                let is_full = sequences[i].len() - prompts[i].len() >= self.room(&prompts[i]);
                if !is_full && !self.options.eos.contains(&token) {
                    going_on.push(place);
                }
            }
            self.kept.select(&going_on);
            live = going_on.iter().map(|&place| live[place]).collect();
            step += 1;
        }
        let new = |(tokens, prompt): (Vec<u32>, &Vec<u32>)| Generated {
            tokens: tokens[prompt.len()..].to_vec(),
            score: None,
        };
        sequences.into_iter().zip(prompts).map(new).collect()
    }
}
