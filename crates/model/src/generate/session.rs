//! A session: requests that join and leave between steps. A step is one pass over whatever each
//! request goes on with, prompts and new tokens mixed; what a request is answered depends on
//! nothing else in the step. It knows ids, not text.
//! Source: Yu et al. 2022, "Orca" (requests join and leave step by step); Kwon et al. 2023,
//! "PagedAttention".

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use lowrank_engine::ops::cached_attention::QueryRole;
use lowrank_engine::ops::gather::gather;
use lowrank_engine::ops::lm_head::lm_logits;
use lowrank_engine::{KvCache, SequenceId, Tape};
use rayon::prelude::*;

use super::Generated;
use super::live::{Advance, Choice, Live};
use super::options::{Generate, SettingFault};
use super::scores::NoChoice;
use crate::adapters::AdapterSlot;
use crate::error::ModelError;
use crate::families::LanguageModel;
use crate::model::Model;
use crate::pass::{CausalBatch, Continuation, LayerRange, Recompute, SharedCache};

/// Names one request of its session; a number is never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// Names a beginning that prompts share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixId(u64);

/// What is to be gone on with, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen and when they end.
    pub options: Arc<Generate>,
    /// The prompt's number in its list, from 0 on: draws hang on it and the seed, and messages name
    /// it.
    pub number: usize,
    /// A beginning of the prompt that the session holds already.
    pub prefix: Option<PrefixId>,
}

/// What became of a request in a step.
#[derive(Debug)]
pub enum Event {
    /// A new token. Beam search tells none before its end.
    Token(RequestId, u32),
    /// All that was generated; the request has left the session.
    Finished(RequestId, Generated),
    /// No token can be chosen: the model gives numbers that are not finite, or the settings forbid
    /// every token. The request has left the session.
    Failed(RequestId, ModelError),
}

/// A beginning in the cache.
struct Prefix {
    sequence: SequenceId,
    tokens: Vec<u32>,
    adapter: AdapterSlot,
}

/// Requests and the KV cache that they share.
pub struct Session<'m> {
    model: &'m Model,
    language: &'m dyn LanguageModel,
    cache: SharedCache,
    live: Vec<Live>,
    prefixes: BTreeMap<PrefixId, Prefix>,
    prefill_tokens: usize,
    next_id: u64,
}

/// A part of a step: tokens of one branch.
struct Part {
    live: usize,
    branch: usize,
    tokens: usize,
    /// Whether the logits after them are wanted: nothing of the branch is left to read.
    is_last: bool,
}

/// The logits [n, V] of some parts.
struct Logits {
    /// The request and the branch of each row.
    of: Vec<[usize; 2]>,
    rows: Vec<f32>,
}

impl Model {
    /// A session without requests.
    ///
    /// # Errors
    /// This is no language model, or its device only plans.
    pub fn session(&self) -> Result<Session<'_>, ModelError> {
        let language = self.network.language_model();
        let Some(language) = language.filter(|_| !self.device.is_dry()) else {
            return Err(ModelError::State(
                "only a language model on a device that computes generates".to_string(),
            ));
        };
        Ok(Session {
            model: self,
            language,
            cache: SharedCache::new(language.num_layers()),
            live: Vec::new(),
            prefixes: BTreeMap::new(),
            prefill_tokens: usize::MAX,
            next_id: 0,
        })
    }
}

impl Session<'_> {
    /// From now on a step reads at most so many tokens of prompts (at least one), so that a long
    /// prompt does not keep those who wait for their next token. No bit depends on it.
    pub fn limit_prefill(&mut self, tokens: usize) {
        self.prefill_tokens = tokens.max(1);
    }

    /// Requests that are not finished.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether there is nothing to go on with.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Tokens that the cache holds pages for, shared ones counted once.
    pub fn cached_tokens(&self) -> usize {
        self.cache().rows_in_use()
    }

    /// Takes a request in; the next step goes on with it.
    ///
    /// # Errors
    /// A setting is out of range or does not fit the vocabulary; the prompt is empty, holds ids
    /// outside the vocabulary or leaves no position for a new token; its adapter is not loaded; or
    /// it does not begin with its prefix, which another adapter was used for or which is gone.
    pub fn add(&mut self, request: Request) -> Result<RequestId, ModelError> {
        let vocab_size = self.model.config.facts.vocab_size;
        check_options(&request.options, vocab_size)?;
        self.model.check_prompt(&request)?;
        self.model.check_loaded(request.options.adapter)?;
        let room = self.model.room(&request);
        let (sequence, cached) = match request.prefix {
            None => (self.cache().add(), 0),
            Some(id) => self.fork(id, &request)?,
        };
        let id = RequestId(self.number());
        let is_guided = request.options.guidance_scale != 1.0;
        let mut live = Live::new(id, request, vocab_size, room, sequence, cached);
        if is_guided {
            live.guide_by(self.cache().add());
        }
        self.live.push(live);
        Ok(id)
    }

    /// Ends a request and gives what was generated so far; none where it is not there (any more).
    pub fn remove(&mut self, id: RequestId) -> Option<Generated> {
        let place = self.live.iter().position(|live| live.id == id)?;
        let live = self.live.remove(place);
        self.free(&live);
        Some(live.generated())
    }

    /// Reads a beginning that several prompts with this adapter have in common. The last token of
    /// such a prompt is not a part of it.
    ///
    /// # Errors
    /// As for a prompt.
    pub fn add_prefix(
        &mut self,
        tokens: Vec<u32>,
        adapter: AdapterSlot,
    ) -> Result<PrefixId, ModelError> {
        self.model.check_loaded(adapter)?;
        self.check_beginning(&tokens)?;
        let sequence = self.cache().add();
        self.read_prefix(sequence, &tokens, 0, adapter);
        let id = PrefixId(self.number());
        let prefix = Prefix {
            sequence,
            tokens,
            adapter,
        };
        self.prefixes.insert(id, prefix);
        Ok(id)
    }

    /// Makes a beginning that of other tokens, and reads only those from the first that differs on.
    /// Returns how many were read. No bit depends on what it was before.
    ///
    /// # Errors
    /// As for a prompt; there is no such beginning (any more).
    pub fn change_prefix(&mut self, id: PrefixId, tokens: Vec<u32>) -> Result<usize, ModelError> {
        let Some(prefix) = self.prefixes.get(&id) else {
            let gone = "a prefix is changed that the session does not hold (any more)";
            return Err(ModelError::State(gone.to_string()));
        };
        self.check_beginning(&tokens)?;
        let pairs = prefix.tokens.iter().zip(&tokens);
        let same = match self.is_long(tokens.len()) == self.is_long(prefix.tokens.len()) {
            true => pairs.take_while(|(before, now)| before == now).count(),
            // It is rotated as a sequence of another length.
            false => 0,
        };
        let (before, adapter) = (prefix.sequence, prefix.adapter);
        let sequence = self.cache().fork(before, same);
        self.cache().remove(before);
        self.read_prefix(sequence, &tokens, same, adapter);
        let read = tokens.len() - same;
        let prefix = Prefix {
            sequence,
            tokens,
            adapter,
        };
        self.prefixes.insert(id, prefix);
        Ok(read)
    }

    /// Errors where tokens are no prompt.
    fn check_beginning(&self, tokens: &[u32]) -> Result<(), ModelError> {
        self.model.check_prompt(&Request {
            prompt: tokens.to_vec(),
            options: Arc::default(),
            number: 0,
            prefix: None,
        })
    }

    /// Reads a beginning of which the sequence holds `from` tokens.
    fn read_prefix(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        from: usize,
        adapter: AdapterSlot,
    ) {
        for part in tokens[from..].chunks(self.prefill_tokens) {
            let part = Continuation {
                sequence,
                tokens: part,
                length: tokens.len(),
                role: QueryRole::Prompt,
            };
            self.pass(&[part], &[adapter], &[]);
        }
    }

    /// Whether so many tokens are beyond the length at which the model's rotations change.
    fn is_long(&self, tokens: usize) -> bool {
        let switch = self.model.modules.rotation_switch();
        switch.is_some_and(|switch| tokens > switch)
    }

    /// Forgets a beginning; requests that were taken in keep their share of it.
    pub fn remove_prefix(&mut self, id: PrefixId) {
        if let Some(prefix) = self.prefixes.remove(&id) {
            self.cache().remove(prefix.sequence);
        }
    }

    /// One token more for every request whose prompt is read: one pass for all of them. Nothing
    /// where no request is left.
    pub fn step(&mut self) -> Vec<Event> {
        self.restart_grown();
        let parts = self.schedule();
        if parts.is_empty() {
            return Vec::new();
        }
        let device = self.model.device().clone();
        device.install(|| {
            let mut logits = self.read(&parts);
            let chosen = self.choose(&mut logits);
            drop(logits);
            self.advance(chosen)
        })
    }

    /// Branches that have grown beyond the length at which a model's rotations change are read
    /// anew. Source: transformers `Phi3ForCausalLM.prepare_inputs_for_generation`.
    fn restart_grown(&mut self) {
        let Some(switch) = self.model.modules.rotation_switch() else {
            return;
        };
        let mut cache = self.cache.lock();
        for branch in self.live.iter_mut().flat_map(|live| &mut live.branches) {
            branch.restart_beyond(switch, &mut cache);
        }
    }

    /// What each request goes on with.
    fn schedule(&self) -> Vec<Part> {
        let mut left = self.prefill_tokens;
        let mut parts = Vec::new();
        for (i, live) in self.live.iter().enumerate() {
            for (branch, of) in live.branches.iter().enumerate() {
                let pending = of.pending().len();
                // Only the first branch has a prompt to speak of, and what compares branches needs
                // the logits of all at once.
                let is_prompt = of.role == QueryRole::Prompt && branch == 0;
                let tokens = if is_prompt {
                    pending.min(left)
                } else {
                    pending
                };
                if is_prompt {
                    left -= tokens;
                }
                let is_last = tokens == pending;
                if tokens > 0 {
                    parts.push(Part {
                        live: i,
                        branch,
                        tokens,
                        is_last,
                    });
                }
                if !is_last {
                    break;
                }
            }
        }
        // Neighbours of one adapter share its products.
        parts.sort_by_key(|part| self.live[part.live].options().adapter);
        parts
    }

    /// Runs the parts and takes them off what is pending; gives the logits that are wanted.
    fn read(&mut self, parts: &[Part]) -> Logits {
        let branch = |part: &Part| &self.live[part.live].branches[part.branch];
        let continuations: Vec<_> = (parts.iter())
            .map(|part| Continuation {
                sequence: branch(part).sequence,
                tokens: &branch(part).pending()[..part.tokens],
                length: branch(part).len(),
                role: branch(part).role,
            })
            .collect();
        let adapters: Vec<_> = (parts.iter())
            .map(|part| self.live[part.live].options().adapter)
            .collect();
        let rows = (0..parts.len()).filter(|&row| parts[row].is_last);
        let rows: Vec<usize> = rows.collect();
        let of = |&row: &usize| [parts[row].live, parts[row].branch];
        let logits = Logits {
            of: rows.iter().map(of).collect(),
            rows: self.pass(&continuations, &adapters, &rows),
        };
        for part in parts {
            let branch = &mut self.live[part.live].branches[part.branch];
            branch.has_read(part.tokens);
        }
        logits
    }

    /// Runs the tokens of some sequences through the model, and gives the logits [n, V] after those
    /// of the numbers `rows`.
    fn pass(
        &self,
        parts: &[Continuation<'_>],
        adapters: &[AdapterSlot],
        rows: &[usize],
    ) -> Vec<f32> {
        let model = self.model;
        let batch = CausalBatch::in_cache(&self.cache, parts);
        let adapters = model.by_slot(batch.context.offsets(), adapters);
        let adapters = adapters.expect("checked as the requests were taken in");
        model.device().install(|| {
            let tape = Tape::inference(model.device(), &model.trainables);
            let mut tape = tape.with_adapters(adapters);
            let pass = &mut model.pass(&mut tape);
            let mut hidden =
                (self.language).hidden_of(pass, &batch, LayerRange::whole(Recompute::Off));
            if rows.is_empty() {
                return Vec::new();
            }
            if rows.len() < parts.len() {
                hidden = gather(pass, &hidden, rows);
            }
            let head = self.language.head(pass);
            lm_logits(hidden.tensor(), head, &model.trainables).read()
        })
    }

    /// What may follow each branch of the requests that have all their logits, by the request's
    /// place.
    fn choose(&self, logits: &mut Logits) -> Vec<Chosen> {
        let (device, vocab) = (self.model.device(), self.model.vocab());
        let mut all: BTreeMap<usize, Vec<&mut [f32]>> = BTreeMap::new();
        let rows = logits.rows.chunks_exact_mut(vocab);
        for ([live, branch], row) in logits.of.iter().zip(rows) {
            let rows = all.entry(*live).or_default();
            // A branch is read after those before it, so that all of them are there with the last.
            if rows.len() == *branch {
                rows.push(row);
            }
        }
        all.retain(|&live, rows| rows.len() == self.live[live].branches.len());
        let host = device.host();
        let of_request = |(place, mut rows): (usize, Vec<&mut [f32]>)| {
            let live = &self.live[place];
            // With guidance, the row without the prompt follows the one with it.
            let each = if live.options().guidance_scale != 1.0 {
                2
            } else {
                1
            };
            let rows = rows.par_chunks_mut(each).with_max_len(1).enumerate();
            let choices = rows.map(|(i, rows)| {
                let [row, rest @ ..] = rows else {
                    unreachable!("no chunk is empty");
                };
                let without_prompt = rest.first_mut().map(|row| &mut **row);
                live.choose(host, each * i, row, without_prompt)
            });
            Chosen {
                live: place,
                choices: choices.collect(),
            }
        };
        let chosen = device.run_on_host("choice of tokens", || {
            all.into_par_iter().map(of_request).collect()
        });
        chosen.unwrap_or_default()
    }

    fn advance(&mut self, chosen: Vec<Chosen>) -> Vec<Event> {
        let (mut events, mut gone) = (Vec::new(), Vec::new());
        for Chosen {
            live: place,
            choices,
        } in chosen
        {
            let cache = self.cache.clone();
            let cache = &mut cache.lock();
            let live = &mut self.live[place];
            let id = live.id;
            let (token, end) = match live.advance(choices, cache) {
                Ok(Advance::Goes(token)) => (token, None),
                Ok(Advance::Ends(token, generated)) => {
                    (token, Some(Event::Finished(id, generated)))
                }
                Err(error) => (None, Some(Event::Failed(id, error))),
            };
            events.extend(token.map(|token| Event::Token(id, token)));
            if let Some(end) = end {
                events.push(end);
                gone.push(place);
            }
        }
        for place in gone.into_iter().rev() {
            let live = self.live.remove(place);
            self.free(&live);
        }
        events
    }

    fn fork(&self, id: PrefixId, request: &Request) -> Result<(SequenceId, usize), ModelError> {
        let fault = |fault: &str| {
            let number = request.number + 1;
            Err(ModelError::Batch(format!("prompt {number} {fault}")))
        };
        let Some(prefix) = self.prefixes.get(&id) else {
            return fault("has a prefix that the session does not hold (any more)");
        };
        if prefix.adapter != request.options.adapter {
            return fault("has a prefix that was read with another adapter");
        }
        let tokens = prefix.tokens.len();
        if !request.prompt.starts_with(&prefix.tokens) || request.prompt.len() == tokens {
            return fault("does not begin with its prefix, or has no token after it");
        }
        if self.is_long(request.prompt.len()) != self.is_long(tokens) {
            // The prefix is rotated as a shorter sequence.
            return Ok((self.cache().add(), 0));
        }
        Ok((self.cache().fork(prefix.sequence, tokens), tokens))
    }

    fn free(&self, live: &Live) {
        let mut cache = self.cache();
        live.branches
            .iter()
            .for_each(|branch| cache.remove(branch.sequence));
    }

    fn number(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn cache(&self) -> MutexGuard<'_, KvCache> {
        self.cache.lock()
    }
}

/// What a request goes on with, a choice after each branch that is compared.
struct Chosen {
    live: usize,
    choices: Vec<Result<Choice, NoChoice>>,
}

/// Refuses settings that are out of range or do not fit the vocabulary.
pub(super) fn check_options(options: &Generate, vocab_size: usize) -> Result<(), ModelError> {
    let mut faults = options.faults();
    faults.extend(options.misfits(vocab_size));
    if faults.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = faults.iter().map(SettingFault::to_string).collect();
    Err(ModelError::State(lines.join("\n  ")))
}
