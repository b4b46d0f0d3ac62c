//! Beam search: of each prompt the best continuations are followed together. Source: transformers
//! `GenerationMixin._beam_search`, whose rules of what is finished, kept and given up are followed
//! one by one.

use lowrank_engine::host::{Host, fill_uniform};

use super::Generated;
use super::live::Stand;
use super::options::{BeamSearch, EarlyStopping, Sampling};
use super::rules::{At, Rules};
use super::scores::{NoChoice, check_finite};
use super::session::Request;
use super::warp::warp;

/// A sequence and the sum of its log-probabilities, or, when finished, its score.
#[derive(Clone)]
struct Beam {
    tokens: Vec<u32>,
    score: f64,
}

/// One prompt's search.
pub(super) struct Beams {
    form: BeamSearch,
    /// Continuations that are looked at: so many that enough go on even if the best of each beam
    /// ends here.
    keep: usize,
    prompt_len: usize,
    /// New tokens at most.
    room: usize,
    running: Vec<Beam>,
    /// The best finished ones, the best first; at most as many as beams.
    finished: Vec<Beam>,
    is_done: bool,
}

/// A continuation: the running beam it goes on with, its token, the sum of log-probabilities, and
/// what it is chosen by, which is that sum, with noise where continuations are drawn.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    beam: usize,
    token: u32,
    score: f64,
    key: f64,
}

/// The `keep` that are chosen, the best first; of equals, the earlier beam and the smaller token.
fn best_of_all(all: Vec<Vec<Candidate>>, keep: usize) -> Vec<Candidate> {
    let mut best: Vec<Candidate> = all.into_iter().flatten().collect();
    best.sort_by(|a, b| b.key.total_cmp(&a.key));
    best.truncate(keep);
    best.sort_by(|a, b| b.score.total_cmp(&a.score));
    best
}

impl Beams {
    pub(super) fn new(request: &Request, form: BeamSearch, room: usize) -> Self {
        let start = Beam {
            tokens: request.prompt.clone(),
            score: 0.0,
        };
        let ends = (1 + request.options.eos.len()).max(2);
        Beams {
            form,
            keep: form.beams.saturating_mul(ends),
            prompt_len: request.prompt.len(),
            room,
            running: vec![start],
            finished: Vec::new(),
            is_done: false,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    pub(super) fn new_tokens(&self) -> usize {
        self.running
            .first()
            .map_or(0, |beam| beam.tokens.len() - self.prompt_len)
    }

    /// Of each running beam.
    pub(super) fn last_tokens(&self) -> impl Iterator<Item = u32> {
        self.running
            .iter()
            .map(|beam| beam.tokens[beam.tokens.len() - 1])
    }

    /// The best continuations of a running beam, or those drawn, by the logits `[V]` after it.
    pub(super) fn continuations(
        &self,
        host: Host,
        stand: Stand<'_>,
        number: usize,
        scores: &mut [f32],
    ) -> Result<Vec<Candidate>, NoChoice> {
        let (beam, sampling) = (&self.running[number], self.form.sampling);
        let at = At {
            tokens: &beam.tokens,
            prompt_len: self.prompt_len,
            room: self.room,
        };
        process(host, stand.rules, sampling, at, scores)?;
        let noise = sampling.map(|sampling| {
            let step = (self.new_tokens() as u64) << 20;
            let stream = ((stand.request.number as u64) << 40) | step | number as u64;
            let mut uniform = vec![0.0; scores.len()];
            fill_uniform(sampling.seed, stream, 0.0, 1.0, &mut uniform);
            uniform
        });
        Ok(best_candidates(
            number,
            beam.score,
            scores,
            noise.as_deref(),
            self.keep,
        ))
    }

    /// One token more for every running beam, by the best continuations of each. Returns the beams
    /// that the new ones go on with; errors if there is nothing to go on with and nothing finished.
    pub(super) fn step(
        &mut self,
        found: Vec<Vec<Candidate>>,
        eos: &[u32],
    ) -> Result<Vec<usize>, NoChoice> {
        let (best, form) = (best_of_all(found, self.keep), self.form);
        if best.is_empty() && self.finished.is_empty() {
            return Err(NoChoice::NothingLeft);
        }
        let length = self.new_tokens() + 1;
        let is_last = length >= self.room;
        let ends = |candidate: &Candidate| is_last || eos.contains(&candidate.token);
        let is_full =
            form.early_stopping == EarlyStopping::Always && self.finished.len() >= form.beams;
        for candidate in best.iter().take(form.beams).filter(|c| ends(c)) {
            if !is_full {
                let score = candidate.score / (length as f64).powf(form.length_penalty);
                self.finish(self.follow(candidate, score), form.beams);
            }
        }
        let going_on: Vec<&Candidate> = best.iter().filter(|c| !ends(c)).take(form.beams).collect();
        let running = going_on.iter().map(|c| self.follow(c, c.score)).collect();
        self.running = running;
        self.is_done = is_last || self.running.is_empty() || !self.can_improve(length, form);
        Ok(going_on.iter().map(|c| c.beam).collect())
    }

    fn follow(&self, candidate: &Candidate, score: f64) -> Beam {
        let mut tokens = self.running[candidate.beam].tokens.clone();
        tokens.push(candidate.token);
        Beam { tokens, score }
    }

    /// Keeps a finished beam if it is among the best; of equals, the earlier one stays in front.
    fn finish(&mut self, beam: Beam, most: usize) {
        let place = self
            .finished
            .partition_point(|other| other.score >= beam.score);
        self.finished.insert(place, beam);
        self.finished.truncate(most);
    }

    /// Whether a running beam may still become better than a finished one, as transformers guesses
    /// it: by its score now, or, as scores of longer sequences are divided by more, at the greatest
    /// length.
    fn can_improve(&self, length: usize, form: BeamSearch) -> bool {
        if self.finished.len() < form.beams {
            return true;
        }
        let worst = self.finished.last().map_or(f64::NEG_INFINITY, |b| b.score);
        let length = match form.early_stopping {
            EarlyStopping::Always => return false,
            EarlyStopping::Never if form.length_penalty > 0.0 => self.room,
            EarlyStopping::Never | EarlyStopping::Heuristic => length,
        };
        self.running[0].score / (length as f64).powf(form.length_penalty) > worst
    }

    /// The best finished beam so far. Without any (every continuation was forbidden, or the search
    /// goes on) the best running one is what there is.
    pub(super) fn best(&self) -> Generated {
        let best = self.finished.first();
        let beam = best.or(self.running.first());
        Generated {
            tokens: beam.map_or_else(Vec::new, |beam| beam.tokens[self.prompt_len..].to_vec()),
            score: best.map(|beam| beam.score),
        }
    }
}

/// From the logits `[V]` to what is added to a beam's score: the logarithms of the tokens'
/// probabilities, changed by the rules.
pub(super) fn process(
    host: Host,
    rules: &Rules,
    sampling: Option<Sampling>,
    at: At,
    scores: &mut [f32],
) -> Result<(), NoChoice> {
    match check_finite(host, scores) {
        Ok(()) => host.log_softmax(scores),
        // No probability is a number then.
        Err(_) if rules.remove_invalid_values() => scores.fill(f32::NAN),
        Err(fault) => return Err(fault),
    }
    rules.apply(at, scores);
    if let Some(sampling) = sampling.filter(|_| has_any(scores)) {
        // So many that a beam goes on if it could end here too.
        warp(&sampling, (rules.num_ends() + 1).max(2), scores);
    }
    if rules.renormalize_logits() && has_any(scores) {
        host.log_softmax(scores);
    }
    Ok(())
}

fn has_any(scores: &[f32]) -> bool {
    scores.iter().any(|score| *score != f32::NEG_INFINITY)
}

/// The best continuations of one beam, by its number and score so far and the logarithms of the
/// tokens' probabilities `[V]`, the best first; of equals, the smaller token. With noise, uniform
/// in [0, 1), they are drawn without taking one twice: the largest of log-probability + Gumbel
/// noise are such a draw (Kool et al. 2019).
fn best_candidates(
    beam: usize,
    so_far: f64,
    log_probs: &[f32],
    noise: Option<&[f32]>,
    keep: usize,
) -> Vec<Candidate> {
    let keep = keep.min(log_probs.len());
    let mut best: Vec<Candidate> = Vec::with_capacity(keep + 1);
    for (token, score) in log_probs.iter().enumerate() {
        let score = so_far + f64::from(*score);
        if score == f64::NEG_INFINITY {
            continue;
        }
        let key = match noise {
            None => score,
            Some(uniform) => score - (-f64::from(uniform[token]).ln()).ln(),
        };
        let is_worse = best.len() == keep && best.last().is_none_or(|b| key <= b.key);
        if is_worse {
            continue;
        }
        let place = best.partition_point(|other| other.key >= key);
        let candidate = Candidate {
            beam,
            token: token as u32,
            score,
            key,
        };
        best.insert(place, candidate);
        best.truncate(keep);
    }
    best
}
