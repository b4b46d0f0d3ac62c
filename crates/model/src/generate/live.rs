//! One request in the middle of being answered: its sequences in the KV cache, and how its search
//! stands.

use std::sync::Arc;

use lowrank_engine::ops::cached_attention::QueryRole;
use lowrank_engine::{Host, KvCache, SequenceId};

use super::Generated;
use super::beam::{Beams, Candidate};
use super::options::{Generate, Search};
use super::rules::Rules;
use super::scores::NoChoice;
use super::session::{Request, RequestId};
use super::single::Single;
use crate::error::ModelError;

/// A request and its search.
pub(super) struct Live {
    pub(super) id: RequestId,
    request: Request,
    rules: Rules,
    /// New tokens at most.
    room: usize,
    search: Progress,
    /// The sequences that it follows. With guidance the second one lacks the prompt.
    pub(super) branches: Vec<Branch>,
}

/// One sequence in the cache.
pub(super) struct Branch {
    pub(super) sequence: SequenceId,
    /// All of its tokens.
    tokens: Vec<u32>,
    /// How many of them are in the cache.
    read: usize,
    pub(super) role: QueryRole,
}

enum Progress {
    Single(Single),
    Beams(Beams),
}

/// What a choice of tokens looks at beside the search.
#[derive(Clone, Copy)]
pub(super) struct Stand<'a> {
    pub(super) request: &'a Request,
    pub(super) rules: &'a Rules,
    /// New tokens at most.
    pub(super) room: usize,
}

/// What may follow one sequence.
pub(super) enum Choice {
    Token(u32),
    Candidates(Vec<Candidate>),
}

/// What became of a request in a step.
pub(super) enum Advance {
    /// It goes on; a search of one sequence tells the token.
    Goes(Option<u32>),
    /// Its last token, where a search of one sequence tells it, and all that was generated.
    Ends(Option<u32>, Generated),
}

impl Live {
    /// A request whose first `cached` tokens the sequence holds already.
    pub(super) fn new(
        id: RequestId,
        request: Request,
        vocab_size: usize,
        room: usize,
        sequence: SequenceId,
        cached: usize,
    ) -> Self {
        let prompt = &request.prompt;
        let search = match request.options.search {
            Search::Greedy | Search::Sample(_) => Progress::Single(Single {
                tokens: prompt.clone(),
            }),
            Search::Beam(form) => Progress::Beams(Beams::new(&request, form, room)),
        };
        let branch = Branch {
            sequence,
            tokens: prompt.clone(),
            read: cached,
            role: QueryRole::Prompt,
        };
        Live {
            id,
            rules: Rules::of(&request.options, vocab_size),
            room,
            search,
            branches: vec![branch],
            request,
        }
    }

    /// Follows the tokens from the prompt's last one on as well, in a sequence of their own.
    pub(super) fn guide_by(&mut self, sequence: SequenceId) {
        let last = self.request.prompt.len() - 1;
        self.branches.push(Branch {
            sequence,
            tokens: self.request.prompt[last..].to_vec(),
            read: 0,
            role: QueryRole::Prompt,
        });
    }

    pub(super) fn options(&self) -> &Arc<Generate> {
        &self.request.options
    }

    /// What may follow the tokens of a branch, by the logits [V] after them.
    pub(super) fn choose(
        &self,
        host: Host,
        branch: usize,
        logits: &mut [f32],
        without_prompt: Option<&mut [f32]>,
    ) -> Result<Choice, NoChoice> {
        let stand = Stand {
            request: &self.request,
            rules: &self.rules,
            room: self.room,
        };
        match &self.search {
            Progress::Single(single) => {
                (single.next_token(host, stand, logits, without_prompt)).map(Choice::Token)
            }
            Progress::Beams(beams) => {
                (beams.continuations(host, stand, branch, logits)).map(Choice::Candidates)
            }
        }
    }

    /// Takes what was chosen after each branch. Errors: nothing can be chosen.
    pub(super) fn advance(
        &mut self,
        chosen: Vec<Result<Choice, NoChoice>>,
        cache: &mut KvCache,
    ) -> Result<Advance, ModelError> {
        let (number, step) = (self.request.number + 1, self.new_tokens());
        self.take(chosen, cache)
            .map_err(|fault| ModelError::Batch(fault.message(number, step)))
    }

    fn take(
        &mut self,
        chosen: Vec<Result<Choice, NoChoice>>,
        cache: &mut KvCache,
    ) -> Result<Advance, NoChoice> {
        let chosen = chosen.into_iter().collect::<Result<Vec<_>, _>>()?;
        match &mut self.search {
            Progress::Single(single) => {
                let Some(Choice::Token(token)) = chosen.into_iter().next() else {
                    unreachable!("one sequence has one token");
                };
                single.tokens.push(token);
                for branch in &mut self.branches {
                    branch.go_on(token);
                }
                let is_full = self.new_tokens() >= self.room;
                Ok(match is_full || self.request.options.eos.contains(&token) {
                    true => Advance::Ends(Some(token), self.generated()),
                    false => Advance::Goes(Some(token)),
                })
            }
            Progress::Beams(beams) => {
                let found = chosen.into_iter().map(|choice| match choice {
                    Choice::Candidates(candidates) => candidates,
                    Choice::Token(_) => unreachable!("beams have candidates"),
                });
                let parents = beams.step(found.collect(), &self.request.options.eos)?;
                if beams.is_done() {
                    return Ok(Advance::Ends(None, self.generated()));
                }
                let lasts: Vec<u32> = beams.last_tokens().collect();
                self.follow(&parents, &lasts, cache);
                Ok(Advance::Goes(None))
            }
        }
    }

    /// Goes on with the branches of these numbers: some may end, some may be followed several
    /// times.
    fn follow(&mut self, parents: &[usize], lasts: &[u32], cache: &mut KvCache) {
        let mut unused: Vec<Option<SequenceId>> =
            (self.branches.iter().map(|branch| Some(branch.sequence))).collect();
        let follow = |(&parent, &token): (&usize, &u32)| {
            let sequence = unused[parent].take().unwrap_or_else(|| {
                let id = self.branches[parent].sequence;
                cache.fork(id, cache.len(id))
            });
            let mut branch = Branch {
                sequence,
                tokens: self.branches[parent].tokens.clone(),
                ..self.branches[parent]
            };
            branch.go_on(token);
            branch
        };
        let branches = parents.iter().zip(lasts).map(follow).collect();
        unused.into_iter().flatten().for_each(|id| cache.remove(id));
        self.branches = branches;
    }

    fn new_tokens(&self) -> usize {
        match &self.search {
            Progress::Single(single) => single.tokens.len() - self.request.prompt.len(),
            Progress::Beams(beams) => beams.new_tokens(),
        }
    }

    /// What was generated so far.
    pub(super) fn generated(&self) -> Generated {
        match &self.search {
            Progress::Single(single) => Generated {
                tokens: single.tokens[self.request.prompt.len()..].to_vec(),
                score: None,
            },
            Progress::Beams(beams) => beams.best(),
        }
    }
}

impl Branch {
    fn go_on(&mut self, token: u32) {
        self.tokens.push(token);
        self.role = QueryRole::NewToken;
    }

    /// Tokens that are not in the cache yet.
    pub(super) fn pending(&self) -> &[u32] {
        &self.tokens[self.read..]
    }

    /// All tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// So many more are in the cache.
    pub(super) fn has_read(&mut self, tokens: usize) {
        self.read += tokens;
    }

    /// Its tokens are read anew, all of them, where it has grown beyond `switch` with its last
    /// one: those in the cache are rotated as a shorter sequence's.
    pub(super) fn restart_beyond(&mut self, switch: usize, cache: &mut KvCache) {
        let is_new = self.role == QueryRole::NewToken;
        if !is_new || self.len() != switch + 1 || self.read == 0 {
            return;
        }
        cache.remove(self.sequence);
        self.sequence = cache.add();
        self.read = 0;
        self.role = QueryRole::Prompt;
    }
}
