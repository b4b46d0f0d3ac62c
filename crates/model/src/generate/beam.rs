//! Beam search: of each prompt the best continuations are followed together. Source: transformers
//! `GenerationMixin._beam_search`, whose rules of what is finished, kept and given up are followed one by one.

use lowrank_kernels::log_softmax;

use super::scores::Rules;
use super::{Generated, Run, Search};

/// A sequence and the sum of its log-probabilities, or, when finished, its score.
#[derive(Clone)]
struct Beam {
    tokens: Vec<u32>,
    score: f64,
}

/// One prompt's search.
struct Row {
    prompt_len: usize,
    /// New tokens at most.
    room: usize,
    running: Vec<Beam>,
    /// The best finished ones, the best first; at most as many as beams.
    finished: Vec<Beam>,
    is_done: bool,
}

/// A continuation: the running beam it goes on with, its token, the sum of log-probabilities.
#[derive(Clone, Copy)]
struct Candidate {
    beam: usize,
    token: u32,
    score: f64,
}

/// The form of the search.
#[derive(Clone, Copy)]
struct Form {
    beams: usize,
    length_penalty: f64,
    early_stopping: bool,
}

impl Run<'_> {
    pub(super) fn beam_search(mut self, prompts: &[Vec<u32>]) -> Vec<Generated> {
        let Search::Beam {
            beams,
            length_penalty,
            early_stopping,
        } = self.options.search
        else {
            unreachable!("called for beam search only")
        };
        let form = Form {
            beams,
            length_penalty,
            early_stopping,
        };
        let rules = Rules::of(self.options);
        // So many that enough go on even if the best of each beam ends here.
        let keep = form.beams * (1 + self.options.eos.len()).max(2);
        let mut rows: Vec<Row> = prompts
            .iter()
            .map(|prompt| Row::new(prompt, self.room(prompt)))
            .collect();
        let mut is_first = true;
        while rows.iter().any(|row| !row.is_done) {
            let live = || rows.iter().filter(|row| !row.is_done);
            let new: Vec<&[u32]> = live()
                .flat_map(|row| &row.running)
                .map(|beam| {
                    let from = if is_first { 0 } else { beam.tokens.len() - 1 };
                    &beam.tokens[from..]
                })
                .collect();
            let mut logits = self.logits(&new);
            let beams: Vec<(usize, &Beam)> = live()
                .flat_map(|row| row.running.iter().enumerate())
                .collect();
            let found = self.choose(&mut logits, |isa, place, scores| {
                let (number, beam) = beams[place];
                log_softmax(isa, scores);
                rules.apply(&beam.tokens, scores);
                best_candidates(number, beam.score, scores, keep)
            });
            drop(logits);
            let mut found = found.into_iter();
            let (mut parents, mut first) = (Vec::new(), 0);
            for row in rows.iter_mut().filter(|row| !row.is_done) {
                let count = row.running.len();
                let mut best: Vec<Candidate> = found.by_ref().take(count).flatten().collect();
                best.sort_by(|a, b| b.score.total_cmp(&a.score));
                best.truncate(keep);
                let followed = row.step(&best, form, &self.options.eos);
                if !row.is_done {
                    parents.extend(followed.iter().map(|beam| first + beam));
                }
                first += count;
            }
            self.kept.select(&parents);
            is_first = false;
        }
        rows.into_iter().map(Row::best).collect()
    }
}

impl Row {
    fn new(prompt: &[u32], room: usize) -> Self {
        let start = Beam {
            tokens: prompt.to_vec(),
            score: 0.0,
        };
        Row {
            prompt_len: prompt.len(),
            room,
            running: vec![start],
            finished: Vec::new(),
            is_done: false,
        }
    }

    /// One token more for every running beam: `best` are the best continuations of all, the best first; of equals, the earlier
    /// beam and the smaller token. Returns the beams that the new ones go on with.
    fn step(&mut self, best: &[Candidate], form: Form, eos: &[u32]) -> Vec<usize> {
        let length = self.running[0].tokens.len() - self.prompt_len + 1;
        let is_last = length >= self.room;
        let ends = |candidate: &Candidate| is_last || eos.contains(&candidate.token);
        let is_full = form.early_stopping && self.finished.len() >= form.beams;
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
        going_on.iter().map(|c| c.beam).collect()
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

    /// Whether a running beam may still become better than a finished one, as transformers guesses it: by its score now.
    fn can_improve(&self, length: usize, form: Form) -> bool {
        if self.finished.len() < form.beams {
            return true;
        }
        let worst = self.finished.last().map_or(f64::NEG_INFINITY, |b| b.score);
        let best = self.running[0].score / (length as f64).powf(form.length_penalty);
        !form.early_stopping && best > worst
    }

    fn best(self) -> Generated {
        let best = self.finished.into_iter().next();
        // Without any finished beam (every continuation was forbidden) the best running one is what there is.
        let (beam, score) = match best {
            Some(beam) => (Some(beam.tokens), Some(beam.score)),
            None => (self.running.into_iter().next().map(|b| b.tokens), None),
        };
        Generated {
            tokens: beam.map_or_else(Vec::new, |tokens| tokens[self.prompt_len..].to_vec()),
            score,
        }
    }
}

/// The best continuations of one beam by the logarithms of the tokens' probabilities `[V]`, the best first; of equals, the
/// smaller token.
fn best_candidates(beam: usize, so_far: f64, log_probs: &[f32], keep: usize) -> Vec<Candidate> {
    let mut best: Vec<Candidate> = Vec::with_capacity(keep + 1);
    for (token, score) in log_probs.iter().enumerate() {
        let score = so_far + f64::from(*score);
        let is_worse = best.len() == keep && best.last().is_none_or(|b| score <= b.score);
        if is_worse || score == f64::NEG_INFINITY {
            continue;
        }
        let place = best.partition_point(|other| other.score >= score);
        let candidate = Candidate {
            beam,
            token: token as u32,
            score,
        };
        best.insert(place, candidate);
        best.truncate(keep);
    }
    best
}
